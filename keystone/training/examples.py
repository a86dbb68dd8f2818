"""From records to batches: prompt and answer as tokens, the loss on the answer and the end token alone.

Everything here is a function of the *set* of records, the tokenizer and the settings: records are put in the order of
their digests first, so who lists them otherwise gets the same batches and the same adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from adapters import ConvergenceRecord
from keystone.errors import RefusedError

_IGNORED = -100


@dataclass(frozen=True, slots=True)
class _Row:
    ids: list[int]
    labels: list[int]


def batches_of(
    tokenizer: PreTrainedTokenizerFast, records: Sequence[ConvergenceRecord], *, size: int, max_tokens: int
) -> list[dict[str, torch.Tensor]]:
    """Right-padded batches: `input_ids`, `attention_mask` and `labels`, each (B, T); every record is in exactly one.

    Args:
        tokenizer: the assembly's.
        records: in any order.
        size: rows in a batch; the last may have fewer.
        max_tokens: the most that a row may have.

    Raises:
        RefusedError: a record that takes more, by name.
    """
    rows = [_row(tokenizer, record, max_tokens) for record in sorted(records, key=lambda each: each.digest)]
    rows.sort(key=lambda row: len(row.ids))  # rows of like length share a batch, which halves the padding; stable
    return [_padded(rows[start : start + size], _padding(tokenizer)) for start in range(0, len(rows), size)]


def _row(tokenizer: PreTrainedTokenizerFast, record: ConvergenceRecord, max_tokens: int) -> _Row:
    prompt = list(tokenizer(record.claim.prompt)["input_ids"])
    answer = list(tokenizer(record.claim.answer, add_special_tokens=False)["input_ids"])
    if isinstance(tokenizer.eos_token_id, int):
        answer.append(tokenizer.eos_token_id)
    if len(prompt) + len(answer) > max_tokens:
        raise RefusedError(
            f"record {record.digest} takes {len(prompt) + len(answer)} tokens, and {max_tokens} are allowed; leave it"
            " out and have the rest judged, or allow more with --max-tokens"
        )
    return _Row(prompt + answer, [_IGNORED] * len(prompt) + answer)


def _padding(tokenizer: PreTrainedTokenizerFast) -> int:
    """Any token will do, the mask hides it."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(candidate, int):
            return candidate
    return 0


def _padded(rows: Sequence[_Row], pad: int) -> dict[str, torch.Tensor]:
    width = max(len(row.ids) for row in rows)
    return {
        "input_ids": torch.tensor([row.ids + [pad] * (width - len(row.ids)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows]),
        "labels": torch.tensor([row.labels + [_IGNORED] * (width - len(row.labels)) for row in rows]),
    }
