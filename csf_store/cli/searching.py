"""``csf find`` and ``csf diff``."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict, TypeVar, Unpack

import click

from csf_store.cli.progress import progress_bar
from csf_store.cli.session import Session, Value, human_size, json_option, pass_session, printable

if TYPE_CHECKING:
    from csf_store.archive import Archive
    from csf_store.search.diff import Comparison, FileDifference, MetadataDifference, TensorDifference
    from csf_store.search.patterns import NamePattern
    from csf_store.search.query import Hit, Query, TensorHit

_T = TypeVar("_T")
_DIFFERS = 1
_SHOWN = 60
_KINDS = ("blob", "tree", "manifest", "record")


@click.command()
@click.argument("tensor", required=False, metavar="[TENSOR]")
@click.option("-E", "--regex", is_flag=True, help="Patterns are regular expressions, found anywhere in a name.")
@click.option("-d", "--dtype", "dtypes", multiple=True, help="Tensor dtype: bf16, 'f8*'. Given again: any of them.")
@click.option("-s", "--shape", help="Tensor shape: 4096x4096, '4096x*', '*x128', '...x128', scalar.")
@click.option("--tensor-size", metavar="RANGE", help="Bytes of the tensor.")
@click.option("--same-as", nargs=2, metavar="OBJECT NAME", help="Has the same bytes as tensor NAME of OBJECT.")
@click.option("--shares", metavar="OBJECT", help="Has the same bytes as any tensor of this blob or tree.")
@click.option("-m", "--meta", multiple=True, metavar="KEY[=VALUE]", help="Safetensors metadata. Given again: all.")
@click.option("-p", "--path", help="Path at which a tree holds the file.")
@click.option("-t", "--tag", help="Pinned under this name, or needed by what is.")
@click.option("-r", "--ref", help="What this ref points to now, and what that needs.")
@click.option("--size", metavar="RANGE", help="Bytes of the file, or of all files of a tree.")
@click.option("--digest", metavar="PREFIX", help="First hex digits of the digest.")
@click.option("-k", "--kind", "kinds", multiple=True, type=click.Choice(_KINDS), help="What to find. Given again: any.")
@click.option("--contains", metavar="OBJECT", help="Needs this object, however far below.")
@click.option("--holds-chunk", metavar="DIGEST", help="Is made of this chunk (a whole digest, as csf verify names it).")
@click.option("--tensors", "list_tensors", is_flag=True, help="Also list the tensors that fit.")
@click.option("--sort", type=click.Choice(["name", "size", "shared", "digest"]), help="Default: name.")
@click.option("-n", "--limit", type=click.IntRange(min=1), help="Only the first N.")
@json_option
@pass_session
def find(session: Session, *, sort: str | None, limit: int | None, **asked: Unpack[_Asked]) -> None:
    """Find objects by what they hold, what they are called, and what needs them.

    An object is found if it meets everything that is asked. What is asked of tensors (TENSOR, dtype, shape, content)
    must all be true of one tensor. Without --kind, files are found where something is asked of files, and objects of
    every kind otherwise; with --kind tree, the trees that hold such files.

    TENSOR and all names are glob patterns: * is anything, dots and slashes too. A RANGE is '>1GiB', '<=10MB',
    10MB..2GiB or 100MB.. . OBJECT and BLOB are digests, or the name of a pin or a ref.

    Exits with 5 if nothing is found, as for a digest that is not there.

    \b
    Examples:
      csf find '*lora_A*'                           files with such tensors
      csf find lm_head.weight -s '*x4096' -k tree   checkpoints whose head has 4096 columns
      csf find -d 'f8*' --size '>1GiB'              large files with 8-bit floats
      csf find --same-as my-base lm_head.weight     who holds the very same weights?
      csf find --shares my-finetune -k tree         which checkpoints share tensors with mine?
      csf find -t 'run-7*' -p '*.safetensors'       the weights of some runs
      csf find --contains b3:1a2b3c4d               what needs this file?
      csf find -m format=pt -d bf16 --tensors --json
    """  # noqa: D301 - \b is for click
    from csf_store.errors import InvalidInputError, NotFoundError  # noqa: PLC0415
    from csf_store.search.answering import find as find_objects  # noqa: PLC0415 - SQLite, not needed for --help
    from csf_store.search.query import Order  # noqa: PLC0415

    with session.open() as archive:
        try:
            query = _query(archive, asked)
        except InvalidInputError as error:
            raise click.UsageError(str(error)) from error
        order = Order(sort) if sort else Order.SHARED if query.shares else Order.NAME
        with progress_bar(session, "catalogue", len(archive.listing()), unit="objects") as progress:
            findings = find_objects(archive, query, order=order, limit=limit, progress=progress)
    for hit in findings.hits:
        _print_hit(session, hit, query)
    if findings.unreadable:
        _remark(
            f"{len(findings.unreadable)} objects are damaged and were not looked at, {findings.unreadable[0]} for one; "
            "csf verify says how"
        )
    if not findings.total:
        raise NotFoundError("nothing here meets all of that; ask for less, or see csf ls --all")
    if findings.total > len(findings.hits):
        _remark(f"{findings.total - len(findings.hits)} more are not shown; raise --limit to see them")


def _remark(text: str) -> None:
    """Says something beside the answer, where it does not get in the way of who reads it."""
    click.echo(f"csf: {text}", err=True)


class _Asked(TypedDict):
    """What find's options say."""

    tensor: str | None
    regex: bool
    dtypes: tuple[str, ...]
    shape: str | None
    tensor_size: str | None
    same_as: tuple[str, str] | None
    shares: str | None
    meta: tuple[str, ...]
    path: str | None
    tag: str | None
    ref: str | None
    size: str | None
    digest: str | None
    kinds: tuple[str, ...]
    contains: str | None
    holds_chunk: str | None
    list_tensors: bool


def _query(archive: Archive, asked: _Asked) -> Query:
    from csf_store.digest import Digest, hex_digits  # noqa: PLC0415
    from csf_store.objects import Kind  # noqa: PLC0415
    from csf_store.search.answering import find_tensor, resolve_name  # noqa: PLC0415
    from csf_store.search.patterns import NamePattern, ShapePattern, SizeRange  # noqa: PLC0415
    from csf_store.search.query import MetadataPattern, Query  # noqa: PLC0415

    def pattern(text: str) -> NamePattern:
        return NamePattern(text, regex=asked["regex"])

    def described(text: str) -> MetadataPattern:
        key, equals, value = text.partition("=")
        return MetadataPattern(key, pattern(value) if equals else None)

    same = asked["same_as"]
    return Query(
        tensor=_given(asked["tensor"], pattern),
        dtypes=tuple(NamePattern(text.upper()) for text in asked["dtypes"]),
        shape=_given(asked["shape"], ShapePattern),
        tensor_size=_given(asked["tensor_size"], SizeRange.parse),
        same_as=find_tensor(archive, resolve_name(archive, same[0]), same[1]) if same else None,
        shares=_given(asked["shares"], lambda text: resolve_name(archive, text)),
        metadata=tuple(map(described, asked["meta"])),
        path=_given(asked["path"], pattern),
        tag=_given(asked["tag"], pattern),
        ref=_given(asked["ref"], pattern),
        size=_given(asked["size"], SizeRange.parse),
        digest=_given(asked["digest"], hex_digits),
        kinds=frozenset(map(Kind, asked["kinds"])),
        contains=_given(asked["contains"], lambda text: resolve_name(archive, text)),
        chunk=_given(asked["holds_chunk"], Digest.parse),
        list_tensors=asked["list_tensors"],
    )


def _given(text: str | None, read: Callable[[str], _T]) -> _T | None:
    return None if text is None else read(text)


def _print_hit(session: Session, hit: Hit, query: Query) -> None:
    fields: dict[str, Value] = {
        "digest": str(hit.digest),
        "kind": str(hit.kind),
        "size": hit.size,
        "tags": list(hit.labels),
        "places": [{"tree": str(place.tree), "tags": list(place.labels), "path": place.path} for place in hit.places],
        "place_count": hit.place_count,
    }
    more = f"  (and {hit.place_count - 1} more)" if hit.place_count > 1 else ""
    text = f"{hit.digest}  {human_size(hit.size):>10}  {hit.kind:<8}  {printable(hit.name)}{more}".rstrip()
    if query.of_tensors and hit.tensor_count:
        fields |= {"tensor_count": hit.tensor_count, "tensor_bytes": hit.tensor_bytes}
        plural = "tensor" if hit.tensor_count == 1 else "tensors"
        text += f"  [{hit.tensor_count} {plural}, {human_size(hit.tensor_bytes)}]"
    if query.list_tensors:
        fields["tensors"] = [
            {"tensor": each.name, "dtype": each.dtype, "shape": list(each.shape), "size": each.nbytes}
            for each in hit.tensors
        ]
        text = "\n".join([text, *map(_tensor_line, hit.tensors)])
    session.item(fields, text)


def _tensor_line(tensor: TensorHit) -> str:
    size = human_size(tensor.nbytes)
    return f"    {tensor.dtype:<8}  {size:>10}  {printable(tensor.name)}  {list(tensor.shape)}"


@click.command()
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@click.argument("pattern", required=False)
@click.option("-E", "--regex", is_flag=True, help="PATTERN is a regular expression, found anywhere in a name.")
@click.option("--fast", is_flag=True, help="Do not read tensors: say what changed, not how far.")
@click.option("--stat", is_flag=True, help="Only the summary; reads no tensors.")
@click.option("--all", "every", is_flag=True, help="Also what is the same.")
@json_option
@pass_session
def diff(
    session: Session,
    before: str,
    after: str,
    pattern: str | None,
    *,
    regex: bool,
    fast: bool,
    stat: bool,
    every: bool,
) -> None:
    """Compare two checkpoints tensor by tensor, whatever files the tensors are in.

    A and B are trees or blobs, by digest or by the name of a pin or a ref. With PATTERN, only tensors whose names fit
    it are compared, and nothing else.

    For a changed tensor: the norm of the change relative to the norm of A's tensor, the largest change of a value, and
    how many values changed. Values that changed from or to NaN or infinity are counted apart.

    Exits with 0 if nothing differs and with 1 if something does, like diff.

    \b
    Examples:
      csf diff my-base my-finetune
      csf diff b3:1a2b3c4d b3:5e6f7a8b '*.q_proj.*'
      csf diff --stat b3:1a2b3c4d b3:5e6f7a8b
      csf diff --json --fast old new | jq 'select(.change == "renamed")'
    """  # noqa: D301 - \b is for click
    from csf_store.search.answering import resolve_name  # noqa: PLC0415
    from csf_store.search.diff import Change, compare  # noqa: PLC0415

    names = _name_pattern(pattern, regex=regex)
    with session.open() as archive:
        comparison = compare(archive, resolve_name(archive, before), resolve_name(archive, after), pattern=names)
        tensors = iter(() if stat else comparison.tensors)
        with contextlib.ExitStack() as stack:
            if not fast and not stat and comparison.bytes_to_measure:
                from csf_store.search.distances import measure  # noqa: PLC0415 - numpy

                progress = stack.enter_context(progress_bar(session, "diff", comparison.bytes_to_measure))
                tensors = measure(archive, comparison, progress=progress)
            for each in tensors:
                if every or each.change != Change.SAME:
                    _print_tensor(session, each)
    if not stat:
        for file in comparison.files:
            if every or file.change != Change.SAME:
                _print_file(session, file)
        for entry in comparison.metadata:
            if every or entry.change != Change.SAME:
                _print_metadata(session, entry)
    _print_summary(session, comparison)
    if not comparison.same:
        click.get_current_context().exit(_DIFFERS)


def _name_pattern(text: str | None, *, regex: bool) -> NamePattern | None:
    from csf_store.errors import InvalidInputError  # noqa: PLC0415
    from csf_store.search.patterns import NamePattern  # noqa: PLC0415

    try:
        return NamePattern(text, regex=regex) if text is not None else None
    except InvalidInputError as error:
        raise click.UsageError(str(error)) from error


def _print_tensor(session: Session, found: TensorDifference) -> None:
    fields: dict[str, Value] = {"what": "tensor", "change": str(found.change), "name": found.name}
    specs = []
    for side, version in (("before", found.before), ("after", found.after)):
        if version is not None:
            info = version.info
            shape = list(info.shape)
            fields[side] = {
                "blob": str(version.blob), "path": version.path or None, "name": info.name,
                "dtype": info.dtype, "shape": shape, "size": info.nbytes,
            }  # fmt: skip
            specs.append(f"{info.dtype} {shape}")
    text = f"{found.change:<8}  {printable(found.name)}  {' -> '.join(dict.fromkeys(specs))}"
    if found.before and found.after and found.change == "renamed":
        text += f"  was {printable(found.before.info.name)}"
    if found.distance is not None:
        moved = found.distance
        fields |= {
            "relative": _finite(moved.relative), "norm": _finite(moved.norm), "largest": _finite(moved.largest),
            "fraction": moved.fraction, "values": moved.values, "changed": moved.changed,
            "not_finite": moved.not_finite,
        }  # fmt: skip
        text += f"  {moved.relative:.3g} of its norm, at most {moved.largest:.3g}, {moved.fraction:.1%} of its values"
        if moved.not_finite:
            text += f", {moved.not_finite} from or to NaN or infinity"
    session.item(fields, text)


def _finite(number: float) -> float | None:
    """A number for JSON, which knows no infinity."""
    return number if math.isfinite(number) else None


def _print_file(session: Session, found: FileDifference) -> None:
    fields: dict[str, Value] = {
        "what": "file",
        "change": str(found.change),
        "path": found.path,
        "old_path": found.old_path,
        "before": str(found.before) if found.before else None,
        "after": str(found.after) if found.after else None,
    }
    was = f"  was {printable(found.old_path)}" if found.old_path != found.path else ""
    session.item(fields, f"{found.change:<8}  file {printable(found.path) or 'content'}{was}")


def _print_metadata(session: Session, found: MetadataDifference) -> None:
    fields: dict[str, Value] = {
        "what": "metadata",
        "change": str(found.change),
        "key": found.key,
        "before": list(found.before),
        "after": list(found.after),
    }
    sides = [", ".join(map(_shortened, side)) for side in (found.before, found.after) if side]
    values = " -> ".join(dict.fromkeys(sides))
    session.item(fields, f"{found.change:<8}  metadata {printable(found.key)}: {values}")


def _shortened(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."


def _print_summary(session: Session, comparison: Comparison) -> None:
    from csf_store.search.diff import Change  # noqa: PLC0415

    counts = comparison.tensor_counts
    files = sum(file.change != Change.SAME for file in comparison.files)
    entries = sum(entry.change != Change.SAME for entry in comparison.metadata)
    fields: dict[str, Value] = {
        "what": "summary",
        "same": comparison.same,
        "tensors": {str(change): counts.get(change, 0) for change in Change},
        "files": files,
        "metadata": entries,
    }
    said = [f"{count} {change}" for change in Change if (count := counts.get(change, 0))]
    said += [f"{files} files differ"] * bool(files) + [f"{entries} metadata entries differ"] * bool(entries)
    session.item(fields, f"tensors: {', '.join(said) or 'none'}")
