"""Wan 2.1 and 2.2, text to video: a transformer over latent frames that cross-attends to UMT5 states.

UMT5's states are padded with zeros to a fixed window and read without a mask; they pass through one projection
(`condition_embedder.text_embedder`) before every block's `attn2` reads them. Wan 2.2 has two denoisers: `transformer`
from pure noise down to t = boundary_ratio · T, `transformer_2` below. Prompt and negative prompt are separate calls.

A pipeline of this family has no size of its own, only defaults of its call (81 frames of 480 × 832). Training at that
size needs much memory: the attributes `default_num_frames`, `default_height` and `default_width`, set on the pipeline,
choose another one here.
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from semipermeable.hosts.condition import Condition
from semipermeable.hosts.float_latents import FloatLatentsHost, call_default
from semipermeable.hosts.text import encoded_prompts
from semipermeable.hosts.unet import class_names
from semipermeable.permeability.decisions import EncodedPrompt

__all__ = ["WanHost"]


class WanHost(FloatLatentsHost):
    """Host of `WanPipeline` (text to video; one denoiser or two) and `WanVideoToVideoPipeline`.

    Args:
        pipe: the pipeline.
    """

    family = "wan"
    describes = "Wan 2.1 and 2.2 text-to-video pipelines"
    site_classes = ("WanTransformerBlock",)
    denoiser_names = ("transformer", "transformer_2")
    text_sites = (".attn2.to_k", ".attn2.to_v")
    layout = "passes"
    casts_text = True

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        if len(self.denoisers) > 1:
            # Each denoiser projects the text by itself; `text_inputs` speaks for the first, so only its sites count.
            blocks = range(len(pipe.transformer.blocks))
            self.text_sites = tuple(f"transformer.blocks.{n}.attn2.to_{part}" for n in blocks for part in "kv")

    @classmethod
    def supports(cls, pipe: Any) -> bool:
        """See `Host`; image-to-video models, which also read a picture, are not supported."""
        parts = class_names(pipe)
        denoisers = [name for name in cls.denoiser_names if name in parts]
        if not denoisers or parts.get("text_encoder") != "UMT5EncoderModel" or "image_encoder" in parts:
            return False
        if any(parts[name] != "WanTransformer3DModel" for name in denoisers):
            return False
        return all(
            getattr(pipe, name).config.in_channels == getattr(pipe, name).config.out_channels for name in denoisers
        )

    def encode_texts(self, texts: Sequence[str], window: int) -> list[EncodedPrompt]:
        """See `Host`; UMT5's states of the prompt's own tokens."""
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean  # imports much, and pipelines of this family did

        states = self._condition(texts, window)["text"]
        # The pipeline tidies whitespace and HTML entities before it encodes.
        written = [prompt_clean(text) for text in texts]
        room = states.shape[1] - 1
        encoded = encoded_prompts(self.tokenizer(), written, states, first=0, room=room, keep_padding=False)
        return [replace(one, text=text) for one, text in zip(encoded, texts, strict=True)]

    def condition(self, prompts: Sequence[str]) -> Condition:
        """See `Host`; part `text` (prompts, sequence, dim)."""
        return self._condition(prompts, self.window())

    def _condition(self, prompts: Sequence[str], window: int) -> Condition:
        text, _ = self.own_encode(
            prompts,
            do_classifier_free_guidance=False,
            max_sequence_length=window,
            device=self.device,
        )
        return Condition({"text": text}).to(self.device, self.dtype)

    def predict(self, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """See `Host`; latents have shape (rows, channels, frames, height, width)."""
        early = timesteps >= self._boundary()
        shares = (("transformer", early), ("transformer_2", ~early))
        present = [(name, rows) for name, rows in shares if bool(rows.any())]
        if len(present) == 1:
            return self._predict(present[0][0], latents, timesteps, condition)
        output = torch.zeros_like(latents)
        for name, rows in present:
            place = rows.to(latents.device).nonzero()[:, 0]
            part = self._predict(name, latents[place], timesteps[rows], condition[place.to(self.device)])
            output = output.index_copy(0, place, part.to(output.dtype))
        return output

    def _boundary(self) -> float:
        """The timestep below which `transformer_2` denoises; 0 where `transformer` does it all."""
        ratio = self.pipe.config.get("boundary_ratio")
        return 0.0 if ratio is None else float(ratio) * self.pipe.scheduler.config.num_train_timesteps

    def _predict(self, name: str, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        denoiser = getattr(self.pipe, name)
        if self.pipe.config.get("expand_timesteps"):
            # Wan 2.2 TI2V reads a timestep for each patch.
            frames, height, width = latents.shape[2:]
            patches = frames * ((height + 1) // 2) * ((width + 1) // 2)
            timesteps = timesteps[:, None].expand(-1, patches)
        return denoiser(
            hidden_states=latents,
            timestep=timesteps,
            encoder_hidden_states=condition["text"],
            return_dict=False,
        )[0]

    def text_inputs(self, states: Tensor) -> Tensor:
        """See `Host`; after the first denoiser's text projection."""
        denoiser: Any = next(iter(self.denoisers.values()))
        with torch.no_grad():
            return denoiser.condition_embedder.text_embedder(states.to(self.device, self.dtype)).float().cpu()

    def latent_shape(self) -> tuple[int, ...]:
        """See `Host`; of the pipeline's default video."""
        # The pipeline for video to video takes as many frames as it is given.
        size = {"num_frames": int(getattr(self.pipe, "default_num_frames", 81))} | self.size_arguments()
        denoiser: Any = next(iter(self.denoisers.values()))
        frames = (size["num_frames"] - 1) // int(self.pipe.vae_scale_factor_temporal) + 1
        scale = int(self.pipe.vae_scale_factor_spatial)
        return int(denoiser.config.in_channels), frames, size["height"] // scale, size["width"] // scale

    def size_arguments(self) -> dict[str, Any]:
        """See `Host`; the attributes `default_…` of the pipeline where set, else the defaults of its call."""
        taken = inspect.signature(type(self.pipe).__call__).parameters
        names = [name for name in ("num_frames", "height", "width") if name in taken]
        return {name: int(getattr(self.pipe, f"default_{name}", call_default(self.pipe, name))) for name in names}

    def drawn(self, result: Any) -> Any:
        """See `Host`; a list of PIL frames per prompt, or a tensor (rows, frames, 3, height, width) in [0, 1]."""
        return result.frames
