"""Does a merge answer like the adapters it was made of? Asked of a model, on a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from csf_store import Archive, Digest
from keystone.errors import InvalidInputError
from keystone.loader import LoadedModel
from manifests import AdapterUse


@dataclass(frozen=True, slots=True)
class LogitDifference:
    """Two ways to compute the same answer.

    Attributes:
        largest: largest absolute difference of any logit at any position.
        scale: largest absolute change of any logit that the stacked adapters make to the bare base.
        agree: positions whose likeliest token is the same.
        positions: tokens of the prompt.
    """

    largest: float
    scale: float
    agree: int
    positions: int


@torch.inference_mode()
def logit_difference(
    loaded: LoadedModel, stack: Sequence[AdapterUse], merged: Digest, prompt: str, *, archive: Archive
) -> LogitDifference:
    """Run a prompt under the stacked adapters, under the merged one and under none.

    Args:
        loaded: a model of the base they share; it wears afterwards what it wore before.
        stack: the parents at their weights.
        merged: what was made of them.
        prompt: any text.
        archive: where the adapters are.

    Raises:
        InvalidInputError: the prompt has no token.
    """
    ids = loaded.tokenizer(prompt, return_tensors="pt").input_ids.to(next(loaded.model.parameters()).device)
    if ids.shape[1] == 0:
        raise InvalidInputError("the prompt has no token; give some text")
    with loaded.wearing(archive=archive):
        bare = loaded.model(input_ids=ids).logits.float()
    with loaded.wearing(*stack, archive=archive):
        stacked = loaded.model(input_ids=ids).logits.float()
    with loaded.wearing(AdapterUse(adapter=merged), archive=archive):
        once = loaded.model(input_ids=ids).logits.float()
    return LogitDifference(
        largest=float((stacked - once).abs().max()),
        scale=float((stacked - bare).abs().max()),
        agree=int((stacked.argmax(-1) == once.argmax(-1)).sum()),
        positions=int(ids.shape[1]),
    )
