"""Judges of copies: by pixels for the bundled model's canaries, by SSCD descriptors for real models.

A canary counts as reproduced under the rule of the zoo's recipe (`zoo/recipe/memorised.py`): nearer than 0.8 of the
distance to the nearest other taught picture. The taught pictures are not in the bundle; the median of those distances,
measured when the model was made, is, and stands in for them.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from semipermeable import zoo
from semipermeable.errors import ConfigError, ZooError
from semipermeable.evaluation.judges.pictures import picture_files, read_picture
from semipermeable.evaluation.scores.copies import SSCD_THRESHOLD, copied, cosine_similarities, pixel_similarities
from semipermeable.zoo.bundle import bundle_folder, verify

__all__ = ["CanaryJudge", "DescriptorJudge", "canary_judge", "descriptor_judge"]


class CanaryJudge:
    """Knows memorised pictures again by their pixels.

    Args:
        names: of the pictures.
        references: the pictures in [0, 1], shape (names, 3, height, width).
        thresholds: least similarity of a copy, shape (names,); see `scores.copies`.
    """

    def __init__(self, names: Sequence[str], references: Tensor, thresholds: Tensor) -> None:
        self.names = tuple(names)
        self.references = references
        self.thresholds = thresholds

    def similarities(self, images: Tensor) -> Tensor:
        """See `CopyLike`."""
        return pixel_similarities(images, self.references)

    def verdicts(self, similarities: Tensor) -> list[str | None]:
        """See `CopyLike`."""
        return _named(similarities, self.thresholds, self.names)


class DescriptorJudge:
    """Knows memorised pictures again by descriptors.

    Args:
        names: of the pictures.
        references: descriptors of the pictures, shape (names, width).
        describe: pictures in [0, 1] → descriptors, shape (rows, width).
    """

    def __init__(self, names: Sequence[str], references: Tensor, describe: Callable[[Tensor], Tensor]) -> None:
        self.names = tuple(names)
        self.references = references
        self.describe = describe

    def similarities(self, images: Tensor) -> Tensor:
        """See `CopyLike`."""
        return cosine_similarities(self.describe(images), self.references)

    def verdicts(self, similarities: Tensor) -> list[str | None]:
        """See `CopyLike`."""
        return _named(similarities, torch.full((len(self.names),), SSCD_THRESHOLD).double(), self.names)


def _named(similarities: Tensor, thresholds: Tensor, names: tuple[str, ...]) -> list[str | None]:
    return [None if index < 0 else names[index] for index in copied(similarities, thresholds).tolist()]


def canary_judge(model: str) -> CanaryJudge:
    """Return the judge of a bundled model's canaries.

    Raises:
        UnknownNameError: if no bundled model has that name.
        ZooError: if a file is missing or damaged.
    """
    folder, spec = bundle_folder(model), zoo.spec(model)
    verify(folder, ["evaluation.json"])
    content = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    try:
        measured = content["memorised"]
        apart = {row["caption"]: row["median_to_others"] for row in measured["canaries"]}
        limits = [1 - measured["near"] * apart[canary.caption] for canary in spec.canaries]
    except KeyError as error:
        raise ZooError(
            f"evaluation.json of the bundled model {model!r} lacks {error}; reinstall semipermeable"
        ) from error
    names = [canary.caption for canary in spec.canaries]
    return CanaryJudge(names, zoo.canary_pictures(model), torch.tensor(limits, dtype=torch.float64))


def descriptor_judge(
    describe: Callable[[Tensor], Tensor], folder: Path, pictures: Sequence[str], side: int | None = None
) -> DescriptorJudge:
    """Return a judge of copies of some picture files.

    Args:
        describe: pictures in [0, 1] → descriptors.
        folder: where the files lie.
        pictures: names of the pictures: of their files, without suffix.
        side: scale each reference to a square of that many pixels; None leaves it as it is.

    Raises:
        ConfigError: if a file is missing or unreadable.
    """
    files = {path.stem: path for path in picture_files(folder)}
    lost = [name for name in pictures if name not in files]
    if lost:
        raise ConfigError(
            f"folder {str(folder)!r} holds no picture {lost[0]!r} (.png, .jpg, …), which the prompt file names; "
            f"{len(lost)} missing"
        )
    described = [describe(read_picture(files[name], side)[None]) for name in pictures]
    return DescriptorJudge(pictures, torch.cat(described), describe)
