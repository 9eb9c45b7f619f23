"""Latents that a pipeline packs: 2×2 patches side by side, (channels, height, width) → (patches, 4 · channels)."""

from typing import Any

import torch
from torch import Tensor

from semipermeable.hosts.base import Host

__all__ = ["PackedLatentsHost"]


class PackedLatentsHost(Host):
    """Host of a pipeline that packs latents when it begins and unpacks them at the end.

    Args:
        pipe: the pipeline.
    """

    def latent_shape(self) -> tuple[int, ...]:
        """See `Host`; before packing."""
        side = 2 * (int(self.pipe.default_sample_size) // 2)
        return int(self.pipe.transformer.config.in_channels) // 4, side, side

    def initial_latents(self, scheduler: Any, rows: int, generator: torch.Generator) -> Tensor:
        """See `Host`; packed."""
        noise = super().initial_latents(scheduler, rows, generator)
        return self.pipe._pack_latents(noise, rows, *self.latent_shape())
