"""Is the model in memory still the one that was loaded? Its live tensors, hashed with a nonce, against the archive.

`attest` hashes every live tensor in its *canonical form*; `expected_attestation` builds the same model anew from the
archive, quantizing from the base and trusting no cache, and hashes that. The two agree exactly when the same numbers
compute. The nonce keys the hash, so an old answer cannot be given again. This catches drift and mistakes: a weight that
was changed, an adapter that was swapped, another base. It does not catch a hostile host, which can keep the right bytes
to answer with and compute with others.

Canonical form: names without what PEFT puts around a module; bytes little-endian and row-major. An int8 weight is its
codes and scales. An nf4 weight is its codes in bitsandbytes' original order, and its block scales in bf16: that is what
is left of the scales once a forward on an AVX512-BF16 processor has repacked a weight, so the form is the same before
and after. A change of scales too small for bf16 is not seen.

The digest is BLAKE3 keyed with BLAKE3(nonce), over `v1`, and for each tensor in the order of names: the name, dtype and
shape as a line of JSON, and the bytes, both behind their length in 8 bytes.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor, nn

from csf_store import Archive, Digest
from keystone.checkpoints import BaseCheckpoint
from keystone.errors import InvalidInputError
from keystone.quantize.assembling import assemble
from keystone.quantize.bitsandbytes_guards import FAST_ROWS, bitsandbytes, is_repacked
from keystone.quantize.layers import parts_of
from manifests import Manifest, Recipe, culprits

LEAST_NONCE = 16
"""Bytes; fewer could come up again by chance."""


def attest_model(model: nn.Module, nonce: bytes) -> Digest:
    """The keyed digest of every live tensor of a model.

    Args:
        model: loaded by `keystone.load`, before or after it has answered.
        nonce: fresh random bytes, at least `LEAST_NONCE`.

    Raises:
        InvalidInputError: the nonce is too short.
    """
    return attest_tensors(live_tensors(model), nonce)


def attest_tensors(tensors: Iterable[tuple[str, Tensor]], nonce: bytes) -> Digest:
    """The same for tensors in canonical form, by their plain names; raises what `attest_model` raises."""
    if len(nonce) < LEAST_NONCE:
        raise InvalidInputError(f"a nonce of {len(nonce)} bytes may come up again; give at least {LEAST_NONCE}")
    hasher = blake3(b"v1", key=blake3(nonce).digest())
    for name, tensor in sorted(tensors, key=lambda item: item[0].encode()):
        head = json.dumps([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]).encode()
        content = canonical_bytes(tensor)
        for piece in (head, content):
            hasher.update(len(piece).to_bytes(8, "little"))
            hasher.update(piece)
    return Digest(hasher.digest())


def attest_each(tensors: Iterable[tuple[str, Tensor]], nonce: bytes) -> dict[str, Digest]:
    """What `attest_tensors` gives for each tensor alone, by name: which of them is another than it should be."""
    return {name: attest_tensors([(name, tensor)], nonce) for name, tensor in tensors}


def expected_attestation(archive: Archive, manifest: Manifest, recipe: Recipe, nonce: bytes) -> Digest:
    """What `attest_model` must answer, computed from the archive on the CPU without any cached quantized weights.

    Raises:
        InvalidInputError: the nonce is too short.
        RefusedError, CheckpointError, csf_store.CsfError: the archive does not make this model.
    """
    return attest_model(expected_model(archive, manifest, recipe), nonce)


def expected_model(archive: Archive, manifest: Manifest, recipe: Recipe) -> nn.Module:
    """The model of a manifest on the CPU, quantized anew from the base: what a live one is held against.

    Raises:
        RefusedError, CheckpointError, csf_store.CsfError: the archive does not make this model.
    """
    # The loader imports this module: adapters are attached by the very code whose work is checked.
    from keystone.loader import attach_adapters  # noqa: PLC0415

    checkpoint = BaseCheckpoint.open(archive, manifest.assembly.base)
    base = assemble(archive, checkpoint, recipe, device=torch.device("cpu"), cache="ignore").model
    return attach_adapters(base, archive, manifest.assembly.adapters) if manifest.assembly.adapters else base


def tensor_digests(model: nn.Module) -> Mapping[str, Digest]:
    """The digest of every live tensor's canonical bytes, by name."""
    return {name: Digest.of(canonical_bytes(tensor)) for name, tensor in live_tensors(model)}


def drift(model: nn.Module, assigned: Mapping[str, Digest]) -> dict[str, str]:
    """The tensors that are no longer those that a load assigned, each with what is wrong with it; see `culprits`.

    Args:
        model: loaded, before or after it has answered.
        assigned: what `tensor_digests` said of it then.
    """
    return dict(culprits(tensor_digests(model), assigned))


def live_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that computes, in canonical form, by its plain name; adapters' scalings among them."""
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        name = plain_name(module_name)
        yield from _scalings(name, module)
        for leaf, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue  # tied weights, once
            seen.add(id(parameter))
            if leaf == "weight" and type(parameter).__name__ in ("Params4bit", "Int8Params"):
                for part, tensor in _canonical_parts(module).items():
                    yield f"{name}.{part}", tensor
            else:
                yield f"{name}.{leaf}" if name else leaf, parameter.data


def canonical_bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes, little-endian and row-major, in the machine's memory."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    array: Any = flat.numpy()
    return memoryview(array) if flat.numel() else memoryview(b"")


def plain_name(name: str) -> str:
    """A module's name without what PEFT puts around it."""
    return name.removeprefix("base_model.model.").removesuffix(".base_layer")


def _scalings(name: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weight an adapter is applied with is no tensor of the module, and changes what is computed all the same."""
    scaling: Any = getattr(module, "scaling", None)
    if isinstance(scaling, dict):
        active = set(getattr(module, "active_adapters", ()))
        for adapter, factor in sorted(scaling.items()):
            held = float(factor) if adapter in active and not getattr(module, "disable_adapters", False) else 0.0
            yield f"{name}.scaling.{adapter}", torch.tensor(held, dtype=torch.float64)


def _canonical_parts(module: nn.Module) -> dict[str, Tensor]:
    weight: Any = module.weight
    if type(weight).__name__ == "Int8Params":
        return parts_of(module) or {}
    state: Any = weight.quant_state
    rows, columns = state.shape
    if is_repacked(module):
        # [columns / block, rows] on the fast path.
        return {"codes": _unpacked(weight.data, rows, columns), "scales": state.absmax.T.contiguous().reshape(-1)}
    scales = state.absmax.cpu()
    if state.nested:
        functional = bitsandbytes()
        nested = state.state2
        inner = functional.QuantState(
            absmax=nested.absmax.cpu(), code=nested.code.cpu(), blocksize=nested.blocksize, dtype=nested.dtype
        )
        scales = functional.dequantize_blockwise(scales, inner) + state.offset.cpu()
    return {"codes": weight.data.reshape(-1), "scales": scales.float().to(torch.bfloat16)}


def _unpacked(packed: Tensor, rows: int, columns: int) -> Tensor:
    """The codes of a repacked weight in their first order: two a byte, the earlier one in the high half.

    Repacked, 32 rows stand side by side: for each pair of columns 64 codes, of which byte `i` holds the `i`th in its
    low half and the `i + 32`nd in its high half.
    """
    pieces = packed.reshape(-1, FAST_ROWS)
    codes = torch.cat([pieces & 0xF, pieces >> 4], dim=1)
    codes = codes.reshape(rows // FAST_ROWS, columns // 2, FAST_ROWS, 2).transpose(1, 2).reshape(-1, 2)
    return (codes[:, 0] << 4) | codes[:, 1]
