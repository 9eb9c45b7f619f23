"""From pictures to figures: a panel of judges looks at every picture of a run, and sheets are made of what it sees.

Drawing is slow and judging is fast, so pictures are judged anew whenever results are put together: the same PNG files,
the same verdicts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from semipermeable.errors import ConfigError
from semipermeable.evaluation.benchmarks.plan import Benchmark, Case, Row
from semipermeable.evaluation.judges.panel import ClipLike, CopyLike, Panel
from semipermeable.evaluation.judges.pictures import read_picture
from semipermeable.evaluation.results import Place, Shard
from semipermeable.evaluation.scores import (
    CanvasHits,
    Sheet,
    canvas_hits,
    clip_errors,
    clip_scores,
    frechet_distance,
    kernel_distance,
    moments_of,
    perceptual_distances,
    pixel_drift,
)

__all__ = ["Columns", "Panel", "columns_of", "read_pictures", "sets_of", "sheet_of"]

_AT_ONCE = 64
"""Pictures looked at together; what is seen in one does not depend on the others."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What was seen in each picture; rows in the order of shards, then of the case's rows."""

    object: list[str] | None
    """Object seen; None without a judge of objects."""
    style: list[str] | None
    """Style seen; None without a judge of styles."""
    drift: list[float]
    """Pixel drift to the base model's picture."""
    identical: list[bool | None]
    """Equal to it bit for bit; None where the two were drawn under different numerics."""
    clip_prompt: list[float] | None
    """CLIP score with the prompt; None without a CLIP."""
    clip_target: list[float] | None
    """CLIP score with the erased concept's text."""
    clip_error: list[bool | None] | None
    """Whether the surrogate's text fits no worse than the concept's; None where the concept is a memorised picture."""
    lpips: list[float] | None = None
    """Perceptual distance to the base model's picture; None without a network."""
    picture: list[str | None] | None = None
    """Memorised picture copied; None without a judge of copies."""
    copy: list[float | None] | None = None
    """Similarity with the memorised picture that the row calls up."""
    parts: list[list[str]] | None = None
    """Exposed body parts; None without a detector."""
    part_names: list[str] | None = None
    """Parts that the detector looked for."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        return asdict(self)


def read_pictures(place: Place, case: Case, seed: int) -> Tensor:
    """Return a shard's pictures in the order of its rows, shape (rows, 3, height, width), in [0, 1].

    Raises:
        ConfigError: if one is missing or unreadable.
    """
    return _pictures(place, case.name, case.rows, seed)


def _pictures(place: Place, case: str, rows: Sequence[Row], seed: int) -> Tensor:
    try:
        return torch.stack([read_picture(place.picture(case, seed, row)) for row in rows])
    except ConfigError as error:
        raise ConfigError(f"{error}; or delete its shard and run again") from error


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
    parts = [
        _chunk_columns(benchmark.case(s.case), first, s, base[s.case, s.seed], place, panel)
        for s in shards
        for first in range(0, len(benchmark.case(s.case).rows), _AT_ONCE)
    ]
    joined: dict[str, Any] = {
        key: None if parts[0][key] is None else [value for part in parts for value in part[key]] for key in parts[0]
    }
    names = None if panel.nudity is None else list(panel.nudity.parts)
    return Columns(**joined, part_names=names)


def _chunk_columns(case: Case, first: int, shard: Shard, base: Shard, place: Place, panel: Panel) -> dict[str, Any]:
    chunk = slice(first, first + _AT_ONCE)
    rows = case.rows[chunk]
    pictures = _pictures(place, case.name, rows, shard.seed)
    bare = _pictures(Place(place.root, base.eraser), case.name, rows, shard.seed)
    comparable = shard.numerics == base.numerics
    same = [mine == theirs for mine, theirs in zip(shard.pixels[chunk], base.pixels[chunk], strict=True)]
    measure = panel.perceptual
    return {
        **_seen(pictures, panel),
        "drift": _rounded(pixel_drift(bare, pictures)),
        "identical": same if comparable else [None] * len(same),
        **_clip_columns(case, rows, pictures, panel.clip),
        "lpips": None if measure is None else _rounded(perceptual_distances(bare, pictures, measure)),
        **_copy_columns(rows, pictures, panel.copies),
        "parts": None if panel.nudity is None else panel.nudity(pictures),
    }


def _seen(pictures: Tensor, panel: Panel) -> dict[str, Any]:
    if panel.judge is None:
        return {"object": None, "style": None}
    objects, styles = panel.judge(pictures)
    return {
        "object": [panel.objects[i] for i in objects.tolist()] if panel.objects else None,
        "style": [panel.styles[i] for i in styles.tolist()] if panel.styles else None,
    }


def _clip_columns(case: Case, rows: Sequence[Row], pictures: Tensor, clip: ClipLike | None) -> dict[str, Any]:
    if clip is None:
        return {"clip_prompt": None, "clip_target": None, "clip_error": None}
    seen = clip.image_features(pictures)
    targets = [case.target_of(row) for row in rows]
    concepts = clip.text_features([target.text for target in targets])
    surrogates = clip.text_features([target.surrogate_text for target in targets])
    errors = clip_errors(seen, concepts, surrogates).tolist()
    return {
        "clip_prompt": _rounded(clip_scores(seen, clip.text_features([row.prompt for row in rows]))),
        "clip_target": _rounded(clip_scores(seen, concepts)),
        # The caption of a memorised picture says nothing about it, to CLIP either.
        "clip_error": [None] * len(errors) if case.axis == "picture" else errors,
    }


def _copy_columns(rows: Sequence[Row], pictures: Tensor, copies: CopyLike | None) -> dict[str, Any]:
    if copies is None:
        return {"picture": None, "copy": None}
    found = copies.similarities(pictures)
    names = list(copies.names)
    called = [None if row.picture is None else float(found[i, names.index(row.picture)]) for i, row in enumerate(rows)]
    return {
        "picture": copies.verdicts(found),
        "copy": [None if value is None else round(value, 5) for value in called],
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
        identical=_column(mine.identical),
        clip_prompt=None if mine.clip_prompt is None else torch.tensor(mine.clip_prompt),
        clip_target=None if mine.clip_target is None else torch.tensor(mine.clip_target),
        clip_error=None if mine.clip_error is None else _column(mine.clip_error),
        lpips=None if mine.lpips is None else torch.tensor(mine.lpips),
        copy=None if mine.copy is None else _column(mine.copy),
        parts=_part_counts(mine),
    )


def _column(values: Sequence[float | bool | None]) -> Tensor:
    return torch.tensor([float("nan") if value is None else float(value) for value in values])


def _part_counts(columns: Columns) -> dict[str, Tensor] | None:
    if columns.parts is None or columns.part_names is None:
        return None
    return {name: torch.tensor([float(found.count(name)) for found in columns.parts]) for name in columns.part_names}


def _hits(rows: Sequence[tuple[Case, int, Row]], columns: Columns) -> CanvasHits:
    pairs = [_asked_and_seen(case, row, columns, i) for i, (case, _, row) in enumerate(rows)]
    own, other = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return canvas_hits(
        [asked for asked, _ in own],
        [seen for _, seen in own],
        [asked for asked, _ in other],
        [seen for _, seen in other],
        [row.role == "target" for _, _, row in rows],
    )


_Verdict = tuple[str | None, str | None]
"""What was asked for, and what is seen; nothing is asked for where nobody can see it."""


def _asked_and_seen(case: Case, row: Row, columns: Columns, index: int) -> tuple[_Verdict, _Verdict]:
    """Return the verdicts on one picture in the concept's domain and in the other one."""
    thing: _Verdict = (None, None) if columns.object is None else (row.object, columns.object[index])
    style: _Verdict = (None, None) if columns.style is None else (row.style, columns.style[index])
    if case.axis == "style":
        return style, thing
    if case.axis == "nudity":
        bare = columns.parts is not None and bool(columns.parts[index])
        return (None if columns.parts is None else row.object, case.targets[0].concept.name if bare else None), style
    if case.axis == "picture" and row.picture is not None:
        return (None, None) if columns.picture is None else (row.picture, columns.picture[index]), style
    return thing, style


def sets_of(
    benchmark: Benchmark, shards: Sequence[Shard], base: str, place: Place, panel: Panel, sheet: Sheet
) -> dict[str, float]:
    """Return figures of whole sets: distances of kept pictures to real ones and to the base model's own; finds in all.

    Args:
        benchmark: what was drawn.
        shards: of one eraser.
        base: name of the base model's eraser.
        place: of the eraser.
        panel: gives the features.
        sheet: of the eraser, with what a detector found.
    """
    embed = panel.embed
    found = _totals(sheet)
    if embed is None:
        return found
    tags = _kept_tags(benchmark, shards)
    if len(tags) < 2:
        return found
    mine, bare = (_kept_features(benchmark, shards, Place(place.root, name), embed) for name in (place.eraser, base))
    own = moments_of(mine)
    if panel.real is not None:
        found["frechet_real"] = frechet_distance(own, panel.real.moments)
        found["kernel_real"] = kernel_distance(mine, panel.real.features)
    found["frechet_base"] = frechet_distance(own, moments_of(bare))
    found["kernel_base"] = kernel_distance(mine, bare, paired=True)
    return found | (_apart(tags, mine, bare) if benchmark.apart else {})


def _totals(sheet: Sheet) -> dict[str, float]:
    """Return how often each body part was found in the concept's pictures of all seeds, as papers print it."""
    if sheet.parts is None:
        return {}
    by_part = {name: float(counts[sheet.hits.asks].sum()) for name, counts in sheet.parts.items()}
    return {"nudenet_total": sum(by_part.values()), **{f"nudenet_total:{name}": n for name, n in by_part.items()}}


def _apart(tags: Sequence[str], mine: Tensor, bare: Tensor) -> dict[str, float]:
    """Return the distance of each kept concept's pictures to the base model's own, and the mean of them."""
    found: dict[str, float] = {}
    for tag in dict.fromkeys(tags):
        rows = torch.tensor([other == tag for other in tags])
        if int(rows.sum()) > 1:
            found[f"frechet_base:{tag}"] = frechet_distance(moments_of(mine[rows]), moments_of(bare[rows]))
    return {"frechet_apart": fmean(found.values()), **found} if found else {}


def _kept(case: Case) -> tuple[Row, ...]:
    return tuple(row for row in case.rows if row.role == "kept")


def _kept_tags(benchmark: Benchmark, shards: Sequence[Shard]) -> list[str]:
    return [row.tag for shard in shards for row in _kept(benchmark.case(shard.case))]


def _kept_features(
    benchmark: Benchmark, shards: Sequence[Shard], place: Place, embed: Callable[[Tensor], Tensor]
) -> Tensor:
    return torch.cat([embed(pictures) for pictures in _kept_pictures(benchmark, shards, place)])


def _kept_pictures(benchmark: Benchmark, shards: Sequence[Shard], place: Place) -> Iterator[Tensor]:
    for shard in shards:
        kept = _kept(benchmark.case(shard.case))
        for first in range(0, len(kept), _AT_ONCE):
            yield _pictures(place, shard.case, kept[first : first + _AT_ONCE], shard.seed)
