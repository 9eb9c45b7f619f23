"""Every eraser of the tree, with training cut to a few steps."""

from semipermeable.evaluation.erasers import eraser
from semipermeable.evaluation.erasers.concept_ablation import AblationSettings, ConceptAblation
from semipermeable.evaluation.erasers.esd import Esd, EsdSettings
from semipermeable.evaluation.erasers.leco import TRAINING, Leco
from semipermeable.evaluation.erasers.reference_training import ReferenceSettings
from semipermeable.evaluation.erasers.spm import Spm
from semipermeable.evaluation.erasers.spm_reference import SpmReference
from semipermeable.training import TrainConfig

ESD = EsdSettings(num_steps=2, learning_rate=1e-3, sampling_steps=2)
INSTANT = TrainConfig(num_steps=0)
CUT = {
    "sld": lambda: eraser("sld:max"),
    "gated-sld": lambda: eraser("gated-sld:max"),
    "esd-x": lambda: Esd("x", ESD),
    "esd-u": lambda: Esd("u", ESD, "esd-u"),
    "concept-ablation": lambda: ConceptAblation(
        AblationSettings(num_steps=2, batch_size=2, learning_rate=1e-3, num_pictures=2, sampling_steps=2)
    ),
    "leco": lambda: Leco(TrainConfig(**{**TRAINING.to_json(), "num_steps": 2, "sampling_steps": 2})),
    "spm": lambda: Spm("spm", "transport", INSTANT),
    "spm-open": lambda: Spm("spm-open", "open", INSTANT),
    "spm-paper": lambda: Spm("spm-paper", "paper", INSTANT),
    "spm-reference": lambda: SpmReference(
        ReferenceSettings(num_steps=2, warmup_steps=0, learning_rate=1e-2, sampling_steps=2)
    ),
}


def quick(name):
    """The eraser of that name, cut."""
    return CUT[name]() if name in CUT else eraser(name)
