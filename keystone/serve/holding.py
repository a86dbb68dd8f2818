"""What is in memory: bases with their engines, and the manifests that can answer on them.

Manifests with the same base and recipe share one base and one engine. A manifest goes when no name wants it, its last
lease is back and its time is over; a base goes with its last manifest, or when another needs its room.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from csf_store import Archive, Digest
from keystone.checkpoints import BaseCheckpoint, archived_tokenizer
from keystone.errors import RefusedError
from keystone.quantize import Quantization, choose_recipe
from keystone.quantize.assembling import assemble
from keystone.serve.engine import Engine
from keystone.serve.errors import TooManyModelsError
from keystone.serve.limits import Limits
from keystone.serve.live import LiveBase, read_adapters, variant_of
from keystone.serve.prefixes import Variant
from manifests import KNOWN_CODES, Manifest, Recipe, Repository

RETRY_SECONDS = 10.0
KEEP_SECONDS = 300.0


@dataclass
class HeldBase:
    """A base in memory with its engine.

    Attributes:
        key: what makes two manifests share it: base, tokenizer, code and recipe digests.
        used: when it last had something to do, in monotonic seconds.
    """

    key: tuple[Digest, Digest, str, Digest]
    live: LiveBase
    engine: Engine
    tokenizer: PreTrainedTokenizerFast
    checkpoint: BaseCheckpoint
    recipe: Recipe
    used: float


@dataclass
class Served:
    """A manifest that can answer now.

    Attributes:
        leases: requests that hold it.
        expires: when it may go if no name wants it, in monotonic seconds.
        keep: how long after its last use that is.
        loaded_seconds: what making it ready took.
    """

    digest: Digest
    manifest: Manifest
    base: HeldBase
    variant: Variant
    loaded_seconds: float
    leases: int = 0
    expires: float = 0.0
    keep: float = 0.0


class Holdings:
    """The bases and manifests of one server.

    Args:
        archive: open; stays the caller's.
        quantization: how to hold the weights; default as `keystone.load`.
        device: where to run.
        limits: of every engine, and how many bases may be in memory.
        wanted: whether a name holds a manifest in memory; called with the lock held.
        opened: whether every manifest is served that is asked for, so that those nobody asks for may go.

    Attributes:
        lock: guards `served` and `bases`, and whatever else has to change together with them.
        served: manifests that can answer.
        bases: what they answer on.
    """

    def __init__(
        self,
        archive: Archive,
        *,
        quantization: Quantization | None,
        device: torch.device,
        limits: Limits,
        wanted: Callable[[Digest], bool],
        opened: bool,
    ) -> None:
        self.lock = threading.RLock()
        self.served: dict[Digest, Served] = {}
        self.bases: dict[tuple[Digest, Digest, str, Digest], HeldBase] = {}
        self._archive = archive
        self._repository = Repository(archive)
        self._quantization: Quantization | None = quantization
        self._device = device
        self._limits = limits
        self._wanted = wanted
        self._open = opened
        self._loading = threading.Lock()

    def close(self, *, seconds: float) -> None:
        """Let go of everything; engines may finish for so long."""
        with self.lock:
            bases = list(self.bases.values())
            self.bases.clear()
            self.served.clear()
        end = time.monotonic() + seconds
        for base in bases:
            base.engine.close(seconds=max(0.0, end - time.monotonic()))

    def prepare(self, digest: Digest) -> Served:
        """Make a manifest ready to answer; where it is already, that is all.

        Raises:
            TooManyModelsError: no room for another base.
            manifests.ManifestError, csf_store.CsfError, KeystoneError: it is not there or does not load.
        """
        with self._loading:
            with self.lock:
                if digest in self.served:
                    return self.served[digest]
            started = time.monotonic()
            manifest = self._repository.load(digest)
            assembly = manifest.assembly
            if assembly.code not in KNOWN_CODES:
                raise RefusedError(f"manifest {digest} runs on {assembly.code}; this release computes {KNOWN_CODES}")
            adapters = read_adapters(self._archive, assembly.adapters)
            base = self._base_of(manifest)
            base.engine.run(lambda: base.live.attach(adapters)).result()
            now = time.monotonic()
            made = Served(digest, manifest, base, variant_of(assembly.adapters), now - started)
            made.keep = KEEP_SECONDS if self._open else 0.0
            made.expires = now + max(made.keep, RETRY_SECONDS)  # until a name or a request holds it
            with self.lock:
                self.served[digest] = made
            return made

    def _base_of(self, manifest: Manifest) -> HeldBase:
        assembly = manifest.assembly
        checkpoint = BaseCheckpoint.open(self._archive, assembly.base)
        recipe = choose_recipe(
            checkpoint.blank,
            asked=self._quantization,
            manifests_own=manifest.recipe,
            device=self._device,
            dtype=checkpoint.dtype,
        ).recipe
        key = (assembly.base, assembly.tokenizer, assembly.code, recipe.digest)
        with self.lock:
            if key in self.bases:
                return self.bases[key]
        self._make_room()
        tokenizer = archived_tokenizer(self._archive, assembly.tokenizer)
        model = assemble(self._archive, checkpoint, recipe, device=self._device).model
        live = LiveBase(model)
        engine = Engine(model, tokenizer, checkpoint.config, limits=self._limits, select=live.select)
        made = HeldBase(key, live, engine, tokenizer, checkpoint, recipe, time.monotonic())
        with self.lock:
            self.bases[key] = made
        return made

    def _make_room(self) -> None:
        """Let go of the base that was idle for longest, if there is no room for another."""
        with self.lock:
            if len(self.bases) < self._limits.models:
                return
            idle = [base for base in self.bases.values() if not any(s.leases for s in self._on(base))]
            idle = [base for base in idle if self._open or not any(self._wanted(s.digest) for s in self._on(base))]
            if not idle:
                raise TooManyModelsError(
                    f"{len(self.bases)} bases are in memory and in use, the most this server holds; see --max-models"
                )
            oldest = min(idle, key=lambda base: base.used)
            for served in self._on(oldest):
                del self.served[served.digest]
            del self.bases[oldest.key]
        oldest.engine.close()

    def _on(self, base: HeldBase) -> list[Served]:
        return [served for served in self.served.values() if served.base is base]

    def sweep(self, *, also: Digest | None = None) -> None:
        """Take out manifests that no name wants, once their last lease is back and their time is over."""
        waits: list[Future[None]] = []
        with self._loading:  # nothing may be attached while a name that it needs is on its way out
            with self.lock:
                for served in self._free(also):
                    del self.served[served.digest]
                    waits += self._let_go(served)
                empty = [base for base in self.bases.values() if not self._on(base)]
                for base in empty:
                    del self.bases[base.key]
            for wait in waits:
                wait.result()
            for base in empty:
                base.engine.close()

    def _free(self, also: Digest | None) -> list[Served]:
        now = time.monotonic()
        idle = [served for served in self.served.values() if served.leases == 0 and served.expires <= now]
        return [served for served in idle if served.digest == also or not self._wanted(served.digest)]

    def _let_go(self, served: Served) -> list["Future[None]"]:
        """What an engine has to forget when one of its manifests goes; nothing if the whole base goes."""
        others = self._on(served.base)
        if not others:
            return []
        engine, live = served.base.engine, served.base.live
        waits = []
        if all(other.variant != served.variant for other in others):
            waits.append(engine.forget(served.variant))
        used = {name for other in others for name in other.variant}
        gone = [name for name in served.variant if name not in used]
        if gone:
            waits.append(engine.run(lambda: live.detach(gone)))
        return waits
