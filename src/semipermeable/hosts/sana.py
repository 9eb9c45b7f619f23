"""Sana: a transformer with linear attention that cross-attends to Gemma 2 states under a mask; flow matching.

A prompt, in lower case, is encoded behind a long instruction; only the state of BOS and those of the window's last
tokens, the prompt's own, stay. A negative prompt is encoded without the instruction. States pass through one projection
and norm (`caption_projection`, `caption_norm`) before every block's `attn2` reads them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from semipermeable.hosts.base import EncodeResult
from semipermeable.hosts.condition import MASK, Condition
from semipermeable.hosts.float_latents import FloatLatentsHost, call_default
from semipermeable.hosts.text import encoded_prompts
from semipermeable.hosts.unet import class_names
from semipermeable.permeability.decisions import EncodedPrompt

__all__ = ["SanaHost"]


class SanaHost(FloatLatentsHost):
    """Host of `SanaPipeline`.

    Args:
        pipe: the pipeline.
    """

    family = "sana"
    describes = "Sana pipelines"
    site_classes = ("SanaTransformerBlock",)
    encode_result = EncodeResult(positive=0, negative=2)
    text_sites = (".attn2.to_k", ".attn2.to_v")
    casts_text = True

    @classmethod
    def supports(cls, pipe: Any) -> bool:
        """See `Host`; Sana-Sprint, which reads the guidance scale and samples otherwise, is not supported."""
        parts = class_names(pipe)
        if (parts.get("transformer"), parts.get("text_encoder")) != ("SanaTransformer2DModel", "Gemma2Model"):
            return False
        return not pipe.transformer.config.guidance_embeds

    def encode_texts(self, texts: Sequence[str], window: int) -> list[EncodedPrompt]:
        """See `Host`; Gemma's states of the prompt's own tokens, in their place behind the instruction."""
        written = [str(self.pipe._text_preprocessing(text, clean_caption=False)[0]) for text in texts]
        first = self._first()
        encoded = encoded_prompts(
            self.tokenizer(),
            written,
            self._condition(texts, self._instruction(), window)["text"],
            first=first,
            room=window - first,
            keep_padding=False,
            # The instruction ends in a space, which Gemma writes into the token after it.
            space_before=True,
        )
        return [replace(one, text=text) for one, text in zip(encoded, texts, strict=True)]

    def _first(self) -> int:
        """Where the prompt's first token stands: after BOS and what the pipeline leaves of the instruction."""
        instruction, tokenizer = "\n".join(self._instruction()), self.tokenizer()
        own = len(tokenizer.encode(instruction.removesuffix(" ")))
        # The pipeline lengthens the window by the instruction's tokens less two, and keeps its end.
        return own - (len(tokenizer.encode(instruction)) - 2)

    def _instruction(self) -> list[str]:
        return list(call_default(self.pipe, "complex_human_instruction"))

    def condition(self, prompts: Sequence[str]) -> Condition:
        """See `Host`; parts `text` (prompts, sequence, dim) and `mask` (prompts, sequence)."""
        return self._condition(prompts, self._instruction(), self.window())

    def _condition(self, prompts: Sequence[str], instruction: list[str] | None, window: int) -> Condition:
        text, mask, _, _ = self.own_encode(
            prompts,
            do_classifier_free_guidance=False,
            device=self.device,
            max_sequence_length=window,
            complex_human_instruction=instruction,
        )
        return Condition({"text": text, MASK: mask.bool()}).to(self.device, self.dtype).trimmed()

    def unconditional(self) -> Condition:
        """See `Host`; the empty prompt without the instruction."""
        return self._condition([""], None, self.window())

    def predict(self, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """See `Host`; latents have shape (rows, channels, height, width)."""
        transformer = self.pipe.transformer
        output = transformer(
            latents,
            encoder_hidden_states=condition["text"],
            encoder_attention_mask=condition[MASK].to(latents.dtype),
            timestep=timesteps * transformer.config.timestep_scale,
            return_dict=False,
        )[0]
        return output[:, : latents.shape[1]].float()

    def text_inputs(self, states: Tensor) -> Tensor:
        """See `Host`; after `caption_projection` and `caption_norm`."""
        transformer = self.pipe.transformer
        with torch.no_grad():
            projected = transformer.caption_projection(states.to(self.device, self.dtype))
            return transformer.caption_norm(projected).float().cpu()

    def latent_shape(self) -> tuple[int, ...]:
        """See `Host`."""
        config = self.pipe.transformer.config
        return int(config.in_channels), int(config.sample_size), int(config.sample_size)

    def size_arguments(self) -> dict[str, Any]:
        """See `Host`."""
        _, height, width = self.latent_shape()
        scale = int(self.pipe.vae_scale_factor)
        return {"height": height * scale, "width": width * scale}

    def draw_arguments(self, guidance: float, negative: list[str] | None) -> dict[str, Any]:
        """See `Host`; without negative prompts the pipeline avoids the empty one."""
        arguments: dict[str, Any] = {"guidance_scale": guidance, "use_resolution_binning": False}
        return arguments if negative is None else {**arguments, "negative_prompt": negative}
