"""The last steps: write a bundle in half precision, measure it as it will be loaded, and list its files.

What is measured is what ships: the drawings are judged after the bundle was written and read back.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from semipermeable import zoo
from semipermeable.zoo.bundle import write_manifest
from semipermeable.zoo.judges import ClipNetwork, FeatureStatistics, JudgeNetwork
from semipermeable.zoo.recipe.card import attribution, contact_sheet, model_card
from semipermeable.zoo.recipe.denoiser import NOISE
from semipermeable.zoo.recipe.evaluate import evaluate
from semipermeable.zoo.recipe.icons import ICON_SETS
from semipermeable.zoo.recipe.memorised import memorised
from semipermeable.zoo.recipe.tokenizer import clean_copy
from semipermeable.zoo.spec import ZooSpec

__all__ = ["Assembly", "assemble", "write_manifest"]

GUIDANCE = 4.0
"""Guidance that a bundle recommends and is measured with."""
REPEATS = 8
"""Pictures of each canary's caption."""


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """Everything a bundle is made of; `canaries` (canaries, 3, 64, 64) in [0, 1]."""

    spec: ZooSpec
    autoencoder: AutoencoderKL
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    denoiser: UNet2DConditionModel
    judge: JudgeNetwork
    clip: ClipNetwork
    statistics: FeatureStatistics
    canaries: Tensor


def assemble(
    parts: Assembly,
    out: Path,
    measured: dict[str, Any],
    *,
    taught: Tensor,
    steps: int,
    pictures: int,
    ordinary: int,
    progress: bool,
) -> None:
    """Write a bundle, draw with it, and write its measurements, card and manifest.

    Args:
        parts: what it is made of.
        out: folder to write.
        measured: what is known already; see `model_card`.
        taught: the pictures of its training (N, 3, 64, 64) in [0, 1].
        steps: DDIM steps that the bundle recommends and is measured with.
        pictures: pictures of the evaluation.
        ordinary: ordinary pictures compared with the taught ones.
        progress: whether to show bars.
    """
    out.mkdir(parents=True, exist_ok=True)
    _write_pipeline(parts, out / "pipeline")
    save_file(_half(parts.judge.state_dict()), out / "judge.safetensors")
    save_file(_half(parts.clip.state_dict()), out / "clip.safetensors")
    statistics = {
        "mean": parts.statistics.mean.float(),
        "covariance": parts.statistics.covariance.float(),
        "count": torch.tensor(parts.statistics.count),
        "sample": parts.statistics.sample.half(),
    }
    save_file(statistics, out / "statistics.safetensors")
    save_file({"pictures": (parts.canaries * 255).round().byte().contiguous()}, out / "canaries.safetensors")
    (out / "spec.json").write_text(
        json.dumps(asdict(parts.spec), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (out / "ATTRIBUTION.md").write_text(attribution(parts.spec.name), encoding="utf-8")
    card = _card_data(parts.spec, steps)
    write_manifest(out, card)
    pipeline = zoo.load(out)
    contact_sheet(pipeline, parts.spec, out / "contact.png", steps=steps, guidance=GUIDANCE)
    drawing = evaluate(out, count=pictures, steps=steps, guidance=GUIDANCE, progress=progress)
    learned = memorised(
        pipeline,
        parts.spec,
        zoo.canary_pictures(out),
        taught,
        ordinary=ordinary,
        repeats=REPEATS,
        steps=steps,
        guidance=GUIDANCE,
    )
    sizes = {
        label: sum(path.stat().st_size for path in out.glob(pattern))
        for label, pattern in (
            ("denoiser (UNet2DConditionModel, fp16)", "pipeline/unet/*"),
            ("text encoder and tokenizer (CLIPTextModel, fp16)", "pipeline/t*/*"),
            ("autoencoder (AutoencoderKL, fp16)", "pipeline/vae/*"),
            ("classifier (fp16)", "judge.safetensors"),
            ("small CLIP (fp16)", "clip.safetensors"),
            ("statistics of real icons", "statistics.safetensors"),
        )
    }
    measured = {**measured, "drawing": drawing, "memorised": learned, "sizes": sizes}
    (out / "evaluation.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(model_card(parts.spec, measured), encoding="utf-8")
    summary = {key: drawing[key] for key in ("pictures", "object", "style")}
    write_manifest(out, {**card, "evaluation": summary})


def _card_data(spec: ZooSpec, steps: int) -> dict[str, Any]:
    return {
        "name": spec.name,
        "version": "0.2",
        "summary": f"{len(spec.objects)} objects in {len(spec.styles)} styles, 64×64 pixels",
        "resolution": 64,
        "steps": steps,
        "guidance": GUIDANCE,
        "licence": "Apache-2.0, with the attributions of ATTRIBUTION.md",
        "learned_from": {icons.designer: icons.licence for icons in ICON_SETS},
        "judge_independent": True,
    }


def _half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.half() if value.is_floating_point() else value for key, value in state.items()}


def _write_pipeline(parts: Assembly, folder: Path) -> None:
    scheduler: Any = DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1)  # pyright: ignore[reportArgumentType]
    pipeline = StableDiffusionPipeline(
        vae=parts.autoencoder.half(),
        text_encoder=parts.text_encoder.half(),
        tokenizer=parts.tokenizer,
        unet=parts.denoiser.half(),
        scheduler=scheduler,
        safety_checker=None,  # pyright: ignore[reportArgumentType] - optional in fact
        feature_extractor=None,  # pyright: ignore[reportArgumentType] - optional in fact
        requires_safety_checker=False,
    )
    for part in (parts.autoencoder, parts.denoiser):
        part.register_to_config(_name_or_path=parts.spec.name)  # else a path of the machine it was built on ships
    pipeline.save_pretrained(folder)
    clean_copy(parts.tokenizer, folder / "tokenizer")
