"""Which model may lead a task: three gates, in an order that no wish can change.

1. **VRAM gate.** What runs on this machine has to fit into its card: `VRAM_BUDGET_GB` if that is set, else the largest
   NVIDIA card, else 8 GB. What runs here and whose size nobody knows is not offered: hoping is no plan. What runs
   elsewhere is elsewhere's business, and passes.
2. **Evidence gate.** A model that won nothing here comes after every one that did.
3. **Capability**, measured for those that won, claimed for the others; then rank, then name.

For the task type `kernel` the order is that of the ranks, and capability has no say; memory still has.
"""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from keystone.endpoints.address import is_this_machine
from keystone.errors import InvalidInputError
from keystone.registry.standing import Standing

GB: Final = 10**9
VARIABLE: Final = "VRAM_BUDGET_GB"
DEFAULT_GB: Final = 8
KERNEL: Final = "kernel"


@dataclass(frozen=True)
class Budget:
    """Memory for models, and where the number comes from."""

    nbytes: int
    source: str


@dataclass(frozen=True)
class Task:
    """What a model is wanted for.

    Attributes:
        type: a task type, `coding` for instance.
        tools: whether it has to take tools.
        tokens: of context it has to hold; a model that does not say is not offered then.
    """

    type: str
    tools: bool = False
    tokens: int | None = None


@dataclass(frozen=True)
class Choice:
    """A model's place for a task; `refused` says why it has none."""

    standing: Standing
    place: int | None
    refused: str | None = None


def choose(standings: Iterable[Standing], task: Task, budget: Budget) -> tuple[Choice, ...]:
    """Everyone who may be offered, the leader first; then everyone who may not, with the reason."""
    offered, refused = [], []
    for standing in standings:
        reason = _unsuited(standing, task) or _too_large(standing, budget)
        if reason is None:
            offered.append(standing)
        else:
            refused.append(Choice(standing, None, reason))
    ordered = sorted(offered, key=_by_rank if task.type == KERNEL else _by_evidence)
    places = [Choice(standing, place) for place, standing in enumerate(ordered, start=1)]
    return (*places, *sorted(refused, key=lambda choice: choice.standing.entry.id))


def vram_budget(environment: Mapping[str, str] = os.environ) -> Budget:
    """How much memory models may take.

    Raises:
        InvalidInputError: `VRAM_BUDGET_GB` is set, and is no positive number.
    """
    told = environment.get(VARIABLE)
    if told is not None:
        try:
            amount = float(told)
        except ValueError:
            amount = math.nan
        if not (math.isfinite(amount) and 0 < amount < 10**6):
            raise InvalidInputError(f"{VARIABLE} is {told[:40]!r}; it is a number of gigabytes, such as 24")
        return Budget(int(amount * GB), VARIABLE)
    cards = _cards()
    if cards:
        return Budget(max(cards), "the largest NVIDIA card, says nvidia-smi")
    return Budget(DEFAULT_GB * GB, f"no NVIDIA card was found, so {DEFAULT_GB} GB")


def runs_here(standing: Standing) -> bool:
    """Whether a model takes this machine's memory."""
    entry = standing.entry
    return entry.is_local or is_this_machine(urlsplit(entry.endpoint).hostname or "")


def _unsuited(standing: Standing, task: Task) -> str | None:
    entry = standing.entry
    if entry.task_types and task.type not in entry.task_types:
        return f"it is for {', '.join(entry.task_types)}"
    if task.tools and not entry.tool_calling:
        return "it takes no tools"
    if task.tokens is not None and (entry.ctx_tokens is None or entry.ctx_tokens < task.tokens):
        return f"its context is {entry.ctx_tokens or 'not known'}, and {task.tokens} tokens are wanted"
    return None


def _too_large(standing: Standing, budget: Budget) -> str | None:
    if not runs_here(standing):
        return None
    need = standing.vram_bytes
    if need is None:
        return "it runs on this machine, and nobody knows how much memory it takes; `keystone models refresh`"
    if need > budget.nbytes:
        return f"it takes {need / GB:.2f} GB, and there are {budget.nbytes / GB:.2f} ({budget.source})"
    return None


def _by_evidence(standing: Standing) -> tuple[bool, float, int, str]:
    capability = standing.capability if standing.capability is not None else -1.0
    return not standing.verified, -capability, standing.entry.rank, standing.entry.id


def _by_rank(standing: Standing) -> tuple[int, str]:
    return standing.entry.rank, standing.entry.id


def _cards() -> Sequence[int]:
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return [int(line) << 20 for line in map(str.strip, told.splitlines()) if line.isdigit()]
