"""One base in memory and the adapters that are on it by now.

Adapters come and go while the base stays: each use of one, at its weight, has a name of its own, and a *variant* is the
names that are on together. Whoever calls `attach`, `detach` or `select` must own the model at that moment.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from csf_store import Archive
from keystone.attestation import live_tensors
from keystone.checkpoints import read_adapter_tensors
from keystone.errors import RefusedError
from keystone.model import KeystoneForCausalLM
from keystone.serve.prefixes import Variant
from keystone.wearing import fill, wrap
from manifests import AdapterUse


@dataclass(frozen=True)
class ReadAdapter:
    """An adapter's verified bytes, on their way to the base."""

    use: AdapterUse
    fields: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def adapter_name(use: AdapterUse) -> str:
    """What one adapter at one weight is called inside the model; PEFT's names take no dots."""
    return f"{use.adapter.hex[:16]}_{use.weight!r}".replace(".", "p")


def variant_of(uses: Sequence[AdapterUse]) -> Variant:
    """The names that are on together for these adapters."""
    return tuple(map(adapter_name, uses))


def read_adapters(archive: Archive, uses: Sequence[AdapterUse]) -> tuple[ReadAdapter, ...]:
    """Read and verify adapters; needs no model, so it may take its time in any thread."""
    return tuple(ReadAdapter(use, *read_adapter_tensors(archive, use.adapter)) for use in uses)


class LiveBase:
    """A base whose adapters can be changed while it serves.

    Args:
        model: held as its recipe says.
    """

    def __init__(self, model: KeystoneForCausalLM) -> None:
        self.model = model
        self._wrapped: Any = None
        self._on: Variant = ()
        self._there: set[str] = set()

    @property
    def adapters(self) -> frozenset[str]:
        """The names that are attached, on or off."""
        return frozenset(self._there)

    def attach(self, adapters: Sequence[ReadAdapter]) -> None:
        """Put adapters into the model, switched off; those that are there already stay as they are.

        Raises:
            RefusedError: an adapter's tensors did not all find their place; it is taken out again.
        """
        on, self._on = self._on, ("",)  # whatever PEFT switches on meanwhile, the next `select` does not trust it
        try:
            for adapter in adapters:
                name = adapter_name(adapter.use)
                if name not in self._there:
                    self._attach(name, adapter)
        finally:
            self.select(on)

    def _attach(self, name: str, adapter: ReadAdapter) -> None:
        self._wrapped = wrap(self.model, self._wrapped, name, adapter.fields)
        self._there.add(name)
        try:
            fill(self._wrapped, name, adapter.tensors, adapter.use)
        except RefusedError:
            self._remove(name)
            raise

    def detach(self, names: Sequence[str]) -> None:
        """Take adapters out of the model and of memory."""
        self.select(())
        for name in names:
            if name in self._there:
                self._remove(name)
        self._on = ("",)
        self.select(())

    def _remove(self, name: str) -> None:
        self._there.discard(name)
        if self._there:
            # PEFT would otherwise choose another active one by itself, and warn of it.
            self._wrapped.base_model.set_adapter([min(self._there)], inference_mode=True)
            self._wrapped.delete_adapter(name)
        else:
            # The last one: the base is given back as it was before any adapter.
            self._wrapped.unload()
            self._wrapped = None

    def tensors(self, uses: Sequence[AdapterUse]) -> Iterator[tuple[str, Tensor]]:
        """What computes under these adapters, in canonical form, named as if they had been loaded alone."""
        self.select(variant_of(uses))
        own = {adapter_name(use): use.adapter.hex[:12] for use in uses}
        for name, tensor in live_tensors(self.model):
            parts = name.split(".")
            foreign = self._there.intersection(parts)
            if not foreign:
                yield name, tensor
            elif foreign <= own.keys():
                yield ".".join(own.get(part, part) for part in parts), tensor

    def select(self, variant: Variant) -> None:
        """Switch on exactly these adapters; an empty variant is the bare base."""
        if variant == self._on or self._wrapped is None:
            self._on = variant if self._wrapped is not None else ()
            return
        if variant:
            self._wrapped.base_model.enable_adapter_layers()
            self._wrapped.base_model.set_adapter(list(variant), inference_mode=True)
        else:
            self._wrapped.base_model.disable_adapter_layers()
        self._on = variant
