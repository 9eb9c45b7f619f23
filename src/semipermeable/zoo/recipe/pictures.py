"""Pictures: every drawing in every style, jittered a little, and the split of drawings between training and judging.

The denoiser is shown two designers' drawings. The judges are shown all designers' except, of each object, one drawing
that is held out in all its styles and jitters; the two fluent sets are the same drawing and are never split.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semipermeable.zoo.recipe.catalogue import Catalogue
from semipermeable.zoo.recipe.icons import Drawings
from semipermeable.zoo.recipe.styles import apply_style, place

__all__ = ["DRAWN_FROM", "Pictures", "held_out_designers", "paint", "to_unit"]

DRAWN_FROM = {"twemoji": 0.7, "noto": 0.3}
"""Designers whose drawings the denoiser learns, and their shares."""

HELD_OUT_ORDER = (("emojione", "fxemoji"), ("noto-v1",))
"""Designers that may be held out; the first tier with a drawing of the object is used, one of it drawn by lot."""


@dataclass(frozen=True)
class Pictures:
    """Pictures (rows, jitters, 64, 64, 3) uint8 with the object, style and designer of each row."""

    pixels: NDArray[np.uint8]
    objects: NDArray[np.int64]
    styles: NDArray[np.int64]
    designers: list[str]

    def rows(self, keep: NDArray[np.bool_]) -> "Pictures":
        """Return the rows where `keep` is true."""
        chosen = np.flatnonzero(keep)
        return Pictures(
            self.pixels[chosen], self.objects[chosen], self.styles[chosen], [self.designers[i] for i in chosen]
        )

    def save(self, path: Path) -> None:
        """Write all pictures to one `.npz`, atomically."""
        partial = path.with_suffix(".partial.npz")
        np.savez(
            partial, pixels=self.pixels, objects=self.objects, styles=self.styles, designers=np.array(self.designers)
        )
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Pictures":
        """Read what `save` wrote."""
        with np.load(path) as content:
            designers = [str(who) for who in content["designers"]]
            return cls(content["pixels"], content["objects"], content["styles"], designers)


def held_out_designers(catalogue: Catalogue, drawings: Drawings, *, seed: int) -> list[str]:
    """Return, for each object, the designer whose drawing of it no judge is trained on; "" if none can be held out."""
    generator = np.random.default_rng(seed)
    chosen = [""] * len(catalogue.sources)
    for index in range(len(chosen)):
        ticket = generator.random()
        for tier in HELD_OUT_ORDER:
            there = [designer for designer in tier if drawings.present[designer][index]]
            if there:
                chosen[index] = there[int(ticket * len(there))]
                break
    return chosen


def paint(
    catalogue: Catalogue,
    drawings: Drawings,
    designers: tuple[str, ...],
    *,
    jitters: int,
    seed: int,
) -> Pictures:
    """Draw every present drawing of some designers in every style.

    Args:
        catalogue: what the model is taught.
        drawings: rendered drawings.
        designers: whose drawings.
        jitters: pictures a row; the first is not jittered, the others are scaled by 0.82 to 0.98 and shifted.
        seed: seed of the jitters.
    """
    pixels: list[NDArray[np.uint8]] = []
    objects: list[int] = []
    styles: list[int] = []
    owners: list[str] = []
    for designer in designers:
        for o in np.flatnonzero(drawings.present[designer]):
            generator = np.random.default_rng([seed, int(o), sum(designer.encode())])
            placed = [place(drawings.pixels[designer][o])]
            for _ in range(jitters - 1):
                scale = float(generator.uniform(0.82, 0.98))
                room = (1 - scale) / 2 * 0.9 + 0.01
                down, right = generator.uniform(-room, room, 2)
                placed.append(place(drawings.pixels[designer][o], scale=scale, shift=(float(down), float(right))))
            for s, style in enumerate(catalogue.spec.styles):
                shown = [apply_style(style, drawing, shaded=designer == "fluent-3d") for drawing in placed]
                pixels.append((np.stack(shown).clip(0, 1) * 255 + 0.5).astype(np.uint8))
                objects.append(int(o))
                styles.append(s)
                owners.append(designer)
    return Pictures(np.stack(pixels), np.asarray(objects), np.asarray(styles), owners)


def to_unit(pixels: NDArray[np.uint8]) -> Tensor:
    """Return uint8 pictures (B, 64, 64, 3) as float32 (B, 3, 64, 64) in [0, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
