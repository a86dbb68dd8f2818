"""Names for models, and the models behind them: what is in memory, and what answers to which name right now.

A name is a ref, a manifest digest or a prefix of it, or an alias for one of these. Refs are watched: when one moves,
the new manifest is made ready beside the old one, and only then does the name switch; whoever holds a lease on the
old one keeps it until its last token. Manifests with the same base and recipe share one base and one engine.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib.metadata import version

import torch
from transformers import PreTrainedTokenizerFast

from csf_store import Archive, CsfError, Digest
from keystone.attestation import attest_each, attest_tensors
from keystone.checkpoints import BaseCheckpoint, archived_tokenizer
from keystone.errors import KeystoneError, RefusedError
from keystone.loader import default_device
from keystone.quantize import Quantization, choose_recipe
from keystone.quantize.assembling import assemble
from keystone.serve.engine import Engine
from keystone.serve.errors import ModelFailedError, ServeError, TooManyModelsError, UnknownModelError
from keystone.serve.limits import Limits
from keystone.serve.live import LiveBase, read_adapters, variant_of
from keystone.serve.prefixes import Variant
from manifests import KNOWN_CODES, Attestation, Manifest, ManifestError, Recipe, Repository

WATCH_SECONDS = 0.2
_RETRY_SECONDS = 10.0
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


@dataclass
class Followed:
    """A ref and what answers to it now.

    Attributes:
        target: the manifest that answers; None while there is none.
        moved: when the ref moved there, in seconds since 1970.
        problem: why the ref's own target does not answer; None when it does.
        tried: the target that failed, and when.
    """

    name: str
    target: Digest | None = None
    moved: int = 0
    problem: str | None = None
    tried: tuple[Digest, float] | None = None


@dataclass(frozen=True)
class ModelName:
    """One line of the list of models."""

    name: str
    digest: Digest
    manifest: Manifest
    created: int
    loaded: bool


@dataclass
class Lease:
    """The right to use a model until `release`. Use it as a context manager, or call that once."""

    name: str
    served: Served
    _host: "Host" = field(repr=False)
    load_seconds: float = 0.0
    _over: bool = False

    @property
    def engine(self) -> Engine:
        """The engine to submit to."""
        return self.served.base.engine

    @property
    def fingerprint(self) -> str:
        """The manifest that answers."""
        return str(self.served.digest)

    def release(self) -> None:
        """Give it back; a second time does nothing."""
        if not self._over:
            self._over = True
            self._host.give_back(self.served)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Host:
    """The models of one server.

    Args:
        archive: open; stays the caller's.
        targets: refs and manifests to serve, loaded by `start`. None at all: every ref and manifest of the archive,
            each loaded when it is first asked for.
        aliases: further names, each for one of those.
        quantization: how to hold the weights; default as `keystone.load`.
        device: where to run; default as `keystone.load`.
        limits: of every engine, and how many bases may be in memory.
    """

    def __init__(
        self,
        archive: Archive,
        targets: Sequence[str] = (),
        *,
        aliases: Mapping[str, str] | None = None,
        quantization: Quantization | None = None,
        device: torch.device | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.archive = archive
        self.limits = limits or Limits()
        self.aliases = dict(aliases or {})
        self.open = not targets
        self._repository = Repository(archive)
        self._targets = tuple(targets)
        self._quantization: Quantization | None = quantization
        self._device = device or default_device()
        self._lock = threading.RLock()
        self._loading = threading.Lock()
        self._served: dict[Digest, Served] = {}
        self._bases: dict[tuple[Digest, Digest, str, Digest], HeldBase] = {}
        self._followed: dict[str, Followed] = {}
        self._pinned: set[Digest] = set()
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="keystone-refs", daemon=True)

    def start(self) -> None:
        """Load what was named, and watch refs from now on.

        Raises:
            manifests.ManifestError, csf_store.CsfError, KeystoneError: a target is not there or does not load.
        """
        names = self._repository.refs.names()
        for target in (*self._targets, *(self.aliases.values() if self._targets else ())):
            if target in names:
                self._follow(target)
                self._turn(self._followed[target])
                if self._followed[target].problem is not None:
                    raise ModelFailedError(f"{target}: {self._followed[target].problem}")
            else:
                digest = self._repository.resolve(target)
                self._pinned.add(digest)
                self._prepare(digest)
        self._watcher.start()

    def close(self, *, seconds: float = 0.0) -> None:
        """Stop watching, let engines finish for so long, and let go of everything."""
        self._stop.set()
        if self._watcher.is_alive():
            self._watcher.join()
        with self._lock:
            bases = list(self._bases.values())
            self._bases.clear()
            self._served.clear()
        end = time.monotonic() + seconds
        for base in bases:
            base.engine.close(seconds=max(0.0, end - time.monotonic()))

    # Asking for models.

    def lease(self, name: str) -> Lease:
        """A model by name, loaded if it has to be; may take as long as that.

        Raises:
            UnknownModelError: the name means nothing here.
            TooManyModelsError: no room for another base.
            ModelFailedError: it could not be loaded.
        """
        started = time.monotonic()
        while True:
            found = self.lease_loaded(name)
            if found is not None:
                found.load_seconds = time.monotonic() - started
                return found
            digest = self._meaning(name)
            try:
                self._prepare(digest)
            except ServeError:
                raise
            except (KeystoneError, CsfError, ManifestError) as error:
                raise ModelFailedError(f"model {name!r} ({digest}) could not be loaded: {error}") from error

    def lease_loaded(self, name: str) -> Lease | None:
        """The same, if it needs no loading; else None.

        Raises:
            UnknownModelError: as above.
        """
        with self._lock:
            digest = self._meaning(name)
            served = self._served.get(digest)
            if served is None:
                return None
            served.leases += 1
            return Lease(name, served, self)

    def give_back(self, served: Served) -> None:
        """One lease less."""
        with self._lock:
            served.leases -= 1
            served.base.used = time.monotonic()
            served.expires = time.monotonic() + served.keep

    def keep(self, served: Served, seconds: float) -> None:
        """Say how long a model that no name holds stays in memory after its last use."""
        with self._lock:
            served.keep = seconds
            served.expires = time.monotonic() + seconds

    def unload(self, name: str) -> bool:
        """Let go of a model once nobody uses it; False if it was not loaded. It comes back when it is asked for."""
        with self._lock:
            served = self._served.get(self._meaning(name))
            if served is None:
                return False
            served.expires = served.keep = 0.0
        self._sweep(also=served.digest)
        return True

    def names(self) -> tuple[ModelName, ...]:
        """Every name that is served, refs first."""
        with self._lock:
            if self.open:
                for name in self._repository.refs.names():
                    self._follow(name)
            lines = [self._line(each.name, each.target, each.moved) for each in self._followed.values() if each.target]
            lines += [self._line(str(digest), digest, 0) for digest in sorted(self._pinned)]
            for alias in self.aliases:
                digest = self._meaning(alias)
                lines.append(self._line(alias, digest, 0))
        return tuple(lines)

    def loaded(self) -> tuple[Served, ...]:
        """What is in memory."""
        with self._lock:
            return tuple(self._served.values())

    def bases(self) -> tuple[HeldBase, ...]:
        """The bases in memory."""
        with self._lock:
            return tuple(self._bases.values())

    def problems(self) -> tuple[str, ...]:
        """Refs whose own target does not answer, and why."""
        with self._lock:
            return tuple(f"{each.name}: {each.problem}" for each in self._followed.values() if each.problem)

    def attest(self, served: Served, nonce: str) -> Attestation:
        """Hash the live weights of a manifest, between two steps of its engine.

        Args:
            served: held by a lease.
            nonce: 64 hex digits.
        """
        uses, live = served.manifest.assembly.adapters, served.base.live

        def hashed() -> tuple[Digest, int]:
            tensors = list(live.tensors(uses))
            return attest_tensors(tensors, bytes.fromhex(nonce)), len(tensors)

        value, count = served.base.engine.run(hashed).result()
        return Attestation(
            assembly=served.manifest.assembly.digest,
            recipe=served.base.recipe.digest,
            nonce=nonce,
            value=value,
            tensors=count,
            device=str(self._device),
            libraries={name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")},
        )

    def attest_each(self, served: Served, nonce: str) -> dict[str, Digest]:
        """The same for each live tensor alone, by name: to find out which of them is not as it was loaded."""
        uses, live = served.manifest.assembly.adapters, served.base.live
        return served.base.engine.run(lambda: attest_each(live.tensors(uses), bytes.fromhex(nonce))).result()

    def _line(self, name: str, digest: Digest | None, moved: int) -> ModelName:
        if digest is None:
            raise UnknownModelError(f"{name!r} points nowhere", parameter="model")
        served = self._served.get(digest)
        manifest = self._repository.load(digest) if served is None else served.manifest
        return ModelName(name, digest, manifest, moved, served is not None)

    def _meaning(self, name: str) -> Digest:
        """The manifest that a name stands for now."""
        with self._lock:
            for text in (name, name.removesuffix(":latest")):
                text = self.aliases.get(text, text)  # noqa: PLW2901 - an alias is one step
                followed = self._followed.get(text)
                if followed is None and self.open and text in self._repository.refs.names():
                    followed = self._follow(text)
                if followed is not None and followed.target is not None:
                    return followed.target
                if (digest := self._digest(text)) is not None:
                    return digest
            known = sorted({*self._followed, *self.aliases})
        raise UnknownModelError(
            f"model {name!r} is not served here; there is {', '.join(known) or 'none'}", parameter="model"
        )

    def _digest(self, text: str) -> Digest | None:
        bare = text.removeprefix("b3:")
        if len(bare) < 8 or set(bare) - set("0123456789abcdef"):
            return None
        known = {*self._served, *self._pinned} | {each.target for each in self._followed.values() if each.target}
        found = [digest for digest in known if digest.hex.startswith(bare)]
        if len(found) == 1:
            return found[0]
        if not self.open:
            return None
        try:
            return self._repository.resolve(text)
        except (CsfError, ManifestError):
            return None

    def _follow(self, name: str) -> Followed:
        """Watch a ref from now on."""
        if name not in self._followed:
            followed = Followed(name)
            if self.open:  # nothing is loaded before somebody asks, so nothing has to be ready before the switch
                self._point(followed, self._repository.refs.find(name))
            self._followed[name] = followed
        return self._followed[name]

    # Loading.

    def _prepare(self, digest: Digest) -> Served:
        """Make a manifest ready to answer; where it is already, that is all."""
        with self._loading:
            with self._lock:
                if digest in self._served:
                    return self._served[digest]
            started = time.monotonic()
            manifest = self._repository.load(digest)
            assembly = manifest.assembly
            if assembly.code not in KNOWN_CODES:
                raise RefusedError(f"manifest {digest} runs on {assembly.code}; this release computes {KNOWN_CODES}")
            adapters = read_adapters(self.archive, assembly.adapters)
            base = self._base(manifest)
            base.engine.run(lambda: base.live.attach(adapters)).result()
            now = time.monotonic()
            made = Served(digest, manifest, base, variant_of(assembly.adapters), now - started)
            made.keep = KEEP_SECONDS if self.open else 0.0
            made.expires = now + max(made.keep, _RETRY_SECONDS)  # until a name or a request holds it
            with self._lock:
                self._served[digest] = made
            return made

    def _base(self, manifest: Manifest) -> HeldBase:
        assembly = manifest.assembly
        checkpoint = BaseCheckpoint.open(self.archive, assembly.base)
        recipe = choose_recipe(
            checkpoint.blank,
            asked=self._quantization,
            manifests_own=manifest.recipe,
            device=self._device,
            dtype=checkpoint.dtype,
        ).recipe
        key = (assembly.base, assembly.tokenizer, assembly.code, recipe.digest)
        with self._lock:
            if key in self._bases:
                return self._bases[key]
        self._make_room()
        tokenizer = archived_tokenizer(self.archive, assembly.tokenizer)
        model = assemble(self.archive, checkpoint, recipe, device=self._device).model
        live = LiveBase(model)
        engine = Engine(model, tokenizer, checkpoint.config, limits=self.limits, select=live.select)
        made = HeldBase(key, live, engine, tokenizer, checkpoint, recipe, time.monotonic())
        with self._lock:
            self._bases[key] = made
        return made

    def _make_room(self) -> None:
        """Let go of the base that was idle for longest, if there is no room for another."""
        with self._lock:
            if len(self._bases) < self.limits.models:
                return
            idle = [base for base in self._bases.values() if not any(s.leases for s in self._on(base))]
            idle = [base for base in idle if self.open or not any(self._wanted(s.digest) for s in self._on(base))]
            if not idle:
                raise TooManyModelsError(
                    f"{len(self._bases)} bases are in memory and in use, the most this server holds; see --max-models"
                )
            oldest = min(idle, key=lambda base: base.used)
            for served in self._on(oldest):
                del self._served[served.digest]
            del self._bases[oldest.key]
        oldest.engine.close()

    def _on(self, base: HeldBase) -> list[Served]:
        return [served for served in self._served.values() if served.base is base]

    def _wanted(self, digest: Digest) -> bool:
        """Whether a name holds a manifest in memory."""
        if self.open:
            return False  # they come when they are asked for, and go when they were not for a while
        return digest in self._pinned or any(each.target == digest for each in self._followed.values())

    # Watching.

    def _watch(self) -> None:
        while not self._stop.wait(WATCH_SECONDS):
            self.refresh()

    def refresh(self) -> None:
        """Look at every ref that is served, switch those that moved, and let go of what nobody wants any more."""
        for followed in list(self._followed.values()):
            try:
                self._turn(followed)
            except Exception as error:  # noqa: BLE001 - one ref's trouble must not stop the watch over the others
                followed.problem = f"{type(error).__name__}: {error}"
        self._sweep()

    def _turn(self, followed: Followed) -> None:
        """Let a name answer from where its ref points, once that is ready."""
        target = self._repository.refs.find(followed.name)
        if target == followed.target:
            followed.problem = followed.tried = None
            return
        now = time.monotonic()
        tried = followed.tried
        if tried is not None and tried[0] == target and now - tried[1] < _RETRY_SECONDS:
            return
        if target is not None and (not self.open or followed.target in self._served):
            try:
                self._prepare(target)
            except (KeystoneError, CsfError, ManifestError) as error:
                followed.tried = (target, now)
                followed.problem = f"its target {target} could not be loaded: {error}"
                return
        with self._lock:
            self._point(followed, target)

    def _point(self, followed: Followed, target: Digest | None) -> None:
        moves = [event for event in self._repository.refs.history(followed.name) if event.target == target]
        followed.target = target
        followed.moved = int(moves[-1].time.timestamp()) if moves else 0
        followed.problem = followed.tried = None

    def _sweep(self, *, also: Digest | None = None) -> None:
        """Take out manifests that no name wants, once their last lease is back and their time is over."""
        waits: list[Future[None]] = []
        with self._loading:  # nothing may be attached while a name that it needs is on its way out
            with self._lock:
                for served in self._free(also):
                    del self._served[served.digest]
                    waits += self._let_go(served)
                empty = [base for base in self._bases.values() if not self._on(base)]
                for base in empty:
                    del self._bases[base.key]
            for wait in waits:
                wait.result()
            for base in empty:
                base.engine.close()

    def _free(self, also: Digest | None) -> list[Served]:
        now = time.monotonic()
        idle = [served for served in self._served.values() if served.leases == 0 and served.expires <= now]
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
