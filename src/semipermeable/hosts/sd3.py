"""Stable Diffusion 3 and 3.5: joint attention over image patches and the text of three encoders; flow matching.

The text rows are [CLIP-L ‖ CLIP-G, padded with zeros to T5's width; T5], one sequence after the other, beside the two
CLIP encoders' pooled vectors. The gate reads T5's part, whose window is the longest: what only T5 reads must not slip
past the gate. T5 may be left out of the pipeline (zeros take its place); then the gate reads the CLIP part, where both
tokenizers share one vocabulary.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from semipermeable.hosts.base import Host
from semipermeable.hosts.condition import Condition
from semipermeable.hosts.parts import patch_shift
from semipermeable.hosts.text import encoded_prompts
from semipermeable.hosts.unet import class_names
from semipermeable.permeability.decisions import EncodedPrompt

__all__ = ["SD3Host"]


class SD3Host(Host):
    """Host of `StableDiffusion3Pipeline` and its relatives (img2img, inpainting, ControlNet).

    Args:
        pipe: the pipeline.
    """

    family = "sd3"
    describes = "Stable Diffusion 3 and 3.5 pipelines, with or without T5"
    site_classes = ("JointTransformerBlock",)
    text_sites = ("context_embedder",)
    tokenizer_names = ("tokenizer", "tokenizer_2", "tokenizer_3")
    text_encoder_names = ("text_encoder", "text_encoder_2")

    @classmethod
    def supports(cls, pipe: Any) -> bool:
        """See `Host`."""
        parts = class_names(pipe)
        encoders = {parts.get(name) for name in cls.text_encoder_names}
        return parts.get("transformer") == "SD3Transformer2DModel" and encoders == {"CLIPTextModelWithProjection"}

    @property
    def has_t5(self) -> bool:
        """Whether the pipeline was loaded with its third encoder."""
        return getattr(self.pipe, "text_encoder_3", None) is not None

    def text_encoder_hash(self) -> str:
        """See `Host`; of T5, or of both CLIP encoders where it was left out."""
        return self._hash("text_encoder_3") if self.has_t5 else super().text_encoder_hash()

    def encode_texts(self, texts: Sequence[str], window: int) -> list[EncodedPrompt]:
        """See `Host`; T5's states of the prompt's own tokens, or the CLIP part, and both pooled vectors."""
        condition, short = self._condition(texts, window), int(self.pipe.tokenizer_max_length)
        text, pooled = condition["text"], condition["pooled"]
        if self.has_t5:
            states, words = text[:, short:], self.tokenizer("tokenizer_3")
            room = states.shape[1] - 1
            return encoded_prompts(words, texts, states, pooled=pooled, first=0, room=room, keep_padding=False)
        states, words = text[:, :short], self.tokenizer()
        return encoded_prompts(words, texts, states, pooled=pooled, first=1, room=short - 2, keep_padding=True)

    def condition(self, prompts: Sequence[str]) -> Condition:
        """See `Host`; parts `text` (prompts, sequence, dim) and `pooled` (prompts, dim)."""
        return self._condition(prompts, self.window())

    def _condition(self, prompts: Sequence[str], window: int) -> Condition:
        text, _, pooled, _ = self.own_encode(
            prompts,
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=window,
        )
        return Condition({"text": text, "pooled": pooled}).to(self.device, self.dtype)

    def predict(self, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """See `Host`; latents have shape (rows, channels, height, width)."""
        return self.pipe.transformer(
            hidden_states=latents,
            timestep=timesteps,
            encoder_hidden_states=condition["text"],
            pooled_projections=condition["pooled"],
            return_dict=False,
        )[0]

    def latent_shape(self) -> tuple[int, ...]:
        """See `Host`."""
        side = int(self.pipe.default_sample_size)
        return int(self.pipe.transformer.config.in_channels), side, side

    def timestep_arguments(self, num_steps: int) -> dict[str, Any]:
        """See `Host`; shifted by the number of patches where the scheduler asks for it."""
        config = self.pipe.scheduler.config
        if not config.get("use_dynamic_shifting", False):
            return {"num_inference_steps": num_steps}
        patch = int(self.pipe.transformer.config.patch_size)
        _, height, width = self.latent_shape()
        shift = patch_shift(config, (height // patch) * (width // patch), max_shift=1.16)
        return {"num_inference_steps": num_steps, "mu": shift}
