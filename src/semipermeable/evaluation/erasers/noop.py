"""The eraser that erases nothing: what every other one is compared with."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from semipermeable.concept import Concept
from semipermeable.evaluation.erasers.protocol import Card, Draw
from semipermeable.evaluation.erasers.subjects import configuration, subjects_of
from semipermeable.membrane import Json

__all__ = ["CARD", "Noop"]

CARD = Card(paper="none", defaults="the base model as it is", tuned="nothing")


@dataclass(frozen=True, eq=False)
class _Unchanged:
    """Nothing to put into effect."""

    config: Mapping[str, Json]
    stored_bytes: int = 0

    @contextmanager
    def applied(self, pipe: Any) -> Generator[Draw, None, None]:
        """See `Erasure`."""
        yield pipe


class Noop:
    """See the module."""

    name = "noop"
    gated = False

    def prepare(self, pipe: Any, concepts: Sequence[Concept], *, seed: int, progress: bool = False) -> _Unchanged:  # noqa: ARG002
        """See `Eraser`."""
        return _Unchanged(configuration(self.name, subjects_of(pipe, concepts), None))
