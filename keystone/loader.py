"""Manifest in, running model out: `load` assembles, quantizes and attaches, and says from which bytes.

Order matters and is fixed: verified base weights, then quantization, cached before anything runs, then adapters, then
the first forward. Adapters attached after a forward could meet weights that bitsandbytes has repacked.
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from csf_store import Archive, Digest, default_archive_path, give_back, hold_little_back
from keystone.attestation import attest_model, attest_tensors, plain_name, tensor_digests
from keystone.checkpoints import WEIGHTS_SUFFIX, BaseCheckpoint, archived_tokenizer, read_adapter_tensors
from keystone.errors import InvalidInputError, RefusedError
from keystone.generation import complete
from keystone.model import KeystoneForCausalLM
from keystone.quantize import Choice, Quantization, choose_recipe, weight_bytes
from keystone.quantize.assembling import assemble
from keystone.quantize.derived import DerivedKey, find_derived
from keystone.wearing import fill, wrap
from manifests import KNOWN_CODES, AdapterUse, Manifest, Recipe, Repository

if TYPE_CHECKING:
    from keystone.combining.switching import Wardrobe

Progress = Callable[[int], None]
Cache = Literal["use", "ignore"]


@dataclass(frozen=True)
class LoadedModel:
    """A model that runs, and the names of what it was made from.

    Attributes:
        model: ready for `generate`; wrapped by PEFT when the assembly holds adapters.
        tokenizer: its tokenizer.
        manifest: what was asked for.
        digest: the manifest's digest.
        recipe: how the numbers are held now; the manifest's own unless another was asked for.
        read_bytes: bytes of tensors read from the archive and verified, adapters included.
        seconds: from the first read to a model ready to run.
        derived: the blob its quantized weights were read from or are now cached in; None where there is none.
        quantized_here: whether quantizing was part of this load.
        notes: what a person should know: a default that gave way, a cache that could not be written.
        tensors: the digest of every tensor as it was assigned, in canonical form; see `keystone.attestation`.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerFast
    manifest: Manifest
    digest: Digest
    recipe: Recipe
    read_bytes: int
    seconds: float
    derived: Digest | None = None
    quantized_here: bool = False
    notes: tuple[str, ...] = ()
    tensors: Mapping[str, Digest] = field(default_factory=dict)

    def attest(self, nonce: bytes) -> Digest:
        """The keyed digest of every tensor as it stands in memory now; see `keystone.attestation` for what it proves.

        Raises:
            InvalidInputError: the nonce is too short.
        """
        if "wardrobe" in self.__dict__:
            return attest_tensors(self.wardrobe.tensors(), nonce)
        return attest_model(self.model, nonce)

    @cached_property
    def wardrobe(self) -> "Wardrobe":
        """The adapters it can wear; see `keystone.combining.switching`."""
        from keystone.combining.switching import Wardrobe  # noqa: PLC0415 - most models wear what they were loaded with

        return Wardrobe(self.model, self.manifest.assembly.base, self.manifest.assembly.adapters)

    def use(self, *adapters: AdapterUse, archive: Archive | str | Path | None = None) -> None:
        """Compute with exactly these adapters from now on, without a reload; none is the bare base.

        The manifest stays what was loaded; `wardrobe.worn` is what computes. See `Wardrobe.wear` for the errors.

        Args:
            adapters: in order, each at its weight.
            archive: where adapters are that the model does not hold yet; default the user's own.
        """
        self.wardrobe.wear(adapters, archive=archive)

    def wearing(
        self, *adapters: AdapterUse, archive: Archive | str | Path | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """`use` for as long as the block lasts; then it is as before."""
        return self.wardrobe.wearing(adapters, archive=archive)

    @property
    def kept_modules(self) -> tuple[str, ...]:
        """The linear modules and embeddings that are not quantized, by full name; adapters are not among them."""
        names = {_plain_name(name) for name, module in self.model.named_modules() if _holds_a_matrix(module)}
        return tuple(sorted(names - set(self.recipe.modules) - {""}))

    @property
    def weight_bytes(self) -> int:
        """Bytes the weights hold in memory, quantization state and adapters included."""
        return weight_bytes(self.model)

    def complete(self, prompts: Sequence[str], **settings: Any) -> list[str]:
        """Continue each prompt; see `keystone.generation.complete` for the settings."""
        return complete(self.model, self.tokenizer, prompts, **settings)


def load(
    target: str | Digest,
    *,
    archive: Archive | str | Path | None = None,
    quantization: Quantization | None = None,
    device: str | torch.device | None = None,
    cache: Cache = "use",
    progress: Progress | None = None,
) -> LoadedModel:
    """Turn a manifest into a running model.

    Args:
        target: a manifest's digest, a unique prefix of it, or a ref.
        archive: an open archive, or where one is; default the user's own.
        quantization: the scheme, obeyed or refused. Default: the manifest's recipe, else what suits the device.
        device: where to run; default the first CUDA card, else the CPU.
        cache: `ignore` quantizes from the base whatever is cached, and caches nothing.
        progress: told how many bytes of weights were read.

    Raises:
        RefusedError: the scheme or the code the manifest names cannot be honoured here.
        CheckpointError, ConfigurationError: what was stored does not make a model.
        csf_store.CsfError, manifests.ManifestError: it is not there, or not what its digest says.
    """
    with contextlib.ExitStack() as stack:
        if not isinstance(archive, Archive):
            archive = stack.enter_context(Archive.open(default_archive_path() if archive is None else archive))
        return _load(target, archive, quantization=quantization, device=device, cache=cache, progress=progress)


def _load(
    target: str | Digest,
    archive: Archive,
    *,
    quantization: Quantization | None,
    device: str | torch.device | None,
    cache: Cache,
    progress: Progress | None,
) -> LoadedModel:
    started = time.perf_counter()
    hold_little_back()
    repository = Repository(archive)
    digest = target if isinstance(target, Digest) else repository.resolve(target)
    manifest = repository.load(digest)
    assembly = manifest.assembly
    if assembly.code not in KNOWN_CODES:
        raise RefusedError(f"manifest {digest} runs on {assembly.code}; this release computes {', '.join(KNOWN_CODES)}")
    place = default_device() if device is None else usable_device(device)
    read = 0

    def count(amount: int) -> None:
        nonlocal read
        read += amount
        if progress is not None:
            progress(amount)

    checkpoint = BaseCheckpoint.open(archive, assembly.base)
    choice = _choice(checkpoint, manifest, quantization, place)
    base = assemble(archive, checkpoint, choice.recipe, device=place, cache=cache, progress=count)
    model: nn.Module = base.model
    if assembly.adapters:
        model = attach_adapters(base.model, archive, assembly.adapters, progress=count)
    digests = tensor_digests(model)  # before any forward
    tokenizer = archived_tokenizer(archive, assembly.tokenizer)
    give_back()  # of a vocabulary, reading leaves three times what it keeps
    return LoadedModel(
        model.eval(),
        tokenizer,
        manifest,
        digest,
        choice.recipe,
        read,
        time.perf_counter() - started,
        derived=base.derived,
        quantized_here=base.quantized_here,
        notes=choice.notes + base.notes,
        tensors=digests,
    )


def _choice(checkpoint: BaseCheckpoint, manifest: Manifest, asked: Quantization | None, device: torch.device) -> Choice:
    return choose_recipe(
        checkpoint.blank,
        asked=asked,
        manifests_own=manifest.recipe,
        device=device,
        dtype=checkpoint.dtype,
    )


def planned_bytes(
    archive: Archive,
    target: str | Digest,
    *,
    quantization: Quantization | None = None,
    device: str | torch.device | None = None,
) -> int:
    """How many bytes of weights a load of this manifest will read, for a progress bar."""
    repository = Repository(archive)
    manifest = repository.load(target if isinstance(target, Digest) else repository.resolve(target))
    checkpoint = BaseCheckpoint.open(archive, manifest.assembly.base)
    place = default_device() if device is None else usable_device(device)
    recipe = _choice(checkpoint, manifest, quantization, place).recipe
    quantized = recipe.quantization != "none"
    derived = find_derived(archive, DerivedKey(checkpoint.digest, recipe)) if quantized else None
    adapters = sum(
        entry.size
        for use in manifest.assembly.adapters
        for entry in archive.tree(use.adapter).entries
        if entry.path.endswith(WEIGHTS_SUFFIX)
    )
    return adapters + (checkpoint.nbytes if derived is None else archive.content_size(derived))


def default_device() -> torch.device:
    """The first CUDA card where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def usable_device(device: str | torch.device) -> torch.device:
    """A device that is here.

    Raises:
        InvalidInputError: no such kind of device.
        RefusedError: there is, but not on this box.
    """
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise InvalidInputError(f"{device!r} names no device; say cpu, cuda or cuda:1") from error
    if place.type != "cpu" and (place.index or 0) >= getattr(torch, place.type).device_count():
        raise RefusedError(f"{place} is not on this box; leave --device away to use what is")
    return place


def attach_adapters(
    base: KeystoneForCausalLM, archive: Archive, uses: Sequence[AdapterUse], *, progress: Progress | None = None
) -> nn.Module:
    """Wrap a base with its adapters, in order and each at its weight.

    Args:
        base: quantized or not, before its first forward.
        archive: where the adapter trees live.
        uses: the adapters and their weights.
        progress: told how many bytes of adapter tensors were read.

    Raises:
        RefusedError: an adapter's tensors did not all find their place.
    """
    wrapped: Any = None
    for use in uses:
        fields, tensors = read_adapter_tensors(archive, use.adapter)
        name = use.adapter.hex[:12]
        wrapped = wrap(base, wrapped, name, fields)
        fill(wrapped, name, tensors, use)
        if progress is not None:
            progress(sum(tensor.nbytes for tensor in tensors.values()))
    wrapped.base_model.set_adapter([use.adapter.hex[:12] for use in uses], inference_mode=True)
    return wrapped  # type: ignore[no-any-return]


def _plain_name(name: str) -> str:
    """A module's name as the recipe knows it: without what PEFT puts around it, and empty for its own modules."""
    if ".lora_" in name:
        return ""
    return plain_name(name)


def _holds_a_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Embedding)
