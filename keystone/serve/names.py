"""What a name means right now, and refs that are followed where they go.

When a ref moves, the new manifest is made ready beside the old one, and only then does the name switch; whoever holds
a lease on the old one keeps it until its last token.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from csf_store import CsfError, Digest
from keystone.errors import KeystoneError
from keystone.serve.errors import UnknownModelError
from keystone.serve.holding import RETRY_SECONDS, Holdings
from manifests import ManifestError, Repository


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


class Names:
    """The names of one server.

    Args:
        repository: whose refs and manifests they are.
        holdings: what is in memory.
        aliases: further names, each for a ref or a manifest.
        opened: whether every ref and manifest of the archive has a name here.

    Attributes:
        followed: refs by name.
        pinned: manifests that are served by their digest alone.
    """

    def __init__(self, repository: Repository, holdings: Holdings, aliases: Mapping[str, str], *, opened: bool) -> None:
        self.followed: dict[str, Followed] = {}
        self.pinned: set[Digest] = set()
        self._repository = repository
        self._holdings = holdings
        self._aliases = aliases
        self._open = opened

    def wanted(self, digest: Digest) -> bool:
        """Whether a name holds a manifest in memory."""
        if self._open:
            return False  # they come when they are asked for, and go when they were not for a while
        return digest in self.pinned or any(each.target == digest for each in self.followed.values())

    def meaning(self, name: str) -> Digest:
        """The manifest that a name stands for now."""
        with self._holdings.lock:
            for text in (name, name.removesuffix(":latest")):
                text = self._aliases.get(text, text)  # noqa: PLW2901 - an alias is one step
                followed = self.followed.get(text)
                if followed is None and self._open and text in self._repository.refs.names():
                    followed = self.follow(text)
                if followed is not None and followed.target is not None:
                    return followed.target
                if (digest := self._digest(text)) is not None:
                    return digest
            known = sorted({*self.followed, *self._aliases})
        raise UnknownModelError(
            f"model {name!r} is not served here; there is {', '.join(known) or 'none'}", parameter="model"
        )

    def _digest(self, text: str) -> Digest | None:
        bare = text.removeprefix("b3:")
        if len(bare) < 8 or set(bare) - set("0123456789abcdef"):
            return None
        known = {*self._holdings.served, *self.pinned} | {each.target for each in self.followed.values() if each.target}
        found = [digest for digest in known if digest.hex.startswith(bare)]
        if len(found) == 1:
            return found[0]
        if not self._open:
            return None
        try:
            return self._repository.resolve(text)
        except (CsfError, ManifestError):
            return None

    def follow(self, name: str) -> Followed:
        """Watch a ref from now on."""
        if name not in self.followed:
            followed = Followed(name)
            if self._open:  # nothing is loaded before somebody asks, so nothing has to be ready before the switch
                self._point(followed, self._repository.refs.find(name))
            self.followed[name] = followed
        return self.followed[name]

    def turn(self, followed: Followed) -> None:
        """Let a name answer from where its ref points, once that is ready."""
        target = self._repository.refs.find(followed.name)
        if target == followed.target:
            followed.problem = followed.tried = None
            return
        now = time.monotonic()
        tried = followed.tried
        if tried is not None and tried[0] == target and now - tried[1] < RETRY_SECONDS:
            return
        if target is not None and (not self._open or followed.target in self._holdings.served):
            try:
                self._holdings.prepare(target)
            except (KeystoneError, CsfError, ManifestError) as error:
                followed.tried = (target, now)
                followed.problem = f"its target {target} could not be loaded: {error}"
                return
        with self._holdings.lock:
            self._point(followed, target)

    def _point(self, followed: Followed, target: Digest | None) -> None:
        moves = [event for event in self._repository.refs.history(followed.name) if event.target == target]
        followed.target = target
        followed.moved = int(moves[-1].time.timestamp()) if moves else 0
        followed.problem = followed.tried = None
