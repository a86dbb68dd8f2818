"""Bytes as they are, for what does not compress."""

from __future__ import annotations

from functools import partial

from csf_store.codecs.base import CodecError, Hint, Plan
from csf_store.digest import Buffer


class RawCodec:
    """Stores what it is given."""

    number = 0
    name = "raw"

    def accepts(self, raw: Buffer, hint: Hint) -> bool:  # noqa: ARG002 - the protocol
        """Always possible."""
        return True

    def plan(self, raw: Buffer, hint: Hint) -> Plan:
        """Nothing to find out."""
        return Plan(len(raw), partial(self.encode, raw, hint))

    def encode(self, raw: Buffer, hint: Hint) -> Buffer:  # noqa: ARG002 - the protocol
        """Returns ``raw``."""
        return raw

    def decode_into(self, stored: Buffer, out: memoryview, base: Buffer | None = None) -> None:  # noqa: ARG002
        """Copies."""
        if len(stored) != len(out):
            raise CodecError(f"{len(stored)} stored bytes where {len(out)} are expected")
        out[:] = stored
