"""Training of membranes: the paper's recipe and a fast one."""

from semipermeable.training.api import erase, erase_steps, fit_gate
from semipermeable.training.captions import CaptionSet, captions_for, enrich
from semipermeable.training.config import TrainConfig, presets
from semipermeable.training.loop import StepStats, train

__all__ = [
    "CaptionSet",
    "StepStats",
    "TrainConfig",
    "captions_for",
    "enrich",
    "erase",
    "erase_steps",
    "fit_gate",
    "presets",
    "train",
]
