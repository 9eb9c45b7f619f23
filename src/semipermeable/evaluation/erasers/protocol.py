"""What an eraser is: something that turns (pipeline, concepts) into an erased pipeline, and back.

    erasure = eraser.prepare(pipe, concepts, seed=0)       # slow part: training, or solving
    with erasure.applied(pipe) as erased:                  # reversible part
        images = erased(["a neon icon of a cat"], num_inference_steps=25, generator=[...], output_type="pt").images

`prepare` leaves the pipeline as it was; leaving `applied` gives it back bit for bit, weights included. A third party
brings an eraser under the entry-point group `semipermeable.erasers` (see `registry`).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from semipermeable.concept import Concept
from semipermeable.membrane import Json

__all__ = ["Card", "Draw", "Eraser", "Erasure"]

Draw: TypeAlias = Callable[..., Any]
"""Draws like a diffusers pipeline: `draw(prompts, num_inference_steps=…, guidance_scale=…, generator=[…],
negative_prompt=None, output_type="pt").images`; other options of the pipeline are passed on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What a reader of a comparison must know about an eraser."""

    paper: str
    """Authors, year, title or venue, arXiv number; "none" for a plain baseline."""
    defaults: str
    """The settings it runs with, and where they come from."""
    tuned: str
    """What was tuned for the comparison, and how; "nothing" where nothing was."""
    checked: str = "nothing to check"
    """Where equations and settings were compared with their authors' own code: repository and file."""


@runtime_checkable
class Erasure(Protocol):
    """A prepared erasure of some concepts from one model."""

    @property
    def stored_bytes(self) -> int:
        """Bytes that must be kept beside the base model to erase again."""
        ...

    @property
    def config(self) -> Mapping[str, Json]:
        """Every setting that decides what comes out, JSON data, for hashing."""
        ...

    def applied(self, pipe: Any) -> AbstractContextManager[Draw]:
        """Put the erasure into effect.

        Args:
            pipe: the pipeline it was prepared on, or another of the same weights. Siblings that share its denoiser may
                be erased meanwhile.

        Returns:
            a context that yields what draws erased pictures; on exit the pipeline is as it was, bit for bit.
        """
        ...


@runtime_checkable
class Eraser(Protocol):
    """A way to erase concepts."""

    @property
    def name(self) -> str:
        """The spec string it was made from, e.g. "sld:max"."""
        ...

    @property
    def gated(self) -> bool:
        """Whether it decides prompt by prompt to act; gated and always-open erasers are ranked apart."""
        ...

    def prepare(self, pipe: Any, concepts: Sequence[Concept], *, seed: int, progress: bool = False) -> Erasure:
        """Make an erasure; the pipeline is left as it was.

        Args:
            pipe: a loaded pipeline of a supported family, without membranes attached.
            concepts: what to erase, all at once.
            seed: of every random draw.
            progress: show a progress bar.
        """
        ...
