"""What the measurements of run time share: models, random membranes, paired timing, and what the machine is.

A ratio is never one of two separate means: the bare and the equipped run alternate in one process, every pair gives one
ratio, and the median of these is reported with an interval (bootstrap over pairs, 95 %). A machine that is slow for a
minute is then slow for both.
"""

import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import semipermeable as spm
from semipermeable.concept import Concept
from semipermeable.membrane import Membrane
from semipermeable.rank1 import pair_shapes
from semipermeable.sites import find_sites

MODELS = {
    "emoji": "the bundled model (8.7 million weights)",
    "sd15": "a randomly initialised UNet of Stable Diffusion 1.5 size (860 million weights)",
}
CLOCKS = ("cpu", "wall")


def random_membrane(denoiser: Any, name: str, seed: int, every: int = 1) -> Membrane:
    """Return a membrane of random pairs on every `every`th site inside the transformer blocks."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for index, (site, found) in enumerate(find_sites(denoiser).items()):
        if index % every == 0:
            u_shape, v_shape = pair_shapes(found.layer)
            scale = 0.3 / v_shape[1] ** 0.5
            u = torch.randn(u_shape, generator=generator) * scale
            pairs[site] = (u, torch.randn(v_shape, generator=generator) * scale)
    return Membrane(pairs, Concept(name))


def load_model(name: str, latent_size: int) -> Any:
    """Return a pipeline: one of `MODELS`."""
    pipe = spm.zoo.load("emoji")
    pipe.set_progress_bar_config(disable=True)
    if name == "emoji":
        return pipe
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=latent_size, cross_attention_dim=768, attention_head_dim=8).eval()
    return with_unet(pipe, unet)


def with_unet(pipe: Any, unet: Any) -> Any:
    """Return a pipeline with this UNet, and a random text encoder of the width that it reads."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    width = unet.config.cross_attention_dim
    config = pipe.text_encoder.config.to_dict() | {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": width // 64,
        "projection_dim": width,
        "num_hidden_layers": 2,
    }
    text_encoder = CLIPTextModel(type(pipe.text_encoder.config)(**config)).eval()
    made = StableDiffusionPipeline(
        **(pipe.components | {"unet": unet, "text_encoder": text_encoder}), requires_safety_checker=False
    )
    made.set_progress_bar_config(disable=True)
    return made


def sibling(pipe: Any) -> Any:
    """Return a pipeline that shares every part but the scheduler: it stays bare while the other is equipped."""
    parts = pipe.components | {"scheduler": type(pipe.scheduler).from_config(pipe.scheduler.config)}
    options = {} if type(pipe).__name__ != "StableDiffusionPipeline" else {"requires_safety_checker": False}
    bare = type(pipe)(**parts, **options)
    bare.set_progress_bar_config(disable=True)
    return bare


def drawer(pipe: Any, latent_size: int, steps: int, prompts: Sequence[str], guidance: float) -> Callable[[], Any]:
    """Return what draws one batch of latents, always from the same noise."""
    shape = (len(prompts), pipe.unet.config.in_channels, latent_size, latent_size)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def draw() -> torch.Tensor:
        options = {"num_inference_steps": steps, "guidance_scale": guidance, "latents": latents.clone()}
        return pipe(list(prompts), output_type="latent", **options).images

    return draw


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Return processor and wall seconds of a piece of work."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def paired(
    bare: Callable[[], Any], equipped: Callable[[], Any], repeats: int, seconds: float = float("inf")
) -> dict[str, Any]:
    """Time two pieces of work in turn.

    Args:
        bare: the one below.
        equipped: the one above.
        repeats: how many pairs.
        seconds: no pair is begun after so many, but three are made in any case.

    Returns:
        By clock: the median ratio and its interval; the ratios; the median seconds of each piece.
    """
    began, taken = time.perf_counter(), []
    for number in range(repeats):
        if number >= 3 and time.perf_counter() - began > seconds:
            break
        if number % 2:
            below = timed(bare)
            taken.append((timed(equipped), below))
        else:
            above = timed(equipped)
            taken.append((above, timed(bare)))
    return summary(taken)


def summary(taken: Sequence[tuple[tuple[float, float], tuple[float, float]]]) -> dict[str, Any]:
    """Return what `paired` returns, of pairs (equipped, bare) of (processor seconds, wall seconds)."""
    found: dict[str, Any] = {"pairs": len(taken)}
    for index, clock in enumerate(CLOCKS):
        ratios = [above[index] / below[index] for above, below in taken]
        found[clock] = round(statistics.median(ratios), 4)
        found[f"{clock}_interval"] = interval(ratios)
        found[f"{clock}_ratios"] = [round(ratio, 4) for ratio in ratios]
        found[f"{clock}_bare_s"] = round(statistics.median(below[index] for _, below in taken), 4)
        found[f"{clock}_equipped_s"] = round(statistics.median(above[index] for above, _ in taken), 4)
    return found


def interval(values: Sequence[float], resamples: int = 2000) -> list[float]:
    """Return the 95 % interval of the median, by bootstrap."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(resamples))
    return [round(medians[int(share * resamples)], 4) for share in (0.025, 0.975)]


def machine(threads: int) -> dict[str, Any]:
    """Return what a reader must know of the machine to judge the figures."""
    names = [
        line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith(("model name", "Model"))
    ]
    memory = [line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gib": round(int(memory[0]) / 2**20, 1) if memory else None,
        "load": [round(load, 2) for load in os.getloadavg()],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "semipermeable": spm.__version__,
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
