"""How SPM's released reference code trains a membrane, where that differs from the paper.

The paper's losses and numbers (`training.objective`, preset "paper"), but: anchors are Gaussian noise in the place of
text states, and of every four rows of them two are lost to a wrong chunk; a latent that was denoised to one step of
the grid is shown to the network under the label of the step before; latents are denoised with the membrane that is
being trained; and the rate falls along three cosines. That the reference also computes an unconditional
half and cancels it costs time and changes nothing; it is left out.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from semipermeable.concept import Concept
from semipermeable.errors import DivergenceError
from semipermeable.evaluation.erasers.weights import bare_denoiser, frozen
from semipermeable.hosts import Condition, Host, host_for
from semipermeable.membrane import Membrane
from semipermeable.runtime import TrainableBinding
from semipermeable.sites import find_sites
from semipermeable.training.anchoring import gaussian_anchors
from semipermeable.training.examples import generator_for
from semipermeable.training.objective import erasing_goal, row_losses, total_loss
from semipermeable.training.trajectories import denoise

__all__ = ["ReferenceSettings", "train_as_reference"]


@dataclass(frozen=True, kw_only=True)
class ReferenceSettings:
    """The numbers of the paper, as the reference code reads them."""

    num_steps: int = 3000
    """Optimiser steps."""
    warmup_steps: int = 500
    """Steps of linear rise."""
    num_restarts: int = 3
    """Cosines to zero after the rise."""
    learning_rate: float = 1e-4
    """Peak rate of AdamW."""
    anchor_weight: float = 1e3
    """λ."""
    negative_guidance: float = 1.0
    """η."""
    num_anchors: int = 4
    """Anchor rows that are drawn; every second one is lost."""
    sampling_steps: int = 30
    """Length of the grid on which latents are denoised."""
    sampling_guidance: float = 3.0
    """Classifier-free guidance of that denoising."""


def train_as_reference(
    pipe: Any, concept: Concept, settings: ReferenceSettings, *, seed: int, progress: bool
) -> Membrane:
    """Train a membrane; the pipeline stays as it was.

    Args:
        pipe: a bare pipeline.
        concept: trained from its bare name to its bare surrogate.
        settings: numbers.
        seed: every draw is a function of it and of the step.
        progress: show a progress bar.

    Raises:
        DivergenceError: if a loss is not finite.
    """
    from rich.console import Console
    from rich.progress import Progress

    denoiser, host = bare_denoiser(pipe), host_for(pipe)
    binding = TrainableBinding(
        find_sites(denoiser, host.site_classes), generator=generator_for(seed, 0), device=host.device
    )
    optimizer = torch.optim.AdamW(list(binding.parameters()), lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: _rate(settings, done))
    texts = host.condition(["", concept.name, concept.surrogate])
    try:
        with frozen(denoiser), Progress(console=Console(stderr=True), disable=not progress) as shown:
            for step in shown.track(range(1, settings.num_steps + 1), description=f"spm-reference {concept.name!r}"):
                loss = _loss(host, binding, texts, settings, generator_for(seed, 2, step))
                if not bool(torch.isfinite(loss)):
                    raise DivergenceError(f"spm-reference diverged at step {step}; lower learning_rate")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
        return Membrane(binding.freeze(), concept)
    finally:
        binding.remove()


def _rate(settings: ReferenceSettings, done: int) -> float:
    if done < settings.warmup_steps:
        return done / settings.warmup_steps
    rest = (done - settings.warmup_steps) / max(settings.num_steps - settings.warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * (rest * settings.num_restarts % 1.0)))


def _loss(
    host: Host, binding: TrainableBinding, texts: Condition, settings: ReferenceSettings, generator: torch.Generator
) -> Tensor:
    empty, target, surrogate = texts[:1], texts[1:2], texts[2:]
    steps = int(torch.randint(2, settings.sampling_steps + 1, (1,), generator=generator))
    binding.gamma = 1.0
    run = denoise(
        host,
        target,
        empty,
        num_steps=settings.sampling_steps,
        guidance=settings.sampling_guidance,
        generator=generator,
        stop=steps,
    )
    binding.gamma = None
    x, label = run.latents[-1], run.timesteps[-2]
    anchors = gaussian_anchors(target, settings.num_anchors, 1.0, generator)[::2]
    with torch.no_grad():
        both = host.predict(torch.cat([x, x]), label.expand(2), Condition.cat([target, surrogate]))
        rows = x.expand(len(anchors), *x.shape[1:])
        kept = host.predict(rows, label.expand(len(anchors)), anchors) if len(anchors) else x[:0]
    goal = torch.cat([erasing_goal(both[:1], both[1:], settings.negative_guidance), kept])
    binding.gamma = 1.0
    prediction = host.predict(torch.cat([x, rows]), label.expand(len(goal)), Condition.cat([target, anchors]))
    binding.gamma = None
    losses = row_losses(prediction, goal)
    return total_loss(losses[:1], losses[1:], settings.anchor_weight)
