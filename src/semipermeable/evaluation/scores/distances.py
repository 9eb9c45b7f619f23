"""Fréchet and kernel distance between two sets of features.

Fréchet (Heusel et al. 2017, arXiv 1706.08500, Eq. 6): `‖μ₁ − μ₂‖² + Tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½)`, where the last trace
is `Tr (Σ₁^½ Σ₂ Σ₁^½)^½`, of a symmetric matrix. Kernel (Bińkowski et al. 2018, arXiv 1801.01401, §3): the unbiased MMD²
with `k(x, y) = (x·y / d + 1)³`; unlike Fréchet's it has no bias at small n, and may be negative.

torchmetrics has both, fed with pictures of one session and, for the kernel, averaged over random subsets. Here
Fréchet's must take stored moments of real pictures, and both must be functions; the tests hold them to torchmetrics.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Moments", "frechet_distance", "kernel_distance", "moments_of"]


_STRIP = 1024
"""Rows of the kernel's matrix at a time: 30,000 pictures would need 7 GB at once."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of a set of features, float64.

    Args:
        mean: shape (width,).
        covariance: shape (width, width), unbiased.
    """

    mean: Tensor
    covariance: Tensor


def moments_of(features: Tensor) -> Moments:
    """Return mean and covariance.

    Args:
        features: shape (n, width), n ≥ 2.

    Raises:
        ValueError: if there are fewer than two rows.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"moments need features of shape (n, width) with n ≥ 2, found {tuple(features.shape)}")
    wide = features.double()
    return Moments(wide.mean(0), torch.cov(wide.T).reshape(wide.shape[1], wide.shape[1]))


def frechet_distance(first: Moments, second: Moments) -> float:
    """Return the Fréchet distance (squared, as FID is), at least 0."""
    root = _symmetric_root(first.covariance)
    # Rounding leaves eigenvalues of a rank-deficient product a hair below zero.
    shared = torch.linalg.eigvalsh(root @ second.covariance @ root).clamp(min=0).sqrt().sum()
    apart = (first.mean - second.mean).square().sum()
    return max(0.0, float(apart + first.covariance.trace() + second.covariance.trace() - 2 * shared))


def _symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def kernel_distance(first: Tensor, second: Tensor, *, paired: bool = False) -> float:
    """Return the unbiased squared MMD with the cubic kernel.

    Args:
        first: features, shape (n, width), n ≥ 2.
        second: features, shape (m, width), m ≥ 2.
        paired: row i of both sets is the same prompt and seed. Such rows are not independent, so k(xᵢ, yᵢ) is left out
            (Gretton et al. 2012, Eq. 4); equal sets then have distance exactly 0 and not less.

    Raises:
        ValueError: if a set has fewer than two rows, the widths differ, or pairs are not of one length.
    """
    if min(len(first), len(second)) < 2 or first.shape[1] != second.shape[1] or (paired and len(first) != len(second)):
        raise ValueError(f"two sets of features expected, found {tuple(first.shape)} and {tuple(second.shape)}")
    x, y = first.double(), second.double()
    return float(_mean(x, x, True) + _mean(y, y, True) - 2 * _mean(x, y, paired))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean(x: Tensor, y: Tensor, off_diagonal: bool) -> Tensor:
    """Return the mean of the kernel over all pairs, or all but the diagonal, a strip of rows at a time."""
    total = torch.stack([_kernel(strip, y).sum() for strip in x.split(_STRIP)]).sum()
    if not off_diagonal:
        return total / (len(x) * len(y))
    diagonal = ((x * y).sum(1) / x.shape[1] + 1) ** 3
    return (total - diagonal.sum()) / (len(x) * (len(x) - 1))
