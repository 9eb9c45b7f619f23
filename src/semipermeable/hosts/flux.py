"""FLUX.1 dev and schnell: a transformer over packed latents that reads T5 states beside a pooled CLIP vector.

Latents (channels, height, width) are packed into 2×2 patches, (height / 2 · width / 2, 4 · channels), and stay packed
here; every patch carries its place as an id. "dev" reads the guidance scale, "schnell" reads none; neither computes
unconditional rows, unless the caller asks for true guidance with a negative prompt: then in a call of its own.

T5's states, padding included, are what the denoiser attends to; the gate reads the states of the prompt's own tokens.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from semipermeable.hosts.base import EncodeResult
from semipermeable.hosts.condition import Condition
from semipermeable.hosts.float_latents import call_default
from semipermeable.hosts.packed_latents import PackedLatentsHost
from semipermeable.hosts.parts import patch_shift
from semipermeable.hosts.text import encoded_prompts
from semipermeable.hosts.unet import class_names
from semipermeable.permeability.decisions import EncodedPrompt

__all__ = ["FluxHost"]


class FluxHost(PackedLatentsHost):
    """Host of `FluxPipeline` and its relatives (img2img, inpainting, ControlNet).

    Args:
        pipe: the pipeline.
    """

    family = "flux"
    describes = "FLUX.1 pipelines with both text encoders (dev, schnell)"
    site_classes = ("FluxTransformerBlock", "FluxSingleTransformerBlock")
    encode_result = EncodeResult(positive=0, negative=None)
    text_sites = ("context_embedder",)
    tokenizer_names = ("tokenizer", "tokenizer_2")
    text_encoder_names = ("text_encoder_2",)
    layout = "passes"

    @classmethod
    def supports(cls, pipe: Any) -> bool:
        """See `Host`."""
        parts = class_names(pipe)
        encoders = (parts.get("text_encoder"), parts.get("text_encoder_2"))
        return parts.get("transformer") == "FluxTransformer2DModel" and encoders == ("CLIPTextModel", "T5EncoderModel")

    @property
    def guidance(self) -> Literal["classifier-free", "embedded", "none"]:
        """See `Host`; "none" for schnell."""
        return "embedded" if self.pipe.transformer.config.guidance_embeds else "none"

    def encode_texts(self, texts: Sequence[str], window: int) -> list[EncodedPrompt]:
        """See `Host`; T5's states of the prompt's own tokens, CLIP's pooled vector."""
        condition = self._condition(texts, window)
        return encoded_prompts(
            self.tokenizer("tokenizer_2"),
            texts,
            condition["text"],
            pooled=condition["pooled"],
            first=0,
            room=condition["text"].shape[1] - 1,
            keep_padding=False,
        )

    def condition(self, prompts: Sequence[str]) -> Condition:
        """See `Host`; parts `text` (prompts, sequence, dim) and `pooled` (prompts, dim)."""
        return self._condition(prompts, self.window())

    def _condition(self, prompts: Sequence[str], window: int) -> Condition:
        text, pooled, _ = self.own_encode(prompts, prompt_2=None, device=self.device, max_sequence_length=window)
        return Condition({"text": text, "pooled": pooled}).to(self.device, self.dtype)

    def predict(self, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """See `Host`; latents have shape (rows, patches, 4 · channels)."""
        _, height, width = self.latent_shape()
        text = condition["text"]
        return self.pipe.transformer(
            hidden_states=latents,
            timestep=timesteps.to(latents.dtype) / 1000,
            guidance=self._scale(len(latents)),
            pooled_projections=condition["pooled"],
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=text.device, dtype=text.dtype),
            img_ids=self.pipe._prepare_latent_image_ids(1, height // 2, width // 2, latents.device, latents.dtype),
            return_dict=False,
        )[0]

    def _scale(self, rows: int) -> Tensor | None:
        """The scale that the pipeline guides with by default, (rows,), or None where the denoiser reads none."""
        if self.guidance == "none":
            return None
        scale = float(call_default(self.pipe, "guidance_scale"))
        return torch.full((rows,), scale, device=self.device, dtype=torch.float32)

    def timestep_arguments(self, num_steps: int) -> dict[str, Any]:
        """See `Host`; even sigmas, shifted by the number of patches."""
        config = self.pipe.scheduler.config
        _, height, width = self.latent_shape()
        shift = patch_shift(config, height * width // 4)
        if config.get("use_flow_sigmas", False):
            return {"num_inference_steps": num_steps, "mu": shift}
        return {"sigmas": np.linspace(1.0, 1 / num_steps, num_steps), "mu": shift}

    def draw_arguments(self, guidance: float, negative: list[str] | None) -> dict[str, Any]:
        """See `Host`; a negative prompt is guided away from with the same scale, in a second call."""
        if negative is None:
            return {"guidance_scale": guidance}
        return {"negative_prompt": negative, "true_cfg_scale": guidance}
