"""When are two functions the same function? When their normalised syntax trees are equal.

Normalising drops what a rename or a rewording changes and keeps what the machine executes:

- docstrings, annotations, decorators, comments and layout are dropped;
- the function's own name, its arguments and its local names become their position of first appearance;
- constants, operators, attributes, keywords, builtins and other global names are kept.

The normal form is written by our own visitor and not by `ast.dump`, whose text differs between Python versions:
absent and empty fields are omitted, so a field that a later Python adds (`type_params`, say) changes nothing for code
that does not use it. A fingerprint is the BLAKE3 of that form. A *skeleton* is the same with every constant blanked,
which groups functions that differ only in their numbers and strings.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from typing import NamedTuple

from csf_store import Digest

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef

_SKIPPED_FIELDS = frozenset(
    {"annotation", "ctx", "decorator_list", "kind", "returns", "simple", "type_comment", "type_params"}
)
_LITERAL_FIELDS = frozenset(
    {(ast.Attribute, "attr"), (ast.keyword, "arg"), (ast.alias, "name"), (ast.ImportFrom, "module")}
)
_BINDERS = (
    *(ast.arg, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler, ast.alias),
    *(ast.MatchAs, ast.MatchStar, ast.MatchMapping, ast.Global, ast.Nonlocal),
)
_LOOPS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda, ast.IfExp)
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def function_nodes(source: str) -> Iterator[FunctionNode]:
    """Every function definition in a module's source, methods and nested functions included, outermost first."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def fingerprint(function: FunctionNode) -> Digest:
    """The digest of the function's normalised syntax tree."""
    return Digest.of(_Normaliser(function).text(function).encode())


def skeleton(function: FunctionNode) -> Digest:
    """Like `fingerprint`, with every constant blanked."""
    return Digest.of(_SkeletonNormaliser(function).text(function).encode())


def source_fingerprint(source: str) -> Digest:
    """Fingerprint of the first function in `source`.

    Raises:
        SyntaxError: `source` does not parse.
        LookupError: `source` defines no function.
    """
    for node in function_nodes(source):
        return fingerprint(node)
    raise LookupError("the source defines no function to take a fingerprint of")


class Outline(NamedTuple):
    """A function's skeleton in two halves, so that a few observed functions describe all that recombine their parts.

    Attributes:
        frame: Digest of the skeleton with every part left open.
        parts: Digests of the parts: the largest expressions that are about one variable and loop over nothing.
    """

    frame: Digest
    parts: frozenset[Digest]


def outline(function: FunctionNode) -> Outline:
    """The function's frame and parts."""
    writer = _OutlineNormaliser(function)
    frame = Digest.of(writer.text(function).encode())
    return Outline(frame, frozenset(writer.parts))


class _Normaliser:
    """Writes a syntax tree as an S-expression, with the function's own names replaced by their order of appearance."""

    def __init__(self, function: FunctionNode) -> None:
        self._bound = _bound_names(function)
        self._order: dict[str, int] = {}

    def text(self, value: object) -> str:
        if isinstance(value, ast.AST):
            return self._node(value)
        if isinstance(value, list):
            return "[" + " ".join(self.text(item) for item in value) + "]"
        return json.dumps(value if isinstance(value, int | str) else repr(value))

    def constant(self, value: object) -> str:
        """A constant with its type, so that 1, 1.0 and True stay apart; bytes and text escape to ASCII."""
        plain = hex(value) if isinstance(value, int) and not isinstance(value, bool) else value
        return f"{type(value).__name__}:{json.dumps(plain if isinstance(plain, str) else repr(plain))}"

    def _node(self, node: ast.AST) -> str:
        if isinstance(node, ast.Constant):
            return f"(Constant {self.constant(node.value)})"
        parts = [type(node).__name__]
        for field in node._fields:
            value = getattr(node, field, None)
            if field in _SKIPPED_FIELDS or value is None or value == []:
                continue
            if field == "body" and isinstance(node, _SCOPES):
                text = self.text(_without_docstring(node.body))
            elif isinstance(node, ast.JoinedStr):
                text = self.text([part for part in node.values if not _is_empty_text(part)])
            elif isinstance(value, str) and (type(node), field) not in _LITERAL_FIELDS:
                text = self._name(value)
            else:
                text = self.text(value)
            parts.append(f"{field}={text}")
        return "(" + " ".join(parts) + ")"

    def _name(self, name: str) -> str:
        if name not in self._bound:
            return json.dumps(name)
        return f"${self._order.setdefault(name, len(self._order))}"


class _SkeletonNormaliser(_Normaliser):
    def constant(self, value: object) -> str:  # noqa: ARG002 - the point is to forget it
        return "_"


class _OutlineNormaliser(_SkeletonNormaliser):
    def __init__(self, function: FunctionNode) -> None:
        super().__init__(function)
        self._function = function
        self.parts: set[Digest] = set()

    def _node(self, node: ast.AST) -> str:
        if not self._is_part(node):
            return super()._node(node)
        # A writer of its own for each part, so that its variable is the first one wherever it stands.
        self.parts.add(Digest.of(_SkeletonNormaliser(self._function).text(node).encode()))
        return "(part)"

    def _is_part(self, node: ast.AST) -> bool:
        if not isinstance(node, ast.BinOp | ast.UnaryOp | ast.Compare | ast.Call | ast.Subscript):
            return False
        inner = list(ast.walk(node))
        variables = {name.id for name in inner if isinstance(name, ast.Name) and name.id in self._bound}
        return len(variables) <= 1 and not any(isinstance(other, _LOOPS) for other in inner)


def _is_empty_text(node: ast.expr) -> bool:
    """An empty stretch of an f-string, which some releases of Python 3.12 put into format specifications."""
    return isinstance(node, ast.Constant) and node.value == ""


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return body[1:]
    return body


def _bound_names(function: FunctionNode) -> frozenset[str]:
    """Names that a consistent rename inside `function` would change: its own, its arguments', its locals'."""
    bound: set[str] = {function.name}
    free: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Name):  # most nodes are names; the match below is slower
            if not isinstance(node.ctx, ast.Load):
                bound.add(node.id)
            continue
        if not isinstance(node, _BINDERS):
            continue
        match node:
            case ast.arg(arg=name):
                bound.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                bound.add(name)
            case ast.MatchMapping(rest=str(name)) | ast.alias(asname=str(name)):
                bound.add(name)
            case ast.Global(names=names) | ast.Nonlocal(names=names):
                free.update(names)
            case _:
                pass
    return frozenset(bound - free)
