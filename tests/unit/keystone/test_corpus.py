"""The training text: where it comes from, and that nothing held out is in it."""

import ast
import itertools
from pathlib import PurePosixPath

import pytest

from csf_store import Digest
from keystone.evaluation.basics import (
    draw_held_out,
    families,
    frozen_fingerprints,
    in_held_out_fraction,
    training_drafts,
)
from keystone.evaluation.fingerprint import fingerprint, function_nodes, source_fingerprint
from keystone.nano.corpus import (
    Document,
    corpus_digest,
    exercise_documents,
    side_of,
    stdlib_documents,
    without_held_out_functions,
)


@pytest.fixture(scope="module")
def library() -> list[Document]:
    return list(stdlib_documents("train"))


@pytest.fixture(scope="module")
def library_marks(library: list[Document]) -> dict[Digest, str]:
    """Every function of the library's training side."""
    return {
        fingerprint(node): f"{document.source}:{node.name}"
        for document in library
        for node in function_nodes(document.text)
        if next(itertools.islice(ast.walk(node), 200, None), None)
        is None  # twice the largest task; the rest need not be written out
    }


def test_no_held_out_task_is_in_the_library_text(library_marks: dict[Digest, str]) -> None:
    forbidden = frozen_fingerprints() | {source_fingerprint(task.source) for task in draw_held_out(2000, 99)}
    assert len(forbidden) > 5000
    assert len(library_marks) > 5000
    assert {place for mark, place in library_marks.items() if mark in forbidden} == set()


def test_no_held_out_task_is_in_the_exercises() -> None:
    for document in exercise_documents(3000, 1):
        mark = source_fingerprint(document.text)
        assert mark not in frozen_fingerprints()
        assert not in_held_out_fraction(mark)
        assert not families()[document.source.removeprefix("basics:")].held_out


def test_a_held_out_function_planted_in_a_file_is_cut_out_however_it_is_written() -> None:
    task = draw_held_out(40, 8, families="held-out")[0]
    disguised = task.source.replace(task.entry_point, "another_name")
    planted = f"import os\n\n\n{disguised}\n\nclass A:\n    @staticmethod\n" + "".join(
        f"    {line}\n" for line in task.source.splitlines() if ">>>" not in line
    )
    cleaned = without_held_out_functions(f"{planted}\n    def kept(self):\n        return os.sep\n")
    assert "another_name" not in cleaned
    assert task.solution.strip() not in cleaned
    assert "def kept(self):" in cleaned


def test_a_held_out_draw_that_is_not_in_the_frozen_one_is_cut_out_too() -> None:
    tasks = [
        task for task in draw_held_out(800, 123456) if source_fingerprint(task.source) not in frozen_fingerprints()
    ]
    assert len(tasks) > 300
    caught = [task for task in tasks if task.entry_point not in without_held_out_functions(task.source)]
    assert len(caught) >= 0.98 * len(tasks)  # the rest have a part that sampling the shapes has not met


def test_what_may_be_trained_on_stays(library: list[Document]) -> None:
    for _, draft in itertools.islice(training_drafts(4), 300):
        source = draft.prompt + draft.solution
        assert without_held_out_functions(source) == source


def test_text_that_is_not_python_is_left_alone() -> None:
    assert without_held_out_functions("print 'old'\n") == "print 'old'\n"


def test_the_library_is_split_by_file_and_both_sides_are_whole(library: list[Document]) -> None:
    held_out = list(stdlib_documents("held-out"))
    sources = {document.source for document in library}
    assert len(sources) == len(library) > 250
    assert len(held_out) >= 10
    assert not sources & {document.source for document in held_out}
    assert not {document.text for document in library} & {document.text for document in held_out}
    assert all(side_of(PurePosixPath(document.source.removeprefix("stdlib:"))) == "held-out" for document in held_out)
    assert {document.licence for document in [*library, *held_out]} == {"PSF-2.0"}


def test_library_text_is_plain_and_names_no_machine(library: list[Document]) -> None:
    for document in library:
        assert "\t" not in document.text, document.source
        assert "\r" not in document.text, document.source
        assert document.text.endswith("\n"), document.source
        parts = PurePosixPath(document.source.removeprefix("stdlib:")).parts
        assert not {"test", "tests", "idlelib", "site-packages", "encodings"} & set(parts), document.source
        assert not parts[0].startswith("_sysconfigdata")


def test_exercises_look_like_what_evaluation_asks() -> None:
    documents = list(exercise_documents(200, 6))
    assert documents == list(exercise_documents(200, 6))
    assert documents != list(exercise_documents(200, 7))
    for document in documents:
        assert [node.lineno for node in function_nodes(document.text)] == [1]
        assert document.text.endswith("\n")
        assert not document.text.endswith("\n\n")
        assert document.licence == "Apache-2.0"
    assert len({document.source for document in documents}) == sum(
        not family.held_out for family in families().values()
    )


def test_the_corpus_digest_sees_text_provenance_and_order() -> None:
    a, b = Document("x", "s", "l"), Document("y", "s", "l")
    digests = {
        corpus_digest(documents)
        for documents in ([a, b], [b, a], [a], [Document("xs", "", "l"), b], [Document("x", "s", "other"), b])
    }
    assert len(digests) == 5
