"""What a comparison of a given size could have shown.

"No significant difference" on 50 items says little, and a gate that takes it for "no harm" promotes harm. So every
verdict names the smallest effect that the data would have shown with the policy's power, and a design can be sized
before anything is run.

For a paired comparison of F families with n items each, let `churn` be the share of items on which the two models
differ (won or lost) and `jitter` the standard deviation of true change between families. The variance of a family's
mean difference is then about `churn / n + jitter**2`, and the error of the mean over families its root over F.
"""

from __future__ import annotations

import math

from adapters.errors import InvalidPolicyError
from adapters.statistics.quantiles import t_quantile

_MOST = 10**6


def standard_error(*, families: int, items: int, churn: float, jitter: float = 0.0) -> float:
    """The standard error of the mean paired difference of a design.

    Args:
        families: how many.
        items: items in each.
        churn: share of items on which the two models differ, 0 to 1.
        jitter: standard deviation of true change between families.

    Raises:
        InvalidPolicyError: for a design that is none.
    """
    if families < 2 or items < 1 or not 0 <= churn <= 1 or jitter < 0:
        raise InvalidPolicyError(
            f"{families} families of {items} items with a churn of {churn} and a jitter of {jitter} are no design"
        )
    return math.sqrt((churn / items + jitter**2) / families)


def minimal_effect(error: float, *, families: int, alpha: float, power: float) -> float:
    """The smallest true difference that a one-sided test at `alpha` shows with probability `power`.

    Args:
        error: standard error of the mean difference, planned or observed.
        families: how many; with few, the test must allow for not knowing the spread (Student's t).
        alpha: level of the one look.
        power: such as 0.8.
    """
    if families < 2:
        return math.inf
    return (t_quantile(1 - alpha, families - 1) + t_quantile(power, families - 1)) * error


def items_per_family(
    effect: float, *, families: int, churn: float, alpha: float, power: float, jitter: float = 0.0
) -> int:
    """The fewest items a family with which an effect is shown with this power.

    Raises:
        InvalidPolicyError: when no number of items suffices, since the families themselves differ too much.
    """
    needed = effect / (t_quantile(1 - alpha, families - 1) + t_quantile(power, families - 1))
    room = families * needed**2 - jitter**2
    if room <= 0 or churn / room > _MOST:
        raise InvalidPolicyError(
            f"{families} families that differ by {jitter} cannot show an effect of {effect}, however many items each"
            " has; add families"
        )
    return max(1, math.ceil(churn / room - 1e-9))
