"""Paired and anytime-valid statistics: is this candidate worse, better, or can nobody say yet?"""

from adapters.statistics.betting import (
    STAKES,
    Look,
    MeanInterval,
    chain_e_value,
    confidence_sequence,
    log_bets,
    start_weights,
)
from adapters.statistics.bootstrap import BootstrapInterval, paired_bootstrap
from adapters.statistics.families import Families
from adapters.statistics.intervals import wilson
from adapters.statistics.paired import SignFlips, mcnemar_better, mcnemar_differs, mcnemar_worse
from adapters.statistics.power import items_per_family, minimal_effect, standard_error
from adapters.statistics.quantiles import normal_quantile, t_quantile, t_tail

__all__ = [
    "STAKES",
    "BootstrapInterval",
    "Families",
    "Look",
    "MeanInterval",
    "SignFlips",
    "chain_e_value",
    "confidence_sequence",
    "items_per_family",
    "log_bets",
    "mcnemar_better",
    "mcnemar_differs",
    "mcnemar_worse",
    "minimal_effect",
    "normal_quantile",
    "paired_bootstrap",
    "standard_error",
    "start_weights",
    "t_quantile",
    "t_tail",
    "wilson",
]
