"""Training: from records that the source gate let in to an adapter, its proof and its manifest."""

from keystone.training.documents import TrainingRun, find_training_run
from keystone.training.reproducing import Reproduction, reproduce
from keystone.training.settings import TARGETS, TrainSettings
from keystone.training.train import Trained, train_adapter

__all__ = [
    "TARGETS",
    "Reproduction",
    "TrainSettings",
    "Trained",
    "TrainingRun",
    "find_training_run",
    "reproduce",
    "train_adapter",
]
