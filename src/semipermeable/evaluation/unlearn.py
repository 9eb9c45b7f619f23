"""Erasers of this package as a technique of the public `eval-unlearn` harness.

Where `eval-unlearn` (1.1) is installed it finds this class by the entry-point group `eval_unlearn.techniques`, under
the name "semipermeable"; nothing of it is imported here. A technique is made with its configuration as keyword
arguments and asked for pictures, one per prompt:

    {"technique": "semipermeable", "technique_config": {"model_id": "CompVis/stable-diffusion-v1-4",
                                                        "erase_concept": "nudity", "eraser": "spm"}}
"""

from collections.abc import Sequence
from typing import Any

import torch

from semipermeable.concept import Concept
from semipermeable.errors import ConfigError
from semipermeable.evaluation.erasers import eraser as find
from semipermeable.generation import load_model
from semipermeable.training import enrich
from semipermeable.training.captions import spec_of

__all__ = ["Technique"]


class Technique:
    """A model with concepts erased, for `eval-unlearn`.

    Args:
        erase_concept: what to erase; several names are separated by commas.
        model_id: as `generation.load_model` takes it: a bundled model, a hub id, a folder or a `.safetensors` file.
        eraser: spec string, e.g. "spm", "spm:nudity.safetensors", "uce".
        surrogate: what takes the concept's place; "" takes a bundled model's own, or nothing.
        train_seed: of training or solving.
        device: a torch device; None takes the best there is.
        dtype: "fp32", "fp16" or "bf16"; None chooses by model and device.
        num_inference_steps: denoising steps.
        guidance_scale: classifier-free guidance.

    Raises:
        ConfigError: if there is no concept.
        ModelError: if the model cannot be loaded.
        UnknownNameError: if the eraser is not known.
    """

    def __init__(
        self,
        *,
        erase_concept: str,
        model_id: str = "emoji",
        eraser: str = "spm",
        surrogate: str = "",
        train_seed: int = 0,
        device: str | None = None,
        dtype: str | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
    ) -> None:
        names = [name.strip() for name in erase_concept.split(",") if name.strip()]
        if not names:
            raise ConfigError(f"erase_concept must name a concept, found {erase_concept!r}")
        method = find(eraser)
        self.pipe = load_model(model_id, device=device, dtype=dtype)
        spec = spec_of(self.pipe)
        concepts = [enrich(Concept(name, surrogate=surrogate) if surrogate else name, spec) for name in names]
        self.erasure = method.prepare(self.pipe, concepts, seed=train_seed)
        self._steps, self._guidance = num_inference_steps, guidance_scale

    def generate(self, prompts: Sequence[str], seed: int | None = None, **options: Any) -> list[Any]:
        """Draw one picture per prompt.

        Args:
            prompts: the texts.
            seed: that of the first prompt's noise, the next ones count up; None draws a fresh one.
            options: of the pipeline's call, as `eval-unlearn` hands them on.

        Returns:
            PIL images.
        """
        chosen = {"num_inference_steps": self._steps, "guidance_scale": self._guidance, **options}
        images: list[Any] = []
        with self.erasure.applied(self.pipe) as draw:
            for number, prompt in enumerate(prompts):
                noise = None if seed is None else [torch.Generator().manual_seed(seed + number)]
                images += draw([prompt], generator=noise, **chosen).images
        return images
