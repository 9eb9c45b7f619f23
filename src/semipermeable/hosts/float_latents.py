"""What newer pipelines share: latents stay in 32-bit floats between steps, and defaults stand in `__call__` alone."""

import inspect
from typing import Any

import torch
from torch import Tensor

from semipermeable.hosts.base import Host

__all__ = ["FloatLatentsHost", "call_default"]


def call_default(pipe: Any, argument: str) -> Any:
    """Return the value that an argument of the pipeline's call has when it is left out.

    Args:
        pipe: the pipeline.
        argument: name of an argument of its `__call__`.
    """
    return inspect.signature(type(pipe).__call__).parameters[argument].default


class FloatLatentsHost(Host):
    """Host of a pipeline that draws and steps latents in fp32 and casts them to the denoiser's dtype for each call.

    Args:
        pipe: the pipeline.
    """

    def initial_latents(self, scheduler: Any, rows: int, generator: torch.Generator) -> Tensor:
        """See `Host`; in fp32."""
        noise = torch.randn((rows, *self.latent_shape()), generator=generator).to(self.device)
        return noise * getattr(scheduler, "init_noise_sigma", 1.0)

    def model_input(self, scheduler: Any, latents: Tensor, timestep: Tensor) -> Tensor:
        """See `Host`; in the denoiser's dtype."""
        return super().model_input(scheduler, latents, timestep).to(self.dtype)
