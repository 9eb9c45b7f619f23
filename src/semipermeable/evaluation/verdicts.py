"""From pictures to figures: a panel of judges looks at every picture of a run, and sheets are made of what it sees.

Drawing is slow and judging is fast, so pictures are judged anew whenever results are put together: the same PNG files,
the same verdicts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from semipermeable import zoo
from semipermeable.errors import ConfigError
from semipermeable.evaluation.benchmarks.plan import Benchmark, Case, Row
from semipermeable.evaluation.results import Place, Shard
from semipermeable.evaluation.scores import (
    CanvasHits,
    Moments,
    Sheet,
    canvas_hits,
    clip_errors,
    clip_scores,
    frechet_distance,
    kernel_distance,
    moments_of,
    pixel_drift,
)

__all__ = [
    "ClipLike",
    "Columns",
    "JudgeLike",
    "Panel",
    "columns_of",
    "open_panel",
    "read_pictures",
    "sets_of",
    "sheet_of",
]


class JudgeLike(Protocol):
    """Says which object and style a picture shows; see `zoo.judges.Judge`."""

    objects: tuple[str, ...]
    styles: tuple[str, ...]

    def __call__(self, images: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return indices of object and style, shape (rows,) each."""
        ...

    def features(self, images: Tensor, /) -> Tensor:
        """Return features, shape (rows, width)."""
        ...


class ClipLike(Protocol):
    """Pictures and texts in one space; see `zoo.judges.Clip`."""

    def image_features(self, images: Tensor, /) -> Tensor:
        """Return image features, shape (rows, width)."""
        ...

    def text_features(self, texts: list[str], /) -> Tensor:
        """Return text features, shape (rows, width)."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """Everyone who looks at the pictures."""

    judge: JudgeLike
    """Sees objects and styles."""
    clip: ClipLike | None = None
    """None leaves CLIP's figures out."""
    real: Moments | None = None
    """Features of real pictures; None leaves their distance out."""
    missing: tuple[str, ...] = ()
    """Why something is None, for readers."""


def open_panel(model: str) -> Panel:
    """Return the judges of a bundled model; those that it lacks are named in `missing`.

    Raises:
        UnknownNameError: if no bundled model has that name.
        ZooError: if a file is damaged, or the judge is missing.
    """
    shipped = zoo.info(model)["files"]
    has_clip, has_real = "clip.safetensors" in shipped, "statistics.safetensors" in shipped
    lacks = [("CLIP judge", has_clip), ("statistics of real pictures", has_real)]
    real = zoo.real_statistics(model) if has_real else None
    return Panel(
        judge=zoo.judge(model),
        clip=zoo.clip(model) if has_clip else None,
        real=None if real is None else Moments(real.mean, real.covariance),
        missing=tuple(f"bundled model {model!r} has no {what}" for what, there in lacks if not there),
    )


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What was seen in each picture; rows in the order of shards, then of the case's rows."""

    object: list[str]
    """Object seen."""
    style: list[str]
    """Style seen."""
    drift: list[float]
    """Pixel drift to the base model's picture."""
    identical: list[bool | None]
    """Equal to it bit for bit; None where the two were drawn under different numerics."""
    clip_prompt: list[float] | None
    """CLIP score with the prompt; None without a CLIP."""
    clip_target: list[float] | None
    """CLIP score with the erased concept's text."""
    clip_error: list[bool] | None
    """Whether the surrogate's text fits no worse than the concept's."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        return asdict(self)


def read_pictures(place: Place, case: Case, seed: int) -> Tensor:
    """Return a shard's pictures in the order of its rows, shape (rows, 3, height, width), in [0, 1].

    Raises:
        ConfigError: if one is missing or unreadable.
    """
    return torch.stack([_picture(place.picture(case.name, seed, row)) for row in case.rows])


def _picture(path: Path) -> Tensor:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    except OSError as error:
        raise ConfigError(f"picture {str(path)!r} cannot be read ({error}); delete its shard and run again") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def columns_of(
    benchmark: Benchmark, shards: Sequence[Shard], base: Mapping[tuple[str, int], Shard], place: Place, panel: Panel
) -> Columns:
    """Look at every picture of some shards.

    Args:
        benchmark: what was drawn.
        shards: of one eraser.
        base: shards of the base model, by case and seed.
        place: of the eraser; the base model's lies beside it.
        panel: who looks.
    """
    parts = [_shard_columns(benchmark.case(s.case), s, base[s.case, s.seed], place, panel) for s in shards]
    joined: dict[str, Any] = {
        key: None if parts[0][key] is None else [value for part in parts for value in part[key]] for key in parts[0]
    }
    return Columns(**joined)


def _shard_columns(case: Case, shard: Shard, base: Shard, place: Place, panel: Panel) -> dict[str, Any]:
    pictures = read_pictures(place, case, shard.seed)
    bare = read_pictures(Place(place.root, base.eraser), case, shard.seed)
    objects, styles = panel.judge(pictures)
    comparable = shard.numerics == base.numerics
    same = [mine == theirs for mine, theirs in zip(shard.pixels, base.pixels, strict=True)]
    return {
        "object": [panel.judge.objects[i] for i in objects.tolist()],
        "style": [panel.judge.styles[i] for i in styles.tolist()],
        "drift": _rounded(pixel_drift(bare, pictures)),
        "identical": same if comparable else [None] * len(same),
        **_clip_columns(case, pictures, panel.clip),
    }


def _clip_columns(case: Case, pictures: Tensor, clip: ClipLike | None) -> dict[str, Any]:
    if clip is None:
        return {"clip_prompt": None, "clip_target": None, "clip_error": None}
    seen = clip.image_features(pictures)
    targets = [case.target_of(row) for row in case.rows]
    concepts = clip.text_features([target.text for target in targets])
    surrogates = clip.text_features([target.surrogate_text for target in targets])
    return {
        "clip_prompt": _rounded(clip_scores(seen, clip.text_features([row.prompt for row in case.rows]))),
        "clip_target": _rounded(clip_scores(seen, concepts)),
        "clip_error": clip_errors(seen, concepts, surrogates).tolist(),
    }


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 5) for value in values.tolist()]


def sheet_of(benchmark: Benchmark, shards: Sequence[tuple[str, int]], mine: Columns, base: Columns) -> Sheet:
    """Return the sheet of an eraser.

    Args:
        benchmark: what was drawn.
        shards: case and seed of each shard, in the order of the columns.
        mine: what was seen in its pictures.
        base: what was seen in the base model's pictures of the same rows.
    """
    rows: list[tuple[Case, int, Row]] = [
        (case, seed, row) for name, seed in shards for case in (benchmark.case(name),) for row in case.rows
    ]
    return Sheet(
        concepts=tuple(case.name for case, _, _ in rows),
        prompts=tuple(row.prompt + ("" if not row.negative else f" −{row.negative}") for _, _, row in rows),
        seeds=tuple(seed for _, seed, _ in rows),
        tags=tuple(row.tag for _, _, row in rows),
        hits=_hits(rows, mine),
        base_right=_hits(rows, base).right,
        drift=torch.tensor(mine.drift, dtype=torch.float64),
        identical=torch.tensor([float("nan") if same is None else float(same) for same in mine.identical]),
        clip_prompt=_optional(mine.clip_prompt),
        clip_target=_optional(mine.clip_target),
        clip_error=_optional(mine.clip_error),
    )


def _optional(values: Sequence[float] | Sequence[bool] | None) -> Tensor | None:
    return None if values is None else torch.tensor(values)


def _hits(rows: Sequence[tuple[Case, int, Row]], columns: Columns) -> CanvasHits:
    asked: list[str | None] = []
    seen: list[str] = []
    asked_other: list[str | None] = []
    seen_other: list[str] = []
    asks: list[bool] = []
    for (case, _, row), thing, style in zip(rows, columns.object, columns.style, strict=True):
        of_object = case.axis == "object"
        asked.append(row.object if of_object else row.style)
        seen.append(thing if of_object else style)
        asked_other.append(row.style if of_object else row.object)
        seen_other.append(style if of_object else thing)
        asks.append(row.role == "target")
    return canvas_hits(asked, seen, asked_other, seen_other, asks)


def sets_of(benchmark: Benchmark, shards: Sequence[Shard], base: str, place: Place, panel: Panel) -> dict[str, float]:
    """Return distances between sets of kept pictures: to real ones, and to the base model's own.

    Args:
        benchmark: what was drawn.
        shards: of one eraser.
        base: name of the base model's eraser.
        place: of the eraser.
        panel: its judge gives the features.
    """
    mine, bare = (_kept_features(benchmark, shards, Place(place.root, name), panel) for name in (place.eraser, base))
    if len(mine) < 2:
        return {}
    own = moments_of(mine)
    found = {
        "frechet_base": frechet_distance(own, moments_of(bare)),
        "kernel_base": kernel_distance(mine, bare, paired=True),
    }
    return found if panel.real is None else {"frechet_real": frechet_distance(own, panel.real), **found}


def _kept_features(benchmark: Benchmark, shards: Sequence[Shard], place: Place, panel: Panel) -> Tensor:
    found: list[Tensor] = []
    for shard in shards:
        case = benchmark.case(shard.case)
        kept = torch.tensor([row.role == "kept" for row in case.rows])
        found.append(panel.judge.features(read_pictures(place, case, shard.seed)[kept]))
    return torch.cat(found)
