"""Refs against a list, lineage against a closure: the plain references the fast paths must equal."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from csf_store import Archive, Digest
from manifests import (
    AdapterRecord,
    Assembly,
    LineageCycleError,
    Manifest,
    MissingParentError,
    RefConflictError,
    RefNotFoundError,
    Repository,
    RollbackRefusedError,
    Source,
)
from manifests.lineage import trace

BASE = Digest.of(b"base")
adapters = [Digest.of(bytes([n])) for n in range(8)]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.dictionaries(st.sampled_from(adapters), st.none() | st.sampled_from(adapters), max_size=8),
    st.lists(st.sampled_from(adapters), max_size=4),
)
def test_a_trace_is_the_closure_or_an_error(parents: dict[Digest, Digest | None], used: list[Digest]) -> None:
    parents = {child: parent for child, parent in parents.items() if child != parent}
    records = {
        child: (
            child,
            AdapterRecord(adapter=child, base=BASE, parent=p, rank=1, alpha=1, targets=("x",), claim=True),
        )
        for child, p in parents.items()
    }
    closure: set[Digest] = set(used)
    while True:
        more = closure | {parent for child in closure if (parent := parents.get(child)) is not None}
        if more == closure:
            break
        closure = more
    missing = closure - parents.keys()
    rootless = {child for child in closure if not leads_to_base(child, parents)}
    try:
        steps = trace(used, base=BASE, lookup=records.get)
    except MissingParentError:
        assert missing
    except LineageCycleError:
        assert rootless
    else:
        assert not rootless and {step.adapter: step.parent for step in steps} == {c: parents[c] for c in closure}
        assert [step.adapter for step in steps] == sorted(closure)


def leads_to_base(child: Digest, parents: dict[Digest, Digest | None]) -> bool:
    at: Digest | None = child
    for _ in range(len(parents) + 1):
        if at is None:
            return True
        if at not in parents:
            return False
        at = parents[at]
    return False


class RefsAgainstAList(RuleBasedStateMachine):
    """One ref, moved in every way, beside a Python list of its targets."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.archive = Archive.create(self.root / "archive")
        self.repository = Repository(self.archive)
        tree = self.archive.put_tree_entries([]).digest
        source = Source(kind="embedded", location="x", licence="MIT")
        plain = Manifest(assembly=Assembly(base=tree, tokenizer=tree), source=source)
        self.targets = [self.repository.put(plain.revised(labels={"n": str(n)})) for n in range(4)]
        self.model: list[Digest] = []

    def teardown(self) -> None:
        self.archive.close()
        shutil.rmtree(self.root)

    @rule(number=st.integers(0, 3))
    def move(self, number: int) -> None:
        digest = self.targets[number]
        self.repository.refs.set("prod", digest, expected=self.model[-1] if self.model else None)
        if not self.model or self.model[-1] != digest:
            self.model.append(digest)

    @rule(number=st.integers(0, 3), believed=st.none() | st.integers(0, 3))
    def move_believing(self, number: int, believed: int | None) -> None:
        expected = self.targets[believed] if believed is not None else None
        current = self.model[-1] if self.model else None
        try:
            self.repository.refs.set("prod", self.targets[number], expected=expected)
        except RefConflictError:
            assert expected != current
        else:
            assert expected == current
            if self.targets[number] != current:
                self.model.append(self.targets[number])

    @rule()
    def rollback(self) -> None:
        earlier = [target for target in self.model if target != self.model[-1]]
        try:
            event = self.repository.refs.rollback("prod")
        except RefNotFoundError:
            assert not self.model
        except RollbackRefusedError:
            assert not earlier
        else:
            assert event.rollback and event.target == earlier[-1]
            self.model.append(earlier[-1])

    @rule()
    def reopen(self) -> None:
        self.archive.close()
        self.archive = Archive.open(self.root / "archive")
        self.repository = Repository(self.archive)

    @invariant()
    def the_ledger_tells_the_list(self) -> None:
        history = self.repository.refs.history("prod")
        assert [event.target for event in history] == self.model
        assert [event.previous for event in history] == [None, *self.model][: len(self.model)]
        assert self.repository.refs.find("prod") == (self.model[-1] if self.model else None)


TestRefsAgainstAList = RefsAgainstAList.TestCase
TestRefsAgainstAList.settings = settings(
    max_examples=12, stateful_step_count=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
