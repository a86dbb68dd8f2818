"""Adapters: the only way weights may change."""

from adapters.comparison import Contrast, FamilyLoss, Outcome, contrast
from adapters.comparison import pair as pair_outcomes
from adapters.contamination import HeldOut, HoldoutIndex, Match
from adapters.document_checks import document_problem
from adapters.errors import (
    AdapterError,
    AdapterFitError,
    AdapterNotFoundError,
    BaseChangedError,
    HoldoutError,
    InvalidAdapterError,
    InvalidCheckpointError,
    InvalidEvidenceError,
    InvalidPolicyError,
    MissingTensorError,
    OutputExistsError,
    PickleAdapterError,
    ShapeMismatchError,
    SourceRefusedError,
    SurplusTensorError,
    TrainingFailedError,
    TrainingRefusedError,
    UnsupportedAdapterError,
)
from adapters.fit import archived_adapter, archived_shapes, check_fit, check_fits, fit_errors, fit_problem
from adapters.frozen import base_entries, check_unchanged, tensor_entry
from adapters.guard_report import GuardReport, ReferenceModel, histories
from adapters.guard_report import judge as judge_candidate
from adapters.guard_report import recheck as recheck_report
from adapters.holdout_journal import LedgerJournal
from adapters.holdouts import HoldoutBook, HoldoutEvent, Journal, OpenedDraw, Secret, SuiteStatus
from adapters.machine import Machine
from adapters.peft_attach import ParentAdapter
from adapters.peft_config import LoraSettings
from adapters.peft_format import AdapterTensors, TensorShape, read_adapter
from adapters.records import Claim, Confidence, ConvergenceRecord, Evidence, RecordSource, deduplicate
from adapters.signals import Sample, SampledItem, SignalShift, SignalTable, divergences, entropies
from adapters.signals import calibrate as calibrate_signals
from adapters.signals import measure as measure_signals
from adapters.source_gate import GATE, PUBLIC_BENCHMARKS, EvidenceRun, SourceGate, require_admitted
from adapters.statistics import Look, confidence_sequence, minimal_effect, wilson
from adapters.store import add_adapter
from adapters.training import TrainingResult, learning_rate, train_lora
from adapters.training_state import Checkpoints
from adapters.tripwire import Judgement, Measured, Reason, Standing, conclude, has_improved
from adapters.tripwire_documents import TripwireEvidence, tripwire_evidence, tripwire_policy
from adapters.tripwire_policy import DEFAULT_SIGNALS, GuardPolicy, SignalRule
from adapters.writing import adapter_state, canonical_config, write_adapter

__all__ = [
    "DEFAULT_SIGNALS",
    "GATE",
    "PUBLIC_BENCHMARKS",
    "AdapterError",
    "AdapterFitError",
    "AdapterNotFoundError",
    "AdapterTensors",
    "BaseChangedError",
    "Checkpoints",
    "Claim",
    "Confidence",
    "Contrast",
    "ConvergenceRecord",
    "Evidence",
    "EvidenceRun",
    "FamilyLoss",
    "GuardPolicy",
    "GuardReport",
    "HeldOut",
    "HoldoutBook",
    "HoldoutError",
    "HoldoutEvent",
    "HoldoutIndex",
    "InvalidAdapterError",
    "InvalidCheckpointError",
    "InvalidEvidenceError",
    "InvalidPolicyError",
    "Journal",
    "Judgement",
    "LedgerJournal",
    "Look",
    "LoraSettings",
    "Machine",
    "Match",
    "Measured",
    "MissingTensorError",
    "OpenedDraw",
    "Outcome",
    "OutputExistsError",
    "ParentAdapter",
    "PickleAdapterError",
    "Reason",
    "RecordSource",
    "ReferenceModel",
    "Sample",
    "SampledItem",
    "Secret",
    "ShapeMismatchError",
    "SignalRule",
    "SignalShift",
    "SignalTable",
    "SourceGate",
    "SourceRefusedError",
    "Standing",
    "SuiteStatus",
    "SurplusTensorError",
    "TensorShape",
    "TrainingFailedError",
    "TrainingRefusedError",
    "TrainingResult",
    "TripwireEvidence",
    "UnsupportedAdapterError",
    "adapter_state",
    "add_adapter",
    "archived_adapter",
    "archived_shapes",
    "base_entries",
    "calibrate_signals",
    "canonical_config",
    "check_fit",
    "check_fits",
    "check_unchanged",
    "conclude",
    "confidence_sequence",
    "contrast",
    "deduplicate",
    "divergences",
    "document_problem",
    "entropies",
    "fit_errors",
    "fit_problem",
    "has_improved",
    "histories",
    "judge_candidate",
    "learning_rate",
    "measure_signals",
    "minimal_effect",
    "pair_outcomes",
    "read_adapter",
    "recheck_report",
    "require_admitted",
    "tensor_entry",
    "train_lora",
    "tripwire_evidence",
    "tripwire_policy",
    "wilson",
    "write_adapter",
]
