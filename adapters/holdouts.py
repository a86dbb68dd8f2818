"""What is held out, and what of it is spent.

A hold-out that was looked at twice is half a hold-out: whoever picks the better of two candidates on it has fitted it.
So a fresh draw is used for one candidate, once, and the book says so:

1. **commit**, before anything is trained: a digest of suite, count, seed and a random salt goes into the journal. The
   draw is fixed from here on, and nobody can know it from the digest.
2. **open**, when a candidate is there: the seed and salt are shown, the items are drawn, checked against everything
   consumed before and everything that trained, and written down as consumed *before* they are answered. After a crash
   the same candidate may go on with the same draw; no other may ever have it.

The journal is passed in (a ledger, in practice) and is the only state: a book is made anew from its events. What it
adds, it adds only if nobody else was first, so two cycles at once never consume one item twice.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from adapters.errors import HoldoutError
from csf_store import Digest
from manifests import canonical_digest

SALT_BYTES = 32

Step: TypeAlias = Literal["commit", "open"]

DrawItems: TypeAlias = Callable[[int, int, frozenset[str]], Sequence[str]]
"""Draws from a suite: (seed, count, names to leave out) to names that mean the same in every draw. Pure."""


@dataclass(frozen=True, slots=True)
class HoldoutEvent:
    """One line of the journal.

    Attributes:
        step: what happened.
        draw: the draw's name.
        suite: what it is drawn from.
        count: how many items.
        policy: the policy it was committed under.
        commitment: what was committed to.
        candidate: on `open`, the assembly it is for.
        seed: on `open`, shown.
        salt: on `open`, shown, in hex.
        items: on `open`, the names of the items.
    """

    step: Step
    draw: str
    suite: str
    count: int
    policy: Digest
    commitment: Digest
    candidate: Digest | None = None
    seed: int | None = None
    salt: str | None = None
    items: tuple[str, ...] = ()


class Journal(Protocol):
    """Where events are kept, in order and for good."""

    def events(self) -> Sequence[HoldoutEvent]:
        """All events, oldest first."""

    def append(self, event: HoldoutEvent, *, after: int) -> bool:
        """Keep one more if there are still only `after` events; it is durable when this returns.

        Returns:
            False, and nothing is kept, when somebody else was first: look again and decide again.
        """


@dataclass(frozen=True, slots=True)
class Secret:
    """What opens a draw. Keep it until then, and away from training."""

    draw: str
    seed: int
    salt: str


@dataclass(frozen=True, slots=True)
class OpenedDraw:
    """Proof that a draw may decide about one candidate."""

    draw: str
    suite: str
    policy: Digest
    commitment: Digest
    candidate: Digest
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SuiteStatus:
    """What is spent of one suite: `keystone holdout status`.

    Attributes:
        suite: its name.
        committed: draws committed to and not opened.
        opened: draws opened.
        consumed: distinct items consumed.
        left: items of the pool not consumed, null where the pool's size is not known.
    """

    suite: str
    committed: int
    opened: int
    consumed: int
    left: int | None


def commitment(suite: str, count: int, seed: int, salt: str) -> Digest:
    """What a commitment is the digest of."""
    return canonical_digest({"suite": suite, "count": count, "seed": seed, "salt": salt})


class HoldoutBook:
    """Draws of hold-outs, by the events of a journal.

    Args:
        journal: the events; every call reads it anew, so that several books may share one.
        frozen: names of items that no draw may hold, the sentinel set's above all.
    """

    def __init__(self, journal: Journal, *, frozen: Iterable[str] = ()) -> None:
        self._journal = journal
        self._frozen = frozenset(frozen)

    def commit(
        self,
        draw: str,
        *,
        suite: str,
        count: int,
        policy: Digest,
        seed: int | None = None,
        secret: Secret | None = None,
    ) -> Secret:
        """Commit to a draw before the run.

        Args:
            draw: a new name.
            suite: what to draw from.
            count: how many items.
            policy: the policy of the run, recorded already.
            seed: a random one by default.
            secret: seed and salt that the caller keeps already, so that a crash between this and keeping them loses
                nothing. Committing to the same once more changes nothing.

        Raises:
            HoldoutError: when the name is taken, or the draw would be empty.
        """
        if count < 1:
            raise HoldoutError(f"draw {draw!r} of {count} items decides nothing")
        chosen = secrets.randbits(48) if seed is None else seed
        kept = Secret(draw, chosen, secrets.token_hex(SALT_BYTES)) if secret is None else secret
        sealed = HoldoutEvent("commit", draw, suite, count, policy, commitment(suite, count, kept.seed, kept.salt))
        while True:
            events = self._journal.events()
            known = [event for event in events if event.draw == draw]
            if known and secret is not None and known[0] == sealed:
                return kept
            if known:
                raise HoldoutError(f"draw {draw!r} is committed to already; choose another name")
            if self._journal.append(sealed, after=len(events)):
                return kept

    def open(
        self, secret: Secret, draw_items: DrawItems, *, candidate: Digest, policy: Digest, trained: Iterable[str] = ()
    ) -> OpenedDraw:
        """Consume a draw for one candidate. Call it before the candidate answers.

        Args:
            secret: as `commit` gave it.
            draw_items: draws from the suite; the book calls it with the seed that was committed to.
            candidate: the assembly that will be judged.
            policy: the policy it will be judged by.
            trained: names of items that the candidate trained on.

        Raises:
            HoldoutError: when the draw was not committed to, or otherwise; was opened for another candidate; or holds
                an item that is frozen, was consumed before, or was trained on.
        """
        while True:
            journal = self._journal.events()
            opened = self._opening(
                journal, secret, draw_items, candidate=candidate, policy=policy, trained=frozenset(trained)
            )
            if opened in journal or self._journal.append(opened, after=len(journal)):
                return OpenedDraw(opened.draw, opened.suite, policy, opened.commitment, candidate, opened.items)

    def _opening(
        self,
        journal: Sequence[HoldoutEvent],
        secret: Secret,
        draw_items: DrawItems,
        *,
        candidate: Digest,
        policy: Digest,
        trained: frozenset[str],
    ) -> HoldoutEvent:
        """The event that opens a draw: the one in the journal after a crash, else a new one."""
        events = [event for event in journal if event.draw == secret.draw]
        if not events or events[0].step != "commit":
            raise HoldoutError(f"nobody committed to draw {secret.draw!r} before the run; it cannot decide")
        fixed = events[0]
        if commitment(fixed.suite, fixed.count, secret.seed, secret.salt) != fixed.commitment:
            raise HoldoutError(f"seed and salt are not those that were committed to as draw {secret.draw!r}")
        if policy != fixed.policy:
            raise HoldoutError(f"draw {secret.draw!r} was committed to under policy {fixed.policy}, not {policy}")
        if len(events) > 1:
            if events[1].candidate != candidate:
                raise HoldoutError(
                    f"draw {secret.draw!r} was consumed by {events[1].candidate}; commit to a fresh one for {candidate}"
                )
            return events[1]  # after a crash: the same candidate goes on with the same items
        spent = frozenset(item for event in journal for item in event.items)
        items = self._draw(fixed, secret, draw_items, spent, trained)
        opened = (candidate, secret.seed, secret.salt, items)
        return HoldoutEvent("open", fixed.draw, fixed.suite, fixed.count, policy, fixed.commitment, *opened)

    def consumed(self, suite: str | None = None) -> frozenset[str]:
        """Every item that any opened draw of a suite, or of all, has held."""
        return frozenset(
            item for event in self._journal.events() if suite in (None, event.suite) for item in event.items
        )

    def status(self, pools: Mapping[str, int] | None = None) -> tuple[SuiteStatus, ...]:
        """What is spent, suite by suite.

        Args:
            pools: how many items each suite has, where known.
        """
        events = self._journal.events()
        rows = []
        for suite in sorted({event.suite for event in events} | set(pools or {})):
            opened = {event.draw for event in events if event.suite == suite and event.step == "open"}
            committed = {event.draw for event in events if event.suite == suite} - opened
            spent = len(self.consumed(suite))
            pool = (pools or {}).get(suite)
            left = None if pool is None else max(pool - spent, 0)
            rows.append(SuiteStatus(suite, len(committed), len(opened), spent, left))
        return tuple(rows)

    def _draw(
        self,
        fixed: HoldoutEvent,
        secret: Secret,
        draw_items: DrawItems,
        consumed: frozenset[str],
        trained: frozenset[str],
    ) -> tuple[str, ...]:
        spent = {"frozen": self._frozen, "consumed by an earlier draw": consumed, "trained on": trained}
        items = tuple(sorted(draw_items(secret.seed, fixed.count, frozenset().union(*spent.values()))))
        if len(set(items)) != fixed.count or len(items) != fixed.count:
            raise HoldoutError(
                f"draw {fixed.draw!r} is of {fixed.count} items, and {len(set(items))} distinct ones were drawn from"
                f" {fixed.suite}; `keystone holdout status` shows what is left"
            )
        for what, names in spent.items():
            if common := sorted(names.intersection(items)):
                raise HoldoutError(
                    f"draw {fixed.draw!r} holds {common[0]!r}, which is {what} ({len(common)} such items)"
                )
        return items
