"""The model registry: which models there are, what each is worth here, and which one may lead a task."""

from keystone.registry.registering import external_entry, local_entry, refreshed
from keystone.registry.selection import Choice, Task, choose, vram_budget
from keystone.registry.sharing import Imported, export_registry, import_registry, public_fields
from keystone.registry.standing import Standing, standing_of
from keystone.registry.store import ModelRegistry

__all__ = [
    "Choice",
    "Imported",
    "ModelRegistry",
    "Standing",
    "Task",
    "choose",
    "export_registry",
    "external_entry",
    "import_registry",
    "local_entry",
    "public_fields",
    "refreshed",
    "standing_of",
    "vram_budget",
]
