"""The page in a real browser: by keyboard alone, in light and dark, on a phone, with hostile words in the archive.

Skipped where there is no Chromium. `KEYSTONE_SCREENSHOTS=keystone/serve/page/screenshots pytest ...` makes the pictures
of the README anew.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from browser import Browser, chromium, find_chromium
from page_lab import HOSTILE, Told, fill

from csf_store import Archive
from keystone.serve.app import make_app
from keystone.serve.host import Host
from keystone.serve.page import PageSettings
from keystone.serve.running import background
from manifests import Repository

PROGRAM = find_chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here; `apt-get install chromium` brings it")
LARGEST_PICTURE = 150_000

# Every visible text against what lies behind it, by WCAG's formula; what is greyed out is exempt there as well.
CONTRAST = """
(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (text) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((part) => part / 255)
    .map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] > 250) return colour;
    }
    return [255, 255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.closest(":disabled, .unseen, .skip, svg, noscript")) continue;
    const [front, back] = [light(rgba(getComputedStyle(element).color)), light(behind(element))];
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    if (ratio < 4.5) found.push(`${walker.currentNode.data.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return found;
})()
"""

# What an accessibility checker asks first.
BASICS = """
(() => {
  const found = [];
  const all = (selector) => [...document.querySelectorAll(selector)];
  const name = (element) => element.getAttribute("aria-label") || element.textContent.trim()
    || all(`label[for="${element.id}"]`).map((label) => label.textContent.trim()).join("")
    || element.closest("label")?.textContent.trim() || element.title;
  for (const each of all("button, input, a, summary")) if (!name(each)) found.push(`no name: ${each.outerHTML}`);
  for (const each of all("[tabindex]")) if (each.tabIndex > 0) found.push(`tab order forced: ${each.outerHTML}`);
  const ids = all("[id]").map((element) => element.id);
  if (new Set(ids).size !== ids.length) found.push("an id twice");
  for (const element of all("[aria-labelledby]")) {
    const named = document.getElementById(element.getAttribute("aria-labelledby"));
    if (!named) found.push(`named by nothing: ${element.id}`);
  }
  for (const drawing of all("svg:not([aria-hidden=true])")) {
    if (!drawing.getAttribute("aria-label")) found.push("a drawing without words");
  }
  if (document.documentElement.lang !== "en") found.push("no language");
  if (all("main").length !== 1 || all("h1").length !== 1) found.push("not one main part with one heading");
  for (const table of all("table")) if (!table.querySelector("th[scope=col]")) found.push("a table without heads");
  return found;
})()
"""


@dataclass
class Scene:
    """A browser in front of a server on an archive with a story."""

    browser: Browser
    url: str
    archive: Archive
    told: Told

    def open(self, ref: str = "prod", **view: object) -> Browser:
        self.browser.open(f"{self.url}/ui#{ref}", **view)
        self.browser.wait("document.querySelector('.lineage svg') && document.querySelector('#tripwire ~ *')")
        return self.browser

    def target(self, ref: str) -> object:
        return Repository(self.archive).refs.get(ref)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Told]:
    folder = tmp_path_factory.mktemp("told")
    with Archive.create(folder / "archive") as archive:
        return folder / "archive", fill(archive, folder)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with chromium(PROGRAM, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def scene(told: tuple[Path, Told], browser: Browser, tmp_path: Path) -> Iterator[Scene]:
    path = Path(shutil.copytree(told[0], tmp_path / "model-archive"))
    with Archive.open(path) as archive:
        app = make_app(Host(archive, device=torch.device("cpu")), page=PageSettings("operator", tmp_path / "memory"))
        with background(app) as url:
            yield Scene(browser, url, archive, told[1])
            browser.call("Page.navigate", url="about:blank")  # it keeps its connections open otherwise


def keep(browser: Browser, name: str, picture: bytes) -> None:
    """Write a picture for the README, when pictures are asked for."""
    if folder := os.environ.get("KEYSTONE_SCREENSHOTS"):
        data = browser.smaller(picture)
        assert len(data) < LARGEST_PICTURE, name
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / f"{name}.png").write_bytes(data)


def focused(browser: Browser) -> str:
    return str(
        browser.ask(
            "document.activeElement.dataset.key || document.activeElement.id || document.activeElement.className"
        )
    )


def test_everything_can_be_done_by_keyboard(scene: Scene) -> None:
    browser = scene.open()
    seen = []
    for _ in range(12):
        browser.press("Tab")
        seen.append(focused(browser))
        assert browser.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid", seen
        if seen[-1] == "rollback":
            break
    order = ["skip", "ref base", "ref canary", "ref experiments/merge", "ref prod", "audit", "rollback"]
    assert seen == order
    browser.press("Enter")
    assert browser.ask("document.getElementById('rollback').open")
    assert focused(browser) == "rollback-cancel"
    browser.press("Escape")
    assert not browser.ask("document.getElementById('rollback').open")
    assert focused(browser) == "rollback"
    browser.press("Enter")
    browser.press("Tab", shift=True)
    assert focused(browser) == "rollback-name"
    assert browser.ask("document.getElementById('rollback-go').disabled")
    browser.type("prod")
    assert not browser.ask("document.getElementById('rollback-go').disabled")
    assert scene.target("prod") == scene.told.second
    browser.press("Enter")
    browser.wait(f"document.querySelector('.address').textContent.includes('{scene.told.first}')")
    assert not browser.ask("document.getElementById('rollback').open")
    assert focused(browser) == "rollback"
    assert scene.target("prod") == scene.told.first
    assert "is at" in str(browser.ask("document.getElementById('said').textContent"))


def test_the_focus_stays_in_the_dialog_and_where_it_was_when_news_come(scene: Scene) -> None:
    browser = scene.open("canary")
    browser.ask("document.querySelector('[data-key=rollback]').focus()")
    browser.press("Enter")
    for _ in range(8):
        browser.press("Tab")
        inside = browser.ask("document.getElementById('rollback').contains(document.activeElement)")
        assert inside or browser.ask("document.activeElement === document.body")  # the browser's own controls between
    # The page may be drawn anew behind the dialog, and the button that opened it is another one then.
    browser.ask(
        "document.querySelector('[data-key=rollback]').dataset.old = 'yes', dispatchEvent(new Event('hashchange'))"
    )
    browser.wait("!document.querySelector('[data-old]')")
    browser.press("Escape")
    browser.wait("document.activeElement.dataset.key === 'rollback'")
    refs = Repository(scene.archive).refs
    refs.set("base", scene.told.first, expected=scene.told.bare, reason="news")
    browser.wait("document.getElementById('story').textContent.includes('news')")
    assert focused(browser) == "rollback"


def test_hostile_words_stay_words_and_nobody_else_is_asked(scene: Scene) -> None:
    Repository(scene.archive).refs.set("canary", scene.told.first, expected=scene.told.bad, reason=HOSTILE)
    browser = scene.open("canary")
    assert HOSTILE in str(browser.ask("document.getElementById('subject').textContent"))
    assert browser.ask("document.title") == "canary · Keystone"
    assert browser.ask("document.querySelectorAll('img, iframe, object, embed').length") == 0
    asked = {event["request"]["url"] for event in browser.heard("Network.requestWillBeSent")}
    assert {url for url in asked if url.startswith("http") and "/ui" not in url} == set()
    assert [event["entry"]["text"] for event in browser.heard("Log.entryAdded")] == []
    assert browser.heard("Runtime.exceptionThrown") == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_reads_well_and_its_picture_is_taken(scene: Scene, dark: bool) -> None:
    browser = scene.open(dark=dark, width=1280, height=820)
    assert browser.ask("getComputedStyle(document.documentElement).backgroundColor") == (
        "rgb(17, 19, 21)" if dark else "rgb(250, 250, 248)"
    )
    assert browser.ask(CONTRAST) == []
    assert browser.ask(BASICS) == []
    name = "dark" if dark else "light"
    pictures = {name: browser.shot()}
    browser.ask("document.querySelector('[data-key=rollback]').click()")
    assert browser.ask(CONTRAST) == []
    if not dark:
        pictures["rollback"] = browser.shot()
    browser.press("Escape")
    browser.ask("document.querySelector('[data-key=audit]').click()")
    browser.wait("document.querySelector('.findings li')")
    assert browser.ask(CONTRAST) == []
    assert "FAIL" not in str(browser.ask("document.querySelector('.findings').innerText"))
    for each, data in pictures.items():
        assert data.startswith(b"\x89PNG"), each
        keep(browser, each, data)


def test_a_phone_shows_it_without_scrolling_sideways(scene: Scene) -> None:
    browser = scene.open(width=390, height=844)
    browser.ask("document.querySelector('[data-key=audit]').click()")
    browser.wait("document.querySelector('.findings li')")
    assert browser.ask("document.documentElement.scrollWidth") == 390
    heights = "[...document.querySelectorAll('nav button, .title button')].map((each) => each.offsetHeight)"
    assert min(browser.ask(heights)) >= 24
    browser.ask("scrollTo(0, 0); document.getElementById('said').textContent = ''")
    keep(browser, "phone", browser.shot())


def test_a_token_is_asked_for_once_and_a_wrong_one_again(
    told: tuple[Path, Told], browser: Browser, tmp_path: Path
) -> None:
    from keystone.serve.tokens import BearerTokens  # noqa: PLC0415 - this test alone

    tokens = BearerTokens({})
    token = tokens.issue("operator")
    with Archive.open(shutil.copytree(told[0], tmp_path / "archive")) as archive:
        app = make_app(Host(archive, device=torch.device("cpu")), tokens=tokens)
        with background(app) as url:
            browser.open(f"{url}/ui")
            browser.wait("document.getElementById('token')?.open")
            assert not browser.ask("document.querySelector('#refs li')")
            for typed in ("wrong", token):
                browser.wait("document.getElementById('token').open")
                browser.type(typed)
                browser.press("Enter")
            browser.wait("document.querySelector('#refs li')")
            assert browser.ask("document.getElementById('rights').checkVisibility()")
            browser.call("Page.navigate", url="about:blank")
