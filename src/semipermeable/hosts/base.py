"""What a pipeline family must tell the rest of the package."""

import ctypes
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from semipermeable.permeability.decisions import EncodedPrompt
from semipermeable.runtime import Role

__all__ = ["Host", "ObservedRows", "weights_hash"]

ObservedRows = tuple[Tensor, Sequence[str], Role]
"""Embedding rows (n · len(texts), sequence, dim), their texts, and what they were made for."""


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over names, shapes and values of all weights, rounded to fp16, so that the load dtype does not matter.

    Args:
        module: any module; parameters and persistent buffers count. PEFT-wrapped layers count as if unwrapped.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if ".lora_" in name:
            continue
        value = tensor.detach().to("cpu", torch.float16).contiguous()
        digest.update(f"{name.replace('.base_layer', '')}{tuple(value.shape)}".encode())
        digest.update(ctypes.string_at(value.data_ptr(), value.numel() * value.element_size()))
    return digest.hexdigest()


class Host(Protocol):
    """A pipeline family: where its denoiser is, how it encodes text, which rows of a call are conditional."""

    family: str
    """Short name, e.g. "unet"."""
    denoiser_name: str
    """The pipeline attribute that holds the denoiser."""
    encode_name: str
    """The pipeline method that turns prompts into embeddings."""
    site_classes: tuple[str, ...]
    """Membranes sit on the Linear and Conv2d layers inside modules of these classes."""
    pipe: Any
    """The pipeline."""

    @property
    def denoiser(self) -> nn.Module:
        """The network that predicts noise, as the pipeline holds it now."""
        ...

    @property
    def prediction_type(self) -> str:
        """ "epsilon", "v_prediction" or "flow"."""
        ...

    @property
    def base_model(self) -> str:
        """Id of the base model without machine paths."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The denoiser's dtype."""
        ...

    def encode(self, prompts: Sequence[str]) -> list[EncodedPrompt]:
        """Encode prompts for a permeability rule, on CPU in fp32."""
        ...

    def condition(self, prompts: Sequence[str]) -> Tensor:
        """Return what the denoiser is conditioned on, shape (prompts, sequence, dim), on its device and dtype."""
        ...

    def predict(self, latents: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """Call the denoiser; all arguments have one row per sample. Returns its prediction, in the shape of latents."""
        ...

    def observe(
        self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, list[ObservedRows], list[tuple[Tensor, Tensor, Role]]]:
        """Run the pipeline's encode method and say which rows came from which texts.

        Returns:
            its result; rows with known texts; and (rows given, rows returned, role) for embeddings it passed through.
        """
        ...

    def call_rows(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, list[bool]]:
        """Return a denoiser call's text rows (rows, sequence, dim) and which of them are conditional."""
        ...

    def make_scheduler(self, num_steps: int) -> Any:
        """Return a fresh scheduler of the pipeline's kind with `num_steps` timesteps set."""
        ...

    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent at the model's native size, (channels, height, width)."""
        ...

    def base_hash(self) -> str:
        """SHA-256 of the denoiser's weights (`weights_hash`)."""
        ...

    def text_encoder_hash(self) -> str:
        """SHA-256 of the text encoder's weights (`weights_hash`)."""
        ...
