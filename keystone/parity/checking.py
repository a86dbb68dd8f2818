"""`check`: our forward pass beside the reference, and the report that says how close they are.

The reference comes from outside, so its specification, names, shapes and values are looked at before they are used. Our
side feeds the first part of an input in one call and the rest token by token through the cache, and is compared with
the reference at every position.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from blake3 import blake3
from safetensors import SafetensorError, safe_open
from torch import Tensor

from csf_store import Archive, Digest, Kind
from keystone.checkpoints import assemble_base
from keystone.errors import InvalidInputError, RefusedError
from keystone.identity import source_digest
from keystone.model import KeystoneForCausalLM
from keystone.parity.specification import ParityInput, Specification
from keystone.parity.verified import BARS
from manifests import CODE_ID, ParityCase, ParityReport, Repository

Progress: TypeAlias = Callable[[int], None]
Metric: TypeAlias = Literal["max-abs-delta", "relative-frobenius"]


def check(
    archive: Archive, target: str | Digest, reference: Path, *, progress: Progress | None = None
) -> tuple[Digest, ParityReport]:
    """Compare with a reference, and store what came out, passed or not.

    Args:
        archive: where the base is, and where the report goes.
        target: a manifest's digest, a unique prefix of it, or a ref.
        reference: the file that `reference.py` wrote.
        progress: told how many cases were run.

    Returns:
        The report's digest, and the report.

    Raises:
        InvalidInputError: the reference is not one, or holds logits that are not finite.
        RefusedError: it was made for another base.
        CheckpointError, ConfigurationError, csf_store.CsfError, manifests.ManifestError: about the base.
    """
    repository = Repository(archive)
    digest = target if isinstance(target, Digest) else repository.resolve(target)
    base = repository.load(digest).assembly.base
    with open_reference(reference) as found:
        if found.specification.base != base:
            raise RefusedError(
                f"{reference} was captured for base {found.specification.base}; manifest {digest} runs on {base}"
            )
        cases = tuple(run_cases(assemble_base(archive, base), found, progress))
        report = ParityReport(
            base=base,
            code=CODE_ID,
            code_source=source_digest(),
            reference=found.digest,
            inputs=found.specification.digest,
            engine=found.engine,
            device="cpu",
            cases=cases,
        )
    with archive.keeping():
        stored = repository.put_record(report)
        archive.pin(stored, kind=Kind.RECORD, name="parity")
    return stored, report


class Reference:
    """An open reference file, its specification parsed and every tensor's name, dtype and shape checked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: Any = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise InvalidInputError(f"{path} is not a readable safetensors file: {error}") from error
        metadata = self._file.metadata() or {}
        if "spec" not in metadata:
            raise InvalidInputError(f"{path} holds no specification; it was not written by reference.py")
        self.specification = Specification.from_bytes(metadata["spec"].encode())
        self.engine = " ".join("".join(c if " " <= c <= "~" else "?" for c in metadata.get("engine", "")).split())[:200]
        self.names = self._check_names()

    def _check_names(self) -> list[tuple[ParityInput, str]]:
        present = set(self._file.keys())
        known = [
            (given, dtype)
            for given in self.specification.inputs
            for dtype in self.specification.dtypes
            if tensor_name(given, dtype) in present
        ]
        surplus = present - {tensor_name(given, dtype) for given, dtype in known}
        dtypes = {dtype for _, dtype in known}
        missing = [given.name for given in self.specification.inputs for dtype in dtypes if (given, dtype) not in known]
        if surplus or missing or not known:
            raise InvalidInputError(
                f"{self.path}: surplus tensors {sorted(surplus)[:4]}, no logits for {sorted(set(missing))[:4] or 'any'}"
            )
        for given, dtype in known:
            part = self._file.get_slice(tensor_name(given, dtype))
            wanted = [len(given.ids), self.specification.vocab_size]
            if list(part.get_shape()) != wanted or part.get_dtype() not in ("F32", "BF16", "F16"):
                raise InvalidInputError(
                    f"{self.path}: {tensor_name(given, dtype)} is {part.get_dtype()} {part.get_shape()}, not {wanted}"
                )
        return known

    def __enter__(self) -> "Reference":
        return self

    def __exit__(self, *_: object) -> None:
        del self._file

    @property
    def digest(self) -> Digest:
        """BLAKE3 of the file."""
        hasher = blake3(max_threads=blake3.AUTO)
        hasher.update_mmap(self.path)
        return Digest(hasher.digest())

    def logits(self, given: ParityInput, dtype: str) -> Tensor:
        """The reference's logits of one case, `[tokens, vocab]`, fp32."""
        found: Tensor = self._file.get_tensor(tensor_name(given, dtype)).float()
        if not bool(found.isfinite().all()):
            raise InvalidInputError(f"{self.path}: {tensor_name(given, dtype)} holds values that are not finite")
        return found


def open_reference(path: Path) -> Reference:
    """Open a reference; see `Reference` and `check` for the errors."""
    return Reference(path)


def tensor_name(given: ParityInput, dtype: str) -> str:
    """What the logits of one case are called in a reference."""
    return f"{given.name}.{dtype}.logits"


def run_cases(
    model: KeystoneForCausalLM, reference: Reference, progress: Progress | None = None
) -> Iterator[ParityCase]:
    """Run every case of a reference through our model."""
    # Wide to narrow loses bits, narrow to wide does not: a bf16 base runs its bf16 cases before it is widened.
    narrow_first = model.dtype == torch.bfloat16
    for given, dtype in sorted(reference.names, key=lambda case: (case[1] == "bfloat16") != narrow_first):
        wanted = torch.float32 if dtype == "float32" else torch.bfloat16
        if model.dtype != wanted:
            torch.nn.Module.to(model, dtype=wanted)
        yield compare(given, dtype, our_logits(model, given), reference.logits(given, dtype))
        if progress is not None:
            progress(1)


def our_logits(model: KeystoneForCausalLM, given: ParityInput) -> Tensor:
    """`[tokens, vocab]`, fp32: the first part in one call, the rest one by one."""
    ids = torch.tensor([given.ids])
    with torch.inference_mode():
        output = model(ids[:, : given.prefill], use_cache=True)
        rows = [output.logits[0].float()]
        for at in range(given.prefill, len(given.ids)):
            output = model(ids[:, at : at + 1], past_key_values=output.past_key_values, use_cache=True)
            rows.append(output.logits[0].float())
    return torch.cat(rows)


def compare(given: ParityInput, dtype: str, ours: Tensor, reference: Tensor) -> ParityCase:
    """One case against its bar."""
    metric, bar = BARS[dtype]
    difference = ours - reference
    if metric == "max-abs-delta":
        value = float(difference.abs().max())
    else:
        value = float(torch.linalg.norm(difference.double()) / torch.linalg.norm(reference.double()).clamp_min(1e-30))
    worst = value if bool(ours.isfinite().all()) else None
    return ParityCase(
        name=f"{given.name}.{dtype}",
        dtype="float32" if dtype == "float32" else "bfloat16",
        metric="max-abs-delta" if metric == "max-abs-delta" else "relative-frobenius",
        tokens=len(given.ids),
        prefill=given.prefill,
        bar=bar,
        worst=worst,
        passed=worst is not None and worst <= bar,
    )
