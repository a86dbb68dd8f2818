"""Is this adapter what its training record says it is? Train it again and compare, bit for bit.

- SAME: the run was made again and gave these very tensors. Whatever else differs, that settles it.
- DIFFERENT: on a machine like the first, with the same libraries, it gave others. Something that is recorded is not so.
- UNKNOWN: it cannot be made again, or it gave others where libraries, threads, instruction set or device are not the
  same, which moves the last bits of a sum by itself. The reason names what differs or is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from adapters import Machine
from csf_store import CsfError, Digest
from keystone.checkpoints import archived_tokenizer
from keystone.errors import KeystoneError, RefusedError
from keystone.experience.batches import load_records
from keystone.loader import usable_device
from keystone.training.documents import TrainingRun, find_training_run
from keystone.training.examples import batches_of
from keystone.training.learning import Lesson, checkpoints_in, learn
from keystone.training.settings import Progress
from manifests import ManifestError, Repository, TrainingRecord

Verdict: TypeAlias = Literal["SAME", "DIFFERENT", "UNKNOWN"]


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What making a run again has shown.

    Attributes:
        verdict: see the module.
        reason: in one line.
        expected: tensor-set digest of the adapter, by its record; None where there is no record.
        found: of what was trained now; None where nothing was.
        differences: what of this machine is not as it was then.
    """

    verdict: Verdict
    reason: str
    expected: Digest | None = None
    found: Digest | None = None
    differences: tuple[str, ...] = ()


def reproduce(
    repository: Repository, adapter: Digest, *, checkpoint_dir: Path | None = None, progress: Progress | None = None
) -> Reproduction:
    """Train an adapter again from its records, and compare.

    Args:
        repository: where it is.
        adapter: the adapter tree.
        checkpoint_dir: where the state of the run is kept while it runs.
        progress: told (steps done, steps in all, loss).

    Raises:
        adapters.AdapterError: training itself failed, for another reason than what was recorded.
    """
    try:
        found = _recorded(repository, adapter)
        if isinstance(found, str):
            return Reproduction("UNKNOWN", found)
        training, run = found
        lesson = _lesson(repository, training, run)
    except (CsfError, ManifestError, KeystoneError) as error:
        return Reproduction("UNKNOWN", f"it cannot be made again here: {error}")
    with _threads(training.threads):
        also = {"bitsandbytes"} & set(training.libraries)
        differences = tuple(Machine.here(lesson.device, also=also).differences(training))
        record = learn(
            repository.archive, lesson, checkpoints=checkpoints_in(checkpoint_dir, 25), progress=progress
        ).result.record
    if (record.adapter_tensors, record.losses) == (training.adapter_tensors, training.losses):
        although = f", although here {'; '.join(differences)}" if differences else ""
        reason = f"{training.config.steps} steps made once more gave the same tensors{although}"
        return Reproduction("SAME", reason, training.adapter_tensors, record.adapter_tensors, differences)
    what = "its batches are others" if record.batches != training.batches else "the tensors are others"
    if differences:
        reason = f"{what}, and this machine is not the one it was trained on: {'; '.join(differences)}"
        return Reproduction("UNKNOWN", reason, training.adapter_tensors, record.adapter_tensors, differences)
    reason = f"{what}, with the same libraries, threads and instruction set"
    return Reproduction("DIFFERENT", reason, training.adapter_tensors, record.adapter_tensors)


def _recorded(repository: Repository, adapter: Digest) -> tuple[TrainingRecord, TrainingRun] | str:
    record = repository.adapter_record(adapter)
    if record is None or record.training is None:
        return "no training record says how this adapter came to be"
    found = find_training_run(repository, adapter)
    if found is None:
        return "no training run is kept for it, which says how its examples became batches"
    return repository.load_record(record.training, TrainingRecord), found[1]


def _lesson(repository: Repository, training: TrainingRecord, run: TrainingRun) -> Lesson:
    manifest = repository.load(run.manifest)
    if manifest.assembly.base != training.base or manifest.assembly.tokenizer != run.tokenizer:
        raise RefusedError(f"manifest {run.manifest} is not of the base and tokenizer that the records name")
    examples = load_records(repository, [*run.records, *run.external])
    tokenizer = archived_tokenizer(repository.archive, run.tokenizer)
    return Lesson(
        manifest=manifest,
        recipe=run.recipe,
        device=usable_device("cuda" if training.device.startswith("cuda") else "cpu"),
        batches=batches_of(tokenizer, examples, size=run.batch_size, max_tokens=run.max_tokens),
        config=training.config,
        data=training.data,
        experience=training.experience,
        gate=training.gate,
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """As many threads as then, since they decide in which order sums are made."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
