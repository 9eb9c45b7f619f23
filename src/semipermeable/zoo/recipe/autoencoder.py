"""The autoencoder: 64×64 pictures to 16×16×4 latents and back, its latents normalised so that `scaling_factor` is 1.

L = ‖x̂ − x‖₁ + ½‖x̂ − x‖² + 0.7 ‖∇x̂ − ∇x‖₁ + ½ ‖pool₄ x̂ − pool₄ x‖₁ + 10⁻³ KL. The gradient term keeps thin
lines, which are all there is of a neon sign or a blueprint; the pooled term keeps flat tones. Half of the steps see
crops, which are cheaper and more varied.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from semipermeable.zoo.recipe.loop import Budget, train
from semipermeable.zoo.recipe.pictures import to_unit

__all__ = ["encode_pictures", "new_autoencoder", "normalise_latents", "psnr", "train_autoencoder"]

CROP = 32
"""Side of a crop in pixels; a multiple of the autoencoder's factor of 4."""


def new_autoencoder() -> AutoencoderKL:
    """Return an untrained autoencoder of the size that bundled models use."""
    maker: Any = AutoencoderKL  # diffusers types its tuples as of length 1
    return maker(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        force_upcast=False,
        scaling_factor=1.0,
    )


def train_autoencoder(
    autoencoder: AutoencoderKL,
    pixels: NDArray[np.uint8],
    budget: Budget,
    *,
    seed: int,
    checkpoint: Path | None,
    progress: bool,
    stop_at: int | None = None,
) -> int:
    """Train the autoencoder in place; it ends as the average of its weights, not yet normalised.

    Args:
        autoencoder: what is trained, new or trained before.
        pixels: pictures (N, 64, 64, 3) uint8.
        budget: how long and how fast; `batch` counts whole pictures, crops come in twos for one.
        seed: seed of every draw.
        checkpoint: where to resume and store; None keeps nothing.
        progress: whether to show a bar.
        stop_at: stop after this step as if interrupted.

    Returns:
        The number of steps done.
    """
    places = pixels.shape[1] - CROP

    def loss(generator: torch.Generator) -> Tensor:
        crop = float(torch.rand((), generator=generator)) < 0.5
        rows = torch.randint(len(pixels), (budget.batch * (2 if crop else 1),), generator=generator).numpy()
        shown = pixels[rows]
        if crop:
            down, right = (4 * int(i) for i in torch.randint(places // 4 + 1, (2,), generator=generator))
            shown = shown[:, down : down + CROP, right : right + CROP]
        x = to_unit(np.ascontiguousarray(shown)) * 2 - 1
        posterior = autoencoder.encode(x).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
        noise = torch.randn(posterior.mean.shape, generator=generator)
        drawn = autoencoder.decode(posterior.mean + posterior.std * noise).sample  # pyright: ignore[reportAttributeAccessIssue]
        lines = sum(functional.l1_loss(drawn.diff(dim=axis), x.diff(dim=axis)) for axis in (2, 3))
        tones = functional.l1_loss(functional.avg_pool2d(drawn, 4), functional.avg_pool2d(x, 4))
        apart = functional.l1_loss(drawn, x) + 0.5 * functional.mse_loss(drawn, x)
        return apart + 0.7 * lines + 0.5 * tones + 1e-3 * posterior.kl().mean() / posterior.mean[0].numel()

    return train(
        autoencoder,
        loss,
        budget,
        seed=seed,
        checkpoint=checkpoint,
        label="autoencoder",
        progress=progress,
        stop_at=stop_at,
    )


@torch.inference_mode()
def encode_pictures(autoencoder: AutoencoderKL, pixels: NDArray[np.uint8], *, batch: int = 64) -> Tensor:
    """Return the mean latents (N, 4, 16, 16) of pictures (N, 64, 64, 3)."""
    parts = [
        autoencoder.encode(to_unit(pixels[first : first + batch]) * 2 - 1).latent_dist.mean  # pyright: ignore[reportAttributeAccessIssue]
        for first in range(0, len(pixels), batch)
    ]
    return torch.cat(parts).clone()


@torch.no_grad()
def normalise_latents(autoencoder: AutoencoderKL, pixels: NDArray[np.uint8]) -> None:
    """Give the latents of these pictures mean 0 and deviation 1 in each channel; what is decoded stays the same.

    z → (z − m)/s is folded into `quant_conv`, its inverse into `post_quant_conv`.
    """
    latents = encode_pictures(autoencoder, pixels)
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    down: Any = autoencoder.quant_conv
    up: Any = autoencoder.post_quant_conv
    channels = len(mean)
    down.weight[:channels] /= deviation[:, None, None, None]
    down.bias[:channels] = (down.bias[:channels] - mean) / deviation
    down.bias[channels:] -= 2 * deviation.log()
    up.bias += up.weight[:, :, 0, 0] @ mean
    up.weight *= deviation[None, :, None, None]


@torch.inference_mode()
def psnr(autoencoder: AutoencoderKL, pixels: NDArray[np.uint8], *, batch: int = 64) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of each picture (N, 64, 64, 3) after encoding and decoding."""
    values: list[Tensor] = []
    for first in range(0, len(pixels), batch):
        x = to_unit(pixels[first : first + batch])
        z = autoencoder.encode(x * 2 - 1).latent_dist.mean  # pyright: ignore[reportAttributeAccessIssue]
        back = (autoencoder.decode(z).sample / 2 + 0.5).clamp(0, 1)  # pyright: ignore[reportAttributeAccessIssue]
        values.append(-10 * ((back - x) ** 2).mean((1, 2, 3)).log10())
    return torch.cat(values).clone()
