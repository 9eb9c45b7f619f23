"""The nodes: load membranes into a model, gate a prompt, show γ.

γ travels with the conditioning. A conditioning's options may hold `model_conds`, which ComfyUI repeats to the batch,
joins for the rows of a call, and hands to the model's function wrapper; there γ is taken out again and every row is
gated by its own. So prompts of one call, regions, and the two halves of guidance each get what was decided for them, as
in `semipermeable.attach`. A call whose γ is missing is refused: nothing is drawn bare by accident.
"""

import hashlib
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semipermeable.errors import AttachError
from semipermeable.files import load
from semipermeable.membrane import Membrane
from semipermeable.permeability import Decision
from semipermeable.runtime import Binding

from .gating import Report, decide
from .sites import on_original_layout

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "GatePrompt", "LoadMembranes", "ShowGamma"]

_CATEGORY = "semipermeable"
_FOLDER = "membranes"
_MARK = "semipermeable_key"
"""An attribute by which our wrapper is known."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """Membranes and the name under which their γ travels, which other membranes do not share."""

    membranes: tuple[Membrane, ...]
    key: str


class LoadMembranes:
    """Let membranes act on a model, on the rows whose conditioning was gated for them."""

    CATEGORY = _CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "MEMBRANES")
    RETURN_NAMES = ("model", "membranes")
    DESCRIPTION = "Load membranes. Encode every prompt for this model, the negative one too, with Gate Prompt."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Return the inputs, as ComfyUI asks for them."""
        return {
            "required": {
                "model": ("MODEL",),
                "files": ("STRING", {"multiline": True, "tooltip": "One file per line, in models/membranes."}),
                "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.05}),
            }
        }

    @classmethod
    def IS_CHANGED(cls, files: str, **_others: Any) -> str:  # noqa: N802
        """Return what changes when a file's content does, so that ComfyUI loads it again."""
        return _digest(_paths(files))

    def load(self, model: Any, files: str, strength: float) -> tuple[Any, Loaded]:
        """Return a model that the membranes act on, and the membranes.

        Args:
            model: ComfyUI's ModelPatcher; it stays as it is, a clone of it is returned.
            files: membrane files, one per line.
            strength: factor on γ; may exceed 1.

        Raises:
            MembraneFileError: if a file cannot be read.
            AttachError, SiteError: if a membrane does not fit the model, or the model has membranes already.
        """
        paths = _paths(files)
        loaded = Loaded(tuple(load(path) for path in paths), f"semipermeable_{_digest(paths)[:16]}")
        before = model.model_options.get("model_function_wrapper")
        if hasattr(before, _MARK):
            raise AttachError("this model has membranes already; name all files in one Load Membranes, one per line")
        clone = model.clone()
        denoiser: nn.Module = clone.model.diffusion_model
        binding = Binding(denoiser, [on_original_layout(membrane, denoiser) for membrane in loaded.membranes])
        wrapper = _wrapper(binding, loaded, float(strength), before)
        setattr(wrapper, _MARK, loaded.key)
        weakref.finalize(wrapper, binding.remove)
        clone.set_model_unet_function_wrapper(wrapper)
        return clone, loaded


def _wrapper(
    binding: Binding, loaded: Loaded, strength: float, before: Callable[..., Tensor] | None
) -> Callable[[Callable[..., Tensor], Mapping[str, Any]], Tensor]:
    """Return the function that ComfyUI calls in the denoiser's place.

    A plain function, not an object: ComfyUI copies a model's options in depth, and functions are shared by that.
    """
    power = torch.tensor([float(membrane.gate_power) for membrane in loaded.membranes])

    def wrapper(apply_model: Callable[..., Tensor], arguments: Mapping[str, Any]) -> Tensor:
        c = dict(arguments["c"])
        gamma = c.pop(loaded.key, None)
        rows = arguments["input"].shape[0]
        if not isinstance(gamma, Tensor) or tuple(gamma.shape) != (rows, len(loaded.membranes)):
            names = ", ".join(membrane.name for membrane in loaded.membranes)
            raise AttachError(
                f"a conditioning was not gated for the membranes of this model ({names}); encode it with Gate Prompt, "
                "connected to the membranes of this very Load Membranes, the negative prompt too (negative = true)"
            )
        with binding.activate(gamma.detach().to("cpu", torch.float32) ** power * strength):
            if before is not None:
                return before(apply_model, {**arguments, "c": c})
            return apply_model(arguments["input"], arguments["timestep"], **c)

    return wrapper


class GatePrompt:
    """Encode a prompt, and decide how strongly each membrane acts on it."""

    CATEGORY = _CATEGORY
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING", "GAMMA")
    RETURN_NAMES = ("conditioning", "gamma")
    DESCRIPTION = "CLIP Text Encode that also gates membranes: γ is 1 where the prompt names their concept, else 0."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Return the inputs, as ComfyUI asks for them."""
        return {
            "required": {
                "clip": ("CLIP",),
                "membranes": ("MEMBRANES",),
                "text": ("STRING", {"multiline": True, "dynamicPrompts": True}),
                "negative": ("BOOLEAN", {"default": False, "tooltip": "A negative prompt: γ is 0."}),
            },
            "optional": {
                "conditioning": ("CONDITIONING", {"tooltip": "Made of this text by another node; it is gated only."})
            },
        }

    def encode(
        self, clip: Any, membranes: Loaded, text: str, negative: bool, conditioning: list[Any] | None = None
    ) -> tuple[list[Any], Report]:
        """Return the conditioning with its γ, and what was decided.

        Args:
            clip: ComfyUI's CLIP.
            membranes: from Load Membranes.
            text: the prompt.
            negative: whether it is a negative prompt, on which no membrane acts.
            conditioning: what another node made of the text; None encodes it here.

        Raises:
            CalibrationError: if a stored gate cannot be read.
        """
        from comfy.conds import CONDRegular

        if negative:
            closed = Decision(0.0, "negative prompt")
            report = Report(text, tuple((membrane.name, closed) for membrane in membranes.membranes))
        else:
            report = decide(clip, membranes.membranes, text)
        gamma = torch.tensor([[decision.gamma for _, decision in report.decisions]])
        made = clip.encode_from_tokens_scheduled(clip.tokenize(text)) if conditioning is None else conditioning
        gated = [
            [states, {**options, "model_conds": {**options.get("model_conds", {}), membranes.key: CONDRegular(gamma)}}]
            for states, options in made
        ]
        return gated, report


class ShowGamma:
    """Show what was decided about a prompt."""

    CATEGORY = _CATEGORY
    FUNCTION = "show"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("text",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Return the inputs, as ComfyUI asks for them."""
        return {"required": {"gamma": ("GAMMA",)}}

    def show(self, gamma: Report) -> dict[str, Any]:
        """Return the prompt, then a line for each concept with γ and the reason."""
        return {"ui": {"text": [str(gamma)]}, "result": (str(gamma),)}


def _paths(files: str) -> list[Path]:
    """Return the files that a text names, one per line; without a folder they lie in models/membranes."""
    import folder_paths

    lines = [line.strip() for line in files.splitlines() if line.strip()]
    if not lines:
        raise AttachError("no membrane was named; write one file per line, e.g. cat.safetensors")
    return [Path(folder_paths.models_dir) / _FOLDER / line for line in lines]


def _digest(paths: list[Path]) -> str:
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else str(path) for path in paths]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


NODE_CLASS_MAPPINGS = {
    "SemipermeableLoadMembranes": LoadMembranes,
    "SemipermeableGatePrompt": GatePrompt,
    "SemipermeableShowGamma": ShowGamma,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "SemipermeableLoadMembranes": "Load Membranes",
    "SemipermeableGatePrompt": "Gate Prompt",
    "SemipermeableShowGamma": "Show Gamma",
}
