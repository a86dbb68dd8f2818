"""`keystone eval`."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from csf_store import Session, Value, json_option, pass_session, progress_bar
from keystone.cli.keys import passphrase_options
from keystone.cli.options import sandbox_option
from keystone.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from keystone.evaluation.extraction import Style
    from keystone.evaluation.journal import Line
    from keystone.evaluation.recording import Recorded
    from keystone.evaluation.running import Settings
    from keystone.evaluation.suites import Suite
    from keystone.evaluation.workers import PooledSandbox
    from keystone.loader import LoadedModel
    from keystone.quantize import Quantization
    from manifests import Score

_SAMPLING_TEMPERATURE = 0.8
_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)


def _numbers(context: click.Context, option: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 1,10", context, option)
    return found


@click.command("eval")
@click.argument("target", metavar="[MANIFEST|REF]", required=False)
@click.option("--suite", "suite_name", required=True, metavar="NAME|FILE", help="basics, humaneval, or a .jsonl file.")
@click.option("--n", "samples", default=1, show_default=True, type=click.IntRange(1), help="Answers drawn per item.")
@click.option("--k", "ks", default="1", show_default=True, callback=_numbers, help="For which k to give pass@k: 1,10.")
@click.option("--temperature", type=click.FloatRange(0), help="Default: 0 (greedy) for one answer, 0.8 for several.")
@click.option(
    "--top-p", default=1.0, show_default=True, type=click.FloatRange(0, 1, min_open=True), help="Nucleus size."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the sampling.")
@click.option("--limit", type=click.IntRange(1), help="The first so many items only; a suite of its own in the record.")
@click.option("--style", type=click.Choice(["completion", "chat"]), default="completion", show_default=True)
@click.option("--max-new-tokens", default=512, show_default=True, type=click.IntRange(1), help="The most per answer.")
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1), help="Answers decoded together.")
@sandbox_option
@click.option("--quantize", "quantization", type=click.Choice(["none", "int8", "nf4"]), help="As for `keystone load`.")
@click.option("--device", help="cpu, cuda, cuda:1 ... Default: the first CUDA card, else the CPU.")
@click.option("--canonical", is_flag=True, help="Run the suite's own solutions instead: proves harness and sandbox.")
@click.option("--no-record", is_flag=True, help="Print the score and store nothing.")
@click.option(
    "--against", "opponents", multiple=True, metavar="REF|URL#MODEL", help="An opponent, asked the same; repeatable."
)
@click.option("--margin", default=0.05, show_default=True, type=_SHARE, help="The largest fall that counts as none.")
@click.option("--alpha", default=0.05, show_default=True, type=_SHARE, help="Chance of a wrong word, over all looks.")
@click.option("--timeout", default=300.0, show_default=True, type=click.FloatRange(1), help="For an endpoint's answer.")
@click.option("--key", help="Sign head-to-head reports with this key of `keystone key list`.")
@passphrase_options
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where unfinished evaluations wait. Default: keystone/evaluations in your state directory.",
)
@json_option
@pass_session
def eval_command(  # noqa: PLR0917 - click passes by name
    session: Session,
    target: str | None,
    suite_name: str,
    samples: int,
    ks: tuple[int, ...],
    temperature: float | None,
    top_p: float,
    seed: int,
    limit: int | None,
    style: "Style",
    max_new_tokens: int,
    batch_size: int,
    sandbox_name: str,
    quantization: "Quantization | None",
    device: str | None,
    canonical: bool,  # noqa: FBT001
    no_record: bool,  # noqa: FBT001
    opponents: tuple[str, ...],
    margin: float,
    alpha: float,
    timeout: float,
    key: str | None,
    keys: Path | None,
    passphrase_file: Path | None,
    state: Path | None,
) -> None:
    """Measure a manifest on a suite, by executing what it writes in a sandbox.

    The score is stored as a report, bound to what was measured, and a new manifest carries it; no ref moves. Killed and
    started again with the same settings, it goes on where it was. The last line is the new manifest.

    With --canonical no model is loaded: the suite's own solutions are run, and each once more with its function
    replaced by one that returns nothing. Exits with 1 when a solution does not pass, or a broken one does.

    With --against, an opponent is asked the same items under the same settings, and a paired test gives a verdict:
    IMPROVED, NON-INFERIOR, REGRESSED (exit code 1) or UNDERPOWERED. The report of it, signed, is what lets a model
    lead; see `keystone models verify`. Either side may be a manifest, a ref, or a model of another engine, URL#MODEL.

    \b
    Examples:
      keystone eval --suite humaneval --canonical
      keystone eval nano --suite basics
      keystone eval nano --suite humaneval --n 20 --k 1,10 --temperature 0.8 --seed 7
      keystone eval prod --suite heldout.jsonl --no-record --json
      keystone eval prod --suite humaneval --against http://127.0.0.1:11434#coder:7b --key alice
    """  # noqa: D301 - \b is for click
    if canonical == (target is not None):
        raise click.UsageError("give a manifest to measure, or --canonical, and not both")
    from keystone.evaluation.suites import load_suite  # noqa: PLC0415

    suite = load_suite(suite_name, limit=limit)
    if target is None:
        _canonical(session, suite, sandbox_name)
        return
    from keystone.evaluation.recording import check_ks  # noqa: PLC0415 - torch and transformers
    from keystone.evaluation.running import Settings  # noqa: PLC0415

    if temperature is None:
        temperature = 0.0 if samples == 1 else _SAMPLING_TEMPERATURE
    settings = Settings(samples, temperature, top_p, seed, batch_size, max_new_tokens, style)
    settings.check()
    check_ks(suite, settings, ks)
    quiet_libraries()
    if opponents:
        from keystone.cli.contesting import LOST, Contest, run_contest  # noqa: PLC0415 - as above
        from keystone.cli.keys import unlock  # noqa: PLC0415

        contest = Contest(
            target,
            opponents,
            suite,
            settings,
            quantization,
            device,
            not no_record,
            state or _state_folder(),
            margin,
            alpha,
            timeout,
            unlock(keys, key, passphrase_file) if key is not None else None,
        )
        suite.code_items  # noqa: B018 - texts are refused before anything is opened
        with _sandbox_for(suite, sandbox_name) as sandbox:
            if sandbox is not None and not run_contest(session, contest, sandbox):
                click.get_current_context().exit(LOST)
        return
    with _sandbox_for(suite, sandbox_name) as sandbox:
        _evaluate(session, _Asked(target, suite, settings, ks, quantization, device, not no_record, state), sandbox)


@dataclass(frozen=True)
class _Asked:
    target: str
    suite: "Suite"
    settings: "Settings"
    ks: tuple[int, ...]
    quantization: "Quantization | None"
    device: str | None
    record: bool
    state: Path | None


@contextlib.contextmanager
def _sandbox_for(suite: "Suite", name: str) -> "Iterator[PooledSandbox | None]":
    """Opened before the model is: where it cannot be had, nobody waits for a load. Texts are not executed."""
    if suite.kind == "text":
        yield None
        return
    from keystone.evaluation.opening import open_sandbox  # noqa: PLC0415

    with open_sandbox(name) as sandbox:
        yield sandbox


def _evaluate(session: Session, asked: _Asked, sandbox: "PooledSandbox | None") -> None:
    from keystone.evaluation.journal import Journal  # noqa: PLC0415
    from keystone.evaluation.recording import record, scores  # noqa: PLC0415
    from keystone.evaluation.running import evaluate, journal_key  # noqa: PLC0415
    from keystone.loader import load, planned_bytes  # noqa: PLC0415
    from manifests import Repository  # noqa: PLC0415

    suite, settings = asked.suite, asked.settings
    name = sandbox.name if sandbox is not None else "none"
    total = len(suite.items) * (settings.samples if suite.kind == "code" else 1)
    with session.open() as archive:
        options = {"quantization": asked.quantization, "device": asked.device}
        with progress_bar(session, "load", planned_bytes(archive, asked.target, **options)) as progress:  # type: ignore[arg-type]
            loaded = load(asked.target, archive=archive, progress=progress, **options)  # type: ignore[arg-type]
        for note in loaded.notes:
            session.note(note)
        with Journal(asked.state or _state_folder(), journal_key(loaded, suite, settings, name)) as journal:
            if journal.lines:
                session.note(f"going on after {len(journal.lines)} of {total}, from {journal.path}")
            with progress_bar(session, suite.name, total, unit="objects") as progress:
                results = evaluate(loaded, suite, settings, sandbox=sandbox, journal=journal, progress=progress)
            measured = scores(suite, settings, results, asked.ks)
            _show(session, loaded, measured, results)
            if asked.record:
                kept = record(
                    Repository(archive), loaded, suite, settings, results=results, measured=measured, sandbox=name
                )
                _show_record(session, kept)
            journal.remove()


def _show(session: Session, loaded: "LoadedModel", measured: "tuple[Score, ...]", results: "list[Line]") -> None:
    verdicts: dict[str, int] = {}
    for line in results:
        if "verdict" in line:
            verdicts[str(line["verdict"])] = verdicts.get(str(line["verdict"]), 0) + 1
    for score in measured:
        interval = score.interval
        fields: dict[str, Value] = {
            "suite": score.suite,
            "suite_digest": str(score.suite_digest),
            "metric": score.metric,
            "n": score.n,
            "passed": score.passed,
            "score": score.score,
            "low": interval.low if interval else None,
            "high": interval.high if interval else None,
            "method": interval.method if interval else None,
            "verdicts": verdicts,
            "assembly": str(loaded.manifest.assembly.digest),
            "recipe": str(loaded.recipe.digest),
        }
        count = f"{score.passed} of {score.n}" if score.passed is not None else f"{score.n} items"
        around = f"   95 % {interval.low:.4f} .. {interval.high:.4f} ({interval.method})" if interval else ""
        session.item(fields, f"{score.suite} {score.metric}   {score.score:.4f}   {count}{around}")
    if verdicts:
        session.note("answers: " + ", ".join(f"{count} {name}" for name, count in sorted(verdicts.items())))


def _show_record(session: Session, kept: "Recorded") -> None:
    reports: list[Value] = [str(summary.report) for summary in kept.summaries]
    fields: dict[str, Value] = {
        "manifest": str(kept.manifest),
        "reports": reports,
        "items": [str(items) for items in kept.items],
    }
    lines = [*(f"report    {report}" for report in reports), f"manifest  {kept.manifest}"]
    session.item(fields, "\n".join(lines))


def _canonical(session: Session, suite: "Suite", sandbox_name: str) -> None:
    from keystone.evaluation.canonical import run_canonical  # noqa: PLC0415
    from keystone.evaluation.opening import open_sandbox  # noqa: PLC0415

    with open_sandbox(sandbox_name) as sandbox:
        result = run_canonical(suite, sandbox)
    for item, judged in result.failed:
        fields: dict[str, Value] = {"name": item.name, "verdict": str(judged.verdict), "detail": judged.detail}
        session.item(fields, _shown(f"{item.name}: {judged.verdict}: {judged.detail}"))
    for item in result.broken_passed:
        broken: dict[str, Value] = {"name": item.name, "verdict": "cannot tell", "detail": "returning nothing passes"}
        session.item(broken, _shown(f"{item.name}: its tests are satisfied by a function that returns nothing"))
    summary: dict[str, Value] = {
        "suite": suite.name,
        "suite_digest": str(suite.digest),
        "n": result.n,
        "passed": result.passed,
        "pass_at_1": result.passed / result.n,
        "broken_passed": len(result.broken_passed),
        "sandbox": sandbox_name,
        "seconds": round(result.seconds, 3),
    }
    text = f"{suite.name}: {result.passed} of {result.n} of its own solutions pass in {result.seconds:.2f} s; "
    session.item(summary, text + f"{len(result.broken_passed)} of {result.n} broken ones do")
    if result.failed or result.broken_passed:
        click.get_current_context().exit(1)


def _shown(text: str) -> str:
    """A suite's file may come from anywhere; what would control the terminal does not get there."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _state_folder() -> Path:
    from platformdirs import user_state_path  # noqa: PLC0415 - not needed for --help

    return user_state_path("keystone") / "evaluations"
