"""Draws: committed before, consumed once, and never what was frozen, used or trained on."""

from collections.abc import Callable, Sequence

import pytest

from adapters.errors import HoldoutError
from adapters.holdouts import HoldoutBook, HoldoutEvent, Secret, SuiteStatus
from csf_store import Digest

POLICY, CANDIDATE, OTHER = Digest.of(b"policy"), Digest.of(b"candidate"), Digest.of(b"other")


class Memory:
    def __init__(self) -> None:
        self.lines: list[HoldoutEvent] = []

    def events(self) -> Sequence[HoldoutEvent]:
        return tuple(self.lines)

    def append(self, event: HoldoutEvent, *, after: int) -> bool:
        if len(self.lines) != after:
            return False
        self.lines.append(event)
        return True


def draw(seed: int, count: int, without: frozenset[str]) -> list[str]:
    names = (f"t{number}" for number in range(seed, seed + 1000))
    return [name for name in names if name not in without][:count]


@pytest.fixture
def journal() -> Memory:
    return Memory()


@pytest.fixture
def book(journal: Memory) -> HoldoutBook:
    return HoldoutBook(journal, frozen=["t1"])


def committed(book: HoldoutBook, name: str = "cycle-1", seed: int = 0) -> Secret:
    return book.commit(name, suite="basics", count=3, policy=POLICY, seed=seed)


def test_a_draw_is_committed_then_opened_and_its_items_are_spent(book: HoldoutBook, journal: Memory) -> None:
    secret = committed(book)
    assert journal.lines[0].seed is None
    opened = book.open(secret, draw, candidate=CANDIDATE, policy=POLICY)
    assert opened.items == ("t0", "t2", "t3")  # t1 is frozen
    assert book.consumed() == {"t0", "t2", "t3"}
    assert book.consumed("other") == frozenset()
    assert journal.lines[1].seed == 0
    assert [event.step for event in journal.lines] == ["commit", "open"]


def test_items_are_spent_before_anybody_answers_them(book: HoldoutBook, journal: Memory) -> None:
    book.open(committed(book), draw, candidate=CANDIDATE, policy=POLICY)
    second = book.open(committed(book, "cycle-2"), draw, candidate=OTHER, policy=POLICY)
    assert second.items == ("t4", "t5", "t6")


def test_after_a_crash_the_same_candidate_goes_on_and_no_other(book: HoldoutBook, journal: Memory) -> None:
    secret = committed(book)
    first = book.open(secret, draw, candidate=CANDIDATE, policy=POLICY)
    assert book.open(secret, draw, candidate=CANDIDATE, policy=POLICY) == first
    assert len(journal.lines) == 2
    with pytest.raises(HoldoutError, match=f"was consumed by {CANDIDATE}"):
        book.open(secret, draw, candidate=OTHER, policy=POLICY)


def test_what_was_not_committed_to_cannot_decide(book: HoldoutBook) -> None:
    with pytest.raises(HoldoutError, match="nobody committed"):
        book.open(Secret("cycle-1", 0, "00"), draw, candidate=CANDIDATE, policy=POLICY)
    secret = committed(book)
    for forged in (Secret("cycle-1", 1, secret.salt), Secret("cycle-1", 0, "00" * 32)):
        with pytest.raises(HoldoutError, match="not those that were committed to"):
            book.open(forged, draw, candidate=CANDIDATE, policy=POLICY)
    with pytest.raises(HoldoutError, match="under policy"):
        book.open(secret, draw, candidate=CANDIDATE, policy=OTHER)
    with pytest.raises(HoldoutError, match="committed to already"):
        committed(book)
    with pytest.raises(HoldoutError, match="decides nothing"):
        book.commit("empty", suite="basics", count=0, policy=POLICY)


CHEATS: dict[str, tuple[Callable[[int, int, frozenset[str]], list[str]], str]] = {
    "frozen": (lambda seed, count, without: ["t0", "t1", "t2"], "'t1', which is frozen"),
    "trained": (lambda seed, count, without: ["t0", "t2", "t99"], "'t99', which is trained on"),
    "used": (lambda seed, count, without: ["t7", "t0", "t3"], "'t7', which is consumed by an earlier draw"),
    "short": (lambda seed, count, without: ["t0"], "1 distinct ones"),
    "twice": (lambda seed, count, without: ["t0", "t0", "t2"], "2 distinct ones"),
}


@pytest.mark.parametrize("cheat", sorted(CHEATS))
def test_draws_that_ignore_what_to_leave_out_are_refused_and_stay_unopened(
    book: HoldoutBook, journal: Memory, cheat: str
) -> None:
    book.open(committed(book, "earlier", seed=7), draw, candidate=OTHER, policy=POLICY)
    wrong, why = CHEATS[cheat]
    with pytest.raises(HoldoutError, match=why):
        book.open(committed(book), wrong, candidate=CANDIDATE, policy=POLICY, trained=["t99"])
    assert [event.step for event in journal.lines] == ["commit", "open", "commit"]


def test_a_journal_that_opens_what_nobody_committed_to_is_not_believed(book: HoldoutBook, journal: Memory) -> None:
    secret = committed(book)
    opened = ("cycle-1", "basics", 3, POLICY, journal.lines[0].commitment, CANDIDATE, 0, secret.salt, ("t0",))
    journal.lines[:] = [HoldoutEvent("open", *opened)]
    with pytest.raises(HoldoutError, match="nobody committed"):
        book.open(secret, draw, candidate=CANDIDATE, policy=POLICY)


def test_seeds_are_random_unless_given_and_salts_always(book: HoldoutBook, journal: Memory) -> None:
    first, second = (book.commit(name, suite="basics", count=3, policy=POLICY) for name in "ab")
    assert first.seed != second.seed
    assert committed(book, "c").salt != committed(book, "d").salt
    assert journal.lines[2].commitment != journal.lines[3].commitment


def test_the_status_counts_by_suite(book: HoldoutBook) -> None:
    book.open(committed(book), draw, candidate=CANDIDATE, policy=POLICY)
    committed(book, "cycle-2")
    assert book.status({"basics": 10, "unused": 5}) == (
        SuiteStatus("basics", committed=1, opened=1, consumed=3, left=7),
        SuiteStatus("unused", committed=0, opened=0, consumed=0, left=5),
    )
    assert book.status()[0].left is None
