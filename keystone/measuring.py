"""Load a model, let it work, and write down what that took: the evidence beside a plan."""

import gc
import platform
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from csf_store import Archive, Digest, Kind
from keystone.boxes import Box
from keystone.fit import ModelSize, needs
from keystone.loader import LoadedModel, load
from keystone.quantize import Quantization, weight_bytes
from manifests import Measurement, Repository

PIN_PREFIX = "measurement/"
_LIBRARIES = ("bitsandbytes", "torch", "transformers")
_CLEAR_PEAK = "5"
_PEAK_FILE = Path("/proc/self/clear_refs")


def measure(
    archive: Archive,
    target: Digest,
    box: Box,
    *,
    quantization: Quantization,
    prompt_tokens: int,
    new_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> Measurement:
    """Load, prefill and decode once, and compare with the plan made before.

    Args:
        archive: where the model is.
        target: its manifest.
        box: where it runs: a card, or this machine's memory.
        quantization: how it is held.
        prompt_tokens: of the prefill, in one forward.
        new_tokens: decoded one by one.
        progress: told how many bytes of weights were read.

    Raises:
        RefusedError: the scheme cannot be honoured here, or the device is not on this box.
        csf_store.CsfError, manifests.ManifestError: the model is not there, or not what its digest says.
    """
    manifest = Repository(archive).load(target)
    size = ModelSize.of_manifest(archive, manifest)
    context = prompt_tokens + new_tokens
    plan = next(need for need in needs(size, box, context, prompt=prompt_tokens) if need.quantization == quantization)
    peak = _Peak(box)
    loaded = load(target, archive=archive, quantization=quantization, device=box.device, progress=progress)
    prefill, decode, cache = _work(loaded.model, size.config.vocab_size, prompt_tokens, new_tokens)
    return Measurement(
        assembly=manifest.assembly.digest,
        recipe=loaded.recipe.digest,
        memory="rss" if box.kind == "ram" else "cuda",
        planned_bytes=plan.total,
        peak_bytes=peak.read(),
        weight_bytes=weight_bytes(loaded.model),
        cache_bytes=cache,
        prompt_tokens=prompt_tokens,
        generated_tokens=new_tokens,
        load_seconds=round(loaded.seconds, 4),
        prefill_tokens_per_second=round(prefill, 2),
        decode_tokens_per_second=round(decode, 2),
        device=_device_name(loaded),
        threads=torch.get_num_threads(),
        capability=f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        libraries={"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
    )


def keep(archive: Archive, measurement: Measurement) -> Digest:
    """Store a measurement and pin it, named by what was measured."""
    with archive.keeping():
        digest = Repository(archive).put_record(measurement)
        archive.pin(digest, kind=Kind.RECORD, name=PIN_PREFIX + measurement.assembly.hex)
    return digest


def _work(model: nn.Module, vocabulary: int, prompt_tokens: int, new_tokens: int) -> tuple[float, float, int]:
    """Tokens a second of prefill and decode, and the bytes of the cache at the end."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (1, prompt_tokens), generator=generator).to(device)
    with torch.inference_mode():
        started = _now(device)
        output = model(ids, use_cache=True, logits_to_keep=1)
        prefilled = _now(device)
        for _ in range(new_tokens):
            token = output.logits[:, -1:].argmax(-1)
            output = model(token, past_key_values=output.past_key_values, use_cache=True, logits_to_keep=1)
        ended = _now(device)
    prefill, decode = prefilled - started, ended - prefilled
    return prompt_tokens / prefill, new_tokens / decode, int(output.past_key_values.nbytes())


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class _Peak:
    """The most memory held since this was made."""

    def __init__(self, box: Box) -> None:
        gc.collect()
        self._device = box.device if box.kind == "vram" else None
        self._free = 0
        if self._device is not None:
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        try:
            _PEAK_FILE.write_text(_CLEAR_PEAK)
        except OSError:
            return  # then the peak is that of the whole process, which is at least as much

    def read(self) -> int:
        if self._device is not None:
            free, total = torch.cuda.mem_get_info(self._device)
            # What torch does not know of, the context and its kernels, is the rest of what is in use.
            outside = max(0, total - free - torch.cuda.memory_reserved(self._device))
            return int(torch.cuda.max_memory_allocated(self._device)) + outside
        try:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        except (OSError, ValueError, IndexError):
            pass
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _device_name(loaded: LoadedModel) -> str:
    device = next(loaded.model.parameters()).device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
