"""Protocols of judges, and the panel that holds those of one run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from semipermeable.evaluation.scores import Moments
from semipermeable.membrane import Json

__all__ = ["ClipLike", "CopyLike", "JudgeLike", "Panel", "PartsLike", "RealPictures"]


class JudgeLike(Protocol):
    """Says which object and style a picture shows; see `zoo.judges.Judge`."""

    @property
    def objects(self) -> tuple[str, ...]:
        """Classes of objects; () if it sees none."""
        ...

    @property
    def styles(self) -> tuple[str, ...]:
        """Classes of styles; () if it sees none."""
        ...

    def __call__(self, images: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return indices of object and style, shape (rows,) each."""
        ...


class ClipLike(Protocol):
    """Pictures and texts in one space; see `zoo.judges.Clip`."""

    def image_features(self, images: Tensor, /) -> Tensor:
        """Return image features, shape (rows, width)."""
        ...

    def text_features(self, texts: list[str], /) -> Tensor:
        """Return text features, shape (rows, width)."""
        ...


class CopyLike(Protocol):
    """Says which memorised picture another one copies."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the memorised pictures."""
        ...

    def similarities(self, images: Tensor, /) -> Tensor:
        """Return similarities, shape (rows, memorised pictures)."""
        ...

    def verdicts(self, similarities: Tensor, /) -> list[str | None]:
        """Return the name of the picture that each row copies, None where it copies none."""
        ...


class PartsLike(Protocol):
    """Finds exposed body parts; see `judges.nudity`."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that it counts."""
        ...

    def __call__(self, images: Tensor, /) -> list[list[str]]:
        """Return the exposed parts found in each picture, one entry for each find."""
        ...


@dataclass(frozen=True, eq=False)
class RealPictures:
    """Features of real pictures.

    Args:
        moments: of all of them.
        features: of all, or of a sample, shape (n, width).
    """

    moments: Moments
    features: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """Everyone who looks at the pictures; None leaves that judge's figures out."""

    judge: JudgeLike | None = None
    """Sees objects and styles."""
    clip: ClipLike | None = None
    """Pictures and texts in one space."""
    features: Callable[[Tensor], Tensor] | None = None
    """Features of pictures for distances between sets; None takes those of the judge, if it has any."""
    real: RealPictures | None = None
    """What the kept pictures are compared with beside the base model's own."""
    copies: CopyLike | None = None
    """Knows memorised pictures again."""
    nudity: PartsLike | None = None
    """Finds exposed body parts."""
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None
    """LPIPS: distances of two batches in [−1, 1]."""
    missing: tuple[str, ...] = ()
    """What could not be measured and why, for readers."""
    described: Mapping[str, Json] = field(default_factory=lambda: dict[str, Json]())
    """Which judges these are: name and digest of each file given."""

    @property
    def embed(self) -> Callable[[Tensor], Tensor] | None:
        """Features of pictures, from whoever has them."""
        own: Any = getattr(self.judge, "features", None)
        return self.features or own

    @property
    def objects(self) -> Sequence[str]:
        """Objects that are told apart; () without a judge of objects."""
        return () if self.judge is None else self.judge.objects

    @property
    def styles(self) -> Sequence[str]:
        """Styles that are told apart; () without a judge of styles."""
        return () if self.judge is None else self.judge.styles
