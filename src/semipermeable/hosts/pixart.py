"""PixArt-Σ: a diffusion transformer that cross-attends to T5 states under a mask.

T5's states pass through one projection (`caption_projection`) before every block's `attn2` reads them. The denoiser
also predicts variances, which samplers drop. The pipeline writes prompts in lower case before it encodes them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.utils.import_utils import is_bs4_available, is_ftfy_available
from torch import Tensor

from semipermeable.hosts.base import EncodeResult, Host
from semipermeable.hosts.condition import MASK, Condition
from semipermeable.hosts.text import encoded_prompts
from semipermeable.hosts.unet import class_names
from semipermeable.permeability.decisions import EncodedPrompt

__all__ = ["PixArtHost"]


class PixArtHost(Host):
    """Host of `PixArtSigmaPipeline`.

    Args:
        pipe: the pipeline.
    """

    family = "pixart"
    describes = "PixArt-Σ pipelines"
    site_classes = ("BasicTransformerBlock",)
    encode_result = EncodeResult(positive=0, negative=2)
    text_sites = (".attn2.to_k", ".attn2.to_v")

    @classmethod
    def supports(cls, pipe: Any) -> bool:
        """See `Host`; PixArt-α at 1024 pixels, which also reads sizes, is not supported."""
        parts = class_names(pipe)
        if (parts.get("transformer"), parts.get("text_encoder")) != ("PixArtTransformer2DModel", "T5EncoderModel"):
            return False
        return not pipe.transformer.use_additional_conditions

    def encode_texts(self, texts: Sequence[str], window: int) -> list[EncodedPrompt]:
        """See `Host`; T5's states of the prompt's own tokens."""
        condition, room = self._condition(texts, window), window - 1
        written = [str(self.pipe._text_preprocessing(text, clean_caption=_cleans())[0]) for text in texts]
        encoded = encoded_prompts(self.tokenizer(), written, condition["text"], first=0, room=room, keep_padding=False)
        return [replace(one, text=text) for one, text in zip(encoded, texts, strict=True)]

    def condition(self, prompts: Sequence[str]) -> Condition:
        """See `Host`; parts `text` (prompts, sequence, dim) and `mask` (prompts, sequence)."""
        return self._condition(prompts, self.window())

    def _condition(self, prompts: Sequence[str], window: int) -> Condition:
        text, mask, _, _ = self.own_encode(
            prompts,
            do_classifier_free_guidance=False,
            device=self.device,
            clean_caption=_cleans(),
            max_sequence_length=window,
        )
        return Condition({"text": text, MASK: mask.bool()}).to(self.device, self.dtype).trimmed()

    def predict(self, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """See `Host`; latents have shape (rows, channels, height, width)."""
        output = self.pipe.transformer(
            latents,
            encoder_hidden_states=condition["text"],
            encoder_attention_mask=condition[MASK].to(latents.dtype),
            timestep=timesteps,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return output[:, : latents.shape[1]]

    def text_inputs(self, states: Tensor) -> Tensor:
        """See `Host`; after `caption_projection`."""
        with torch.no_grad():
            return self.pipe.transformer.caption_projection(states.to(self.device, self.dtype)).float().cpu()

    def latent_shape(self) -> tuple[int, ...]:
        """See `Host`."""
        config = self.pipe.transformer.config
        return int(config.in_channels), int(config.sample_size), int(config.sample_size)

    def draw_arguments(self, guidance: float, negative: list[str] | None) -> dict[str, Any]:
        """See `Host`; without negative prompts the pipeline avoids the empty one."""
        arguments: dict[str, Any] = {"guidance_scale": guidance, "use_resolution_binning": False}
        return arguments if negative is None else {**arguments, "negative_prompt": negative}


def _cleans() -> bool:
    """Whether the pipeline cleans captions of markup, as it does by default where the two packages are installed."""
    return is_bs4_available() and is_ftfy_available()
