"""Paired cluster bootstrap: intervals that know which pictures belong together.

Pictures of one caption resemble each other, so the unit that is drawn again is a cluster of rows (a caption, a concept,
a seed) and never a row. Within each stratum its clusters are drawn with replacement as often as there are clusters; row
i gets the weight w_i, the number of times its cluster was drawn, and a figure over rows M of values x is

    x̄* = Σ_{i∈M} w_i x_i / Σ_{i∈M} w_i

The interval is that of the percentiles of x̄* (Efron and Tibshirani 1993, §13.3; clusters: Davison and Hinkley 1997,
§3.8).
Two erasers drew the same rows, so their difference is taken with the **same** w: what both share cancels. Strata hold
the concepts fixed: an interval then speaks of these concepts, and generalises over what the clusters are.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LEVEL", "REPLICATES", "Estimate", "Resampling", "paired_difference"]

REPLICATES = 2000
"""Enough for the ends of a 95 % interval to be steady in the third digit of a share."""
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval.

    Args:
        value: over the rows as they are.
        low: lower end of the 95 % interval.
        high: upper end.
        n: rows behind it.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, eq=False)
class Resampling:
    """Draws of one set of rows, shared by everything that is compared on them.

    Args:
        weights: how often each row was drawn, shape (replicates, rows).
    """

    weights: Tensor

    @classmethod
    def draw(
        cls,
        clusters: Sequence[Hashable],
        strata: Sequence[Hashable] | None = None,
        *,
        generator: torch.Generator,
        replicates: int = REPLICATES,
    ) -> "Resampling":
        """Draw clusters with replacement, stratum by stratum.

        Args:
            clusters: the cluster of each row; the same name in two strata means two clusters.
            strata: the stratum of each row; None is one stratum.
            generator: of the draws.
            replicates: number of draws.

        Raises:
            ValueError: if there is no row, or `strata` has another length.
        """
        if not clusters or (strata is not None and len(strata) != len(clusters)):
            raise ValueError(f"a bootstrap needs rows and one stratum for each, found {len(clusters)} clusters")
        layers: Sequence[Hashable] = [None] * len(clusters) if strata is None else strata
        numbers: dict[Hashable, dict[Hashable, int]] = {}
        for layer, cluster in zip(layers, clusters, strict=True):
            inside = numbers.setdefault(layer, {})
            inside.setdefault(cluster, len(inside))
        counts = {layer: _counts(len(inside), replicates, generator) for layer, inside in numbers.items()}
        columns = [counts[s][:, numbers[s][c]] for s, c in zip(layers, clusters, strict=True)]
        return cls(torch.stack(columns, dim=1))

    def means(self, values: Tensor, mask: Tensor) -> Tensor:
        """Return the figure of each replicate, shape (replicates,); NaN where no row of the mask was drawn.

        Args:
            values: one per row, shape (rows,).
            mask: which rows count, boolean, shape (rows,).
        """
        chosen = self.weights[:, mask]
        return chosen @ values[mask].double() / chosen.sum(1)


def _counts(clusters: int, replicates: int, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(clusters, (replicates, clusters), generator=generator)
    counts = torch.zeros(replicates, clusters, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))


def percentiles(samples: Tensor) -> tuple[float, float]:
    """Return the ends of the 95 % percentile interval; NaN replicates are left out."""
    kept = samples[~samples.isnan()]
    if not len(kept):
        return float("nan"), float("nan")
    ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=kept.dtype)
    low, high = torch.quantile(kept, ends).tolist()
    return low, high


def paired_difference(
    after: Tensor,
    before: Tensor,
    clusters: Sequence[Hashable],
    strata: Sequence[Hashable] | None = None,
    *,
    generator: torch.Generator,
    replicates: int = REPLICATES,
) -> Estimate:
    """Return the mean of `after − before` with its interval.

    Args:
        after: one value per row, shape (rows,).
        before: the same rows under what it is compared with.
        clusters: the cluster of each row.
        strata: the stratum of each row, or None.
        generator: of the draws.
        replicates: number of draws.
    """
    difference = after.double() - before.double()
    everything = torch.ones(len(difference), dtype=torch.bool)
    draws = Resampling.draw(clusters, strata, generator=generator, replicates=replicates)
    low, high = percentiles(draws.means(difference, everything))
    return Estimate(float(difference.mean()), low, high, len(difference))
