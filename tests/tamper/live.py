"""A weight changed in a running process: every way, each by name, and the auditor must name the tensor.

The process is this one: a model that `keystone.load` made, answering an auditor's questions as `keystone serve` does.
A mutation changes the live model, is asked about, and is taken back; it yields what the auditor's line must match.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

import keystone
from adapters import add_adapter, document_problem, fit_problem, write_adapter
from csf_store import Archive, Digest
from keystone.attestation import attest_each, attest_tensors, drift, live_tensors
from keystone.checkpoints import read_adapter_tensors
from keystone.recomputing import Recomputation
from keystone.tied_weights import TIED
from manifests import (
    AdapterUse,
    Attestation,
    Auditor,
    Manifest,
    NotServedError,
    Repository,
    ServedModel,
    ServerAnswer,
    Verdict,
)

SCHEMES = ("none", "int8", "nf4")


class InProcess:
    """Answers as a server does, over one loaded model."""

    url = "in this process"

    def __init__(self, loaded: keystone.LoadedModel) -> None:
        self.loaded = loaded

    def models(self) -> tuple[ServedModel, ...]:
        return (ServedModel("tuned", str(self.loaded.digest), loaded=True),)

    def attest(self, model: str, nonce: str) -> ServerAnswer:
        if model != "tuned":
            raise NotServedError(f"model {model!r} is not served here")
        tensors = list(live_tensors(self.loaded.model))
        told = Attestation(
            assembly=self.loaded.manifest.assembly.digest,
            recipe=self.loaded.recipe.digest,
            nonce=nonce,
            value=attest_tensors(tensors, bytes.fromhex(nonce)),
            tensors=len(tensors),
            device="cpu",
            libraries={},
        )
        return ServerAnswer(str(self.loaded.digest), told.to_bytes())

    def tensors(self, model: str, nonce: str) -> Mapping[str, Digest]:
        return attest_each(live_tensors(self.loaded.model), bytes.fromhex(nonce))


@dataclass
class Process:
    """A running model, who asks it, and the bytes of another adapter of the same shapes."""

    loaded: keystone.LoadedModel
    auditor: Auditor
    other: Mapping[str, torch.Tensor]
    rng: random.Random

    @property
    def model(self) -> torch.nn.Module:
        return self.loaded.model

    def alarms(self) -> list[str]:
        """What an auditor who asks this process says is wrong."""
        report = self.auditor.audit_server(InProcess(self.loaded), "tuned").report
        return [f"{line.check} {line.message}" for line in report.lines if line.verdict is not Verdict.PASS]

    def drifted(self) -> dict[str, str]:
        """What the process itself finds, from what its loader kept."""
        return drift(self.model, self.loaded.tensors)


def archive_with_adapters(path: Path) -> Archive:
    """nano with one adapter as ref `tuned`, and another as ref `other`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    archive = Archive.create(path)
    keystone.import_nano(archive)
    repository = Repository(archive)
    plain = repository.load(repository.resolve("nano"))
    for seed, ref in enumerate(("tuned", "other")):
        torch.manual_seed(seed)
        model = keystone.load("nano", archive=archive, quantization="none", device="cpu").model
        settings = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        folder = write_adapter(get_peft_model(model, settings), path.parent / ref)
        adapter, _ = add_adapter(repository, folder, base=plain.assembly.base)
        uses = plain.assembly.revised(adapters=(AdapterUse(adapter=adapter, weight=0.5),))
        lineage = repository.trace([adapter], base=plain.assembly.base)
        made: Manifest = plain.revised(assembly=uses, lineage=lineage)
        repository.refs.set(ref, repository.put(made), expected=None)
    return archive


def process(archive: Archive, scheme: str, *, answered: bool = False) -> Process:
    """Load `tuned`; and let it answer once, after which quantized weights may lie in memory otherwise."""
    loaded = keystone.load("tuned", archive=archive, quantization=scheme, device="cpu")  # type: ignore[arg-type]
    if answered:
        loaded.complete(["def add("], max_new_tokens=2)
    auditor = Auditor(archive, fit=fit_problem, tied=TIED, documents=document_problem, recompute=Recomputation())
    repository = Repository(archive)
    (use,) = repository.load(repository.resolve("other")).assembly.adapters
    return Process(loaded, auditor, read_adapter_tensors(archive, use.adapter)[1], random.Random(0))


LiveMutation = Callable[[Process], AbstractContextManager[str]]
LIVE: dict[str, LiveMutation] = {}


def mutation(function: Callable[[Process], Iterator[str]]) -> None:
    LIVE[function.__name__.replace("_", "-")] = contextmanager(function)


@contextmanager
def changed(tensor: torch.Tensor, byte: int, mask: int) -> Iterator[None]:
    with torch.inference_mode():
        flat = tensor.data.view(-1).view(torch.uint8)
        flat[byte] ^= mask
        try:
            yield
        finally:
            flat[byte] ^= mask


def named(name: str) -> str:
    plain = re.escape(name.removeprefix("base_model.model.").replace(".base_layer", ""))
    return rf"live .*{plain}\S* is changed"


def some(process: Process, wanted: Callable[[str, torch.Tensor], bool]) -> tuple[str, torch.Tensor]:
    found = [(name, weight) for name, weight in process.model.named_parameters() if wanted(name, weight)]
    return process.rng.choice(found)


def is_quantized(weight: torch.Tensor) -> bool:
    return type(weight).__name__ in {"Params4bit", "Int8Params"}


@mutation
def a_bit_of_a_base_weight_in_a_running_process(process: Process) -> Iterator[str]:
    name, weight = some(process, lambda name, weight: "lora_" not in name and not is_quantized(weight))
    with changed(weight, process.rng.randrange(weight.nbytes), 1 << process.rng.randrange(8)):
        yield named(name)


@mutation
def an_element_of_a_base_weight_in_a_running_process(process: Process) -> Iterator[str]:
    name, weight = some(process, lambda name, weight: "lora_" not in name and not is_quantized(weight))
    with torch.inference_mode():
        flat = weight.data.view(-1)
        at = process.rng.randrange(flat.numel())
        before = flat[at].clone()
        flat[at] = before * 1.5 + 1
        try:
            yield named(name)
        finally:
            flat[at] = before


@mutation
def a_bit_of_a_quantized_weight_in_a_running_process(process: Process) -> Iterator[str]:
    """Of an unquantized linear weight, where nothing is quantized."""
    quantized = process.loaded.recipe.quantization != "none"
    name, weight = some(
        process,
        lambda name, weight: is_quantized(weight) if quantized else "down_proj" in name,
    )
    with changed(weight, process.rng.randrange(weight.nbytes), 1 << process.rng.randrange(8)):
        yield named(name.removesuffix(".weight"))


@mutation
def a_bit_of_an_adapter_weight_in_a_running_process(process: Process) -> Iterator[str]:
    name, weight = some(process, lambda name, _: "lora_" in name)
    with changed(weight, process.rng.randrange(weight.nbytes), 1 << process.rng.randrange(8)):
        yield named(name)


@mutation
def an_adapters_weight_in_a_running_process(process: Process) -> Iterator[str]:
    layers = [module for module in process.model.modules() if isinstance(getattr(module, "scaling", None), dict)]
    layer = process.rng.choice(layers)
    ((name, before),) = layer.scaling.items()
    layer.scaling[name] = before * process.rng.choice([0.0, 0.5, 1.0001, -1.0])
    try:
        yield r"live .*\.scaling\.\w+ is changed"
    finally:
        layer.scaling[name] = before


@mutation
def an_adapter_switched_off_in_a_running_process(process: Process) -> Iterator[str]:
    with process.model.disable_adapter():  # type: ignore[operator]
        yield r"live .*\.scaling\.\w+ is changed"


@mutation
def an_adapter_swapped_in_a_running_process(process: Process) -> Iterator[str]:
    """Another adapter's tensors under this one's name: all of them, or those of one layer."""
    live = dict(process.model.named_parameters())
    (use,) = process.loaded.manifest.assembly.adapters
    names = {key: key.replace(".weight", f".{use.adapter.hex[:12]}.weight") for key in process.other}
    chosen = sorted(names) if process.rng.random() < 0.5 else [process.rng.choice(sorted(names))]
    before = {key: live[names[key]].detach().clone() for key in chosen}
    with torch.inference_mode():
        for key in chosen:
            live[names[key]].data.copy_(process.other[key])
    try:
        yield r"live .*lora_[AB]\S* is changed"
    finally:
        with torch.inference_mode():
            for key, tensor in before.items():
                live[names[key]].data.copy_(tensor)


@mutation
def another_base_in_a_running_process(process: Process) -> Iterator[str]:
    """Every unquantized weight of the base is another one's, of the same names and shapes."""
    own = [(n, w) for n, w in process.model.named_parameters() if "lora_" not in n and not is_quantized(w)]
    before = [weight.detach().clone() for _, weight in own]
    generator = torch.Generator().manual_seed(process.rng.randrange(2**31))
    with torch.inference_mode():
        for _, weight in own:
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.02)
    try:
        yield r"live .* is changed; .* is changed"
    finally:
        with torch.inference_mode():
            for (_, weight), kept in zip(own, before, strict=True):
                weight.data.copy_(kept)
