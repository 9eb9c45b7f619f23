"""The pictures that the demo draws: which prompts, which seeds, in which order.

Four sets: the erased object in the other styles; the erased style on other objects; both at once; and everything else,
one prompt for each other object, near neighbours included, over all other styles in turn. They are mixed into one
order, so that every call of the denoiser holds rows where a membrane acts beside rows where none does.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from semipermeable.generation import Job
from semipermeable.zoo import ZooSpec

__all__ = ["Cell", "Role", "mixed", "plan_cells"]

Role = Literal["object", "style", "both", "kept"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One picture: what to draw, and what it is drawn for.

    Args:
        role: which of the four sets it belongs to.
        object: the object asked for.
        style: the style asked for.
        job: caption and seed.
    """

    role: Role
    object: str
    style: str
    job: Job


def plan_cells(
    spec: ZooSpec, erased_object: str, erased_style: str, *, per_target: int, both: int, kept: int | None, seed: int
) -> list[Cell]:
    """Return all cells, set by set; every one has its own seed.

    Args:
        spec: of the bundled model.
        erased_object: an object of it.
        erased_style: a style of it.
        per_target: pictures of the object, and of the style.
        both: pictures of the object in the style.
        kept: pictures of everything else; None is one for each other object.
        seed: picture number i gets seed · 1,000,000 + i.
    """
    objects = [name for name in spec.object_names if name != erased_object]
    styles = [style for style in spec.styles if style != erased_style]
    twins = [name for name in spec.object(erased_object).twins if name in objects]
    ordered = [*twins, *(name for name in objects if name not in twins)]
    number = len(ordered) if kept is None else kept
    wanted: list[tuple[Role, str, str]] = [
        *(("object", erased_object, styles[i % len(styles)]) for i in range(per_target)),
        *(("style", ordered[i % len(ordered)], erased_style) for i in range(per_target)),
        *(("both", erased_object, erased_style) for _ in range(both)),
        *(("kept", ordered[i % len(ordered)], styles[(i + i // len(ordered)) % len(styles)]) for i in range(number)),
    ]
    cells: list[Cell] = []
    for index, (role, name, style) in enumerate(wanted):
        template = (index // len(styles)) % len(spec.templates)
        job = Job(spec.caption(name, style, template=template), seed * 1_000_000 + index)
        cells.append(Cell(role, name, style, job))
    return cells


def mixed(cells: Sequence[Cell], seed: int) -> list[Cell]:
    """Return the cells in an order that mixes the sets; the same seed gives the same order."""
    order = list(cells)
    random.Random(seed).shuffle(order)
    return order
