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
from semipermeable.evaluation.erasers.subjects import Subject, configuration, subjects_of
from semipermeable.membrane import Json, Membrane
from semipermeable.training import TrainConfig, train
from semipermeable.training.workshop import Workshop

__all__ = ["CARD", "TRAINING", "Leco"]

CARD = Card(
    paper="p1atdev 2023, LECO: Low-rank adaptation for Erasing COncepts, goal of arXiv 2303.07345",
    defaults="rank 4, 500 steps of AdamW at 1e-4, η 1, batch 1; on linear and 1×1 layers, as SPM's sites; α = rank",
    tuned="nothing; its example has α 1, a quarter of the effect, and denoises latents with the LoRA, not without",
    checked="p1atdev/LECO, examples/config.yaml, train_lora.py, lora.py",
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
    style_negative_guidance=1.0,
    sampling_steps=50,
    sampling_guidance=3.0,
    reuse_trajectories=False,
    cache_frozen=False,
    target_captions=False,
    surrogate_in_wording=False,
    sibling_surrogate=False,
    closed_form=False,
)
"""LECO in the terms of this package's training."""


@dataclass(frozen=True)
class Leco:
    """See the module.

    Args:
        training: how the LoRA of each concept is trained.
        name: see `Eraser`.
    """

    training: TrainConfig = TRAINING
    name: str = "leco"
    gated = False

    @property
    def recipe(self) -> dict[str, Json]:
        """What decides a LoRA beside concept and seed (see `artefacts`)."""
        return {"leco": self.training.to_json()}

    def subjects(self, workshop: Workshop, concepts: Sequence[Concept]) -> list[Subject]:
        """Return the concepts as they are trained."""
        return subjects_of(workshop.host.pipe, concepts)

    def membrane_of(self, workshop: Workshop, subject: Subject, *, seed: int, progress: bool) -> Membrane:
        """Train the LoRA of one concept."""
        from semipermeable.training.progress import bar

        aimless = dataclasses.replace(subject.concept, surrogate="")
        steps = train(workshop, aimless, subject.captions, self.training, seed=seed)
        with bar(self.training.num_steps, aimless.name, shown=progress) as show:
            while True:
                try:
                    show(next(steps))
                except StopIteration as end:
                    return Membrane(end.value.pairs, subject.concept)

    def equipped(self, subjects: Sequence[Subject], membranes: Sequence[Membrane], seed: int) -> Equipped:
        """Return the erasure by some LoRAs, one per subject."""
        config = configuration(self.name, subjects, seed, training=self.training.to_json())
        return Equipped(config, tuple(membranes), "open")

    def prepare(self, pipe: Any, concepts: Sequence[Concept], *, seed: int, progress: bool = False) -> Equipped:
        """See `Eraser`."""
        workshop = Workshop(pipe)
        subjects = self.subjects(workshop, concepts)
        loras = [self.membrane_of(workshop, one, seed=seed, progress=progress) for one in subjects]
        return self.equipped(subjects, loras, seed)
