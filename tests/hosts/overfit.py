"""Tiny pipelines that draw: the denoiser of a family, overfitted to three things, each one picture of latents.

A thing is a word ("cat") and a picture in two colours. The denoiser learns, in the family's own prediction space, to
draw the picture for the word alone, and any of them for no prompt. What is noised, told, predicted and drawn goes
through the host alone, so what is tested here is the host.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from hosts import tiny_dits, tiny_large, tiny_unets
from hosts.tiny_settings import make_sd1
from semipermeable.hosts import Condition, host_for
from semipermeable.hosts.packed_latents import PackedLatentsHost

ERASED, KEPT, SURROGATE = THINGS = ("cat", "dog", "tree")
STEPS = 8
"""Of denoising; the denoiser learns the timesteps of this grid and no others."""
SEEDS = 2
"""Pictures drawn of each thing."""


@dataclass(frozen=True)
class Family:
    """How a tiny pipeline of a family is made and overfitted.

    Args:
        make: given the bundled tokenizer, returns the tiny random pipeline.
        size: attributes of the pipeline that say how large its pictures are, where it has no size of its own.
        width: configuration of its denoiser that differs from the tiniest one's.
        steps: of training.
        rate: of learning.
        guidance: with which it is drawn.
    """

    make: Callable[[Any], Any]
    size: dict[str, int] = field(default_factory=dict)
    width: dict[str, Any] = field(default_factory=dict)
    steps: int = 200
    rate: float = 5e-3
    guidance: float = 1.5


_UNET = {
    "width": {
        "block_out_channels": (32,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
        "attention_head_dim": (4,),
    },
    "rate": 2e-2,
    "steps": 200,
}
"""One level: with two, what is noise takes longer to find its way through 16 channels."""
_SQUARE = {"default_sample_size": 8}
_VIDEO = {"default_num_frames": 5, "default_height": 32, "default_width": 32}


FAMILIES = {
    "unet, epsilon": Family(make_sd1, **_UNET),
    "unet, v": Family(lambda tokenizer: tiny_unets.make_sd2(tokenizer, "v_prediction"), **_UNET),
    "sdxl": Family(tiny_unets.make_sdxl, **_UNET),
    "sd3": Family(
        tiny_dits.make_sd3,
        width={"num_attention_heads": 4, "attention_head_dim": 16, "caption_projection_dim": 64},
        steps=120,
    ),
    "flux": Family(tiny_dits.make_flux, size=_SQUARE, width={"num_attention_heads": 4}, steps=90, guidance=3.5),
    "pixart": Family(
        lambda _tokenizer: tiny_dits.make_pixart(),
        width={"num_attention_heads": 4, "attention_head_dim": 16, "cross_attention_dim": 64},
        steps=250,
    ),
    "wan": Family(lambda _tokenizer: tiny_large.make_wan(), size=_VIDEO, width={"attention_head_dim": 24}),
    "wan, two denoisers": Family(
        lambda _tokenizer: tiny_large.make_wan(boundary_ratio=0.5), size=_VIDEO, width={"attention_head_dim": 24}
    ),
    "qwen-image": Family(
        lambda _tokenizer: tiny_large.make_qwen_image(), size=_SQUARE, width={"num_attention_heads": 4}
    ),
    "sana": Family(
        lambda _tokenizer: tiny_large.make_sana(),
        width={"num_attention_heads": 4, "num_cross_attention_heads": 4, "cross_attention_dim": 32},
        steps=400,
    ),
    "z-image": Family(
        lambda _tokenizer: tiny_large.make_z_image(), size=_SQUARE, width={"dim": 64, "n_heads": 4, "n_kv_heads": 4}
    ),
}


def make(name, tokenizer):
    """A tiny random pipeline of a family, ready to be overfitted."""
    family = FAMILIES[name]
    pipe = family.make(tokenizer)
    _speak_up(pipe)
    _widen(pipe, family.width)
    if host_for(pipe).prediction_type != "flow":
        _soften(pipe)
    return prepared(pipe, name)


def prepared(pipe, name):
    """The pipeline, told its size and quiet; what a saved folder does not remember."""
    for attribute, value in FAMILIES[name].size.items():
        setattr(pipe, attribute, value)
    if name == "qwen-image":
        # The number of tokens before the prompt, with this vocabulary.
        before = pipe.prompt_template_encode.split("{}")[0]
        pipe.prompt_template_encode_start_idx = len(pipe.tokenizer(before).input_ids)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _speak_up(pipe):
    """Make words matter in the random text encoders: embeddings of unit size, where some begin with 0.02, and louder
    attention, so that a word is heard in the states of its neighbours and in pooled ones.
    """
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        encoder = getattr(pipe, name, None)
        if encoder is None:
            continue
        with torch.no_grad():
            weight = encoder.get_input_embeddings().weight
            weight.div_(weight.std())
            for key, parameter in encoder.named_parameters():
                if key.endswith((".out_proj.weight", ".o_proj.weight", ".SelfAttention.o.weight")):
                    parameter.mul_(4)
            if type(encoder).__name__ == "UMT5EncoderModel":
                # A word is a few of the 512 rows that Wan reads; the others are zero.
                encoder.encoder.final_layer_norm.weight.mul_(10)


def _widen(pipe, width):
    """Replace the denoisers by fresh ones of another width: the narrowest ones hardly hold their own patches."""
    for name, part in host_for(pipe).denoisers.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            fresh = type(part).from_config(dict(part.config) | width).eval()
        with torch.no_grad():
            for key, parameter in fresh.named_parameters():
                if key.endswith("pad_token"):
                    parameter.fill_(0.1)  # uninitialised memory
        pipe.register_modules(**{name: fresh})


def _soften(pipe):
    """Give a diffusion pipeline a noise schedule that ends at α = 0.4, where published ones end at 0.07.

    An error of ε is σ / α times that in the picture: a denoiser trained for seconds needs the help.
    """
    pipe.scheduler = type(pipe.scheduler).from_config(
        pipe.scheduler.config, beta_start=0.00085, beta_end=0.004, timestep_spacing="leading"
    )


def pictures(host):
    """Latents of each thing in the pipeline's layout, shape (things, ...), −1 or 1.

    Three colours of four channels, orthogonal to each other: one in the upper half of a thing, another below. So any
    two things are √2 apart, as `distance` has it.
    """
    channels, *frames, height, width = host.latent_shape()
    colours = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]])[:, :channels, None, None]
    whole = colours.expand(-1, -1, height, width).clone()
    if "Wan" not in type(host).__name__:
        # A tiny Wan knows places by rotation alone, relative to each other: its things have one colour all over.
        whole[:, :, height // 2 :] = whole.roll(1, 0)[:, :, height // 2 :]
    for count in frames:
        whole = whole[:, :, None].repeat(1, 1, count, 1, 1)
    if isinstance(host, PackedLatentsHost):
        return host.pipe._pack_latents(whole, len(THINGS), *host.latent_shape())
    return whole


def distance(some, other):
    """Root of the mean squared difference of each row."""
    return (some.float() - other.float()).square().flatten(1).mean(1).sqrt()


def overfit(pipe, name, *, rows=2, seed=0):
    """Train a pipeline's denoiser to draw the things; returns the loss of every step.

    Args:
        pipe: from `make`.
        name: of its family.
        rows: of each thing in a step.
        seed: of the training.
    """
    family, host = FAMILIES[name], host_for(pipe)
    generator = torch.Generator().manual_seed(seed)
    goals = pictures(host)
    told = host.condition(THINGS)
    free = 2 if host.guidance == "classifier-free" else 0
    empty, grid = host.unconditional(), host.make_scheduler(STEPS).timesteps
    grid = grid if host.prediction_type == "flow" else grid.long()
    denoiser = host.denoiser.requires_grad_(True)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=family.rate, betas=(0.9, 0.98), fused=True)
    losses = []
    for step in range(family.steps):
        for group in optimizer.param_groups:
            group["lr"] = family.rate * min(1, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / family.steps))
        condition = Condition.cat([told.repeat_each(rows), empty.repeat(free)])
        anything = torch.randint(len(THINGS), (free,), generator=generator)
        clean = goals[torch.cat([torch.arange(len(THINGS)).repeat_interleave(rows), anything])]
        noise = torch.randn(clean.shape, generator=generator)
        # Half of the rows stand at the beginning, where the text alone tells the things apart.
        place = torch.randint(len(grid), (len(clean),), generator=generator)
        t = grid[place * (torch.rand(len(clean), generator=generator) < 0.5)]
        # A pipeline begins with pure noise, whatever rest of the picture the first timestep leaves elsewhere: the text
        # alone says there what to draw.
        signal, sigma = _shares(host, t)
        rest = torch.where(t == grid[0], signal, 0.0).reshape(-1, *[1] * (clean.dim() - 1))
        noise = (noise - rest * clean) / torch.where(t == grid[0], sigma, 1.0).reshape(rest.shape)
        error = host.predict(host.noised(clean, noise, t), t, condition) - host.training_target(clean, noise, t)
        loss = (_picture_weight(host, t) * error.float().square().flatten(1).mean(1)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    denoiser.requires_grad_(False)
    return losses


def _shares(host, timesteps):
    """Shares of the picture and of the noise in x_t, shape (rows,) each."""
    one = torch.ones(len(timesteps))
    return host.noised(one, 0 * one, timesteps), host.noised(0 * one, one, timesteps)


def _picture_weight(host, timesteps):
    """(dx̂/dp)² within bounds, shape (rows,): what an error of the prediction p is in the picture that it implies.

    In ε, a little less noise is a whole picture more; without this weight nothing would be learnt from the text.
    """
    signal, sigma = _shares(host, timesteps)
    moved = sigma / signal if host.prediction_type == "epsilon" else sigma
    return moved.square().clamp(0.05, 25)


def drawn(pipe, name):
    """Final latents of every thing, `SEEDS` rows each, every row with noise of its own."""
    prompts = [thing for thing in THINGS for _ in range(SEEDS)]
    generators = [torch.Generator().manual_seed(100 + row) for row in range(len(prompts))]
    guidance = FAMILIES[name].guidance
    return host_for(pipe).draw(prompts, steps=STEPS, guidance=guidance, generator=generators, output="latent")
