"""Parity: is our forward pass the vendor's? Asked by who owns the real weights, answered by numbers, kept as evidence.

`capture` writes fixed inputs and a script that runs the vendor's engine on them; `check` runs ours on the same inputs,
compares, and stores a parity report bound to the base. An imported LoopCoder base without a passing one is not
verified.
"""

from keystone.parity.verified import BARS, is_verified, reports_of

__all__ = ["BARS", "is_verified", "reports_of"]
