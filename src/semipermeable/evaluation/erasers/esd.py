"""Erased Stable Diffusion: fine-tune the model to steer away from the concept by itself.

The trained model ε_θ learns, at latents x_t that it partly denoised itself under the concept c (Eq. 6 of the paper),

    ε_θ(x_t, c) ← ε(x_t, ∅) − η (ε(x_t, c) − ε(x_t, ∅))

where ε is the base model. ESD-x trains the cross-attention layers, for what is bound to a name; ESD-u all the others,
for what may come unasked. Names and aliases are drawn at random, one a step; several concepts share one training, of
as many steps as they would have alone.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from semipermeable.concept import Concept
from semipermeable.evaluation.erasers.finetuning import Tuning, finetuned
from semipermeable.evaluation.erasers.protocol import Card
from semipermeable.evaluation.erasers.subjects import configuration, subjects_of
from semipermeable.evaluation.erasers.weights import WeightErasure
from semipermeable.hosts import Condition, host_for
from semipermeable.membrane import Json
from semipermeable.training.objective import erasing_goal
from semipermeable.training.trajectories import denoise

__all__ = ["CARD", "Esd", "EsdSettings"]

CARD = Card(
    paper="Gandikota et al. 2023, Erasing Concepts from Diffusion Models, ICCV, arXiv 2303.07345",
    defaults="η 1, 1,000 steps of Adam at 1e-5, batch 1, 50 sampling steps at guidance 3; falls to the empty prompt",
    tuned="nothing; a name or an alias is drawn in every step",
    checked="rohitgandikota/erasing, train-scripts/train-esd.py; the later esd_sd.py has η 2, 200 steps at 5e-5 and "
    "latents of the base model",
)
_CROSS = ".attn2."
_NEVER = ("time_embedding.", "conv_norm_out.", "conv_out.")
"""Not trained by ESD-u: its authors leave out the time embedding and the output layer with its norm."""


@dataclass(frozen=True, kw_only=True)
class EsdSettings:
    """How ESD is trained."""

    negative_guidance: float = 1.0
    """η."""
    num_steps: int = 1000
    """Optimiser steps, of each concept."""
    learning_rate: float = 1e-5
    """Of Adam."""
    sampling_steps: int = 50
    """Length of the grid on which latents are denoised, up to a random step."""
    sampling_guidance: float = 3.0
    """Classifier-free guidance of that denoising."""


@dataclass(frozen=True)
class Esd:
    """See the module.

    Args:
        part: "x" trains cross-attention, "u" everything else.
        settings: how it is trained.
        name: see `Eraser`; it starts with "esd-" and the part.
    """

    part: Literal["x", "u"]
    settings: EsdSettings = EsdSettings()
    name: str = "esd-x"
    gated = False

    @property
    def recipe(self) -> dict[str, Json]:
        """What decides the weights beside concepts and seed (see `artefacts`)."""
        return {f"esd-{self.part}": asdict(self.settings)}

    def prepare(self, pipe: Any, concepts: Sequence[Concept], *, seed: int, progress: bool = False) -> WeightErasure:
        """See `Eraser`."""
        subjects = subjects_of(pipe, concepts)
        host, settings = host_for(pipe), self.settings
        empty = host.unconditional()
        conditions = host.condition([name for subject in subjects for name in subject.concept.names])

        def loss_of(tuning: Tuning, generator: torch.Generator) -> Tensor:
            which = torch.randint(len(conditions), (1,), generator=generator)
            steps = int(torch.randint(1, settings.sampling_steps + 1, (1,), generator=generator))
            c = conditions[which]
            with tuning.live():
                run = denoise(
                    host,
                    c,
                    empty,
                    num_steps=settings.sampling_steps,
                    guidance=settings.sampling_guidance,
                    generator=generator,
                    stop=steps,
                )
            x, t = run.latents[-1], run.timesteps[-1].expand(1)
            with torch.no_grad():
                bare = host.predict(torch.cat([x, x]), t.expand(2), Condition.cat([c, empty]))
            with tuning.live():
                prediction = host.predict(x, t, c)
            return functional.mse_loss(prediction, erasing_goal(bare[:1], bare[1:], settings.negative_guidance))

        weights = finetuned(
            pipe,
            self._trains,
            loss_of,
            num_steps=settings.num_steps * len(subjects),
            learning_rate=settings.learning_rate,
            seed=seed,
            title=self.name,
            progress=progress,
        )
        plain: dict[str, Json] = asdict(settings)
        return WeightErasure(configuration(self.name, subjects, seed, **plain), weights)

    def _trains(self, name: str) -> bool:
        return (_CROSS in name) if self.part == "x" else _CROSS not in name and not name.startswith(_NEVER)
