"""Z-Image: one stream of image patches and the states of a language model; flow matching.

Qwen3 reads the prompt inside its chat template, and the denoiser the last but one layer's states of all of it, as a
list of rows of different lengths. Its time runs the other way, (1000 − t) / 1000, and so does its prediction. Rows of
the prompts come first, those without them second. The pipeline counts guidance from zero: its scale is w − 1 where the
prediction is û + w (p − û), and w is the scale here, as in every other family (1: no guidance, as for Z-Image-Turbo).

The pipeline has no size of its own: a model for other pictures than 1024 × 1024 is given one by its attribute
`default_sample_size`, the side of its latents.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from semipermeable.errors import AttachError
from semipermeable.hosts.base import CallRows
from semipermeable.hosts.condition import MASK, Condition
from semipermeable.hosts.float_latents import FloatLatentsHost
from semipermeable.hosts.parts import patch_shift
from semipermeable.hosts.text import encoded_prompts
from semipermeable.hosts.unet import class_names
from semipermeable.permeability.decisions import EncodedPrompt

__all__ = ["ZImageHost"]

_PIXELS = 1024
_MARK = "semipermeable"


class ZImageHost(FloatLatentsHost):
    """Host of `ZImagePipeline` and its relatives that read text alone (img2img, inpainting).

    Args:
        pipe: the pipeline.
    """

    family = "z-image"
    describes = "Z-Image pipelines"
    site_classes = ("ZImageTransformerBlock",)

    @classmethod
    def supports(cls, pipe: Any) -> bool:
        """See `Host`; Omni models, which also read pictures, are not supported."""
        parts = class_names(pipe)
        if parts.get("transformer") != "ZImageTransformer2DModel" or "siglip" in parts:
            return False
        return parts.get("text_encoder") in ("Qwen3Model", "Qwen3ForCausalLM")

    def encode_texts(self, texts: Sequence[str], window: int) -> list[EncodedPrompt]:
        """See `Host`; states of " " + prompt, so that a name has the same tokens wherever it stands."""
        tokenizer = self.tokenizer()
        template: str = tokenizer.apply_chat_template(
            [{"role": "user", "content": _MARK}], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        first = len(tokenizer(template.split(_MARK)[0]).input_ids)
        states = self._condition([" " + text if text else text for text in texts], window)["text"]
        room = window - first
        return encoded_prompts(tokenizer, texts, states, first=first, room=room, keep_padding=False, space_before=True)

    def condition(self, prompts: Sequence[str]) -> Condition:
        """See `Host`; parts `text` (prompts, sequence, dim) and `mask` (prompts, sequence)."""
        return self._condition(prompts, self.window())

    def _condition(self, prompts: Sequence[str], window: int) -> Condition:
        rows, _ = self.own_encode(
            prompts, device=self.device, do_classifier_free_guidance=False, max_sequence_length=window
        )
        masks = [torch.ones(len(row), dtype=torch.bool) for row in rows]
        parts = {"text": pad_sequence(rows, batch_first=True), MASK: pad_sequence(masks, batch_first=True)}
        return Condition(parts).to(self.device, self.dtype)

    def predict(self, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """See `Host`; latents have shape (rows, channels, height, width)."""
        text = [row[mask] for row, mask in zip(condition["text"], condition[MASK], strict=True)]
        outputs = self.pipe.transformer(
            list(latents.unsqueeze(2).unbind(0)), (1000 - timesteps) / 1000, text, return_dict=False
        )[0]
        return -torch.stack(list(outputs)).squeeze(2).float()

    def call_rows(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallRows:
        """See `Host`; conditional rows are the first half."""
        text = self.call_argument("cap_feats", args, kwargs)
        if not isinstance(text, list):
            raise AttachError("the denoiser was called without cap_feats; membranes cannot be gated")
        rows: list[Tensor] = text
        if not self._guides(self.call_argument("t", args, kwargs)):
            return CallRows(rows, [True] * len(rows))
        half = len(rows) // 2
        return CallRows(rows, [True] * half + [False] * half)

    def _guides(self, time: Tensor) -> bool:
        """Whether the pipeline's present call has unconditional rows: not after `cfg_truncation`."""
        truncation = getattr(self.pipe, "_cfg_truncation", None)
        stopped = truncation is not None and float(truncation) <= 1 and float(time[0]) > float(truncation)
        return self.is_guided() and not stopped

    def latent_shape(self) -> tuple[int, ...]:
        """See `Host`."""
        side = int(getattr(self.pipe, "default_sample_size", _PIXELS // int(self.pipe.vae_scale_factor)))
        return int(self.pipe.transformer.in_channels), side, side

    def timestep_arguments(self, num_steps: int) -> dict[str, Any]:
        """See `Host`; even sigmas, shifted by the number of patches."""
        config = self.pipe.scheduler.config
        _, height, width = self.latent_shape()
        shift = patch_shift(config, (height // 2) * (width // 2))
        return {"sigmas": torch.linspace(1.0, 1 / num_steps, num_steps).tolist(), "mu": shift}

    def size_arguments(self) -> dict[str, Any]:
        """See `Host`."""
        _, height, width = self.latent_shape()
        scale = int(self.pipe.vae_scale_factor)
        return {"height": height * scale, "width": width * scale}

    def draw_arguments(self, guidance: float, negative: list[str] | None) -> dict[str, Any]:
        """See `Host`; the pipeline's scale is one less."""
        return {"guidance_scale": max(0.0, guidance - 1), "negative_prompt": negative}
