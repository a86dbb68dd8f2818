"""The report: the story in words, and a page that needs nothing, runs nothing, and opens in a browser."""

import base64
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import cycle_lab
import pytest
from cycle_lab import FakeHands, new_archive, run_once, runner

from csf_store import Archive
from keystone.cycle.page import page
from keystone.cycle.steps import CycleLog
from keystone.cycle.telling import Chapter, chapters, lines_of
from manifests import Repository

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Chapter, ...]:
    """Three cycles: improved and promoted by hand, collapsed, refused."""
    place = tmp_path_factory.mktemp("page")
    new_archive(place / "archive")
    first = run_once(place / "archive", place / "state")
    with Archive.open(place / "archive") as archive:
        repository = Repository(archive)
        target = first.digest("finished", "manifest")
        repository.refs.set("prod", target, expected=repository.refs.get("prod"), reason="<b>by hand</b>")
    run_once(place / "archive", place / "state", rate=-0.3, shorter=0.5)
    run_once(place / "archive", place / "state", refuses=True)
    with Archive.open(place / "archive") as archive:
        return chapters(Repository(archive), "prod")


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def test_the_story_says_what_tripped_and_why(told: tuple[Chapter, ...]) -> None:
    assert [chapter.outcome for chapter in told] == ["IMPROVED", "REGRESSED", "REFUSED"]
    assert [chapter.promoted for chapter in told] == [True, False, False]
    assert [chapter.gain.shown for chapter in told if chapter.gain is not None] == [True, False]
    text = "\n".join(line for chapter in told for line in lines_of(chapter))
    assert "against the base, all cycles together: IMPROVED (+" in text
    assert "tripped: signals, against the base: distinct-2 went from" in text
    assert "tripped: fresh, against the base" in text
    assert "it is from a hold-out" in text
    assert re.search(r"fresh draw +candidate +\d+\.\d% \(", text)


def test_the_page_stands_alone_and_runs_nothing(told: tuple[Chapter, ...]) -> None:
    html = page("prod", told)
    parser = Tags()
    parser.feed(html)
    tags = {tag for tag, _ in parser.seen}
    assert "script" not in tags and "link" not in tags and "img" not in tags
    assert not [attrs for _, attrs in parser.seen if {"src", "href", "onclick", "onload"} & attrs.keys()]
    assert "http" not in html.replace('http-equiv="Content-Security-Policy"', "")
    assert html.count("<svg") >= 4
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html
    for chapter in told:
        assert chapter.cycle.name in html and chapter.outcome in html


def test_what_others_wrote_is_shown_and_not_obeyed(told: tuple[Chapter, ...]) -> None:
    html = page("<script>alert(1)</script>", told)
    assert "<script" not in html


def test_an_archive_without_a_finished_cycle_has_a_page_too(tmp_path: Path) -> None:
    new_archive(tmp_path / "archive")
    with Archive.open(tmp_path / "archive") as archive:
        machine = runner(archive, tmp_path / "state", FakeHands(Repository(archive)))

        def stop(done: str) -> None:
            raise cycle_lab.Killed

        machine.after = stop
        with pytest.raises(cycle_lab.Killed):
            machine.run("prod")
        assert CycleLog(archive).cycles("prod")
        html = page("prod", chapters(Repository(archive), "prod"))
    assert "unfinished" in html and "No candidate was measured yet" in html


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium here; Debian's package `chromium` brings one")
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1100, "light")])
def test_a_browser_draws_it_on_a_phone_and_on_a_desk(
    told: tuple[Chapter, ...], tmp_path: Path, width: int, scheme: str
) -> None:
    path, shot = tmp_path / "cycles.html", tmp_path / "shot.png"
    path.write_text(page("prod", told), encoding="utf-8")
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=500"),
        *(f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},1600", f"--screenshot={shot}"),
        *(["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []),
        path.as_uri(),
    ]
    ran = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert ran.returncode == 0 and shot.exists(), ran.stderr.decode()[-500:]
    header = shot.read_bytes()[:24]
    assert header[:8] == base64.b64decode("iVBORw0KGgo=")
    assert int.from_bytes(header[16:20], "big") == width
    assert shot.stat().st_size > 20_000, "the page is drawn, not blank"
