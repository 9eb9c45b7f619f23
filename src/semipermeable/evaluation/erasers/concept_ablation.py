"""Concept ablation, model-based: what the model draws for the concept becomes what it draws for an anchor concept.

On noised pictures x_t of captions with the anchor, drawn by the base model, the fine-tuned ε_θ minimises (Eq. 4 and 6
of the paper), with c the caption with the anchor, c* the same with the concept, and sg the stopped gradient,

    ‖ε_θ(x_t, c*) − sg ε_θ(x_t, c)‖² + λ ‖ε_θ(x_t, c) − ε‖²

The second term, the usual diffusion loss on the anchor's pictures, keeps the anchor itself. The anchor is the concept's
surrogate; cross-attention keys and values are trained. Several concepts share one training, of as many steps and
pictures as they would have alone.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from semipermeable.concept import Concept
from semipermeable.evaluation.erasers.finetuning import Tuning, finetuned
from semipermeable.evaluation.erasers.protocol import Card
from semipermeable.evaluation.erasers.subjects import configuration, subjects_of
from semipermeable.evaluation.erasers.weights import WeightErasure
from semipermeable.hosts import Condition, Host, host_for
from semipermeable.membrane import Json
from semipermeable.training.examples import generator_for

__all__ = ["CARD", "AblationSettings", "ConceptAblation"]

CARD = Card(
    paper="Kumari et al. 2023, Ablating Concepts in Text-to-Image Diffusion Models, ICCV, arXiv 2303.13516",
    defaults="100 steps, batch 8, Adam at 1.6e-5 (2e-6 · batch), λ 1, 200 anchor pictures; anchor: the surrogate",
    tuned="nothing; fewer anchor pictures than the paper's 1,000, since the bundled captions have fewer wordings",
    checked="nupurkmr9/concept-ablation, diffusers/README.md and train.py, compvis/README.md: two GPUs of batch 4, 200 "
    "pictures; there λ is 0 but for the cat",
)
_TRAINED = (".attn2.to_k.weight", ".attn2.to_v.weight")
_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class AblationSettings:
    """How concept ablation is trained."""

    num_steps: int = 100
    """Optimiser steps, for each concept."""
    batch_size: int = 8
    """Pairs of captions in one step."""
    learning_rate: float = 1.6e-5
    """Of Adam."""
    anchor_weight: float = 1.0
    """λ."""
    num_pictures: int = 200
    """Pictures of captions with the anchor, drawn before training, for each concept."""
    sampling_steps: int = 50
    """Denoising steps of each."""
    sampling_guidance: float = 6.0
    """Classifier-free guidance of each."""


@dataclass(frozen=True)
class ConceptAblation:
    """See the module.

    Args:
        settings: how it is trained.
        name: see `Eraser`.
    """

    settings: AblationSettings = AblationSettings()
    name: str = "concept-ablation"
    gated = False

    @property
    def recipe(self) -> dict[str, Json]:
        """What decides the weights beside concepts and seed (see `artefacts`)."""
        return {"concept-ablation": asdict(self.settings)}

    def prepare(self, pipe: Any, concepts: Sequence[Concept], *, seed: int, progress: bool = False) -> WeightErasure:
        """See `Eraser`."""
        subjects = subjects_of(pipe, concepts)
        host, settings = host_for(pipe), self.settings
        targets = [text for subject in subjects for text in subject.captions.targets]
        anchors = [text for subject in subjects for text in subject.captions.surrogates]
        num_pictures = settings.num_pictures * len(subjects)
        which = torch.randint(len(anchors), (num_pictures,), generator=generator_for(seed, 9))
        pictures = _pictures(pipe, [anchors[index] for index in which.tolist()], settings, seed)
        of_targets, of_anchors = host.condition(targets), host.condition(anchors)
        times = int(pipe.scheduler.config.num_train_timesteps)

        def loss_of(tuning: Tuning, generator: torch.Generator) -> Tensor:
            row = torch.randint(len(pictures), (settings.batch_size,), generator=generator)
            t = torch.randint(times, (settings.batch_size,), generator=generator)
            noise = torch.randn((settings.batch_size, *pictures.shape[1:]), generator=generator).to(pictures)
            t = t.to(pictures.device)
            x = host.noised(pictures[row], noise, t)
            both = Condition.cat([of_targets[which[row]], of_anchors[which[row]]])
            with tuning.live():
                prediction = host.predict(torch.cat([x, x]), torch.cat([t, t]), both)
            on_target, on_anchor = prediction.chunk(2)
            truth = host.training_target(pictures[row], noise, t)
            kept = functional.mse_loss(on_anchor, truth)
            return functional.mse_loss(on_target, on_anchor.detach()) + settings.anchor_weight * kept

        weights = finetuned(
            pipe,
            lambda name: name.endswith(_TRAINED),
            loss_of,
            num_steps=settings.num_steps * len(subjects),
            learning_rate=settings.learning_rate,
            seed=seed,
            title=self.name,
            progress=progress,
        )
        plain: dict[str, Json] = asdict(settings)
        return WeightErasure(configuration(self.name, subjects, seed, **plain), weights)


def _pictures(pipe: Any, captions: Sequence[str], settings: AblationSettings, seed: int) -> Tensor:
    """Return the latents of drawn captions, shape (captions, channels, height, width)."""
    host: Host = host_for(pipe)
    drawn: list[Tensor] = []
    for start in range(0, len(captions), _ROWS):
        chunk = list(captions[start : start + _ROWS])
        latents = host.draw(
            chunk,
            steps=settings.sampling_steps,
            guidance=settings.sampling_guidance,
            generator=[generator_for(seed, 10, start + row) for row in range(len(chunk))],
            output="latent",
        )
        drawn.append(latents)
    return torch.cat(drawn).to(host.device, host.dtype)
