"""Draw pictures, one seed each, with or without membranes, and say what γ every picture was drawn with.

Every picture has its own generator, made from its seed alone on the CPU: what else is in the batch, and which device
draws, do not change its noise. Pictures of one call shape are equal bit for bit; across batch sizes, up to rounding.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from semipermeable.equip import Attachment, attach
from semipermeable.equip.attachment import MembraneLike, PermeabilityLike
from semipermeable.errors import ConfigError, PromptError
from semipermeable.hosts import host_for
from semipermeable.permeability import TraceRow

__all__ = ["Drawing", "Job", "batch_size_for", "draw", "generate", "jobs_for"]

_LATENT_BUDGET = 8192
"""Latent positions in one batch: 32 pictures of a bundled model (16×16), two of a Stable Diffusion 1.x (64×64)."""

Progress = Callable[[int, int], None]
"""Called with denoising steps done and in all."""


@dataclass(frozen=True, slots=True)
class Job:
    """One picture to draw.

    Args:
        prompt: the text.
        seed: of the initial noise, and of the noise a stochastic scheduler adds.
    """

    prompt: str
    seed: int


@dataclass(frozen=True, eq=False, slots=True)
class Drawing:
    """One picture and how it came about.

    Args:
        job: prompt and seed.
        pixels: shape (3, height, width), in [0, 1], fp32 on the CPU.
        decisions: γ and its reason, one row per membrane; empty if drawn bare.
    """

    job: Job
    pixels: Tensor
    decisions: tuple[TraceRow, ...] = ()

    @property
    def image(self) -> Image.Image:
        """The picture, 8 bits per channel."""
        return Image.fromarray((self.pixels.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())

    @property
    def gamma(self) -> dict[str, float]:
        """Concept to γ."""
        return {row.concept: row.gamma for row in self.decisions}


def jobs_for(prompts: Sequence[str], seed: int = 0, images_per_prompt: int = 1) -> list[Job]:
    """Return the jobs of some prompts: picture j of every prompt has seed + j.

    Args:
        prompts: the texts.
        seed: of each prompt's first picture.
        images_per_prompt: pictures of each prompt.

    Raises:
        PromptError: if there is no prompt, or one is empty or not Unicode.
    """
    if not prompts:
        raise PromptError('no prompt was given; write one, e.g. "a neon icon of a cat"')
    for number, prompt in enumerate(prompts, 1):
        which = "the prompt" if len(prompts) == 1 else f"prompt {number} of {len(prompts)}"
        if not prompt.strip():
            raise PromptError(f'{which} is empty; write what to draw, e.g. "a neon icon of a cat"')
        _check_unicode(prompt, which)
    if images_per_prompt < 1:
        raise PromptError(f"images per prompt must be at least 1, found {images_per_prompt}")
    return [Job(prompt, seed + j) for prompt in prompts for j in range(images_per_prompt)]


def _check_unicode(text: str, which: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"{which} is not valid Unicode text: {text!r}; write it in UTF-8") from error


def batch_size_for(pipe: Any) -> int:
    """Return how many pictures of this model are drawn in one call."""
    return max(1, min(32, _LATENT_BUDGET // math.prod(host_for(pipe).latent_shape()[1:])))


def draw(
    pipe: Any,
    jobs: Sequence[Job],
    *,
    guard: Attachment | None = None,
    negative: str = "",
    steps: int = 25,
    guidance: float = 4.0,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Drawing]:
    """Draw pictures with a pipeline as it is, batch by batch.

    Args:
        pipe: the pipeline.
        jobs: what to draw.
        guard: the attachment the pipeline holds, to read γ from; None if it is bare. Its trace is cleared.
        negative: negative prompt for all.
        steps: denoising steps.
        guidance: classifier-free guidance; 1 or less draws without.
        batch_size: pictures in one call; None chooses by the model's size.
        progress: called after each denoising step.

    Yields:
        One drawing per job, in order.

    Raises:
        ConfigError: if the model's scheduler cannot take that many steps, or guidance is not a finite number.
        PromptError: if the negative prompt is not Unicode.
    """
    _check_unicode(negative, "the negative prompt")
    if not math.isfinite(guidance):
        raise ConfigError(f"guidance must be a finite number, found {guidance}; 4 is usual, 1 draws without")
    _check_steps(pipe, steps)
    size = batch_size or batch_size_for(pipe)
    chunks = [jobs[start : start + size] for start in range(0, len(jobs), size)]
    for number, chunk in enumerate(chunks):
        if guard is not None:
            guard.trace.clear()
        pixels = _call(pipe, chunk, negative, steps, guidance, _reporter(progress, number * steps, len(chunks) * steps))
        decided = _decisions(guard)
        for job, picture in zip(chunk, pixels, strict=True):
            yield Drawing(job, picture.clone(), decided.get(job.prompt, ()))
    if progress is not None:
        progress(len(chunks) * steps, len(chunks) * steps)


def _check_steps(pipe: Any, steps: int) -> None:
    most = int(getattr(pipe.scheduler.config, "num_train_timesteps", 1000))
    if not 1 <= steps <= most:
        raise ConfigError(f"steps must lie between 1 and {most}, found {steps}; 25 is usual")
    # A scheduler with an offset (Stable Diffusion's) begins one step beyond the grid when it is asked for all of it.
    scheduler = host_for(pipe).make_scheduler(steps)
    first = float(scheduler.timesteps.max())
    if hasattr(scheduler, "alphas_cumprod") and first > most - 1:
        raise ConfigError(
            f"with {steps} steps this scheduler begins at timestep {first:.0f}, and the model knows 0 to {most - 1}; "
            "ask for fewer, 25 is usual"
        )


def _reporter(progress: Progress | None, done: int, total: int) -> Callable[..., dict[str, Any]] | None:
    if progress is None:
        return None

    def report(_pipe: Any, step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        progress(min(done + step + 1, total), total)
        return values

    return report


def _call(
    pipe: Any, jobs: Sequence[Job], negative: str, steps: int, guidance: float, on_step: Callable[..., Any] | None
) -> Tensor:
    images: Tensor = host_for(pipe).draw(
        [job.prompt for job in jobs],
        steps=steps,
        guidance=guidance,
        generator=[torch.Generator().manual_seed(job.seed) for job in jobs],
        negative=negative,
        output="pt",
        on_step=on_step,
    )
    return images.float().cpu()


def _decisions(guard: Attachment | None) -> dict[str, tuple[TraceRow, ...]]:
    """Return the rows of a trace by prompt; every denoising step repeats them, the first of each concept counts."""
    if guard is None:
        return {}
    found: dict[str, dict[str, TraceRow]] = {}
    for row in guard.trace:
        found.setdefault(row.prompt, {}).setdefault(row.concept, row)
    return {prompt: tuple(rows.values()) for prompt, rows in found.items()}


def generate(
    pipe: Any,
    prompts: str | Sequence[str],
    membranes: MembraneLike | Sequence[MembraneLike] = (),
    *,
    seed: int = 0,
    images_per_prompt: int = 1,
    permeability: PermeabilityLike = "transport",
    strength: float = 1.0,
    negative: str = "",
    steps: int = 25,
    guidance: float = 4.0,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> list[Drawing]:
    """Draw prompts with membranes; the pipeline is bare again afterwards.

    Args:
        pipe: a loaded pipeline of a supported family.
        prompts: one or several texts.
        membranes: membranes or paths of membrane files; () draws bare.
        seed: picture j of every prompt has seed + j.
        images_per_prompt: pictures of each prompt.
        permeability: see `semipermeable.attach`.
        strength: multiplies γ.
        negative: negative prompt for all.
        steps: denoising steps.
        guidance: classifier-free guidance; 1 or less draws without.
        batch_size: pictures in one call; None chooses by the model's size.
        progress: called with denoising steps done and in all.

    Returns:
        One drawing per picture, prompts outermost.

    Raises:
        PromptError: if there is no prompt, or one is empty or not Unicode.
        ConfigError: if the model's scheduler cannot take that many steps, or guidance is not a finite number.
        AttachError, SiteError, PermeabilityError: see `semipermeable.attach`.
    """
    jobs = jobs_for([prompts] if isinstance(prompts, str) else list(prompts), seed, images_per_prompt)
    any_membrane = not isinstance(membranes, Sequence) or bool(membranes)
    context = attach(pipe, membranes, permeability, strength=strength) if any_membrane else nullcontext()
    with context as guard:
        return list(
            draw(
                pipe,
                jobs,
                guard=guard,
                negative=negative,
                steps=steps,
                guidance=guidance,
                batch_size=batch_size,
                progress=progress,
            )
        )
