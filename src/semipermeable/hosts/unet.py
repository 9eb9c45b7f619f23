"""UNet pipelines with one CLIP text encoder: Stable Diffusion 1.x and the bundled models.

Under classifier-free guidance these pipelines concatenate [unconditional rows, conditional rows] in one denoiser call.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semipermeable.errors import AttachError
from semipermeable.hosts.base import ObservedRows, weights_hash
from semipermeable.permeability.decisions import EncodedPrompt
from semipermeable.runtime import Role

__all__ = ["UNetHost"]


def _as_list(prompt: str | Sequence[str]) -> list[str]:
    return [prompt] if isinstance(prompt, str) else list(prompt)


class UNetHost:
    """Host of `StableDiffusionPipeline` and its relatives (img2img, inpainting) with one CLIP text encoder.

    Args:
        pipe: the pipeline.
    """

    family: str = "unet"
    denoiser_name: str = "unet"
    encode_name: str = "encode_prompt"
    site_classes: tuple[str, ...] = ("Transformer2DModel",)
    describes: str = "UNet pipelines with one CLIP text encoder (Stable Diffusion 1.x, the bundled models)"

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self._hashes: dict[str, str] = {}
        self._private_tokenizer: Any = None

    @classmethod
    def supports(cls, pipe: Any) -> bool:
        """Whether `pipe` belongs to this family."""
        parts = getattr(pipe, "components", None)
        if not isinstance(parts, dict):
            return False
        names = [type(parts.get(part)).__name__ for part in ("unet", "text_encoder", "tokenizer")]
        single = not any(parts.get(part) is not None for part in ("text_encoder_2", "text_encoder_3", "prior"))
        unet_ok = names[0] in ("UNet2DConditionModel", "OptimizedModule")
        return unet_ok and names[1].startswith("CLIPTextModel") and names[2].startswith("CLIPTokenizer") and single

    @property
    def denoiser(self) -> nn.Module:
        """The UNet, as the pipeline holds it now."""
        return self.pipe.unet

    @property
    def prediction_type(self) -> str:
        """The scheduler's prediction type."""
        return str(self.pipe.scheduler.config.prediction_type)

    @property
    def base_model(self) -> str:
        """Hub id or bundled name; of a local folder only its last part, so that no machine path is published."""
        name = str(self.pipe.config.get("_name_or_path") or "")
        return Path(name).name if Path(name).is_dir() else name

    @property
    def device(self) -> torch.device:
        """Where the pipeline executes (offloaded models report the execution device)."""
        return self.pipe._execution_device

    @property
    def dtype(self) -> torch.dtype:
        """The UNet's dtype."""
        return self.pipe.unet.dtype

    @property
    def _tokenizer(self) -> Any:
        """A copy of the pipeline's tokenizer.

        A fast tokenizer keeps padding and truncation as state between setting and use: calling the pipeline's own here
        would change what a sibling in another thread is encoding at that moment.
        """
        own = self._private_tokenizer
        if own is None or len(own) != len(self.pipe.tokenizer):
            self._private_tokenizer = copy.deepcopy(self.pipe.tokenizer)
        return self._private_tokenizer

    def _run_text_encoder(self, prompts: Sequence[str]) -> tuple[Tensor, Any]:
        encoder = self.pipe.text_encoder
        tokenizer = self._tokenizer
        inputs = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        mask = inputs.attention_mask.to(self.device) if getattr(encoder.config, "use_attention_mask", False) else None
        with torch.no_grad():
            output = encoder(inputs.input_ids.to(self.device), attention_mask=mask)
        return inputs.input_ids, output

    def encode(self, prompts: Sequence[str]) -> list[EncodedPrompt]:
        """Encode prompts for a permeability rule, on CPU in fp32; tokens beyond the encoder's window are cut."""
        if not prompts:
            return []
        _, output = self._run_text_encoder(prompts)
        states = output[0].float().cpu()
        pooled = output.pooler_output.float().cpu()
        tokenizer = self._tokenizer
        room = tokenizer.model_max_length - 2
        encoded: list[EncodedPrompt] = []
        for row, text in enumerate(prompts):
            ids = tuple(tokenizer(text, add_special_tokens=False, truncation=True, max_length=room).input_ids)
            tokens = tuple(tokenizer.convert_ids_to_tokens(list(ids)))
            encoded.append(EncodedPrompt(text, ids, tokens, states[row], pooled[row], first=1))
        return encoded

    def condition(self, prompts: Sequence[str]) -> Tensor:
        """Return the text encoder's last hidden states, shape (prompts, sequence, dim)."""
        _, output = self._run_text_encoder(prompts)
        return output[0].to(self.dtype)

    def predict(self, latents: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """Return the UNet's prediction, in the shape of `latents`, (rows, channels, height, width)."""
        return self.pipe.unet(latents, timesteps, encoder_hidden_states=condition, return_dict=False)[0]

    def observe(
        self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, list[ObservedRows], list[tuple[Tensor, Tensor, Role]]]:
        """Run `encode_prompt` and say which of the returned rows came from which text."""
        given = inspect.signature(call).bind(*args, **kwargs).arguments
        result = call(*args, **kwargs)
        positive, negative = result[0], result[1]
        known: list[ObservedRows] = []
        passed: list[tuple[Tensor, Tensor, Role]] = []
        prompt, prompt_embeds = given.get("prompt"), given.get("prompt_embeds")
        if prompt_embeds is not None:
            passed.append((prompt_embeds, positive, Role.PROMPT))
        elif prompt is not None:
            known.append((positive, _as_list(prompt), Role.PROMPT))
        if negative is None or not given.get("do_classifier_free_guidance", False):
            return result, known, passed
        negative_embeds, negative_prompt = given.get("negative_prompt_embeds"), given.get("negative_prompt")
        if negative_embeds is not None:
            passed.append((negative_embeds, negative, Role.NEGATIVE))
        else:
            known.append((negative, _as_list(negative_prompt or ""), Role.NEGATIVE))
        return result, known, passed

    def call_rows(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, list[bool]]:
        """Return `encoder_hidden_states` and which rows are conditional: under CFG, the second half."""
        states = kwargs.get("encoder_hidden_states", args[2] if len(args) > 2 else None)
        if not isinstance(states, Tensor):
            raise AttachError("the UNet was called without encoder_hidden_states; membranes cannot be gated")
        rows = states.shape[0]
        guided = bool(getattr(self.pipe, "_guidance_scale", None) is not None and self.pipe.do_classifier_free_guidance)
        if guided and rows % 2 == 0:
            return states, [False] * (rows // 2) + [True] * (rows // 2)
        return states, [True] * rows

    def make_scheduler(self, num_steps: int) -> Any:
        """Return a fresh scheduler of the pipeline's kind with `num_steps` timesteps set."""
        scheduler = type(self.pipe.scheduler).from_config(self.pipe.scheduler.config)
        scheduler.set_timesteps(num_steps, device=self.device)
        return scheduler

    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent at the model's native size."""
        config = self.pipe.unet.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        return int(config.in_channels), int(height), int(width)

    def base_hash(self) -> str:
        """SHA-256 of the UNet's weights."""
        return self._hash("unet")

    def text_encoder_hash(self) -> str:
        """SHA-256 of the text encoder's weights."""
        return self._hash("text_encoder")

    def _hash(self, part: str) -> str:
        if part not in self._hashes:
            self._hashes[part] = weights_hash(getattr(self.pipe, part))
        return self._hashes[part]
