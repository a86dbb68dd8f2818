"""Verified experience: what may train, how it is collected, and the gate that checks it again."""

from keystone.experience.adding import add_external
from keystone.experience.batches import CollectReport, Contaminated, ExperienceBatch, Refused, load_records
from keystone.experience.collecting import collect
from keystone.experience.decontamination import known_holdouts
from keystone.experience.gating import Gated, data_set, data_set_digest, gate
from keystone.experience.listing import FoundBatch, experience_batches, record_digests

__all__ = [
    "CollectReport",
    "Contaminated",
    "ExperienceBatch",
    "FoundBatch",
    "Gated",
    "Refused",
    "add_external",
    "collect",
    "data_set",
    "data_set_digest",
    "experience_batches",
    "gate",
    "known_holdouts",
    "load_records",
    "record_digests",
]
