"""UNet pipelines with one CLIP text encoder: Stable Diffusion 1.x and 2.x, their distillations, the bundled models.

Stable Diffusion 2.x differs in configuration only: an OpenCLIP encoder in CLIP's classes, projections that are Linear
instead of 1×1 Conv2d, and for the larger size v-prediction, which the scheduler says. A latent consistency model reads
its guidance scale through a time condition and has no unconditional rows.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from semipermeable.hosts.base import Host
from semipermeable.hosts.condition import Condition
from semipermeable.hosts.float_latents import call_default
from semipermeable.hosts.text import encoded_prompts
from semipermeable.permeability.decisions import EncodedPrompt
from semipermeable.runtime import uncompiled

__all__ = ["UNetHost", "class_names"]


def class_names(pipe: Any) -> dict[str, str]:
    """Return the class name of every component that a pipeline has, by attribute; {} for what is no pipeline.

    What `torch.compile` has wrapped counts as what it wraps.
    """
    parts = getattr(pipe, "components", None)
    if not isinstance(parts, dict):
        return {}
    return {
        str(name): type(uncompiled(part) if isinstance(part, nn.Module) else part).__name__
        for name, part in parts.items()
        if part is not None
    }


class UNetHost(Host):
    """Host of `StableDiffusionPipeline` and its relatives (img2img, inpainting, ControlNet) with one CLIP encoder.

    Args:
        pipe: the pipeline.
    """

    family = "unet"
    describes = "UNet pipelines with one CLIP text encoder (Stable Diffusion 1.x, 2.x, the bundled models)"
    denoiser_names = ("unet",)
    site_classes = ("Transformer2DModel",)
    text_sites = (".attn2.to_k", ".attn2.to_v")

    @classmethod
    def supports(cls, pipe: Any) -> bool:
        """See `Host`."""
        parts = class_names(pipe)
        single = not any(part in parts for part in ("text_encoder_2", "text_encoder_3", "prior"))
        clip = parts.get("text_encoder", "").startswith("CLIPTextModel")
        return (
            parts.get("unet") == "UNet2DConditionModel"
            and clip
            and parts.get("tokenizer", "").startswith("CLIPTokenizer")
            and single
        )

    @property
    def guidance(self) -> Literal["classifier-free", "embedded", "none"]:
        """See `Host`; embedded where the UNet has a time condition (latent consistency models)."""
        return "classifier-free" if self.pipe.unet.config.time_cond_proj_dim is None else "embedded"

    def encode_texts(self, texts: Sequence[str], window: int) -> list[EncodedPrompt]:
        """See `Host`; tokens beyond the encoder's window are cut."""
        tokenizer, encoder = self.tokenizer(), self.pipe.text_encoder
        window = tokenizer.model_max_length
        inputs = tokenizer(
            list(texts), padding="max_length", max_length=window, truncation=True, return_tensors="pt"
        ).to(self.device)
        mask = inputs.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
        with torch.no_grad():
            output = encoder(inputs.input_ids, attention_mask=mask)
        return encoded_prompts(
            tokenizer, texts, output[0], pooled=output.pooler_output, first=1, room=window - 2, keep_padding=True
        )

    def condition(self, prompts: Sequence[str]) -> Condition:
        """See `Host`; the part `text` has shape (prompts, sequence, dim)."""
        states = self.own_encode(
            prompts, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )[0]
        return Condition({"text": states}).to(self.device, self.dtype)

    def predict(self, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """See `Host`; latents have shape (rows, channels, height, width)."""
        return self.pipe.unet(
            latents,
            timesteps,
            encoder_hidden_states=condition["text"],
            timestep_cond=self._guidance_embedding(latents),
            added_cond_kwargs=self.added(condition),
            return_dict=False,
        )[0]

    def added(self, condition: Condition) -> dict[str, Tensor] | None:  # noqa: ARG002
        """Return what the UNet is told besides time and text, or None."""
        return None

    def _guidance_embedding(self, latents: Tensor) -> Tensor | None:
        """The embedding of the scale that the pipeline guides with by default, one row per sample."""
        width = self.pipe.unet.config.time_cond_proj_dim
        if width is None:
            return None
        scale = float(call_default(self.pipe, "guidance_scale"))
        scales = torch.full((latents.shape[0],), scale - 1)
        return self.pipe.get_guidance_scale_embedding(scales, embedding_dim=width).to(latents)

    def draw_arguments(self, guidance: float, negative: list[str] | None) -> dict[str, Any]:
        """See `Host`; a latent consistency pipeline knows no negative prompt."""
        if self.guidance == "embedded":
            return {"guidance_scale": guidance}
        return super().draw_arguments(guidance, negative)

    def latent_shape(self) -> tuple[int, ...]:
        """See `Host`."""
        config = self.pipe.unet.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        return int(config.in_channels), int(height), int(width)
