"""Every setting of training, with the presets."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from semipermeable.errors import ConfigError, closest
from semipermeable.membrane import Json

__all__ = ["Dtype", "Schedule", "TrainConfig", "presets"]

Schedule = Literal["cosine_restarts", "cosine", "constant"]
Dtype = Literal["bf16", "fp16"]
_NOT_MATHEMATICS = ("checkpoint", "checkpoint_every", "preview", "preview_every", "preview_prompts", "tensorboard")
_ETA = {"object": "negative_guidance", "style": "style_negative_guidance"}
_BITS = 63
_SWITCHES = (
    "reuse_trajectories",
    "skip_unconditional",
    "cache_frozen",
    "target_captions",
    "surrogate_in_wording",
    "sibling_surrogate",
    "closed_form",
    "gradient_checkpointing",
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a membrane is trained. The defaults are the preset "fast".

    Raises:
        ConfigError: if a value is not usable, naming the field.
    """

    rank: int = 1
    """k of each pair."""
    num_steps: int = 24
    """Optimiser steps; 0 keeps the starting point (with `closed_form`, an instant eraser)."""
    batch_size: int = 4
    """Rows about the concept in one step."""
    num_anchors: int = 4
    """Rows in one step on which nothing may change; 0 trains without anchoring."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW (no weight decay)."""
    schedule: Schedule = "cosine"
    """How the rate falls after the warm-up: to zero once, several times, or not at all."""
    num_restarts: int = 1
    """Cycles of "cosine_restarts"; no effect on the other schedules."""
    warmup_steps: int = 5
    """Steps of linear rise."""
    anchor_weight: float = 30.0
    """λ of SPM's Eq. 8."""
    negative_guidance: float | None = None
    """η of Eq. 4 for an object; 0 stops at the surrogate. None reads it off the text, see `reach`."""
    style_negative_guidance: float | None = None
    """η for a style. None reads it off the text, see `reach`."""
    reach: float = 1.4
    """Where η is None: how far an erasure moves what the denoiser reads, in units of a kept text state, so that
    1 + η = reach / distance of concept and surrogate (`Workshop.eta`): a near surrogate is gone beyond, a far one needs
    less. No effect where η is a number."""
    anchor_power: float = 1.0
    """α of Eq. 6; 0 draws anchors uniformly."""
    sampling_steps: int = 6
    """Length of the grid on which latents are denoised."""
    sampling_guidance: float = 4.0
    """Classifier-free guidance of that denoising; no effect on models that are guided otherwise (FLUX.1, LCM)."""
    reuse_trajectories: bool = True
    """True: all latents of `num_trajectories` runs are kept, each with its label, and drawn from in every step.
    False: every step denoises afresh to a random time, as the paper does."""
    num_trajectories: int = 6
    """Runs per kind (concept, surrogate) that are kept; three times as many for anchors. No effect without reuse."""
    skip_unconditional: bool = True
    """False computes the unconditional half of a call also where guidance is 1, as the reference code does."""
    cache_frozen: bool = True
    """Compute predictions of the base model once per kept latent. False computes them in every step."""
    anchors: Literal["captions", "gaussian"] = "captions"
    """Anchors are real captions, or Gaussian noise in the place of text states as in the reference code."""
    twin_share: float = 0.25
    """Share of the anchors taken from the concept's near neighbours, in [0, 1]; the rest is drawn by Eq. 6."""
    target_captions: bool = True
    """Train on captions of the concept; False trains on its bare names, as the paper does."""
    surrogate_in_wording: bool = True
    """The surrogate takes the concept's place in the caption; False falls to the bare surrogate."""
    sibling_surrogate: bool = True
    """An object of a bundled model whose surrogate is left open falls to the nearest other object of its group
    ("a cat" to "a dog"; of another group if all of its own are erased), and where η is None a surrogate that is another
    object has η 0. False falls to the word for the group ("an animal"). No effect on styles, memorised pictures and
    other models."""
    closed_form: bool = True
    """Start from the closed-form edit of the sites where text alone enters (cross-attention keys and values; in SD3 and
    FLUX the text's first projection); False starts from zero, and so does True in families without such sites."""
    closed_form_keep: float = 3.0
    """λ of the closed form: weight of the kept text states."""
    closed_form_null: float | None = None
    """Confine the closed form to directions in which kept text states have at most this share of their strongest
    direction's power, in [0, 1), as SPEED does. None allows all directions. Training afterwards is not confined."""
    closed_form_spare: float | None = None
    """Share of what tells the wordings of a caption apart that the closed form's η leaves alone, in [0, 1]: beyond the
    surrogate it goes only where wordings do not differ, so that styles outlast a large η. None spares nothing."""
    dtype: Dtype | None = None
    """Autocast dtype of the network; the pairs stay fp32. None runs in the pipeline's own dtype."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, the same gradients."""
    divergence_factor: float = 1e3
    """Stop when the loss exceeds this many times the first one (or 0.01, if that was smaller)."""
    checkpoint: str | None = None
    """File to resume from if it exists, and to write to. None keeps no checkpoint."""
    checkpoint_every: int = 20
    """Steps between two checkpoints."""
    preview: Callable[[int, Sequence[Any]], None] | None = field(default=None, compare=False)
    """Called with the step and one picture per preview prompt. None draws none."""
    preview_every: int = 20
    """Steps between two previews."""
    preview_prompts: tuple[str, ...] = ()
    """What to draw; () draws the first caption of the concept and the first anchor."""
    tensorboard: str | None = None
    """Folder for TensorBoard logs (needs the extra `tensorboard`). None writes none."""

    def __post_init__(self) -> None:
        for name in ("rank", "batch_size", "num_restarts", "sampling_steps", "num_trajectories", "checkpoint_every"):
            self._check(name, int, 1)
        for name in ("num_steps", "num_anchors", "warmup_steps"):
            self._check(name, int, 0)
        self._check("preview_every", int, 1)
        for name in ("learning_rate", "closed_form_keep", "divergence_factor", "reach"):
            self._check(name, float, 0, strict=True)
        for name in ("anchor_weight", "anchor_power", "sampling_guidance"):
            self._check(name, float, 0)
        for name in _ETA.values():
            if getattr(self, name) is not None:
                self._check(name, float, 0)
        self._check_share("twin_share")
        if self.closed_form_null is not None:
            self._check_share("closed_form_null", whole=False)
        if self.closed_form_spare is not None:
            self._check_share("closed_form_spare")
        self._one_of("schedule", get_args(Schedule))
        self._one_of("anchors", ("captions", "gaussian"))
        self._one_of("dtype", (None, *get_args(Dtype)))
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, found {getattr(self, name)!r}")
        for name in ("checkpoint", "tensorboard"):
            if not isinstance(getattr(self, name), str | None):
                raise ConfigError(f"{name} must be a path as text, found {getattr(self, name)!r}")
        prompts: Any = self.preview_prompts
        if not isinstance(prompts, list | tuple) or not all(isinstance(p, str) and p.strip() for p in prompts):
            raise ConfigError(f"preview_prompts must be a list of texts, none of them empty, found {prompts!r}")
        if self.preview is not None and not callable(self.preview):
            raise ConfigError(f"preview must be a function of step and pictures, found {self.preview!r}")

    def _check(self, name: str, kind: type, least: float, *, strict: bool = False) -> None:
        value = getattr(self, name)
        kinds = (int,) if kind is int else (int, float)
        if isinstance(value, int) and value.bit_length() > _BITS:
            raise ConfigError(f"{name} must be below 2**{_BITS}, found a number of {value.bit_length()} bits")
        if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
            raise ConfigError(f"{name} must be a {'whole' if kind is int else 'finite'} number, found {value!r}")
        if value < least or (strict and value == least):
            raise ConfigError(f"{name} must be {'above' if strict else 'at least'} {least}, found {value!r}")

    def _check_share(self, name: str, *, whole: bool = True) -> None:
        value = getattr(self, name)
        self._check(name, float, 0)
        if value > 1 or (value == 1 and not whole):
            raise ConfigError(f"{name} must be in [0, 1{']' if whole else ')'}, found {value!r}")

    def _one_of(self, name: str, allowed: Sequence[str | None]) -> None:
        value = getattr(self, name)
        if value not in allowed:
            raise ConfigError(f"{name} must be one of {', '.join(map(repr, allowed))}, found {value!r}")

    @classmethod
    def from_preset(cls, preset: str, **overrides: Any) -> "TrainConfig":
        """Return a preset with some fields replaced.

        Args:
            preset: one of `presets()`.
            overrides: field name to value.

        Raises:
            ConfigError: if the preset or a field is not known (close names are suggested), or a value is not usable.
        """
        if preset not in _PRESETS:
            raise ConfigError(closest(preset, _PRESETS, what="preset"))
        known = {f.name for f in dataclasses.fields(cls)}
        for name in overrides:
            if name not in known:
                raise ConfigError(closest(name, known, what="training setting"))
        return cls(**{**_PRESETS[preset], **overrides})

    def eta(self, kind: Literal["object", "style"]) -> float | None:
        """Return η of Eq. 4 for a concept of a kind; None is to be read off the text (`Workshop.eta`)."""
        given = getattr(self, _ETA[kind])
        return None if given is None else float(given)

    def to_json(self) -> dict[str, Json]:
        """Return the fields that decide what comes out, as JSON data; where files go and how often is left out."""
        found = any(getattr(self, name) is None for name in _ETA.values())
        effectless = {
            "reach": not found,
            "closed_form_spare": self.closed_form_spare is None,
            "sibling_surrogate": not self.sibling_surrogate,
        }
        without = (*_NOT_MATHEMATICS, *(name for name, left_out in effectless.items() if left_out))
        fields = (f.name for f in dataclasses.fields(self) if f.name not in without)
        return {name: getattr(self, name) for name in fields}


_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "instant": {"num_steps": 0},
    "fast": {},
    "paper": {
        "rank": 1,
        "num_steps": 3000,
        "batch_size": 1,
        "num_anchors": 4,
        "learning_rate": 1e-4,
        "schedule": "cosine_restarts",
        "num_restarts": 1,
        "warmup_steps": 500,
        "anchor_weight": 1e3,
        "negative_guidance": 1.0,
        "style_negative_guidance": 1.0,
        "anchor_power": 1.0,
        "sampling_steps": 30,
        "sampling_guidance": 3.0,
        "reuse_trajectories": False,
        "num_trajectories": 3,
        "cache_frozen": False,
        "anchors": "gaussian",
        "twin_share": 0.0,
        "target_captions": False,
        "surrogate_in_wording": False,
        "sibling_surrogate": False,
        "closed_form": False,
    },
}


def presets() -> tuple[str, ...]:
    """Return the names of all presets."""
    return tuple(_PRESETS)
