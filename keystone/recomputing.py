"""What a running model must answer, from the archive alone: the part of an audit that needs torch.

`manifests` asks servers and judges their answers, and knows nothing of tensors. `Recomputation` is what it is given to
know what is right: it finds the recipe that an attestation names, builds the model from the base and its adapters,
trusting no cached quantization, and hashes it as the live one was hashed. The model of the last question is kept, so
that many nonces cost one build.
"""

from collections.abc import Iterator
from importlib.metadata import version

import torch
from torch import Tensor

from csf_store import Archive, Digest
from keystone.attestation import attest_each, attest_tensors, expected_model, live_tensors
from keystone.checkpoints import BaseCheckpoint
from keystone.errors import KeystoneError
from keystone.quantize import SCHEMES, int8_recipe, recipe_for
from manifests import LiveWeights, Manifest, Recipe

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")
"""What an attestation says the versions of."""
_DEVICES = (torch.device("cpu"), torch.device("cuda"))
"""int8 is computed in one way on a processor, in another on a card, and the recipe says which."""


class Recomputation:
    """Answers as `manifests.Recompute`: from an archive, a manifest, a recipe's digest and a nonce."""

    def __init__(self) -> None:
        self._key: tuple[Digest, Digest] | None = None
        self._tensors: list[tuple[str, Tensor]] = []

    def __call__(self, archive: Archive, manifest: Manifest, recipe: Digest, nonce: str) -> LiveWeights | str:
        """What the live tensors must hash to; or, in a sentence, why that cannot be said here.

        Raises:
            csf_store.CsfError: the archive does not give what the manifest stands on.
        """
        try:
            checkpoint = BaseCheckpoint.open(archive, manifest.assembly.base)
            held = next((each for each in recipes(checkpoint, manifest) if each.digest == recipe), None)
            if held is None:
                return f"recipe {recipe} is none that this release knows for this manifest"
            key = manifest.assembly.digest, recipe
            if key != self._key:
                self._tensors, self._key = [], None  # one model in memory, not two
                self._tensors = list(live_tensors(expected_model(archive, manifest, held)))
                self._key = key
        except KeystoneError as error:
            return f"what the live weights must hash to cannot be computed here: {error}"
        secret = bytes.fromhex(nonce)
        return LiveWeights(
            value=attest_tensors(self._tensors, secret),
            tensors=attest_each(self._tensors, secret),
            libraries={name: version(name) for name in LIBRARIES},
            quantized=frozenset(name for name, _ in self._tensors if _is_part(name, held)),
        )


def recipes(checkpoint: BaseCheckpoint, manifest: Manifest) -> Iterator[Recipe]:
    """Every recipe that a load of this manifest may have chosen: its own, each scheme, and what those give way to."""
    own = manifest.recipe
    if own is not None:
        yield own
        yield Recipe(dtype=own.dtype)
        if own.modules:
            yield from (int8_recipe(own.modules, own.dtype, device) for device in _DEVICES)
    for scheme in SCHEMES:
        yield from (recipe_for(checkpoint.blank, scheme, dtype=checkpoint.dtype, device=device) for device in _DEVICES)


def _is_part(name: str, recipe: Recipe) -> bool:
    """Whether a tensor is what quantizing made of a weight."""
    module, _, leaf = name.rpartition(".")
    return leaf != "bias" and module in recipe.modules
