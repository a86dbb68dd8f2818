"""Other adapters on a model that is loaded: no reload, and the same bits as a fresh load would give.

What is read stays on the model, switched off, so going back costs nothing. An adapter has one set of tensors however
many weights it is worn at: a weight is only the factor its product is scaled by. Order counts, as in a manifest, since
floating-point sums do; PEFT adds up active adapters in the order they are named in.

Switching is not safe while another thread computes with the model; a server has `keystone.serve.live` for that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adapters import check_fit
from csf_store import Archive, Digest, default_archive_path
from keystone.attestation import live_tensors
from keystone.checkpoints import read_adapter_tensors
from keystone.errors import InvalidInputError
from keystone.wearing import fill, wrap
from manifests import AdapterUse, BaseMismatchError, Repository


class Wardrobe:
    """The adapters a loaded model can wear.

    Args:
        model: as `keystone.load` made it, wrapped by PEFT or bare.
        base: the base tree it was made from.
        uses: what it wears now, in order.
    """

    def __init__(self, model: nn.Module, base: Digest, uses: Sequence[AdapterUse]) -> None:
        self._base = base
        self._wrapped: Any = model if uses else None
        self._bare: Any = model.get_base_model() if uses else model  # type: ignore[operator]
        self._there = {use.adapter for use in uses}
        self._worn = tuple(uses)

    @property
    def worn(self) -> tuple[AdapterUse, ...]:
        """The adapters that compute now, in order."""
        return self._worn

    @property
    def held(self) -> frozenset[Digest]:
        """The adapters that are on the model, on or off."""
        return frozenset(self._there)

    def wear(self, uses: Sequence[AdapterUse], *, archive: Archive | str | Path | None = None) -> None:
        """Compute with exactly these adapters from now on; none is the bare base.

        Whatever is not on the model yet is looked at before anything changes: either all of them are worn afterwards,
        or it is as before.

        Args:
            uses: the adapters and their weights.
            archive: where those are that the model does not hold yet; default the user's own.

        Raises:
            InvalidInputError: an adapter is named twice.
            BaseMismatchError: a record says that an adapter is for another base.
            adapters.AdapterFitError: it does not fit this base; the tensor is named.
            csf_store.CsfError: it is not there, or not what its digest says.
        """
        if len({use.adapter for use in uses}) != len(uses):
            raise InvalidInputError("an adapter is named twice; add up its weights instead")
        missing = [use for use in uses if use.adapter not in self._there]
        if missing:
            with ExitStack() as stack:
                if not isinstance(archive, Archive):
                    archive = stack.enter_context(Archive.open(default_archive_path() if archive is None else archive))
                self._fetch(missing, archive)
        self._switch(tuple(uses))

    @contextmanager
    def wearing(self, uses: Sequence[AdapterUse], *, archive: Archive | str | Path | None = None) -> Iterator[None]:
        """`wear` for as long as the block lasts; afterwards it is as before, whatever happened."""
        before = self._worn
        self.wear(uses, archive=archive)
        try:
            yield
        finally:
            self._switch(before)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What computes now, in canonical form, as if it had been loaded alone; see `keystone.attestation`."""
        idle = {_name(adapter) for adapter in self._there - {use.adapter for use in self._worn}}
        model = self._wrapped if self._wrapped is not None else self._bare
        return ((name, tensor) for name, tensor in live_tensors(model) if not idle.intersection(name.split(".")))

    def _fetch(self, uses: Sequence[AdapterUse], archive: Archive) -> None:
        repository = Repository(archive)
        for use in uses:
            record = repository.adapter_record(use.adapter)
            if record is not None and record.base != self._base:
                raise BaseMismatchError(
                    f"adapter {use.adapter} is recorded on base {record.base}, and this model is base {self._base}"
                )
            check_fit(archive, use.adapter, self._base)
        read = [(use, *read_adapter_tensors(archive, use.adapter)) for use in uses]
        try:
            for use, fields, tensors in read:
                name = _name(use.adapter)
                self._wrapped = wrap(self._bare, self._wrapped, name, fields)
                fill(self._wrapped, name, tensors, use)
                self._there.add(use.adapter)
        finally:
            self._switch(self._worn)  # PEFT switches on what it adds

    def _switch(self, uses: tuple[AdapterUse, ...]) -> None:
        self._worn = uses
        if self._wrapped is None:
            return
        tuner = self._wrapped.base_model
        if not uses:
            tuner.disable_adapter_layers()
            return
        for use in uses:
            _weigh(self._wrapped, _name(use.adapter), use.weight)
        tuner.enable_adapter_layers()
        tuner.set_adapter([_name(use.adapter) for use in uses], inference_mode=True)


def _name(adapter: Digest) -> str:
    """What an adapter is called on the model; the loader's name for it."""
    return adapter.hex[:12]


def _weigh(wrapped: nn.Module, name: str, weight: float) -> None:
    """Set what one adapter is scaled by: its own factor times the weight, in the order the loader multiplies."""
    from peft.tuners.lora import LoraLayer  # noqa: PLC0415 - a second to import

    for module in wrapped.modules():
        if isinstance(module, LoraLayer) and name in module.scaling:
            module.set_scale(name, 1)
            module.scaling[name] *= weight
