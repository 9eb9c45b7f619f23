"""Stable Diffusion XL and its distillations (Turbo, Lightning, LCM): a UNet that reads two CLIP encoders.

The UNet cross-attends to the last but one hidden states of both encoders, side by side, (77, 768 + 1280); their
tokenizers share one vocabulary, so a word has the same position in both. It also reads the second encoder's pooled
vector and six "time ids": original size, crop, target size. Training uses the model's native size, uncropped.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from semipermeable.hosts.condition import Condition
from semipermeable.hosts.text import encoded_prompts
from semipermeable.hosts.unet import UNetHost, class_names
from semipermeable.permeability.decisions import EncodedPrompt

__all__ = ["SDXLHost"]


class SDXLHost(UNetHost):
    """Host of `StableDiffusionXLPipeline` and its relatives; the refiner, which lacks the first encoder, is not one.

    Args:
        pipe: the pipeline.
    """

    family = "sdxl"
    describes = "Stable Diffusion XL pipelines with both text encoders (SDXL 1.0, Turbo, Lightning, LCM)"
    tokenizer_names = ("tokenizer", "tokenizer_2")
    text_encoder_names = ("text_encoder", "text_encoder_2")

    @classmethod
    def supports(cls, pipe: Any) -> bool:
        """See `Host`."""
        parts = class_names(pipe)
        encoders = (parts.get("text_encoder"), parts.get("text_encoder_2"))
        tokenizers = all(parts.get(name, "").startswith("CLIPTokenizer") for name in cls.tokenizer_names)
        unet = parts.get("unet") == "UNet2DConditionModel"
        return unet and encoders == ("CLIPTextModel", "CLIPTextModelWithProjection") and tokenizers

    def encode_texts(self, texts: Sequence[str], window: int) -> list[EncodedPrompt]:
        """See `Host`; the states are those of both encoders, side by side."""
        condition = self.condition(texts)
        window = self.tokenizer().model_max_length
        return encoded_prompts(
            self.tokenizer(),
            texts,
            condition["text"],
            pooled=condition["pooled"],
            first=1,
            room=window - 2,
            keep_padding=True,
        )

    def condition(self, prompts: Sequence[str]) -> Condition:
        """See `Host`; parts `text` (prompts, sequence, dim) and `pooled` (prompts, dim)."""
        text, _, pooled, _ = self.own_encode(
            prompts, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return Condition({"text": text, "pooled": pooled}).to(self.device, self.dtype)

    def unconditional(self) -> Condition:
        """See `Host`; zeros where the pipeline takes zeros for a missing negative prompt."""
        empty = self.condition([""])
        if not self.pipe.config.get("force_zeros_for_empty_prompt", False):
            return empty
        return Condition({name: torch.zeros_like(part) for name, part in empty.parts.items()})

    def added(self, condition: Condition) -> dict[str, Tensor] | None:
        """Return the pooled vector and the time ids of an uncropped picture of native size."""
        size = [float(side * self.pipe.vae_scale_factor) for side in self.latent_shape()[1:]]
        pooled = condition["pooled"]
        ids = torch.tensor([*size, 0.0, 0.0, *size], dtype=pooled.dtype, device=pooled.device)
        return {"text_embeds": pooled, "time_ids": ids.expand(len(pooled), -1)}
