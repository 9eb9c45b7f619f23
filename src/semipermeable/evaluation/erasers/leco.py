"""LECO: a LoRA of rank 4 on the denoiser's transformer blocks, trained with ESD's goal and nothing that anchors it.

The LoRA is a membrane of rank 4 that is held open on every conditional row; its training is this package's loop without
anchors, at latents denoised afresh in every step, from the concept's bare names to the empty prompt.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from semipermeable.concept import Concept
from semipermeable.evaluation.erasers.protocol import Card
from semipermeable.evaluation.erasers.spm import Equipped
from semipermeable.evaluation.erasers.subjects import configuration, subjects_of
from semipermeable.hosts import host_for
from semipermeable.membrane import Membrane
from semipermeable.training import TrainConfig, train

__all__ = ["CARD", "TRAINING", "Leco"]

CARD = Card(
    paper="p1atd 2023, LECO: Low-rank adaptation for Erasing COncepts, github.com/p1atd/LECO; goal of arXiv 2303.07345",
    defaults="rank 4, 500 steps of AdamW at 1e-4, η 1, batch 1; on linear and 1×1 layers, as SPM's sites; α = rank",
    tuned="nothing",
)
TRAINING = TrainConfig(
    rank=4,
    num_steps=500,
    batch_size=1,
    num_anchors=0,
    learning_rate=1e-4,
    schedule="constant",
    warmup_steps=0,
    negative_guidance=1.0,
    sampling_steps=50,
    sampling_guidance=3.0,
    reuse_trajectories=False,
    cache_frozen=False,
    target_captions=False,
    surrogate_in_wording=False,
    closed_form=False,
)
"""LECO in the terms of this package's training."""


@dataclass(frozen=True)
class Leco:
    """See the module.

    Args:
        training: how the LoRA of each concept is trained.
    """

    training: TrainConfig = TRAINING
    name = "leco"
    gated = False

    def prepare(self, pipe: Any, concepts: Sequence[Concept], *, seed: int, progress: bool = False) -> Equipped:
        """See `Eraser`."""
        from semipermeable.training.progress import bar

        subjects = subjects_of(pipe, concepts)
        membranes: list[Membrane] = []
        for subject in subjects:
            aimless = dataclasses.replace(subject.concept, surrogate="")
            steps = train(host_for(pipe), aimless, subject.captions, self.training, seed=seed)
            with bar(self.training.num_steps, aimless.name, shown=progress) as show:
                while True:
                    try:
                        show(next(steps))
                    except StopIteration as end:
                        membranes.append(Membrane(end.value.pairs, subject.concept))
                        break
        config = configuration(self.name, subjects, seed, training=self.training.to_json())
        return Equipped(config, tuple(membranes), "open")
