"""Other erasers with the surrogate that this package's preset "fast" chooses: is it the method, or is it the word?

    uce                     falls to the word for the object's group, as the benchmark's concepts say
    uce:sibling             falls to a sibling of the object (`training.surrogates`)
    uce:tuned,sibling       the same at the settings that were found

Styles and memorised pictures keep their surrogate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from semipermeable.concept import Concept
from semipermeable.evaluation.erasers.protocol import Eraser, Erasure
from semipermeable.membrane import Json
from semipermeable.training import TrainConfig
from semipermeable.training.surrogates import resettled
from semipermeable.training.workshop import Workshop

__all__ = ["SIBLING", "TowardsSiblings"]

SIBLING = "sibling"
"""The word for it in a spec string."""


@dataclass(frozen=True)
class TowardsSiblings:
    """An eraser whose concepts fall to siblings.

    Args:
        inner: the eraser.
        name: see `Eraser`.
    """

    inner: Eraser
    name: str

    @property
    def gated(self) -> bool:
        """See `Eraser`."""
        return self.inner.gated

    @property
    def settings(self) -> Any:
        """Of the eraser; None if it has none."""
        return getattr(self.inner, "settings", None)

    @property
    def recipe(self) -> Mapping[str, Json] | None:
        """Of the eraser, told apart by the word; None if nothing is trained."""
        found: Mapping[str, Any] | None = getattr(self.inner, "recipe", None)
        return None if found is None else {key: {**settings, "surrogate": SIBLING} for key, settings in found.items()}

    def prepare(self, pipe: Any, concepts: Sequence[Concept], *, seed: int, progress: bool = False) -> Erasure:
        """See `Eraser`."""
        wanted = resettled(Workshop(pipe), concepts, TrainConfig(sibling_surrogate=True))
        return self.inner.prepare(pipe, wanted, seed=seed, progress=progress)
