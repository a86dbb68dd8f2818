"""The models of one server: asked for by name, held by leases, listed, attested, and watched.

A name is a ref, a manifest digest or a prefix of it, or an alias for one of these; `names` knows what it means and
follows refs, `holding` what is in memory.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

import torch

from csf_store import Archive, CsfError, Digest
from keystone.attestation import attest_each, attest_tensors
from keystone.errors import KeystoneError
from keystone.loader import default_device
from keystone.quantize import Quantization
from keystone.serve.engine import Engine
from keystone.serve.errors import ModelFailedError, ServeError, UnknownModelError
from keystone.serve.holding import HeldBase, Holdings, Served
from keystone.serve.limits import Limits
from keystone.serve.names import Followed, Names
from manifests import Attestation, Manifest, ManifestError, Repository

WATCH_SECONDS = 0.2


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
        self._device = device or default_device()
        self._holdings = Holdings(
            archive,
            quantization=quantization,
            device=self._device,
            limits=self.limits,
            wanted=self._wanted,
            opened=self.open,
        )
        self._names = Names(self._repository, self._holdings, self.aliases, opened=self.open)
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
                followed = self.follow(target)
                self._names.turn(followed)
                if followed.problem is not None:
                    raise ModelFailedError(f"{target}: {followed.problem}")
            else:
                digest = self._repository.resolve(target)
                self._names.pinned.add(digest)
                self._holdings.prepare(digest)
        self._watcher.start()

    def close(self, *, seconds: float = 0.0) -> None:
        """Stop watching, let engines finish for so long, and let go of everything."""
        self._stop.set()
        if self._watcher.is_alive():
            self._watcher.join()
        self._holdings.close(seconds=seconds)

    def follow(self, name: str) -> Followed:
        """Serve a ref by its name from now on, wherever it goes."""
        return self._names.follow(name)

    def _wanted(self, digest: Digest) -> bool:
        return self._names.wanted(digest)

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
            digest = self._names.meaning(name)
            try:
                self._holdings.prepare(digest)
            except ServeError:
                raise
            except (KeystoneError, CsfError, ManifestError) as error:
                raise ModelFailedError(f"model {name!r} ({digest}) could not be loaded: {error}") from error

    def lease_loaded(self, name: str) -> Lease | None:
        """The same, if it needs no loading; else None.

        Raises:
            UnknownModelError: as above.
        """
        with self._holdings.lock:
            digest = self._names.meaning(name)
            served = self._holdings.served.get(digest)
            if served is None:
                return None
            served.leases += 1
            return Lease(name, served, self)

    def give_back(self, served: Served) -> None:
        """One lease less."""
        with self._holdings.lock:
            served.leases -= 1
            served.base.used = time.monotonic()
            served.expires = time.monotonic() + served.keep

    def keep(self, served: Served, seconds: float) -> None:
        """Say how long a model that no name holds stays in memory after its last use."""
        with self._holdings.lock:
            served.keep = seconds
            served.expires = time.monotonic() + seconds

    def unload(self, name: str) -> bool:
        """Let go of a model once nobody uses it; False if it was not loaded. It comes back when it is asked for."""
        with self._holdings.lock:
            served = self._holdings.served.get(self._names.meaning(name))
            if served is None:
                return False
            served.expires = served.keep = 0.0
        self._holdings.sweep(also=served.digest)
        return True

    def names(self) -> tuple[ModelName, ...]:
        """Every name that is served, refs first."""
        with self._holdings.lock:
            if self.open:
                for name in self._repository.refs.names():
                    self._names.follow(name)
            refs = [each for each in self._names.followed.values() if each.target]
            lines = [self._line(each.name, each.target, each.moved) for each in refs]
            lines += [self._line(str(digest), digest, 0) for digest in sorted(self._names.pinned)]
            for alias in self.aliases:
                digest = self._names.meaning(alias)
                lines.append(self._line(alias, digest, 0))
        return tuple(lines)

    def loaded(self) -> tuple[Served, ...]:
        """What is in memory."""
        with self._holdings.lock:
            return tuple(self._holdings.served.values())

    def bases(self) -> tuple[HeldBase, ...]:
        """The bases in memory."""
        with self._holdings.lock:
            return tuple(self._holdings.bases.values())

    def problems(self) -> tuple[str, ...]:
        """Refs whose own target does not answer, and why."""
        with self._holdings.lock:
            return tuple(f"{each.name}: {each.problem}" for each in self._names.followed.values() if each.problem)

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
        served = self._holdings.served.get(digest)
        manifest = self._repository.load(digest) if served is None else served.manifest
        return ModelName(name, digest, manifest, moved, served is not None)

    # Watching.

    def _watch(self) -> None:
        while not self._stop.wait(WATCH_SECONDS):
            self.refresh()

    def refresh(self) -> None:
        """Look at every ref that is served, switch those that moved, and let go of what nobody wants any more."""
        for followed in list(self._names.followed.values()):
            try:
                self._names.turn(followed)
            except Exception as error:  # noqa: BLE001 - one ref's trouble must not stop the watch over the others
                followed.problem = f"{type(error).__name__}: {error}"
        self._holdings.sweep()
