"""Qwen-Image: joint attention over packed image patches and the states of a language model; flow matching.

Qwen2.5-VL reads the prompt inside a chat template. The states of the instruction before the prompt are dropped, those
of the template's end stay; rows of different lengths are padded under a mask. Latents are packed into 2×2 patches,
(height / 2 · width / 2, 4 · channels). The prediction that is stepped with has, in every patch, the conditional one's
norm: (û + w (p − û)) ‖p‖ / ‖û + w (p − û)‖, with p for the prompt and û without it, in separate calls.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semipermeable.hosts.base import EncodeResult
from semipermeable.hosts.condition import MASK, Condition
from semipermeable.hosts.packed_latents import PackedLatentsHost
from semipermeable.hosts.parts import patch_shift
from semipermeable.hosts.text import encoded_prompts
from semipermeable.hosts.unet import class_names
from semipermeable.permeability.decisions import EncodedPrompt

__all__ = ["QwenImageHost"]


class QwenImageHost(PackedLatentsHost):
    """Host of `QwenImagePipeline` and its relatives that read text alone (img2img, inpainting).

    Args:
        pipe: the pipeline.
    """

    family = "qwen-image"
    describes = "Qwen-Image pipelines"
    site_classes = ("QwenImageTransformerBlock",)
    encode_result = EncodeResult(positive=0, negative=None)
    layout = "passes"
    default_negative = " "

    @classmethod
    def supports(cls, pipe: Any) -> bool:
        """See `Host`; editing models, whose encoder reads a picture beside the prompt, are not supported."""
        parts = class_names(pipe)
        found = (parts.get("transformer"), parts.get("text_encoder"))
        if found != ("QwenImageTransformer2DModel", "Qwen2_5_VLForConditionalGeneration") or "processor" in parts:
            return False
        return not pipe.transformer.config.guidance_embeds

    def encode_texts(self, texts: Sequence[str], window: int) -> list[EncodedPrompt]:
        """See `Host`; states of " " + prompt, so that a name has the same tokens wherever it stands."""
        states = self._condition([" " + text if text else text for text in texts], window)["text"]
        room = window
        return encoded_prompts(
            self.tokenizer(), texts, states, first=0, room=room, keep_padding=False, space_before=True
        )

    def condition(self, prompts: Sequence[str]) -> Condition:
        """See `Host`; parts `text` (prompts, sequence, dim) and `mask` (prompts, sequence)."""
        return self._condition(prompts, self.window())

    def _condition(self, prompts: Sequence[str], window: int) -> Condition:
        text, mask = self.own_encode(prompts, device=self.device, max_sequence_length=window)
        valid = torch.ones(text.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        return Condition({"text": text, MASK: valid}).to(self.device, self.dtype)

    def unconditional(self) -> Condition:
        """See `Host`; of one space, which is what `draw` gives as the negative prompt."""
        return self.condition([self.default_negative])

    def predict(self, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """See `Host`; latents have shape (rows, patches, 4 · channels)."""
        _, height, width = self.latent_shape()
        mask = condition[MASK]
        return self.pipe.transformer(
            hidden_states=latents,
            timestep=timesteps.to(latents.dtype) / 1000,
            guidance=None,
            encoder_hidden_states_mask=None if bool(mask.all()) else mask,
            encoder_hidden_states=condition["text"],
            img_shapes=[[(1, height // 2, width // 2)]] * len(latents),
            return_dict=False,
        )[0]

    def timestep_arguments(self, num_steps: int) -> dict[str, Any]:
        """See `Host`; even sigmas, shifted by the number of patches."""
        config = self.pipe.scheduler.config
        _, height, width = self.latent_shape()
        shift = patch_shift(config, height * width // 4)
        return {"sigmas": np.linspace(1.0, 1 / num_steps, num_steps), "mu": shift}

    def guided(self, unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
        """See `Host`; brought to the conditional prediction's norm, patch by patch."""
        combined = super().guided(unconditional, conditional, scale)
        return combined * (conditional.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))

    def draw_arguments(self, guidance: float, negative: list[str] | None) -> dict[str, Any]:
        """See `Host`; without negative prompts (`default_negative` will do) the pipeline does not guide."""
        return {"true_cfg_scale": guidance, "negative_prompt": negative}
