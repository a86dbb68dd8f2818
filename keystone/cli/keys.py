"""`keystone key`, `sign`, `verify-signature` and `checkpoint`: who signed what, and whether that counts."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from csf_store import Session, Value, json_option, pass_session

if TYPE_CHECKING:
    from csf_store import Archive, Digest
    from manifests import FoundSignature, KeyStore, PublicKey, SigningKey, Statement

_Command = TypeVar("_Command", bound=Callable[..., Any])
_UNSIGNED = 4

keys_option = click.option(
    "--keys",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="KEYSTONE_KEYS",
    metavar="DIR",
    help="Where your keys are. Default: $KEYSTONE_KEYS, else keystone/keys in your data directory.",
)


def passphrase_options(command: _Command) -> _Command:
    """Adds `--keys` and `--passphrase-file`."""
    file = click.option(
        "--passphrase-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Read the passphrase from here. Default: $KEYSTONE_PASSPHRASE, else you are asked.",
    )
    return keys_option(file(command))


def key_store(directory: Path | None) -> "KeyStore":
    """The operator's own keys."""
    from manifests import KeyStore  # noqa: PLC0415 - pydantic, not needed for --help

    if directory is None:
        from platformdirs import user_data_path  # noqa: PLC0415

        directory = user_data_path("keystone", appauthor=False) / "keys"
    return KeyStore(directory)


def unlock(directory: Path | None, name: str, passphrase_file: Path | None) -> "SigningKey":
    """A key of the operator's that can sign."""
    store = key_store(directory)
    store.public(name)  # that there is no such key is said before a passphrase is asked for
    return store.unlock(name, _passphrase(passphrase_file, f"Passphrase of {name}", confirm=False))


def _passphrase(file: Path | None, prompt: str, *, confirm: bool) -> bytes:
    if file is not None:
        return file.read_bytes().rstrip(b"\r\n")
    if told := os.environ.get("KEYSTONE_PASSPHRASE"):
        return told.encode()
    typed: str = click.prompt(prompt, hide_input=True, confirmation_prompt=confirm, err=True)
    return typed.encode()


@click.group("key")
def key_command() -> None:
    """Operator keys: make them, trust them, revoke them.

    A private key is yours and stays in a file under a passphrase. Trust is the archive's: an event of its ledger, good
    for what is signed after it, until a revocation.
    """


@key_command.command("new")
@click.argument("name")
@passphrase_options
@json_option
@pass_session
def new(session: Session, *, name: str, keys: Path | None, passphrase_file: Path | None) -> None:
    """Make an Ed25519 key, encrypted with a passphrase.

    \b
    Example:
      keystone key new alice
    """  # noqa: D301 - \b is for click
    store = key_store(keys)
    public = store.new(name, _passphrase(passphrase_file, f"New passphrase for {name}", confirm=True))
    _show(session, public, "", f"\nnext: keystone key trust {name}")


@key_command.command("list")
@keys_option
@json_option
@pass_session
def list_keys(session: Session, *, keys: Path | None) -> None:
    """Your keys, and every key the archive ever trusted.

    \b
    Example:
      keystone key list
    """  # noqa: D301 - \b is for click
    from csf_store import NotFoundError  # noqa: PLC0415 - see key_store
    from manifests import TrustBook  # noqa: PLC0415

    store = key_store(keys)
    own = {public.id: public for public in map(store.public, store.names())}
    try:
        with session.open() as archive:
            spans = TrustBook(archive.ledger.entries()).spans()
    except NotFoundError:
        spans = {}  # keys can be made before there is an archive
    for key, told in spans.items():
        last = told[-1]
        state = "trusted" if last.end is None else "revoked"
        text = f"trusted by event {last.start}"
        if last.end is not None:
            text = f"revoked by event {last.revoked_at}" + (f" ({last.reason})" if last.reason else "")
        _show(session, last.key, state, f"  {text}{'  yours' if key in own else ''}")
    for key, public in own.items():
        if key not in spans:
            _show(session, public, "untrusted", "  yours, not trusted here")


@key_command.command("show")
@click.argument("name")
@keys_option
@json_option
@pass_session
def show(session: Session, *, name: str, keys: Path | None) -> None:
    """Print the public half of one of your keys: one line, to be given to others.

    \b
    Example:
      keystone key show alice > alice.pub
    """  # noqa: D301 - \b is for click
    public = key_store(keys).public(name)
    session.item({"name": public.name, "key": str(public.id), "verifier": str(public)}, str(public))


@key_command.command("trust")
@click.argument("key", metavar="NAME|FILE|VERIFIER")
@keys_option
@json_option
@pass_session
def trust(session: Session, *, key: str, keys: Path | None) -> None:
    """Trust a key from now on: yours by name, or another's public line or file.

    \b
    Examples:
      keystone key trust alice
      keystone key trust bob.pub
    """  # noqa: D301 - \b is for click
    from manifests import trust_key  # noqa: PLC0415 - see key_store

    public = _public(keys, key)
    with session.open() as archive:
        seq = trust_key(archive, public)
    _show(session, public, "trusted", f"  trusted by event {seq}")


@key_command.command("revoke")
@click.argument("key", metavar="NAME|KEY")
@click.option("--reason", help="A sentence for the ledger.")
@click.option("--since", type=click.IntRange(min=0), metavar="SEQ", help="It was in wrong hands from this event on.")
@keys_option
@json_option
@pass_session
def revoke(session: Session, *, key: str, reason: str | None, since: int | None, keys: Path | None) -> None:
    """Revoke a key. What it signed before still counts, unless --since says from when on it does not.

    \b
    Example:
      keystone key revoke alice --reason "laptop lost" --since 1204
    """  # noqa: D301 - \b is for click
    from manifests import revoke_key  # noqa: PLC0415 - see key_store

    with session.open() as archive:
        public = _trusted(archive, key) or _public(keys, key)
        seq = revoke_key(archive, public.id, reason=reason, since=since)
    _show(session, public, "revoked", f"  revoked by event {seq}")


@click.command("sign")
@click.argument("target", metavar="MANIFEST|REF|REPORT")
@click.option("--key", required=True, help="Who signs: a key of `keystone key list`.")
@passphrase_options
@json_option
@pass_session
def sign_command(session: Session, *, target: str, key: str, keys: Path | None, passphrase_file: Path | None) -> None:
    """Sign a manifest, or an eval report as an in-toto test result.

    The signature is kept in the archive and noted in its ledger. Its place there, and no clock, is its time.

    \b
    Examples:
      keystone sign prod --key alice
      keystone sign b3:1a2b3c4d --key alice       (the digest of a report)
    """  # noqa: D301 - \b is for click
    from manifests import put_envelope, seal  # noqa: PLC0415 - see key_store

    with session.open() as archive:
        subject, statement = _statement(archive, target)
        signing = unlock(keys, key, passphrase_file)
        envelope = put_envelope(archive, seal(statement, signing))
    fields: dict[str, Value] = {
        "envelope": str(envelope),
        "subject": str(subject),
        "predicate": statement.predicate_type,
        "key": str(signing.public.id),
    }
    session.item(fields, f"{envelope}  {key} signed {subject}")


@click.command("verify-signature")
@click.argument("target", metavar="MANIFEST|REF|REPORT|ENVELOPE")
@keys_option
@json_option
@pass_session
def verify_signature_command(session: Session, *, target: str, keys: Path | None) -> None:
    """Say what every signature on something is worth.

    Exits with 0 when all of them count, 1 when one does not, 4 when there is none.

    \b
    Example:
      keystone verify-signature prod
    """  # noqa: D301 - \b is for click
    from manifests import signatures_of  # noqa: PLC0415 - see key_store

    store = key_store(keys)
    own = {public.id: public for public in map(store.public, store.names())}
    with session.open() as archive:
        subject = _resolve(archive, target)
        found = signatures_of(archive, subject, known=own)
    good = [_print_signature(session, each) for each in found]
    if not good:
        session.item({"subject": str(subject), "signed": False}, f"{subject} is not signed")
    click.get_current_context().exit(_UNSIGNED if not good else 0 if all(good) else 1)


@click.group("checkpoint")
def checkpoint_command() -> None:
    """Signed checkpoints of the ledger, in the C2SP form that transparency-log tools read."""


@checkpoint_command.command("sign")
@click.option("--key", required=True, help="Who signs: a key of `keystone key list`.")
@passphrase_options
@json_option
@pass_session
def checkpoint_sign(session: Session, *, key: str, keys: Path | None, passphrase_file: Path | None) -> None:
    """Sign the ledger as it is now, and print the note. Keep it where nobody who can write to the archive can.

    \b
    Example:
      keystone checkpoint sign --key alice > kept-elsewhere
    """  # noqa: D301 - \b is for click
    from manifests import CheckpointNote, ledger_origin  # noqa: PLC0415 - see key_store

    with session.open() as archive:
        signing = unlock(keys, key, passphrase_file)
        note = CheckpointNote(ledger_origin(archive.id), archive.ledger.checkpoint()).signed(signing)
    size, root = note.checkpoint
    fields: dict[str, Value] = {"origin": note.origin, "size": size, "root": root.hex(), "note": str(note)}
    session.item(fields, str(note).removesuffix("\n"))


@checkpoint_command.command("verify")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--key", required=True, metavar="NAME|FILE|VERIFIER", help="Whose signature must be on it.")
@keys_option
@json_option
@pass_session
def checkpoint_verify(session: Session, *, file: Path, key: str, keys: Path | None) -> None:
    """Check a signed checkpoint, and that the ledger still begins with it.

    \b
    Example:
      keystone checkpoint verify kept-elsewhere --key alice.pub
    """  # noqa: D301 - \b is for click
    from manifests import BadSignatureError, CheckpointNote, ledger_origin  # noqa: PLC0415 - see key_store

    note = CheckpointNote.parse(file.read_text(encoding="utf-8"))
    public = _public(keys, key)
    note.check(public)
    with session.open() as archive:
        if note.origin != ledger_origin(archive.id):
            raise BadSignatureError(f"this checkpoint is of {note.origin}, not of {ledger_origin(archive.id)}")
        there = archive.ledger.checkpoint()
        begins = note.checkpoint.size <= there.size and archive.ledger.checkpoint(note.checkpoint.size)
    good = begins == note.checkpoint
    fields: dict[str, Value] = {"ok": good, "size": note.checkpoint.size, "root": note.checkpoint.root.hex()}
    said = "begins with" if good else "does NOT begin with"
    session.item(fields, f"signed by {public.name} ({public.id.short}); the ledger {said} {note.checkpoint}")
    if not good:
        click.get_current_context().exit(1)


def _public(directory: Path | None, text: str) -> "PublicKey":
    """A public key that a person means: a verifier line, a file that holds one, or the name of a key of theirs."""
    from manifests import PublicKey  # noqa: PLC0415 - see key_store

    if "+" in text:
        return PublicKey.parse(text)
    if Path(text).is_file():
        return PublicKey.parse(Path(text).read_text(encoding="ascii", errors="replace"))
    return key_store(directory).public(text)


def _trusted(archive: "Archive", text: str) -> "PublicKey | None":
    """A key the archive trusts, by its id, a prefix of that, or its name there."""
    from manifests import TrustBook  # noqa: PLC0415 - see key_store

    found = [
        spans[-1].key
        for key, spans in TrustBook(archive.ledger.entries()).spans().items()
        if spans[-1].end is None and (spans[-1].key.name == text or (len(text) >= 11 and str(key).startswith(text)))
    ]
    return found[0] if len(found) == 1 else None


def _resolve(archive: "Archive", text: str) -> "Digest":
    from csf_store import CsfError, Kind  # noqa: PLC0415 - see key_store
    from manifests import Repository, is_ref_name  # noqa: PLC0415

    if is_ref_name(text):
        return Repository(archive).resolve(text)
    try:
        return archive.resolve(text, kind=Kind.MANIFEST)
    except CsfError:
        return archive.resolve(text, kind=Kind.RECORD)


def _statement(archive: "Archive", target: str) -> "tuple[Digest, Statement]":
    from manifests import (  # noqa: PLC0415 - see key_store
        EvalReport,
        HeadToHead,
        InvalidDocumentError,
        Manifest,
        eval_statement,
        head_to_head_statement,
        load_any,
        manifest_statement,
        read_items,
    )

    subject = _resolve(archive, target)
    document = load_any(archive, subject)
    if isinstance(document, Manifest):
        return subject, manifest_statement(subject, document, str(archive.ledger.checkpoint()))
    if isinstance(document, EvalReport):
        items = read_items(archive.get_bytes(document.items)) if document.items is not None else ()
        passed = {item.name: item.passed for item in items if item.passed is not None}
        return subject, eval_statement(subject, document, passed)
    if isinstance(document, HeadToHead):
        return subject, head_to_head_statement(subject, document)
    raise InvalidDocumentError(
        f"{subject} is a {document.kind_name()}; what is signed are manifests and reports (approvals: approve)"
    )


def _print_signature(session: Session, found: "FoundSignature") -> bool:
    if found.problem is not None:
        fields: dict[str, Value] = {"envelope": str(found.envelope), "seq": found.seq, "problem": found.problem}
        session.item(fields, f"BAD   {found.envelope.short}  event {found.seq}: {found.problem}")
        return False
    for each in found.signatures:
        fields = {
            "envelope": str(found.envelope),
            "seq": found.seq,
            "key": str(each.key),
            "name": each.name,
            "state": each.state.name.lower(),
            "counts": each.state.counts,
        }
        session.item(fields, f"{'good' if each.state.counts else 'BAD '}  event {found.seq}  {each.text}")
    return all(each.state.counts for each in found.signatures)


def _show(session: Session, public: "PublicKey", state: str, rest: str) -> None:
    fields: dict[str, Value] = {
        "name": public.name,
        "key": str(public.id),
        "verifier": str(public),
        "state": state or None,
    }
    session.item(fields, f"{public.name:<16}  {public.id}{rest}")
