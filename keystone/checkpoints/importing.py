"""From a checkpoint to a manifest: match every tensor, store base and tokenizer, write down where they came from.

Nothing is stored before every tensor of the source has its place and every place its tensor. A weights file that is
already what the base needs goes in byte for byte, so its digest is the one `b3sum` gives for the file; any other is
made while the archive reads it (see `streaming`). Storing the same source again stores nothing and gives the same
manifest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from csf_store import Archive, Digest, Kind, TreeEntry
from keystone.checkpoints.huggingface import CONFIG, GENERATION, whole_files
from keystone.checkpoints.names import TensorLine, count_fates, expected_tensors, match, parameter_count, refuse_faults
from keystone.checkpoints.sources import Checkpoint, Note
from keystone.checkpoints.streaming import Placed, StreamedShard, shards
from keystone.checkpoints.tokenizers import TOKENIZER_FILE, build_tokenizer
from keystone.errors import CheckpointError, InvalidInputError
from keystone.identity import source_digest
from manifests import Assembly, Manifest, Repository, Source

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Plan:
    """What an import will do, decided before anything is stored.

    Attributes:
        checkpoint: the source.
        lines: the fate of every tensor.
        parameters: numbers in the model.
        notes: what is left out.
        source: what the manifest will say of where it came from.
    """

    checkpoint: Checkpoint
    lines: Sequence[TensorLine]
    parameters: int
    notes: Sequence[Note]
    source: Source

    @property
    def nbytes(self) -> int:
        """Bytes of weights to be stored."""
        return sum(line.tensor.nbytes for line in self.lines if line.tensor is not None and line.fate == "mapped")

    @property
    def fates(self) -> Mapping[str, int]:
        """How many tensors met each fate."""
        return {str(fate): count for fate, count in count_fates(self.lines).items()}


@dataclass(frozen=True)
class Imported:
    """What is in the archive now.

    Attributes:
        base: the tree of configuration and weights.
        tokenizer: the tokenizer's tree.
        manifest: the manifest's digest.
        stored: bytes that were new to the archive.
    """

    base: Digest
    tokenizer: Digest
    manifest: Digest
    stored: int


def plan_import(checkpoint: Checkpoint) -> Plan:
    """Match a checkpoint's tensors with its configuration; `refuse_faults` judges the result.

    Raises:
        CheckpointError, ConfigurationError: what it holds cannot even be compared.
        InvalidInputError: a source with weights and without a usable tokenizer.
        manifests.InvalidDocumentError: its licence is no SPDX expression.
    """
    origin = checkpoint.origin
    source = Source(kind=origin.kind, location=origin.location, licence=origin.licence, note=origin.note)
    lines = match(checkpoint)
    notes = list(checkpoint.notes)
    notes += [Note("tensor", line.name, line.reason) for line in lines if line.fate == "dropped"]
    if not checkpoint.headless:
        notes += check_tokenizer(origin.location, checkpoint)
    return Plan(checkpoint, lines, parameter_count(expected_tensors(checkpoint.config)), notes, source)


def import_checkpoint(archive: Archive, plan: Plan, *, progress: Progress | None = None) -> Imported:
    """Store a planned checkpoint's base and tokenizer, and the manifest that names them.

    Args:
        archive: where to.
        plan: what `plan_import` found.
        progress: told how many bytes of weights were stored.

    Raises:
        CheckpointError: a fault in the plan, or a source without weights.
        csf_store.CsfError: the archive could not take it.
    """
    checkpoint = plan.checkpoint
    where = checkpoint.origin.location
    refuse_faults(where, plan.lines)
    if checkpoint.headless:
        raise CheckpointError(f"{where} holds no safetensors file; with --dry-run its configuration alone is checked")
    with archive.keeping():
        entries, stored = _put_weights(archive, plan, progress)
        for name, data in ((CONFIG, checkpoint.config_json), (GENERATION, checkpoint.generation_json)):
            if data is not None:
                entries.append(put_small(archive, name, data))
        base = archive.put_tree_entries(entries)
        archive.pin(base.digest, kind=Kind.TREE, name=where)
        tokenizer = put_tokenizer(archive, checkpoint.tokenizer, where)
        manifest = Repository(archive).put(
            Manifest(
                assembly=Assembly(base=base.digest, tokenizer=tokenizer),
                code_source=source_digest(),
                source=plan.source,
                labels=dict(checkpoint.origin.labels),
            )
        )
    return Imported(base.digest, tokenizer, manifest, stored + base.stored)


def check_tokenizer(where: str, checkpoint: Checkpoint) -> list[Note]:
    """Refuse a tokenizer that a load could not read; one with more ids than the model has embeddings is noted.

    Raises:
        InvalidInputError: naming what is missing or broken.
    """
    files = checkpoint.tokenizer
    if TOKENIZER_FILE not in files:
        held = f" (it holds {', '.join(sorted(files))})" if files else ""
        raise InvalidInputError(
            f"{where} holds no {TOKENIZER_FILE}{held}; give a directory that does with --tokenizer, or make one with"
            " transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    last = max(build_tokenizer(files, where).get_vocab().values(), default=-1)
    if last < checkpoint.config.vocab_size:
        return []
    rows = checkpoint.config.vocab_size
    return [Note("file", TOKENIZER_FILE, f"kept, but it has ids up to {last} and the model has {rows} embeddings")]


def put_tokenizer(archive: Archive, files: Mapping[str, bytes], where: str) -> Digest:
    """Store a tokenizer's files as a tree of their own, pinned."""
    tree = archive.put_tree_entries([put_small(archive, name, data) for name, data in sorted(files.items())])
    archive.pin(tree.digest, kind=Kind.TREE, name=f"{where} tokenizer")
    return tree.digest


def put_small(archive: Archive, name: str, data: bytes) -> TreeEntry:
    """Store a small file of a tree."""
    stored = archive.put_bytes(data)
    return TreeEntry(name, stored.digest, stored.size)


def _put_weights(archive: Archive, plan: Plan, progress: Progress | None) -> tuple[list[TreeEntry], int]:
    """The weights: whole files as they are, the rest as shards made while they are read."""
    checkpoint = plan.checkpoint
    placed = [
        Placed(line.name, line.tensor) for line in plan.lines if line.fate == "mapped" and line.tensor is not None
    ]
    as_they_are = whole_files(checkpoint, [each.tensor for each in placed])
    entries, stored = [], 0
    for name, path in as_they_are.items():
        put = archive.put_file(path, progress=progress)
        entries.append(TreeEntry(name, put.digest, put.size))
        stored += put.stored
    for shard in _made(checkpoint, [each for each in placed if each.tensor.file not in as_they_are]):
        put = archive.put_source(shard, progress=progress)
        entries.append(TreeEntry(str(shard.path), put.digest, put.size))
        stored += put.stored
    return entries, stored


def _made(checkpoint: Checkpoint, placed: Sequence[Placed]) -> list[StreamedShard]:
    """One made shard for each file that cannot go in as it is; for a source that is no safetensors, by size."""
    if not checkpoint.files:
        return shards(placed)
    groups: dict[str, list[Placed]] = {}
    for each in placed:
        groups.setdefault(each.tensor.file, []).append(each)
    return [StreamedShard(name, group) for name, group in groups.items()]
