"""How far same-seed pictures moved, pixel by pixel."""

import torch
from torch import Tensor

__all__ = ["identical_pixels", "pixel_drift"]


def pixel_drift(before: Tensor, after: Tensor) -> Tensor:
    """Return the mean absolute difference of each pair, in [0, 1], shape (rows,).

    Args:
        before: pictures in [0, 1], shape (rows, 3, height, width).
        after: the same prompts and seeds, erased.

    Raises:
        ValueError: if the shapes differ.
    """
    _check(before, after)
    return (after.double() - before.double()).abs().flatten(1).mean(1)


def identical_pixels(before: Tensor, after: Tensor) -> Tensor:
    """Return whether each pair is equal bit for bit, boolean, shape (rows,).

    Args:
        before: pictures, shape (rows, 3, height, width).
        after: the same prompts and seeds, erased.

    Raises:
        ValueError: if the shapes differ.
    """
    _check(before, after)
    return torch.eq(before, after).flatten(1).all(1)


def _check(before: Tensor, after: Tensor) -> None:
    if before.shape != after.shape or before.ndim != 4:
        raise ValueError(f"pairs of pictures expected, found {tuple(before.shape)} and {tuple(after.shape)}")
