"""Write a pipeline with membranes in its weights: as a diffusers folder, or as one file in the original layout.

Whoever loads the result needs nothing of this package, and cannot take the membranes out. There is no gate: they act on
every prompt. The pipeline itself is as before afterwards.
"""

import json
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from semipermeable.equip.attachment import MembraneLike, read_membranes
from semipermeable.equip.folding import fold
from semipermeable.errors import ExportError, OutputError
from semipermeable.files.export_story import EXPORT_KEY, write_story
from semipermeable.files.exporting import merge
from semipermeable.files.exporting.staging import new_file, new_folder
from semipermeable.files.original_layout import (
    clip_weights,
    flux_weights,
    open_clip_weights,
    unet_weights,
    vae_weights,
)
from semipermeable.hosts import host_for
from semipermeable.membrane import Membrane
from semipermeable.rank1 import folded_weight
from semipermeable.runtime import require_plain
from semipermeable.sites import resolve_sites

__all__ = ["bake_checkpoint", "bake_folder"]

KEPT = 0.95
"""The share of Δ that must survive rounding to the weights' dtype; with less it is another erasure."""
_UNET, _VAE = "model.diffusion_model.", "first_stage_model."


def bake_folder(pipe: Any, membranes: MembraneLike | Sequence[MembraneLike], path: str | os.PathLike[str]) -> None:
    """Write the pipeline as `save_pretrained` does, membranes in its weights, with `spm_export.json` beside them.

    Args:
        pipe: a loaded pipeline of a supported family, without other adapters.
        membranes: membranes or paths, one or several.
        path: a new folder.

    Raises:
        ExportError: if another adapter is loaded, or the weights' dtype would round the membranes away.
        AttachError: if membranes are attached, or the denoiser is compiled or fused.
        SiteError: if a membrane does not fit.
        OutputError: if the folder is there already, or cannot be written; nothing is left behind then.
    """
    with new_folder(Path(path)) as stage, _baked(pipe, membranes) as membrane:
        pipe.save_pretrained(stage, safe_serialization=True)
        story = json.loads(write_story(membrane, "folder", {}))
        (stage / f"{EXPORT_KEY}.json").write_text(json.dumps(story, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def bake_checkpoint(pipe: Any, membranes: MembraneLike | Sequence[MembraneLike], path: str | os.PathLike[str]) -> None:
    """Write one `.safetensors` in the layout that the model was first released in.

    Of Stable Diffusion 1.x, 2.x and XL it holds UNet, VAE and text encoders. Of FLUX.1 it holds the denoiser alone, as
    its original file does.

    Args:
        pipe: a pipeline of Stable Diffusion 1.x, 2.x, XL or FLUX.1, without other adapters.
        membranes: membranes or paths, one or several.
        path: the file; ends in ".safetensors". An existing one is replaced.

    Raises:
        ExportError: as `bake_folder`, or if the pipeline has a part that the layout has no place for.
        AttachError: if membranes are attached, or the denoiser is compiled or fused.
        SiteError: if a membrane does not fit.
        OutputError: if it cannot be written; an old file is then still there.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        raise ExportError(f"a checkpoint ends in .safetensors, found {str(target)!r}; change the name")
    with new_file(target) as staged, _baked(pipe, membranes) as membrane:
        weights = _checkpoint(pipe)
        try:
            save_file(weights, staged, {EXPORT_KEY: write_story(membrane, "checkpoint", {})})
        except SafetensorError as error:
            raise OutputError(f"cannot write {str(target)!r}: {error}; free some space or choose another") from error


@contextmanager
def _baked(pipe: Any, membranes: MembraneLike | Sequence[MembraneLike]) -> Generator[Membrane, None, None]:
    denoiser = host_for(pipe).denoiser
    for part, module in pipe.components.items():
        if isinstance(module, nn.Module) and any(hasattr(child, "base_layer") for child in module.modules()):
            raise ExportError(f"another adapter is loaded into {part!r}; unload or fuse it before baking")
    membrane = merge(read_membranes(membranes, denoiser))
    _check_rounding(denoiser, membrane)
    with fold(pipe, membrane):
        yield membrane


def _check_rounding(denoiser: nn.Module, membrane: Membrane) -> None:
    """Refuse a dtype in which W + Δ is mostly W: the share ⟨W' − W, Δ⟩ / ⟨Δ, Δ⟩ over all sites."""
    kept = whole = 0.0
    sites = resolve_sites(denoiser, dict(membrane.pairs))
    require_plain(sites.values())
    for name, site in sites.items():
        u, v = (tensor.to(site.weight.device) for tensor in membrane.pairs[name])
        weight = site.weight.detach()
        delta = folded_weight(torch.zeros_like(weight, dtype=torch.float32), u, v)
        kept += float(((folded_weight(weight, u, v).float() - weight.float()) * delta).sum())
        whole += float((delta * delta).sum())
    if kept < KEPT * whole:
        dtype = str(next(denoiser.parameters()).dtype).removeprefix("torch.")
        found = f"{dtype} weights keep only {kept / whole:.0%} of {membrane.name!r}"
        raise ExportError(f"{found}; bake in fp32 (--dtype fp32)")


def _checkpoint(pipe: Any) -> dict[str, Tensor]:
    family = host_for(pipe).family
    if family == "flux":
        found = flux_weights(pipe.transformer.state_dict())
    elif family in ("unet", "sdxl"):
        found = _under(_UNET, unet_weights(pipe.unet.state_dict())) | _under(_VAE, vae_weights(pipe.vae.state_dict()))
        found |= _text_encoders(pipe)
    else:
        raise ExportError(
            f"a single file in the original layout is written for Stable Diffusion 1.x, 2.x, XL and FLUX.1, found the "
            f"family {family!r}; bake a folder instead (--format folder)"
        )
    return {name: weight.detach().cpu().contiguous() for name, weight in found.items()}


def _text_encoders(pipe: Any) -> dict[str, Tensor]:
    state = pipe.text_encoder.state_dict()
    if getattr(pipe, "text_encoder_2", None) is not None:
        second = open_clip_weights(pipe.text_encoder_2.state_dict())
        return _under("conditioner.embedders.0.transformer.", clip_weights(state)) | _under(
            "conditioner.embedders.1.model.", second
        )
    if pipe.unet.config.use_linear_projection:
        # Of one encoder, Stable Diffusion 2.x's is OpenCLIP's; its UNet is told from 1.x's by the projections.
        return _under("cond_stage_model.model.", open_clip_weights(state))
    return _under("cond_stage_model.transformer.", clip_weights(state))


def _under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: weight for name, weight in weights.items()}
