"""Adapters as things to use: merged, compared, imported, checked, and switched on a model that is loaded."""

from keystone.combining.compatibility import Compatibility, check_archived, check_directory
from keystone.combining.delta import ModuleDelta, adapter_delta, whole
from keystone.combining.importing import Imported, import_adapter
from keystone.combining.low_rank import LowRank, LowRankAdapter, read_low_rank
from keystone.combining.merging import Merged, ModuleChange, check_merge, merge_adapters
from keystone.combining.records import AdapterImport, AdapterMerge, imports_of, merge_of, merges
from keystone.combining.switching import Wardrobe

__all__ = [
    "AdapterImport",
    "AdapterMerge",
    "Compatibility",
    "Imported",
    "LowRank",
    "LowRankAdapter",
    "Merged",
    "ModuleChange",
    "ModuleDelta",
    "Wardrobe",
    "adapter_delta",
    "check_archived",
    "check_directory",
    "check_merge",
    "import_adapter",
    "imports_of",
    "merge_adapters",
    "merge_of",
    "merges",
    "read_low_rank",
    "whole",
]
