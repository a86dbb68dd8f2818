"""What the ledger says must be kept: pins, and every target every ref ever had. By its lines alone, each hashed again.

A cache that forgot a pin would be enough to lose data, so none is asked.
"""

from __future__ import annotations

from csf_store.digest import Digest
from csf_store.errors import CorruptError
from csf_store.ledger.ledger import Ledger


class Roots:
    """The roots of one archive; asked again, it reads only what was added.

    Attributes:
        pins: digests that are pinned, or were when this was first asked.
        targets: digests that a ref points to or ever pointed to.
    """

    def __init__(self, ledger: Ledger) -> None:
        # Opened once more: the archive's own may be held by a thread that waits for us.
        self._ledger = ledger.another()
        self._size = 0
        self.pins: set[bytes] = set()
        self.targets: set[bytes] = set()

    def close(self) -> None:
        """Lets go of the ledger."""
        self._ledger.close()

    def read(self) -> None:
        """Takes in what the ledger says now.

        Raises:
            CorruptError: if it was altered: then nobody knows what must be kept.
        """
        if not self._size:
            audit = self._ledger.audit()
            if audit.findings:
                raise CorruptError(audit.findings[0])
            self.pins.update(bytes(pin.digest) for pin in audit.pins)
            moves = [move for history in audit.refs.values() for move in history]
            self.targets.update(bytes(move.target) for move in moves if move.target is not None)
            self._size = audit.checkpoint.size
            return
        for entry in self._ledger.entries(self._size):
            self._size = entry.seq + 1
            if entry.event == "pin":
                self.pins.add(bytes(Digest.parse(str(entry.fields["digest"]))))
            elif entry.event == "ref.set" and entry.fields["to"] is not None:
                self.targets.add(bytes(Digest.parse(str(entry.fields["to"]))))
