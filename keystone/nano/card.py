"""Write the model card of keystone-nano from what can be measured: `python -m keystone.nano.card`.

No number in the card is typed in. Parameters come from the weights, steps and tokens from the training log, bits per
byte and pass rates from a measurement made here and now.
"""

import json
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from safetensors import safe_open

from csf_store import Archive
from keystone.cli.quiet import quiet_libraries
from keystone.evaluation import ProcessSandbox, Side, SuiteResult
from keystone.evaluation.basics import TASK_SUITE_VERSION, draw_held_out, families, frozen_split
from keystone.evaluation.measuring import bits_per_byte, pass_rate
from keystone.loader import load
from keystone.nano.corpus import corpus_digest, stdlib_documents
from keystone.nano.embedded import DATA, import_nano

CARD = Path(__file__).parent / "MODEL_CARD.md"
TRAINING = DATA / "training.json"
SEED = 11

TEMPLATE = """---
license: apache-2.0
language: [code]
library_name: transformers
pipeline_tag: text-generation
tags: [keystone, parallel-loop-transformer, python]
---

# keystone-nano

The base that ships with Keystone: a two-loop Parallel Loop Transformer of {parameters:,} parameters, trained from
scratch by `keystone/nano/train.py`. It exists so that everything this project does can be done, and tested, on a real
model in seconds. It is not a coding assistant.

| | |
|---|---|
| architecture | hidden 256, 6 layers, 4 heads (2 key/value), 2 loops, window 64, hidden-state gate, tied embeddings |
| parameters | {parameters:,}, bf16 |
| tokenizer | byte-level BPE, 4096 tokens, made by `keystone/nano/tokenizer.py` |
| context | trained on rows of 256 tokens |
| licence | Apache-2.0 |

## Training

| | |
|---|---|
| steps | {steps:,} of {rows} rows of 256 tokens |
| tokens | {tokens:,}: {exercise_tokens:,} of exercises, {library_tokens:,} of library source |
| time | {minutes:.0f} minutes on 2 CPU cores shared with other work |
| loss | {first_loss:.2f} over the first 20 steps, {last_loss:.2f} over the last {averaged} |
| recipe | Muon for matrices (rate {muon_rate}), AdamW for the rest (rate {adam_rate}), seed {seed} |

Data:

- source files of the Python standard library (PSF-2.0 licence), {library_files} files of Python {python}, digest
  `{library_digest}`. One file in twenty is held out.
- generated exercises, Apache-2.0, from the training side of the task suite `basics` (version {suite_version}, frozen
  draw `{suite_digest}`). The split was committed before training; no held-out task is in the training text, compared as
  normalised syntax trees.

## Measured

On text and tasks that it was not trained on, greedy, bf16:

| | |
|---|---|
| bits per byte, held-out library source | {bits:.3f} ({text_bytes:,} bytes) |
| pass@1, held-out draws of seen families | {seen} |
| pass@1, families never seen in training | {unseen} |

The aim was a pass rate between a quarter and three quarters on both, so that learning and collapse can both be seen:
{aim}

By family (passed of tasks):

{table}

## What it cannot do

It completes small Python functions in the style of its exercises, and text that looks like library source. It does not
follow instructions, hold a conversation, know facts, or write programs. Beyond a few hundred tokens of context its
quality is unknown. Its output must be executed in a sandbox, or not at all.
"""


def numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the training log says."""
    recipe, log, kinds = record["recipe"], record["log"], record["tokens_of_kind"]
    averaged = min(10, len(log))
    return {
        "steps": log[-1]["step"],
        "rows": recipe["rows"],
        "tokens": log[-1]["tokens"],
        "exercise_tokens": kinds["exercises"],
        "library_tokens": kinds["library"],
        "minutes": log[-1]["minutes"],
        "first_loss": log[0]["loss"],
        "last_loss": sum(entry["loss"] for entry in log[-averaged:]) / averaged,
        "averaged": 20 * averaged,
        "muon_rate": recipe["muon_rate"],
        "adam_rate": recipe["adam_rate"],
        "seed": recipe["seed"],
    }


def parameter_count() -> int:
    """Parameters in the shipped weights."""
    with safe_open(DATA / "base" / "model.safetensors", "pt") as file:
        total = 0
        for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
            size = 1
            for length in file.get_slice(name).get_shape():
                size *= length
            total += size
        return total


def rate(result: SuiteResult, side: Side) -> str:
    """A pass rate with its interval."""
    found = result.by_side[side]
    return f"{found.value:.1%} ({found.passed} of {found.total}; 95 % {found.low:.1%} to {found.high:.1%})"


def verdict(result: SuiteResult) -> str:
    """Whether the aim was met, side by side."""
    said = []
    for side, name in ((Side.SEEN_FAMILY, "seen families"), (Side.UNSEEN_FAMILY, "unseen families")):
        value = result.by_side[side].value
        met = "inside" if 0.25 <= value <= 0.75 else ("below" if value < 0.25 else "above")
        said.append(f"{name} at {value:.0%} are {met} it")
    return "; ".join(said) + "."


def family_table(result: SuiteResult) -> str:
    """One line per family, unseen ones marked."""
    rows = ["| family | passed | seen in training |", "|---|---|---|"]
    for name, found in sorted(result.by_family.items()):
        rows.append(f"| {name} | {found.passed} of {found.total} | {'no' if families()[name].held_out else 'yes'} |")
    return "\n".join(rows)


@click.command()
@click.option(
    "--tasks", default=1000, show_default=True, help="Held-out tasks to solve, half of them of unseen families."
)
def main(tasks: int) -> None:
    """Measure the shipped base and write its card."""
    quiet_libraries()
    library = list(stdlib_documents("train"))
    texts = [document.text for document in stdlib_documents("held-out")]
    drawn = draw_held_out(tasks // 2, SEED, families="seen") + draw_held_out(tasks // 2, SEED, families="held-out")
    with tempfile.TemporaryDirectory() as folder, Archive.create(Path(folder) / "archive") as archive:
        loaded = load(import_nano(archive), archive=archive, quantization="none")
    bits = bits_per_byte(loaded.model, loaded.tokenizer, texts)
    with ProcessSandbox() as sandbox, click.progressbar(length=len(drawn), label="solving") as bar:
        result = pass_rate(loaded, drawn, sandbox, progress=bar.update)
    CARD.write_text(
        TEMPLATE.format(
            **numbers(json.loads(TRAINING.read_text())),
            parameters=parameter_count(),
            library_files=len(library),
            library_digest=corpus_digest(library),
            python=platform.python_version(),
            suite_version=TASK_SUITE_VERSION,
            suite_digest=frozen_split().digest,
            bits=bits,
            text_bytes=sum(len(text.encode()) for text in texts),
            seen=rate(result, Side.SEEN_FAMILY),
            unseen=rate(result, Side.UNSEEN_FAMILY),
            aim=verdict(result),
            table=family_table(result),
        )
    )
    click.echo(f"wrote {CARD.name}")


if __name__ == "__main__":
    main()
