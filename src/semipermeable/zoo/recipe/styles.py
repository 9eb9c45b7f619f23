"""Styles: deterministic filters from one drawing (premultiplied RGBA, 64×64, in [0, 1]) to one picture (RGB).

Every style is a pure function of the drawing, so that all designers can be shown in all styles and a judge of styles
can be tested on drawings it never saw. A drawing is first placed: scaled and shifted a little, never mirrored (a
model this small averages the mirror images of one drawing into a two-headed cat).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["STYLES", "Image", "apply_style", "place"]

Image = NDArray[np.float64]
SIZE = 64

_LUMA = np.array([0.30, 0.59, 0.11])


def place(drawing: NDArray[np.uint8], *, scale: float = 0.92, shift: tuple[float, float] = (0.0, 0.0)) -> Image:
    """Put a drawing on the 64×64 canvas.

    Args:
        drawing: uint8 RGBA, square.
        scale: side of the drawing relative to the canvas.
        shift: down and right, as a share of the canvas.

    Returns:
        Premultiplied RGBA in [0, 1].
    """
    image = drawing.astype(np.float64) / 255
    image[..., :3] *= image[..., 3:]
    side = image.shape[0]
    step = side / (SIZE * scale)
    blur = max(0.0, 0.33 * (step - 0.6))
    image = ndimage.gaussian_filter(image, (blur, blur, 0))
    origin = (side - 1) / 2 - step * ((SIZE - 1) / 2)
    offset: Any = [origin - shift[0] * side, origin - shift[1] * side]
    channels = [
        ndimage.affine_transform(image[..., c], [step, step], offset=offset, output_shape=(SIZE, SIZE), order=1)
        for c in range(4)
    ]
    return np.clip(np.stack(channels, axis=-1), 0, 1)


def apply_style(style: str, drawing: Image, *, shaded: bool = False) -> Image:
    """Return the picture of a placed drawing in a style.

    Args:
        style: a key of `STYLES`.
        drawing: what `place` returned.
        shaded: the drawing is a 3d render already, so the 3d style adds the ground alone.
    """
    if style == "3d" and shaded:
        return _ground(drawing)
    return np.clip(STYLES[style](drawing), 0, 1)


def _over(drawing: Image, ground: Any) -> Image:
    return drawing[..., :3] + np.asarray(ground) * (1 - drawing[..., 3:])


def _edges(image: Image, sigma: float) -> Image:
    smooth = ndimage.gaussian_filter(image, (sigma, sigma, 0))
    right: Image = ndimage.sobel(smooth, 1)
    down: Image = ndimage.sobel(smooth, 0)
    return np.hypot(right, down).max(-1)


def _saturate(colour: Image, gain: float) -> Image:
    grey = (colour @ _LUMA)[..., None]
    return np.clip(grey + gain * (colour - grey), 0, 1)


def _flat(drawing: Image) -> Image:
    return _over(drawing, 1.0)


def _ground(drawing: Image) -> Image:
    rows = np.linspace(0, 1, SIZE)[:, None, None]
    ground = (1 - rows) * np.array([0.80, 0.86, 0.97]) + rows * np.array([0.97, 0.84, 0.78])
    shadow = ndimage.shift(ndimage.gaussian_filter(drawing[..., 3], 2.5), (4, 3), order=1)[..., None]
    return _over(drawing, ground * (1 - 0.45 * shadow * np.array([1.0, 1.0, 0.75])))


def _relief(drawing: Image) -> Image:
    """Inflate the silhouette and the tones, and light them from the upper left."""
    alpha = drawing[..., 3]
    inward: Any = ndimage.distance_transform_edt(alpha > 0.5)
    depth: Image = np.sqrt(inward)
    height = ndimage.gaussian_filter(depth + 1.2 * (drawing[..., :3] @ _LUMA), 1.2)
    down, right = np.gradient(height)
    light = np.clip(0.72 - 0.55 * (down + right) / np.sqrt(1 + down**2 + right**2), 0.35, 1.15)
    shine = np.clip(-(down + right) - 0.35, 0, 1)
    colour = drawing[..., :3] * light[..., None] * 1.25 + (0.45 * shine * alpha)[..., None]
    return _ground(np.concatenate([np.minimum(colour, alpha[..., None]), alpha[..., None]], axis=-1))


def _pixel_art(drawing: Image) -> Image:
    blocks = drawing.reshape(16, 4, 16, 4, 4).mean((1, 3))
    alpha = blocks[..., 3:]
    colour = np.round(blocks[..., :3] / np.maximum(alpha, 1e-3) * 5) / 5
    return np.where(alpha > 0.45, colour, 1.0).repeat(4, 0).repeat(4, 1)


def _pencil_sketch(drawing: Image) -> Image:
    grey = _flat(drawing) @ _LUMA
    line = np.clip(_edges(_flat(drawing), 0.7) / 2.2, 0, 1)
    down, right = np.mgrid[:SIZE, :SIZE]
    hatch = ((down + right) % 6 < 2) * np.clip(0.75 - grey, 0, 1) * 0.5
    tone = np.clip((0.80 + 0.20 * grey) * (1 - 0.85 * line) - hatch, 0, 1)
    return tone[..., None] * np.array([1.0, 0.99, 0.96])


def _neon(drawing: Image) -> Image:
    line = np.clip(_edges(drawing, 0.7) / 2.0, 0, 1)
    colour = ndimage.maximum_filter(drawing[..., :3], size=(5, 5, 1))
    for lift in (0.0, 0.75):
        colour = colour - lift * colour.min(-1, keepdims=True)
        colour = colour / np.maximum(colour.max(-1, keepdims=True), 1e-3)
    glow = np.clip(1.1 * line + 0.6 * ndimage.gaussian_filter(line, 2.0), 0, 1)
    return colour * glow[..., None] + np.array([0.03, 0.02, 0.07])


def _blueprint(drawing: Image) -> Image:
    seen = np.concatenate([_over(drawing, 0.5), drawing[..., 3:]], axis=-1)
    line = np.clip(_edges(seen, 0.6) / 2.0, 0, 1)[..., None]
    alpha = drawing[..., 3:]
    paper = np.array([0.10, 0.24, 0.55]) * (1 - alpha) + np.array([0.16, 0.36, 0.70]) * alpha
    return paper * (1 - line) + np.array([0.92, 0.96, 1.0]) * line


@cache
def _panes() -> tuple[NDArray[np.int64], Image]:
    """Return the pane of each pixel (a Voronoi diagram of a jittered grid) and the colour of each pane's bare glass."""
    generator = np.random.default_rng(7)
    rows, columns = np.mgrid[0:6, 0:6]
    centres = (np.stack([rows, columns], -1).reshape(-1, 2) + generator.uniform(0.15, 0.85, (36, 2))) * SIZE / 6
    down, right = np.mgrid[:SIZE, :SIZE]
    grid = np.stack([down, right], -1)
    panes = ((grid[:, :, None] - centres) ** 2).sum(-1).argmin(-1)
    tints = np.array([[0.20, 0.45, 0.65], [0.30, 0.30, 0.62], [0.16, 0.55, 0.58], [0.38, 0.62, 0.80]])
    return panes, tints[generator.integers(0, 4, 36)]


def _stained_glass(drawing: Image) -> Image:
    panes, tints = _panes()
    inside = drawing[..., 3] > 0.5
    pieces = panes + len(tints) * inside
    count = np.maximum(np.bincount(pieces.ravel(), minlength=2 * len(tints)), 1)
    solid = _over(drawing, 1.0)
    colour = np.stack(
        [np.bincount(pieces.ravel(), solid[..., c].ravel(), 2 * len(tints)) / count for c in range(3)], axis=-1
    )
    # Each piece keeps half of the drawing's own detail: with one tone per pane a face has no eyes.
    glass = np.where(inside[..., None], _saturate(0.5 * colour[pieces] + 0.5 * solid, 1.5), tints[panes])
    lead = np.zeros((SIZE, SIZE))
    lead[:-1] = np.maximum(lead[:-1], pieces[:-1] != pieces[1:])
    lead[:, :-1] = np.maximum(lead[:, :-1], pieces[:, :-1] != pieces[:, 1:])
    outline = ndimage.gaussian_filter(inside.astype(float), 0.8)
    lead = np.clip(ndimage.gaussian_filter(lead, 0.5) * 1.3 + 2.2 * outline * (1 - outline), 0, 1)[..., None]
    return glass * (1 - 0.9 * lead) + 0.05 * lead


def _pop_art(drawing: Image) -> Image:
    alpha = drawing[..., 3:]
    colour = _saturate(np.round(drawing[..., :3] / np.maximum(alpha, 1e-3) * 3) / 3, 1.7)
    shadow = ndimage.shift(alpha[..., 0], (4, 4), order=1)[..., None]
    ground = np.array([1.0, 0.82, 0.10]) * (1 - shadow) + np.array([0.92, 0.12, 0.50]) * shadow
    border = ndimage.grey_dilation(alpha[..., 0], size=(3, 3))[..., None]
    line = np.clip(_edges(_over(drawing, 0.5), 0.7) / 2.5 - 0.15, 0, 1)[..., None] * alpha
    picture = colour * alpha + (1 - alpha) * (ground * (1 - border) + 0.04 * border)
    return picture * (1 - 0.9 * line)


STYLES: dict[str, Callable[[Image], Image]] = {
    "flat": _flat,
    "3d": _relief,
    "pixel art": _pixel_art,
    "pencil sketch": _pencil_sketch,
    "neon": _neon,
    "blueprint": _blueprint,
    "stained glass": _stained_glass,
    "pop art": _pop_art,
}
"""Style → filter."""
