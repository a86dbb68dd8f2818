"""An interval around one pass rate.

Wilson's score interval (Wilson 1927) is used and not the textbook `p +- z * se`: at 98 of 100, or at 0 of 20, the
textbook interval leaves [0, 1] or has no width, and pass rates live there.
"""

from __future__ import annotations

import math

from adapters.errors import InvalidPolicyError
from adapters.statistics.quantiles import normal_quantile


def wilson(passed: int, total: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's two-sided score interval for a share.

    Args:
        passed: items that passed.
        total: items in all; none at all says nothing, and gives (0, 1).
        level: the confidence.

    Raises:
        InvalidPolicyError: more passed than there are, or a level outside (0, 1).
    """
    if not 0 <= passed <= total:
        raise InvalidPolicyError(f"{passed} of {total} items cannot pass")
    z = normal_quantile((1 + level) / 2)
    if total == 0:
        return 0.0, 1.0
    share = passed / total
    weight = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / weight
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / weight
    # Exactly 0 and 1 at the ends, where rounding would leave a trace.
    return (0.0 if passed == 0 else centre - spread), (1.0 if passed == total else centre + spread)
