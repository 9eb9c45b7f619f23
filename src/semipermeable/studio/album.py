"""The pictures that were drawn last, as files: a page shows them again after a reload."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from semipermeable.generation.grid import Row, comparison_grid
from semipermeable.studio.comparing import Bar, Changed, Compared
from semipermeable.studio.workfolder import WorkFolder

__all__ = ["Album", "Neighbour", "Shown"]

_SIDE = 384
"""Least width of a picture on the page, about."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The last drawing."""

    prompt: str
    """What was asked for."""
    seed: int
    """Of the noise."""
    pictures: tuple[Path, Path]
    """Before and after."""
    bars: tuple[Bar, ...]
    """One per membrane that was switched on."""
    drift: float
    """Mean absolute difference, in [0, 1]."""
    identical: bool
    """Whether both are equal bit for bit."""


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """One row of the last look elsewhere."""

    prompt: str
    """What was asked for."""
    picture: Path
    """Before and after, side by side."""
    gamma: float
    """The largest γ of all membranes."""
    drift: float
    """Mean absolute difference, in [0, 1]."""
    identical: bool
    """Whether both are equal bit for bit."""
    seen: tuple[str, str]
    """What the judge sees before and after; empty without a judge."""


class Album:
    """The last drawing and the last look elsewhere, in a work folder.

    Args:
        work: its corner "drawings" holds the pictures.
    """

    def __init__(self, work: WorkFolder) -> None:
        self._work = work
        self._folder = work.corner("drawings")

    def keep_drawing(self, number: int, prompt: str, seed: int, one: Compared) -> None:
        """Keep a drawing in place of the last one.

        Args:
            number: of the job; names the files, so that no browser shows an old picture under a new name.
            prompt: what was asked for.
            seed: of the noise.
            one: what came out.
        """
        for name, picture in (("before", one.before), ("after", one.after)):
            _enlarged(picture).save(self._folder / f"{name}-{number}.png")
        told = {
            "prompt": prompt,
            "seed": seed,
            "number": number,
            "bars": [dataclasses.asdict(bar) for bar in one.bars],
            "drift": one.drift,
            "identical": one.identical,
        }
        self._work.write(self._folder / "last.json", told)
        _keep_only(self._folder, ("before", "after"), number)

    def drawing(self) -> Shown | None:
        """Return the last drawing, or None."""
        told = self._work.read(self._folder / "last.json")
        try:
            pictures = (self._folder / f"before-{told['number']}.png", self._folder / f"after-{told['number']}.png")
            shown = Shown(
                prompt=told["prompt"],
                seed=told["seed"],
                pictures=pictures,
                bars=tuple(_bar(bar) for bar in told["bars"]),
                drift=told["drift"],
                identical=told["identical"],
            )
        except (KeyError, TypeError):
            return None
        return shown if all(path.is_file() for path in pictures) else None

    def keep_elsewhere(self, number: int, concept: str, changed: Sequence[Changed]) -> None:
        """Keep what became of a concept's neighbours in place of the last look.

        Args:
            number: of the job.
            concept: whose neighbours.
            changed: one for each.
        """
        rows: list[dict[str, Any]] = []
        for index, one in enumerate(changed):
            file = f"elsewhere{index}-{number}.png"
            row = Row(one.prompt, (one.compared.before, one.compared.after))
            comparison_grid([row], ("before", "after")).save(self._folder / file)
            rows.append(
                {
                    "prompt": one.prompt,
                    "file": file,
                    "gamma": max((bar.gamma for bar in one.compared.bars), default=0.0),
                    "drift": one.compared.drift,
                    "identical": one.compared.identical,
                    "seen": [one.seen_before, one.seen_after],
                }
            )
        self._work.write(self._folder / "elsewhere.json", {"concept": concept, "rows": rows})
        _keep_only(self._folder, tuple(f"elsewhere{index}" for index in range(20)), number)

    def elsewhere(self) -> tuple[str, list[Neighbour]]:
        """Return the concept whose neighbours were drawn last, and what came out; ("", []) if none were."""
        told = self._work.read(self._folder / "elsewhere.json")
        try:
            rows = [_neighbour(row, self._folder) for row in told["rows"]]
            return told["concept"], [row for row in rows if row.picture.is_file()]
        except (KeyError, TypeError, IndexError):
            return "", []


def _neighbour(row: dict[str, Any], folder: Path) -> Neighbour:
    return Neighbour(
        prompt=row["prompt"],
        picture=folder / row["file"],
        gamma=row["gamma"],
        drift=row["drift"],
        identical=row["identical"],
        seen=(row["seen"][0], row["seen"][1]),
    )


def _bar(told: dict[str, Any]) -> Bar:
    return Bar(told["concept"], told["gamma"], told["strength"], tuple(told["words"]), told["reason"])


def _enlarged(picture: Image.Image) -> Image.Image:
    """Enlarge a small picture by a whole factor, so that a page does not blur it."""
    factor = max(1, _SIDE // picture.width)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _keep_only(folder: Path, names: Sequence[str], number: int) -> None:
    """Remove pictures of earlier jobs."""
    for path in folder.glob("*-*.png"):
        name, _, of_job = path.stem.rpartition("-")
        if name in names and of_job != str(number):
            path.unlink(missing_ok=True)
