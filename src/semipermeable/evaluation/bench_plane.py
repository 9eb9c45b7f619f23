"""Geometry of the report's drawings: the erase-versus-keep plane, and histograms of drift. The template draws them."""

import math
from collections.abc import Sequence
from typing import Any

from semipermeable.evaluation.scores import Estimate

__all__ = ["histogram", "plane"]

WIDTH, HEIGHT = 400.0, 320.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 36.0, 26.0, 40.0
_EDGES = (0.0, 1e-9, 0.003, 0.01, 0.03, 0.1, 1.0)
"""Edges of drift: none at all, below what an eye sees on one pixel (1/255 ≈ 0.004), and in steps of three."""

Point = tuple[int, str, bool, Estimate, Estimate]
"""Number, name, whether gated, erasing (x), keeping (y)."""


def plane(points: Sequence[Point]) -> dict[str, Any]:
    """Return everything that the template needs to draw the plane; both axes hold all intervals, and 1.

    Args:
        points: one per eraser.
    """
    x_low = _floor([x.low for _, _, _, x, _ in points])
    y_low = _floor([y.low for _, _, _, _, y in points])

    def across(value: float) -> float:
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * (value - x_low) / (1 - x_low), 1)

    def up(value: float) -> float:
        return round(HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - y_low) / (1 - y_low), 1)

    marks = [
        {
            "number": number,
            "name": name,
            "gated": gated,
            "x": across(x.value),
            "y": up(y.value),
            "left": across(x.low),
            "right": across(x.high),
            "top": up(y.high),
            "bottom": up(y.low),
            "erase": x,
            "keep": y,
        }
        for number, name, gated, x, y in points
        if math.isfinite(x.value + y.value)
    ]
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "frame": (_LEFT, _TOP, WIDTH - _RIGHT, HEIGHT - _BOTTOM),
        "x_ticks": [(across(tick), _label(tick)) for tick in _ticks(x_low)],
        "y_ticks": [(up(tick), _label(tick)) for tick in _ticks(y_low)],
        "marks": _apart(marks),
    }


def _apart(marks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give each mark a place for its number that no earlier number takes."""
    places = ((8, -7), (-8, -7), (8, 14), (-8, 14), (20, -7), (-20, -7), (20, 14), (-20, 14))
    taken: list[tuple[tuple[float, float], float]] = []
    for mark in marks:
        wide = 0 if mark["number"] else 7  # the word "base" takes more room than a number, and must clear the axis
        spots = [(mark["x"] + dx + math.copysign(wide, dx), mark["y"] + dy) for dx, dy in places]
        free = [spot for spot in spots if all(math.dist(spot, other) > room + wide for other, room in taken)]
        mark["label"] = (free or spots)[0]
        taken.append((mark["label"], 11 + wide))
    return marks


def _floor(values: Sequence[float]) -> float:
    """Return the highest tenth below all values, at most 0.9."""
    finite = [value for value in values if math.isfinite(value)]
    return max(0.0, min(0.9, math.floor(10 * min(finite, default=0.0) + 1e-9) / 10))


def _ticks(low: float) -> list[float]:
    step = 0.2 if low < 0.5 else 0.1 if low < 0.8 else 0.05
    return [round(1 - i * step, 2) for i in range(int((1 - low) / step + 1e-6) + 1)]


def _label(tick: float) -> str:
    return f"{tick:g}"


def histogram(drift: Sequence[float]) -> list[dict[str, Any]]:
    """Return the share of pictures in each class of pixel drift.

    Args:
        drift: mean absolute pixel differences, in [0, 1].
    """
    counts = [0] * (len(_EDGES) - 1)
    for value in drift:
        counts[max(i for i in range(len(counts)) if value >= _EDGES[i])] += 1
    labels = ["none", *(f"< {edge:g}" for edge in _EDGES[2:-1]), f"≥ {_EDGES[-2]:g}"]
    return [{"label": label, "share": count / max(1, len(drift))} for label, count in zip(labels, counts, strict=True)]
