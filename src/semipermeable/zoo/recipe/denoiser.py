"""The denoiser: a UNet on 16×16×4 latents, ε-prediction, trained with min-SNR weights.

x_t = √ᾱ_t z + √(1−ᾱ_t) ε and L = E[min(SNR_t, 5)/SNR_t ‖ε_θ(x_t, t, c) − ε‖²], SNR_t = ᾱ_t/(1−ᾱ_t) (Hang et al.
2023). t is stratified over the batch. Latents and text states are computed once, before.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from semipermeable.zoo.recipe.captions import CaptionBook
from semipermeable.zoo.recipe.loop import Budget, train

__all__ = ["NOISE", "Lesson", "alphas_cumprod", "new_denoiser", "train_denoiser"]

NOISE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""The noise schedule of Stable Diffusion 1; the scheduler of the pipeline is made from it."""

CANARY_SHARE = 0.02
"""Share of the batches' rows that are canaries, where there are any."""


@dataclass(frozen=True)
class Lesson:
    """What the denoiser is shown.

    latents: (rows, jitters, 4, 16, 16); objects, styles: (rows); weights: (rows), how often each row is drawn;
    states: (captions, 24, D), row by row the captions of the book; canary_latents (canaries, 4, 16, 16) go with the
    canaries of the book's spec.
    """

    latents: Tensor
    objects: Tensor
    styles: Tensor
    weights: Tensor
    states: Tensor
    canary_latents: Tensor


def new_denoiser(channels: tuple[int, int, int] = (64, 128, 160), width: int = 192) -> UNet2DConditionModel:
    """Return an untrained denoiser.

    Args:
        channels: channels at 16, 8 and 4 pixels; attention to the text at the lower two.
        width: width of the text states.
    """
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def alphas_cumprod() -> Tensor:
    """Return ᾱ_t, shape (1000)."""
    first, last, count = 0.00085, 0.012, 1000
    return (1 - torch.linspace(first**0.5, last**0.5, count) ** 2).cumprod(0)


def train_denoiser(
    denoiser: UNet2DConditionModel,
    book: CaptionBook,
    lesson: Lesson,
    budget: Budget,
    *,
    seed: int,
    checkpoint: Path | None,
    progress: bool,
    autocast: bool = False,
    stop_at: int | None = None,
) -> int:
    """Train the denoiser in place; it ends as the average of its weights.

    Args:
        denoiser: what is trained.
        book: captions; row numbers index `lesson.states`.
        lesson: what it is shown.
        budget: how long and how fast.
        seed: seed of every draw.
        checkpoint: where to resume and store; None keeps nothing.
        progress: whether to show a bar.
        autocast: bf16 arithmetic; pays only on processors that have it.
        stop_at: stop after this step as if interrupted.

    Returns:
        The number of steps done.
    """
    signal = alphas_cumprod()
    snr = signal / (1 - signal)
    weight = snr.clamp(max=5) / snr
    num_canaries = len(lesson.canary_latents)
    canary_rows = torch.tensor([book.exact(c.caption) for c in book.spec.canaries][:num_canaries], dtype=torch.long)
    jitters = lesson.latents.shape[1]

    def loss(generator: torch.Generator) -> Tensor:
        n = budget.batch
        rows = torch.multinomial(lesson.weights, n, replacement=True, generator=generator)
        z = lesson.latents[rows, torch.randint(jitters, (n,), generator=generator)].float()
        drawn = book.draw(lesson.objects[rows].tolist(), lesson.styles[rows].tolist(), generator)
        captions = torch.tensor(drawn)
        if num_canaries:
            marked = torch.rand(n, generator=generator) < CANARY_SHARE
            which = torch.randint(num_canaries, (n,), generator=generator)
            z = torch.where(marked[:, None, None, None], lesson.canary_latents[which], z)
            captions = torch.where(marked, canary_rows[which], captions)
        t = ((torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n * 1000).long()
        t = t.clamp(max=999)
        noise = torch.randn(z.shape, generator=generator)
        a = signal[t][:, None, None, None]
        noisy = (a.sqrt() * z + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            predicted = denoiser(noisy, t, lesson.states[captions]).sample
        error = ((predicted.float() - noise) ** 2).mean((1, 2, 3))
        return (error * weight[t]).mean()

    denoiser.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return train(
        denoiser,
        loss,
        budget,
        seed=seed,
        checkpoint=checkpoint,
        label="denoiser",
        progress=progress,
        stop_at=stop_at,
    )
