"""Every way of tampering that an audit must see, each by name, each with as many variants as a seed has draws."""

import approval_tamperings  # noqa: F401 - each adds its own to the list
import assembly_tamperings  # noqa: F401 - each adds its own to the list
import byte_tamperings  # noqa: F401 - each adds its own to the list
import evidence_tamperings  # noqa: F401 - each adds its own to the list
import guard_tamperings  # noqa: F401 - each adds its own to the list
import ledger_tamperings  # noqa: F401 - each adds its own to the list
from scene import MUTATIONS, Scene

__all__ = ["MUTATIONS", "Scene"]
