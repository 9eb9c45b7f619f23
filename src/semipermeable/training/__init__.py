"""Making membranes: the paper's recipe, a fast one, and one in closed form; one or many at once."""

from semipermeable.training.api import erase, erase_steps, fit_gate
from semipermeable.training.captions import CaptionSet, captions_for, enrich
from semipermeable.training.cluster import erase_on_cluster
from semipermeable.training.config import TrainConfig, presets
from semipermeable.training.loop import StepStats, train
from semipermeable.training.many import Made, erase_each, erase_many, file_name
from semipermeable.training.share import Share, launched_share
from semipermeable.training.workshop import Workshop

__all__ = [
    "CaptionSet",
    "Made",
    "Share",
    "StepStats",
    "TrainConfig",
    "Workshop",
    "captions_for",
    "enrich",
    "erase",
    "erase_each",
    "erase_many",
    "erase_on_cluster",
    "erase_steps",
    "file_name",
    "fit_gate",
    "launched_share",
    "presets",
    "train",
]
