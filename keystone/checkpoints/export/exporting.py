"""`export`: a manifest becomes a directory that other software loads.

| layout | for | the base as | the adapters |
|---|---|---|---|
| `transformers` | `AutoModelForCausalLM` | Llama or Qwen2 where it is one, else our code | beside, or merged |
| `vendor` | the engine LoopCoder-V2 came with | the vendor's names and configuration | beside, or merged |
| `gguf` | llama.cpp and its kin | one loop alone | merged |

Whatever can be refused is refused before a byte is written. Weights are streamed; a file whose tensors stay as they are
is copied byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from adapters import archived_adapter
from csf_store import Archive, Digest
from keystone.checkpoints.export.bill import write_bill
from keystone.checkpoints.export.card import CardFacts, model_card
from keystone.checkpoints.export.code_files import code_files
from keystone.checkpoints.export.comparing import LogitDifference, compare_merged
from keystone.checkpoints.export.configs import VENDOR_ARCHITECTURE as VENDOR_CLASS
from keystone.checkpoints.export.configs import Architecture, plain_architecture, transformers_config, vendor_config
from keystone.checkpoints.export.gguf_writing import GGUF_FILE, plan_gguf, write_gguf
from keystone.checkpoints.export.merging import Merge, ModuleError
from keystone.checkpoints.export.provenance import provenance_bytes
from keystone.checkpoints.export.signature import Signer, write_signature
from keystone.checkpoints.export.source import FLOAT_DTYPES, GENERATION_FILE, ExportSource, open_source
from keystone.checkpoints.export.tokenizer_files import write_tokenizer
from keystone.checkpoints.export.usage import usage_text
from keystone.checkpoints.export.weights import DTYPE_NAMES, Progress, WeightsPlan, parameter_count
from keystone.checkpoints.export.writing import PROVENANCE_FILE, ExportDirectory, WrittenFile
from keystone.errors import InvalidInputError, RefusedError
from keystone.identity import source_digest
from manifests import Json, check_cyclonedx, planned_hashing

Format: TypeAlias = Literal["transformers", "vendor", "gguf"]
FORMATS: tuple[Format, ...] = ("transformers", "vendor", "gguf")

ARCHITECTURE_CLASSES: Mapping[Architecture, str] = {
    "keystone": "KeystoneForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}
_TORCH_NAMES = {code: name for name, code in DTYPE_NAMES.items()}
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class ExportRequest:
    """What is asked for.

    Attributes:
        layout: the format.
        merge: add the adapters to the weights instead of laying them beside.
        dtype: `float32`, `bfloat16` or `float16`; None leaves the weights as stored.
        own_code: write our modeling code even where transformers' own class would do.
        compare: after a merge, run fixed prompts through merged and unmerged; takes the memory of both in fp32.
        force: replace an earlier export.
        bill: lay a CycloneDX bill of materials beside the files.
        signer: sign the finished directory with this key.
    """

    layout: Format = "transformers"
    merge: bool = False
    dtype: str | None = None
    own_code: bool = False
    compare: bool = True
    force: bool = False
    bill: bool = False
    signer: Signer | None = None


@dataclass(frozen=True)
class MergeReport:
    """What a merge did: per tensor, and to the logits if they were compared."""

    modules: Mapping[str, ModuleError]
    logits: LogitDifference | None

    @property
    def max_rounding(self) -> float:
        """The largest rounding error of any tensor."""
        return max((error.max_rounding for error in self.modules.values()), default=0.0)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the directory.
        digest: the manifest.
        layout: the format.
        architecture: the class that loads it.
        dtype: of the weights, as torch names it.
        files: every file, `keystone.json` included.
        copied: weight files that are byte for byte those of the archive.
        adapters: how many lie beside.
        merge: what merging did, if that was asked for.
        left_out: files of the tokenizer and adapter trees that did not go along.
    """

    path: Path
    digest: Digest
    layout: Format
    architecture: str
    dtype: str
    files: tuple[WrittenFile, ...]
    copied: int
    adapters: int
    merge: MergeReport | None
    left_out: tuple[str, ...]


def export(
    archive: Archive,
    target: str | Digest,
    out: Path,
    request: ExportRequest | None = None,
    *,
    progress: Progress | None = None,
) -> Exported:
    """Write a manifest as a directory for other software.

    Args:
        archive: where it is.
        target: the manifest's digest, a unique prefix of it, or a ref.
        out: the directory to make; its parent must exist.
        request: what is asked for; the default is `transformers`, nothing merged, weights as stored.
        progress: told how many bytes of stored weights were dealt with; `planned_bytes` of them in all.

    Raises:
        RefusedError: it cannot be done honestly; the reason is named and nothing is written.
        CheckpointError, ConfigurationError: what was stored does not make a model.
        OutputExistsError, StorageError, InvalidInputError: about the place to write to; see `ExportDirectory`.
        csf_store.CsfError, manifests.ManifestError: it is not there, or not what its digest says.
    """
    return _Export(archive, target, out, request or ExportRequest(), progress).run()


def planned_bytes(archive: Archive, target: str | Digest, request: ExportRequest | None = None) -> int:
    """Bytes that an export of this manifest goes through, for a progress bar; a bill hashes them once more."""
    source = open_source(archive, target)
    hashed = planned_hashing(archive, source.manifest) if request is not None and request.bill else 0
    return source.weight_bytes + hashed


@dataclass(frozen=True)
class _Weights:
    """The weights as they were written.

    Attributes:
        class_name: what loads them.
        own: our code does.
        dtype: as torch names it.
        merge: what was merged, if anything.
        copied: how many files are byte for byte those of the archive.
    """

    class_name: str
    own: bool
    dtype: str
    merge: Merge | None
    copied: int = 0


@dataclass
class _Export:
    archive: Archive
    target: str | Digest
    out: Path
    request: ExportRequest
    progress: Progress | None
    left_out: list[str] = field(default_factory=list)

    def run(self) -> Exported:
        source = open_source(self.archive, self.target)
        request = self.request
        if request.bill:
            check_cyclonedx()
        if request.signer is not None:
            request.signer.check()
        if request.dtype is not None and request.dtype not in DTYPE_NAMES:
            raise InvalidInputError(f"{request.dtype!r} is no dtype of weights; say {', '.join(DTYPE_NAMES)}")
        code = None if request.dtype is None else DTYPE_NAMES[request.dtype]
        merge = Merge(source, None if code is None else FLOAT_DTYPES[code]) if request.merge else None
        if request.layout == "gguf":
            return self._run_gguf(source, code, merge)
        plan = WeightsPlan(source, code, frozenset() if merge is None else merge.changed)
        dtype = _TORCH_NAMES[code or source.dtype]
        if request.layout == "vendor":
            config, own, class_name = vendor_config(source, dtype, weights_as_stored=code is None), False, VENDOR_CLASS
        else:
            architecture = "keystone" if request.own_code else plain_architecture(source.config)
            config, own = transformers_config(source, architecture, dtype), architecture == "keystone"
            class_name = ARCHITECTURE_CLASSES[architecture]
        with ExportDirectory(self.out, force=request.force) as directory:
            directory.write("config.json", config)
            directory.write(GENERATION_FILE, source.generation or _generation(source))
            for name, data in code_files().items() if own else ():
                directory.write(name, data)
            copied = plan.write(directory, merge, self.progress)
            self.left_out += write_tokenizer(self.archive, source.manifest.assembly.tokenizer, directory)
            return self._finish(source, directory, _Weights(class_name, own, dtype, merge, copied))

    def _run_gguf(self, source: ExportSource, code: str | None, merge: Merge | None) -> Exported:
        if source.manifest.assembly.adapters and merge is None:
            raise RefusedError(
                "a GGUF file of the base alone would not be this manifest; merge its adapters with --merge"
            )
        plan = plan_gguf(source, code)
        with ExportDirectory(self.out, force=self.request.force) as directory:
            write_gguf(directory, plan, self.out.name, merge, self.progress)
            weights = _Weights(plan.architecture, own=False, dtype=_TORCH_NAMES[plan.dtype], merge=merge)
            return self._finish(source, directory, weights)

    def _finish(self, source: ExportSource, directory: ExportDirectory, weights: _Weights) -> Exported:
        """Everything after the weights: what lies beside them, and what speaks of all the rest."""
        assembly, merge = source.manifest.assembly, weights.merge
        if merge is None:
            for number, use in enumerate(assembly.adapters, start=1):
                self._write_adapter(use.adapter, f"adapters/{number}", directory)
        report = None if merge is None else self._merge_report(source, directory, weights, merge)
        usage = usage_text(source.manifest, self.request.layout, remote_code=weights.own, merged=merge is not None)
        facts = CardFacts(
            manifest=source.manifest,
            digest=source.digest,
            title=self.out.name,
            layout=self.request.layout,
            architecture=weights.class_name,
            dtype=weights.dtype,
            parameters=parameter_count(source.tensors),
            loops=source.config.plt_num_loops,
            merged=merge is not None,
            as_stored=self.request.dtype is None,
            usage=usage,
            notes=_notes(report),
        )
        directory.write("README.md", model_card(facts))
        if self.request.bill:
            write_bill(self.archive, source.digest, directory, self.request.layout, self.progress)
        how = self._how(weights, source, report)
        directory.write(PROVENANCE_FILE, provenance_bytes(source.manifest, source.digest, tuple(directory.files), how))
        if self.request.signer is not None:
            write_signature(directory, self.request.signer)
        return Exported(
            path=directory.out,
            digest=source.digest,
            layout=self.request.layout,
            architecture=weights.class_name,
            dtype=weights.dtype,
            files=tuple(directory.files),
            copied=weights.copied,
            adapters=0 if merge is not None else len(assembly.adapters),
            merge=report,
            left_out=tuple(self.left_out),
        )

    def _merge_report(
        self, source: ExportSource, directory: ExportDirectory, weights: _Weights, merge: Merge
    ) -> MergeReport:
        logits = None
        if self.request.compare:
            gguf = GGUF_FILE if self.request.layout == "gguf" else None
            plain = not weights.own and self.request.layout != "vendor"
            logits = compare_merged(source, directory.path, plain=plain, gguf=gguf)
        return MergeReport(dict(sorted(merge.errors.items())), logits)

    def _write_adapter(self, tree: Digest, folder: str, directory: ExportDirectory) -> None:
        archived_adapter(self.archive, tree)  # refused here if it is none, or does what nobody checked
        for entry in self.archive.tree(tree).entries:
            if entry.path in _ADAPTER_FILES:
                path = f"{folder}/{entry.path}"
                self.archive.get_file(entry.blob, directory.place(path))
                directory.note(path, entry.blob, entry.size)
            else:
                self.left_out.append(f"{folder}/{entry.path}")

    def _how(self, weights: _Weights, source: ExportSource, report: MergeReport | None) -> Mapping[str, Json]:
        merged: Mapping[str, Json] | None = None
        if report is not None:
            merged = {
                "modules": {name: asdict(error) for name, error in report.modules.items()},
                "logits": None if report.logits is None else asdict(report.logits),
            }
        return {
            "format": self.request.layout,
            "architecture": weights.class_name,
            "dtype": weights.dtype,
            "as_stored": self.request.dtype is None,
            "code": source.manifest.assembly.code,
            "code_source": str(source_digest()),
            "merge": merged,
        }


def _generation(source: ExportSource) -> bytes:
    """What `generate` needs to know where the base says nothing: its special tokens, from the configuration."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    found = {name: getattr(source.config, name) for name in names if getattr(source.config, name) is not None}
    return (json.dumps({"_from_model_config": True, **found}, indent=2) + "\n").encode()


def _notes(report: MergeReport | None) -> list[str]:
    if report is None:
        return []
    rounding = (
        f"The adapters are merged into {len(report.modules)} tensors, summed in fp32; rounding moved a weight by at"
        f" most {report.max_rounding:.3g}."
    )
    if report.logits is None:
        return [rounding]
    logits = report.logits
    difference = (
        f"Against base plus adapters, in fp32 over {logits.tokens} positions: logits differ by at most"
        f" {logits.max_abs:.3g} (relative {logits.relative:.2g}); the adapters themselves move them by up to"
        f" {logits.effect:.3g}."
    )
    return [rounding, difference]
