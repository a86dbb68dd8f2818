"""`keystone manifest`: create, show, compare and find the documents that name models."""

from typing import TYPE_CHECKING

import click

from csf_store import Session, Value, json_option, pass_session

if TYPE_CHECKING:
    from csf_store import Digest
    from manifests import Manifest, ManifestQuery, Repository, TripwireStatus


@click.group("manifest")
def manifest_command() -> None:
    """Create, show, compare and find manifests. A manifest never changes; its digest names the model."""


@manifest_command.command("show")
@click.argument("target", metavar="MANIFEST|REF")
@json_option
@pass_session
def show(session: Session, *, target: str) -> None:
    """Print a manifest: indented for people, its canonical bytes with --json.

    \b
    Examples:
      keystone manifest show nano
      keystone manifest show nano --json | b3sum        (less the final newline, this is its digest)
    """  # noqa: D301 - \b is for click
    import json  # noqa: PLC0415 - with the others
    import sys  # noqa: PLC0415

    from manifests import Repository, claims_of  # noqa: PLC0415 - pydantic, not needed for --help

    with session.open() as archive:
        repository = Repository(archive)
        digest = repository.resolve(target)
        manifest = repository.load(digest)
    if session.json:
        sys.stdout.write(manifest.to_bytes().decode() + "\n")
        return
    session.note(f"{digest}\n{json.dumps(json.loads(manifest.to_bytes()), indent=2, ensure_ascii=False)}")
    if claims := claims_of(manifest):
        session.note("claims of whoever published the base; no evidence, and nothing here verified them:")
        for name, said in claims.items():
            session.note(f"  {name}: {said.removesuffix(' (unverified)')}")


@manifest_command.command("create")
@click.option("--from", "parent", metavar="MANIFEST|REF", help="Take everything that is not given from this one.")
@click.option("--base", metavar="TREE", help="Without --from: the base's tree (config.json and safetensors).")
@click.option("--tokenizer", metavar="TREE", help="Without --from: the tokenizer's tree.")
@click.option("--licence", metavar="SPDX", help="Without --from: the licence of the base, such as Apache-2.0.")
@click.option("--adapter", "adapters", multiple=True, metavar="DIGEST[:WEIGHT]", help="An adapter; order counts.")
@click.option("--bare", is_flag=True, help="With --from: no adapters, the frozen base alone.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A free label.")
@json_option
@pass_session
def create(
    session: Session,
    *,
    parent: str | None,
    base: str | None,
    tokenizer: str | None,
    licence: str | None,
    adapters: tuple[str, ...],
    bare: bool,
    labels: tuple[str, ...],
) -> None:
    """Write a manifest: other adapters on a known base, or a first one for a base that was put.

    Evidence stays with the weights it was measured on; a new manifest starts without any.

    \b
    Examples:
      keystone manifest create --from nano --adapter b3:1a2b3c4d
      keystone manifest create --from nano --adapter b3:1a2b3c4d:0.5 --adapter b3:5e6f7a8b --label team=search
      keystone manifest create --base b3:1a2b3c4d --tokenizer b3:5e6f7a8b --licence Apache-2.0
    """  # noqa: D301 - \b is for click
    from csf_store import Kind  # noqa: PLC0415 - see show
    from keystone.identity import source_digest  # noqa: PLC0415
    from manifests import AdapterUse, Assembly, Manifest, Repository, Source  # noqa: PLC0415

    first = base and tokenizer and licence
    if parent is None and not first:
        raise click.UsageError("give --from, or --base with --tokenizer and --licence")
    if parent is not None and (base or tokenizer or licence or bool(adapters) == bare):
        raise click.UsageError("with --from, give --adapter at least once, or --bare for the base alone")
    with session.open() as archive:
        repository = Repository(archive)
        above = repository.resolve(parent) if parent is not None else None
        if above is not None:
            old = repository.load(above)
            assembly, source, recipe = old.assembly, old.source, old.recipe
        else:
            trees = [archive.resolve(str(text), kind=Kind.TREE) for text in (base, tokenizer)]
            assembly, recipe = Assembly(base=trees[0], tokenizer=trees[1]), None
            source = Source(kind="directory", location="put by hand", licence=str(licence))
        pairs = [_split_weight(text) for text in adapters]
        uses = [AdapterUse(adapter=archive.resolve(text, kind=Kind.TREE), weight=weight) for text, weight in pairs]
        digest = repository.put(
            Manifest(
                assembly=assembly.revised(adapters=tuple(uses)),
                code_source=source_digest(),
                recipe=recipe,
                source=source,
                lineage=repository.trace((use.adapter for use in uses), base=assembly.base),
                parent=above,
                labels=dict(_split_label(label) for label in labels),
            )
        )
    fields: dict[str, Value] = {"manifest": str(digest), "parent": str(above) if above else None}
    session.item(fields, f"{digest}\nnext: keystone ref set NAME {digest.short}")


@manifest_command.command("attach")
@click.argument("target", metavar="MANIFEST|REF")
@click.argument("records", nargs=-1, required=True, metavar="EVIDENCE...")
@json_option
@pass_session
def attach(session: Session, *, target: str, records: tuple[str, ...]) -> None:
    """Write a manifest of the same assembly with more evidence: eval reports, a tripwire report, approvals.

    Evidence of other weights, or an approval of another recipe, is refused.

    \b
    Example:
      keystone manifest attach prod b3:1a2b3c4d b3:5e6f7a8b
    """  # noqa: D301 - \b is for click
    from csf_store import Kind  # noqa: PLC0415 - see show
    from manifests import Repository  # noqa: PLC0415
    from manifests import attach as attached  # noqa: PLC0415

    with session.open() as archive:
        repository = Repository(archive)
        above = repository.resolve(target)
        evidence = [archive.resolve(text, kind=Kind.RECORD) for text in records]
        digest = repository.put(attached(repository, above, evidence))
    fields: dict[str, Value] = {"manifest": str(digest), "parent": str(above)}
    session.item(fields, f"{digest}\nnext: keystone ref set NAME {digest.short}")


@manifest_command.command("list")
@json_option
@pass_session
def list_manifests(session: Session) -> None:
    """List every manifest in the archive.

    \b
    Example:
      keystone manifest list
    """  # noqa: D301 - \b is for click
    from manifests import ManifestQuery, Repository  # noqa: PLC0415 - see show

    with session.open() as archive:
        _list(session, Repository(archive), ManifestQuery())


@manifest_command.command("find")
@click.option("--base", metavar="TREE|MANIFEST|REF", help="On this base.")
@click.option("--adapter", metavar="TREE", help="With this adapter, or a descendant of it.")
@click.option("--parent", metavar="MANIFEST|REF", help="Grown from this manifest.")
@click.option(
    "--tripwire",
    type=click.Choice(["clear", "tripped", "untested", "not-clear"]),
    help="The tripwire's last word.",
)
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="With this label; may be repeated.")
@click.option("--suite", help="With a score on this suite.")
@click.option("--metric", help="With a score of this metric.")
@click.option("--at-least", type=float, metavar="SCORE", help="That score is at least this.")
@click.option("--at-most", type=float, metavar="SCORE", help="That score is at most this.")
@json_option
@pass_session
def find(
    session: Session,
    *,
    base: str | None,
    adapter: str | None,
    parent: str | None,
    tripwire: str | None,
    labels: tuple[str, ...],
    suite: str | None,
    metric: str | None,
    at_least: float | None,
    at_most: float | None,
) -> None:
    """Find the manifests that fit all the filters given.

    \b
    Examples:
      keystone manifest find --base nano
      keystone manifest find --tripwire not-clear
      keystone manifest find --suite basics --metric pass@1 --at-least 0.6 --label team=search
    """  # noqa: D301 - \b is for click
    from csf_store import Kind  # noqa: PLC0415 - see show
    from manifests import ManifestQuery, Repository  # noqa: PLC0415

    with session.open() as archive:
        repository = Repository(archive)
        known: dict[str, TripwireStatus] = {"clear": "clear", "tripped": "tripped", "untested": "untested"}
        query = ManifestQuery(
            base=_base(repository, base) if base else None,
            adapter=archive.resolve(adapter, kind=Kind.TREE) if adapter else None,
            parent=repository.resolve(parent) if parent else None,
            tripwire=known.get(tripwire or ""),
            not_tripwire="clear" if tripwire == "not-clear" else None,
            labels=dict(_split_label(label) for label in labels),
            suite=suite,
            metric=metric,
            at_least=at_least,
            at_most=at_most,
        )
        _list(session, repository, query)


@manifest_command.command("diff")
@click.argument("before", metavar="MANIFEST|REF")
@click.argument("after", metavar="MANIFEST|REF")
@json_option
@pass_session
def diff(session: Session, *, before: str, after: str) -> None:
    """Say what two manifests differ in: what runs, how, and what is known of it.

    What the tensors differ in is another question: `csf diff` on the two base trees.

    \b
    Example:
      keystone manifest diff prod b3:1a2b3c4d
    """  # noqa: D301 - \b is for click
    import json  # noqa: PLC0415 - with the others

    from manifests import Repository, differences  # noqa: PLC0415 - see show

    with session.open() as archive:
        repository = Repository(archive)
        told = differences(*(repository.load(repository.resolve(text)) for text in (before, after)))
    for each in told:
        old, new = (json.dumps(value, default=dict, sort_keys=True) for value in (each.before, each.after))
        fields: dict[str, Value] = {"path": each.path, "before": json.loads(old), "after": json.loads(new)}
        session.item(fields, f"{each.path}\n  - {old}\n  + {new}")
    if not told:
        session.note("They say the same.")


@manifest_command.command("schema")
@click.argument("kind", required=False)
@json_option
@pass_session
def schema(session: Session, *, kind: str | None) -> None:
    """Print the JSON Schema of a kind of document; without KIND, list the kinds.

    A schema tells the shape. What else a document must be is in manifests/SPEC.md.

    \b
    Examples:
      keystone manifest schema
      keystone manifest schema eval-report > eval-report.schema.json
    """  # noqa: D301 - \b is for click
    import json  # noqa: PLC0415 - with the others
    import sys  # noqa: PLC0415

    import adapters  # noqa: F401, PLC0415 - its kinds are among them
    from manifests import KINDS, json_schema  # noqa: PLC0415 - see show

    if kind is None:
        for name, model in sorted(KINDS.items()):
            session.item({"kind": name, "version": model.VERSION}, f"{name:<20}  version {model.VERSION}")
        return
    sys.stdout.write(json.dumps(json_schema(kind), indent=None if session.json else 2) + "\n")


def _base(repository: "Repository", text: str) -> "Digest":
    """The base a person means: a tree by digest, or the base of a manifest or ref."""
    from csf_store import CsfError, Kind  # noqa: PLC0415 - see show
    from manifests import is_ref_name  # noqa: PLC0415

    if not is_ref_name(text):
        try:
            return repository.archive.resolve(text, kind=Kind.TREE)
        except CsfError:
            pass  # not a tree: perhaps a manifest, whose error is then the one to show
    return repository.load(repository.resolve(text)).assembly.base


def _list(session: Session, repository: "Repository", query: "ManifestQuery") -> None:
    names: dict[str, list[str]] = {}
    for name in repository.refs.names():
        names.setdefault(str(repository.refs.find(name)), []).append(name)
    for digest, manifest in repository.find(query):
        refs = names.get(str(digest), [])
        session.item(_fields(digest, manifest, refs), _text(digest, manifest, refs))


def _fields(digest: "Digest", manifest: "Manifest", refs: list[str]) -> dict[str, Value]:
    return {
        "manifest": str(digest),
        "base": str(manifest.assembly.base),
        "adapters": len(manifest.assembly.adapters),
        "tripwire": manifest.tripwire.status,
        "evals": [{"suite": e.suite, "metric": e.metric, "score": e.score, "n": e.n} for e in manifest.evals],
        "labels": dict(manifest.labels),
        "refs": refs,
    }


def _text(digest: "Digest", manifest: "Manifest", refs: list[str]) -> str:
    scores = "  ".join(f"{each.suite} {each.metric} {each.score:.4g}" for each in manifest.evals)
    told = [
        f"{digest}  base {manifest.assembly.base.short}  {len(manifest.assembly.adapters)} adapters",
        f"tripwire {manifest.tripwire.status}",
        scores,
        " ".join(f"{key}={text}" for key, text in manifest.labels.items()),
        " ".join(refs),
    ]
    return "  ".join(part for part in told if part)


def _split_label(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise click.UsageError(f"{text!r}: a label is KEY=VALUE")
    return key, value


def _split_weight(text: str) -> tuple[str, float]:
    """`DIGEST` or `DIGEST:WEIGHT`; the digest may itself begin with `b3:`."""
    head, separator, tail = text.rpartition(":")
    if not separator or head == "b3" or not head:
        return text, 1.0
    try:
        return head, float(tail)
    except ValueError:
        raise click.UsageError(f"{text!r}: the weight after the last colon is not a number") from None
