"""`train_adapter`: records that the source gate let in become an adapter, its proof, and a manifest that names it.

Nothing is trained on that the report does not let in: the report must be of this gate, name this very set of records as
its data, and refuse none of it; each record must still stand on the ground and the check that it was let in with.
External examples are mixed in, and must be external: an answer of a model is none, whoever's it was.

The steps after training are the same whenever they run: the adapter is written in its one form and stored with its
training record; then the curve, the run and the manifest; last the checkpoint is let go of. Killed anywhere, the same
call ends with the same digests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from adapters import (
    GATE,
    ConvergenceRecord,
    SourceRefusedError,
    add_adapter,
    archived_adapter,
    require_admitted,
    write_adapter,
)
from csf_store import Digest, Kind
from keystone.checkpoints import BaseCheckpoint, archived_tokenizer
from keystone.errors import RefusedError
from keystone.experience.batches import load_records
from keystone.experience.gating import data_set_digest
from keystone.identity import source_digest
from keystone.loader import usable_device
from keystone.quantize import choose_recipe
from keystone.training.curve import curve_lines
from keystone.training.documents import TrainingRun
from keystone.training.examples import batches_of
from keystone.training.learning import Learned, Lesson, checkpoints_in, learn, parent_of, saved_modules
from keystone.training.settings import Progress, TrainSettings
from manifests import AdapterUse, Manifest, Repository, SourceGateReport


@dataclass(frozen=True, slots=True)
class Trained:
    """What training left in the archive.

    Attributes:
        adapter: the adapter tree.
        record: its training record.
        run: the training run, with what it takes to do it again.
        manifest: the new manifest: same base and tokenizer, this adapter in place of the parent's.
        losses: one a step.
        external_share: share of external examples among those trained on.
        curve: the blob of the loss curve.
        notes: what a person should know, such as a slow way of holding the base.
    """

    adapter: Digest
    record: Digest
    run: Digest
    manifest: Digest
    losses: tuple[float, ...]
    external_share: float
    curve: Digest
    notes: tuple[str, ...] = ()


def train_adapter(
    repository: Repository,
    parent: Digest,
    records: Sequence[Digest],
    gate_report: Digest,
    settings: TrainSettings,
    *,
    external: Sequence[Digest] = (),
    checkpoint_dir: Path | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train a LoRA adapter on a frozen base.

    Args:
        repository: where everything is, and goes.
        parent: a manifest: a bare base, or a base with one adapter to go on from.
        records: Convergence Records to train on.
        gate_report: the source gate's report over exactly `records` and `external` together.
        settings: how.
        external: Convergence Records from outside, mixed in.
        checkpoint_dir: where the state of the run is kept while it runs; None keeps none.
        progress: told (steps done, steps in all, loss) after every step.

    Raises:
        SourceRefusedError: the report does not let this set in; the record is named.
        RefusedError: a parent or a setting that cannot be honoured.
        InvalidInputError: settings that cannot be meant.
        adapters.AdapterError: see `adapters.train_lora`; `BaseChangedError` above all.
    """
    settings.check()
    archive = repository.archive
    manifest = repository.load(parent)
    own, others = sorted(set(records)), sorted(set(external))
    documents = admitted(repository, own, others, gate_report)
    others = _chosen(own, others, settings)
    share = len(others) / (len(own) + len(others))
    tokenizer = archived_tokenizer(archive, manifest.assembly.tokenizer)
    experience = tuple(sorted({*own, *others}))
    examples = [documents[digest] for digest in experience]
    batches = batches_of(tokenizer, examples, size=settings.batch_size, max_tokens=settings.max_tokens)
    device = usable_device(settings.device or "cpu")
    checkpoint = BaseCheckpoint.open(archive, manifest.assembly.base)
    choice = choose_recipe(
        checkpoint.blank, asked=settings.quantization, manifests_own=None, device=device, dtype=checkpoint.dtype
    )
    above = parent_of(archive, manifest)
    lesson = Lesson(
        manifest=manifest,
        recipe=choice.recipe,
        device=device,
        batches=batches,
        config=settings.config(len(batches), archived_adapter(archive, above.digest).settings if above else None),
        data=(data_set_digest([*records, *external]),),
        experience=experience,
        gate=gate_report,
    )
    learned = learn(
        archive, lesson, checkpoints=checkpoints_in(checkpoint_dir, settings.checkpoint_every), progress=progress
    )
    run = _Run(parent, tuple(own), tuple(others), share, settings, saved_modules(checkpoint.config), choice.notes)
    return _stored(repository, lesson, learned, run)


def admitted(
    repository: Repository, records: Sequence[Digest], external: Sequence[Digest], gate_report: Digest
) -> dict[Digest, ConvergenceRecord]:
    """The records of a training set, read again, if a report of the gate lets exactly this set in.

    Raises:
        SourceRefusedError: another gate, another set, a refused record, a ground or check that is no longer the same,
            or a model's answer among the external ones; it is named.
    """
    if not records and not external:
        raise SourceRefusedError("the training set is empty; collect verified experience first")
    if both := sorted(set(records) & set(external)):
        raise SourceRefusedError(f"record {both[0]} is given as collected and as external; it is one of the two")
    report = repository.load_record(gate_report, SourceGateReport)
    if report.gate != GATE:
        raise SourceRefusedError(f"report {gate_report} is of gate {report.gate}; have the set judged by {GATE}")
    everything = sorted({*records, *external})
    require_admitted(report, everything)
    if data_set_digest(everything) not in report.data:
        raise SourceRefusedError(f"report {gate_report} is about another set of records; have this very set judged")
    found = dict(zip(everything, load_records(repository, everything), strict=True))
    for entry in report.accepted:
        record = found.get(entry.record)
        if record is None:
            continue
        if (record.evidence.training_ground, record.evidence.check) != (entry.ground, entry.evidence):
            raise SourceRefusedError(f"record {entry.record} stands on other evidence than report {gate_report} says")
    for digest in external:
        if found[digest].source.kind == "model":
            raise SourceRefusedError(
                f"record {digest} is the answer of a model; external data is what none has written"
            )
    return found


def _chosen(records: Sequence[Digest], external: Sequence[Digest], settings: TrainSettings) -> list[Digest]:
    """As many external records as the share asks for, drawn by the seed.

    Raises:
        RefusedError: there are not as many.
    """
    if settings.external_share is None:
        return list(external)
    if not records:
        raise RefusedError("a share of external records is a share beside others, and all that are given are external")
    count = round(len(records) * settings.external_share / (1 - settings.external_share))
    if count > len(external):
        raise RefusedError(
            f"a share of {settings.external_share:g} with {len(records)} records takes {count} external ones, and"
            f" {len(external)} are given; add more, or ask for less"
        )
    return sorted(Random(settings.seed).sample(sorted(external), count))  # noqa: S311 - a draw, no secret


@dataclass(frozen=True, slots=True)
class _Run:
    parent: Digest
    own: tuple[Digest, ...]
    others: tuple[Digest, ...]
    share: float
    settings: TrainSettings
    saved: tuple[str, ...]
    notes: tuple[str, ...]


def _stored(repository: Repository, lesson: Lesson, learned: Learned, run: _Run) -> Trained:
    archive, assembly, result = repository.archive, lesson.manifest.assembly, learned.result
    with archive.keeping(), TemporaryDirectory() as work:
        directory = write_adapter(result.model, Path(work) / "adapter")
        adapter, record = add_adapter(
            repository, directory, base=assembly.base, parent=result.record.parent, training=result.record
        )
        if record.training is None:
            raise RefusedError(f"adapter {adapter} is in the archive as a claim, and its training record was not kept")
        archive.pin(adapter, kind=Kind.TREE, name="trained adapter")
        curve = archive.put_bytes(curve_lines(result.losses, lesson.config)).digest
        document = TrainingRun(
            adapter=adapter,
            training=record.training,
            manifest=run.parent,
            tokenizer=assembly.tokenizer,
            recipe=lesson.recipe,
            modules_to_save=run.saved,
            records=run.own,
            external=run.others,
            external_share=run.share,
            batch_size=run.settings.batch_size,
            max_tokens=run.settings.max_tokens,
            curve=curve,
            held_before=learned.held,
            held_after=learned.held,
            archived_before=learned.archived,
            archived_after=learned.archived,
        )
        kept = repository.put_record(document)
        archive.pin(kept, kind=Kind.RECORD, name="training run")
        manifest = repository.put(
            Manifest(
                assembly=assembly.revised(adapters=(AdapterUse(adapter=adapter),)),
                code_source=source_digest(),
                recipe=lesson.manifest.recipe,
                source=lesson.manifest.source,
                lineage=repository.trace([adapter], base=assembly.base),
                parent=run.parent,
                labels=lesson.manifest.labels,
            )
        )
    if result.checkpoint is not None:
        result.checkpoint.remove()
    return Trained(adapter, record.training, kept, manifest, result.losses, run.share, curve, run.notes)
