"""The task suite `basics`: small function-writing problems drawn from a grammar, with a split that cannot leak."""

from keystone.evaluation.basics.frozen import FrozenSplit, computed_split, frozen_split
from keystone.evaluation.basics.suite import (
    FROZEN_COUNT,
    FROZEN_SEED,
    SUITE_NAME,
    TASK_SUITE_VERSION,
    Family,
    draft_stream,
    draw_held_out,
    draw_training,
    families,
    frozen_fingerprints,
    in_held_out_fraction,
    suite_digest,
    tasks_digest,
    training_drafts,
)

__all__ = [
    "FROZEN_COUNT",
    "FROZEN_SEED",
    "SUITE_NAME",
    "TASK_SUITE_VERSION",
    "Family",
    "FrozenSplit",
    "computed_split",
    "draft_stream",
    "draw_held_out",
    "draw_training",
    "families",
    "frozen_fingerprints",
    "frozen_split",
    "in_held_out_fraction",
    "suite_digest",
    "tasks_digest",
    "training_drafts",
]
