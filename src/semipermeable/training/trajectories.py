"""Partially denoised latents of the base model, each with the timestep at which the model reads it.

A latent x_t that the scheduler hands to the network together with label t is recorded with exactly that label (the
reference code labels a latent one grid step off). The conditional prediction made on the way is recorded too: it is
ε(x_t, c) of the base model, for which nobody has to pay twice.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from semipermeable.hosts import Condition, Host

__all__ = ["Trajectory", "denoise", "step_arguments"]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Latents of one denoising run of several rows, in order of the steps taken.

    Args:
        latents: what the network read, shape (steps, rows, ...), (channels, height, width) in a UNet.
        timesteps: its label at each step, shape (steps,).
        predictions: ε(x_t, c) of the base model without guidance, in the shape of `latents`.
    """

    latents: Tensor
    timesteps: Tensor
    predictions: Tensor


def step_arguments(scheduler: Any, generator: torch.Generator) -> dict[str, Any]:
    """Return the generator as an argument of `scheduler.step`, if it draws noise."""
    return {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}


@torch.no_grad()
def denoise(
    host: Host,
    condition: Condition,
    empty: Condition,
    *,
    num_steps: int,
    guidance: float,
    generator: torch.Generator,
    stop: int | None = None,
    skip_unconditional: bool = True,
) -> Trajectory:
    """Denoise from pure noise under the base model and record what the network read.

    Args:
        host: the pipeline's host; its membrane, if one is being trained, must be bare.
        condition: one per row.
        empty: `host.unconditional()`.
        num_steps: length of the scheduler's grid.
        guidance: classifier-free guidance; 1 needs no unconditional half. Families that are guided otherwise, or not
            at all, take their own.
        generator: draws the noise, on CPU.
        stop: record this many steps and stop there; None runs the grid to its end.
        skip_unconditional: False computes the unconditional half even where guidance is 1.

    Returns:
        The trajectory, on the device of the denoiser.
    """
    scheduler = host.make_scheduler(num_steps)
    rows = len(condition)
    x = host.initial_latents(scheduler, rows, generator)
    guided = host.guidance == "classifier-free" and (guidance != 1 or not skip_unconditional)
    both = Condition.cat([empty.repeat(rows), condition]) if guided else condition
    extra = step_arguments(scheduler, generator)
    latents: list[Tensor] = []
    predictions: list[Tensor] = []
    timesteps = scheduler.timesteps[: len(scheduler.timesteps) if stop is None else stop]
    for t in timesteps:
        x_t = host.model_input(scheduler, x, t)
        doubled = torch.cat([x_t, x_t]) if guided else x_t
        output = host.predict(doubled, t.expand(doubled.shape[0]), both)
        conditional = output[-rows:]
        combined = host.guided(output[:rows], conditional, guidance) if guided else conditional
        latents.append(x_t)
        predictions.append(conditional)
        x = scheduler.step(combined, t, x, **extra).prev_sample
    return Trajectory(torch.stack(latents), timesteps, torch.stack(predictions))
