"""Export: a manifest as a directory for transformers, for the vendor's engine, or as a GGUF file."""

from keystone.checkpoints.export.exporting import (
    FORMATS,
    Exported,
    ExportRequest,
    Format,
    MergeReport,
    export,
    planned_bytes,
)
from keystone.checkpoints.export.provenance import ExportExamined, examine_export
from keystone.checkpoints.export.signature import Signer

__all__ = [
    "FORMATS",
    "ExportExamined",
    "ExportRequest",
    "Exported",
    "Format",
    "MergeReport",
    "Signer",
    "examine_export",
    "export",
    "planned_bytes",
]
