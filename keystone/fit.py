"""Will it fit? Weights, cache, adapters and overhead of a model, for each way to hold its numbers, before loading it.

Everything is computed from the configuration and from the headers of adapters; no weight is read. Weights and cache are
exact: the formulas count the tensors that loading and running will make. Overhead is what is left: the libraries, whose
size is taken from this very process, the tokenizer, and the activations of one forward over `PREFILL` tokens, longer
prompts being fed in pieces of that length. `bench/load.py` and `keystone fit --measure` hold the sum against what is
really used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Self

import torch

from csf_store import Archive
from keystone.boxes import Box
from keystone.checkpoints import DTYPES, BaseCheckpoint, blank_model
from keystone.model import KeystoneConfig, cache_bytes
from keystone.quantize import Quantization, recipe_for
from keystone.quantize.bitsandbytes_guards import BLOCK, FAST_ROWS, bitsandbytes_problem, fast_nf4_on_this_cpu
from keystone.quantize.derived import DerivedKey, find_derived
from keystone.quantize.layers import SLICE, part_shapes
from keystone.quantize.weight_only import SCRATCH
from manifests import AdapterUse, Manifest, Recipe

PREFILL = 512
"""Tokens of a prompt that one forward takes."""
CUDA_CONTEXT = 600_000_000
"""Bytes that a CUDA context and its kernels hold on a card; from others' reports, never measured by this project."""
FIRST_USE = 40_000_000
"""Bytes that a process grows by at its first load and forward, whatever the model: decoders, thread pools, kernels."""
QUANTIZING = 40
"""Bytes of scratch for each value of a slice that is being quantized."""
REPACKING = 5
"""Bytes for each value of the largest weight that the first nf4 forward on an AVX512-BF16 processor leaves behind."""
TOKENIZER = 11
"""Bytes of a tokenizer in memory for each byte of its files."""
RETAINED_OUTPUTS = 3
"""Outputs of the widest int8 product that the allocator holds at once."""
_SCHEMES: tuple[Quantization, ...] = ("none", "int8", "nf4")


@dataclass(frozen=True)
class ModelSize:
    """What of a model decides its memory.

    Attributes:
        config: the architecture.
        shapes: every parameter, tied ones once.
        linears: outputs and inputs of each quantizable module.
        recipes: one for each scheme.
        adapters: bytes the adapters hold once they are attached.
        tokenizer: bytes of the tokenizer's files.
        cached: schemes whose quantized weights are in the archive already.
    """

    config: KeystoneConfig
    shapes: Mapping[str, tuple[int, ...]]
    linears: Mapping[str, tuple[int, int]]
    recipes: Mapping[Quantization, Recipe]
    adapters: int = 0
    tokenizer: int = 0
    cached: frozenset[Quantization] = frozenset()

    @classmethod
    def of_config(
        cls, config: KeystoneConfig, *, dtype: torch.dtype = torch.bfloat16, own: Recipe | None = None
    ) -> Self:
        """From the architecture alone; `own` is a manifest's recipe, used for its scheme."""
        model = blank_model(config)
        recipes = {scheme: recipe_for(model, scheme, dtype=dtype) for scheme in _SCHEMES}
        if own is not None:
            recipes[own.quantization] = own
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        linears = {
            name: (shapes[f"{name}.weight"][0], shapes[f"{name}.weight"][1])
            for recipe in recipes.values()
            for name in recipe.modules
        }
        return cls(config, shapes, linears, recipes)

    @classmethod
    def of_manifest(cls, archive: Archive, manifest: Manifest) -> Self:
        """From what an archive knows of a manifest without reading a weight."""
        checkpoint = BaseCheckpoint.open(archive, manifest.assembly.base)
        size = cls.of_config(checkpoint.config, dtype=checkpoint.dtype, own=manifest.recipe)
        adapters = adapter_bytes(archive, manifest.assembly.adapters)
        cached = frozenset(
            scheme
            for scheme, recipe in size.recipes.items()
            if scheme != "none" and find_derived(archive, DerivedKey(checkpoint.digest, recipe)) is not None
        )
        tokenizer = sum(entry.size for entry in archive.tree(manifest.assembly.tokenizer).entries)
        return replace(size, adapters=adapters, tokenizer=tokenizer, cached=cached)

    @property
    def parameters(self) -> int:
        """How many numbers the model consists of."""
        return sum(prod(shape) for shape in self.shapes.values())

    def weight_bytes(self, scheme: Quantization, *, repacked: bool = False) -> int:
        """Bytes of all weights in a scheme.

        Args:
            scheme: how they are held.
            repacked: as they are after a forward on an AVX512-BF16 processor, which keeps nf4 scales in bf16.
        """
        recipe = self.recipes[scheme]
        itemsize = getattr(torch, recipe.dtype).itemsize
        listed = set(recipe.modules)
        total = 0
        for name, shape in self.shapes.items():
            owner, _, leaf = name.rpartition(".")
            if owner not in listed or leaf != "weight":
                total += prod(shape) * itemsize
            elif repacked and scheme == "nf4" and _repacks(*self.linears[owner], recipe):
                rows, columns = self.linears[owner]
                total += rows * columns // 2 + 2 * (rows * columns // BLOCK)
            else:
                parts = part_shapes(*self.linears[owner], recipe)
                total += sum(prod(part) * dtype.itemsize for dtype, part in parts.values())
        return total

    def cache_bytes(self, scheme: Quantization, tokens: int) -> int:
        """Bytes of one sequence's state: loop-0 keys and values of every token, windows and saved rows."""
        return cache_bytes(self.config, tokens, getattr(torch, self.recipes[scheme].dtype))

    def activation_bytes(self, scheme: Quantization, tokens: int, *, on_cpu: bool, repacked: bool = False) -> int:
        """The most that one forward over so many tokens holds: what is alive in the widest product, and its scratch.

        Args:
            scheme: how weights are held.
            tokens: of one forward.
            on_cpu: on a processor; its libraries copy and rearrange where a card does not.
            repacked: it repacks nf4.
        """
        config = self.config
        itemsize: int = getattr(torch, self.recipes[scheme].dtype).itemsize
        logits = config.vocab_size * 8
        if not on_cpu:
            held = tokens * (5 * config.intermediate_size + 8 * config.hidden_size) * itemsize
            # Products in int32, in fp32 on their way back, and what torch makes of either.
            integers = tokens * self._widest * 24 if scheme == "int8" else 0
            return held + integers + logits
        held = tokens * 3 * (config.intermediate_size + config.hidden_size) * itemsize + logits
        if scheme == "none":
            # oneDNN rearranges a weight before it multiplies many rows with it.
            return held + self._largest_weight * itemsize
        if scheme == "int8":
            # Blocks of the weight as floats, twice; and outputs come and go faster than the allocator gives them back.
            block = min(SCRATCH, self._largest_weight * itemsize)
            return held + 2 * block + tokens * self._widest * itemsize * RETAINED_OUTPUTS
        # The first forward unpacks a weight to int32 to repack it, and what that took is not given back.
        return held + self._largest_weight * (REPACKING if repacked else 2 * itemsize)

    @property
    def _widest(self) -> int:
        return max(rows for rows, _ in self.linears.values())

    @property
    def _largest_weight(self) -> int:
        return max(rows * columns for rows, columns in self.linears.values())

    def quantizing_bytes(self, scheme: Quantization) -> int:
        """What the first load of a scheme takes beside its result; later ones read that."""
        itemsize: int = getattr(torch, self.recipes[scheme].dtype).itemsize
        if scheme == "none" or scheme in self.cached:
            return 0
        return self._largest_weight * itemsize + QUANTIZING * min(self._largest_weight, SLICE)


@dataclass(frozen=True)
class Need:
    """What one scheme takes, in bytes, and whether a box has it."""

    quantization: Quantization
    weights: int
    cache: int
    adapters: int
    overhead: int
    fits: bool
    longest_context: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.adapters + self.overhead


def needs(size: ModelSize, box: Box, context: int, *, prompt: int = PREFILL, runtime: int | None = None) -> list[Need]:
    """What each scheme takes on a box, with room for a context.

    Args:
        size: the model.
        box: where it would run.
        context: tokens of one sequence.
        prompt: tokens that one forward takes.
        runtime: bytes of the process or of the CUDA context without any model; default as measured or known.
    """
    on_cpu = box.kind == "ram"
    repacked = on_cpu and bitsandbytes_problem() is None and fast_nf4_on_this_cpu()
    if runtime is None:
        runtime = resident_bytes() + FIRST_USE if on_cpu else CUDA_CONTEXT
    found = []
    for scheme in _SCHEMES:
        weights = size.weight_bytes(scheme, repacked=repacked)
        working = size.activation_bytes(scheme, min(prompt, context), on_cpu=on_cpu, repacked=repacked)
        # Quantizing happens in the machine's memory and is over before the first forward.
        overhead = (
            runtime + TOKENIZER * size.tokenizer + (max(working, size.quantizing_bytes(scheme)) if on_cpu else working)
        )
        per_token = size.cache_bytes(scheme, 1) - size.cache_bytes(scheme, 0)
        room = box.nbytes - weights - size.adapters - overhead - size.cache_bytes(scheme, 0)
        longest = max(0, min(room // per_token, size.config.max_position_embeddings))
        cache = size.cache_bytes(scheme, context)
        need = Need(scheme, weights, cache, size.adapters, overhead, fits=context <= longest, longest_context=longest)
        found.append(need)
    return found


def adapter_bytes(archive: Archive, uses: Sequence[AdapterUse]) -> int:
    """Bytes of adapters once PEFT has attached them: it holds half-precision tensors in fp32."""
    total = 0
    for use in uses:
        for entry in archive.tree(use.adapter).entries:
            if entry.path.endswith(".safetensors"):
                for info in archive.tensors(entry.blob).values():
                    dtype = DTYPES.get(info.dtype, torch.float32)
                    total += prod(info.shape) * max(dtype.itemsize, 4 if dtype.is_floating_point else 0)
    return total


def resident_bytes() -> int:
    """What this process holds in memory now; 450 MB, a usual size, where that cannot be read."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 450_000_000


def _repacks(rows: int, columns: int, recipe: Recipe) -> bool:
    return rows % FAST_ROWS == 0 and columns % BLOCK == 0 and recipe.compute_dtype == "bfloat16"
