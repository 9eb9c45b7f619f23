"""Accuracies of an erasure by the verdicts of a judge, and the harmonic means of the field.

UnlearnCanvas (Zhang et al. 2024, arXiv 2402.11846, §3) asks a classifier of the erased concept's own domain (objects,
say) and one of the other domain (styles):

- UA, unlearning accuracy: share of pictures that ask for an erased concept in which it is **not** seen;
- IRA, in-domain retain accuracy: share of all other pictures in which what was asked for in that domain is seen;
- CRA, cross-domain retain accuracy: share of pictures in which the other domain is right; over all pictures, those of
  the erased concept too, as its released code averages.

Target accuracy is 1 − UA. MACE (Lu et al. 2024, arXiv 2403.06135, §4) joins efficacy, specificity and generality into

    H_o = 3 / ((1 − Acc_e)⁻¹ + Acc_s⁻¹ + (1 − Acc_g)⁻¹)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from semipermeable.rates import Rate

__all__ = ["CanvasHits", "canvas_hits", "erasing_harmonic", "harmonic_mean"]


@dataclass(frozen=True, eq=False)
class CanvasHits:
    """Verdicts row by row; all tensors are boolean, shape (rows,).

    Args:
        asks: rows that ask for an erased concept.
        right: what was asked for in the concept's domain is seen.
        crossed: rows that ask for something in the other domain.
        other_right: what was asked for there is seen.
        judged: rows that ask for something in the concept's domain, which a judge looked at; None is all.
    """

    asks: Tensor
    right: Tensor
    crossed: Tensor
    other_right: Tensor
    judged: Tensor | None = None

    @property
    def targets(self) -> Tensor:
        """Rows behind target accuracy and UA."""
        return self.asks if self.judged is None else self.asks & self.judged

    @property
    def kept(self) -> Tensor:
        """Rows behind IRA."""
        return ~self.asks if self.judged is None else ~self.asks & self.judged

    @property
    def target(self) -> Rate:
        """Target accuracy: share of the concept's pictures in which it is seen."""
        return _share(self.right, self.targets)

    @property
    def ua(self) -> Rate:
        """Unlearning accuracy."""
        return _share(~self.right, self.targets)

    @property
    def ira(self) -> Rate:
        """In-domain retain accuracy."""
        return _share(self.right, self.kept)

    @property
    def cra(self) -> Rate:
        """Cross-domain retain accuracy."""
        return _share(self.other_right, self.crossed)


def canvas_hits(
    asked: Sequence[str | None],
    seen: Sequence[str | None],
    asked_other: Sequence[str | None],
    seen_other: Sequence[str | None],
    asks: Sequence[bool],
) -> CanvasHits:
    """Compare what was asked for with what a judge sees.

    Args:
        asked: per row, the class asked for in the erased concepts' domain; None where nothing is, or nobody judges.
        seen: per row, the judge's verdict there; None is nothing.
        asked_other: per row, the class asked for in the other domain; None where the prompt leaves it open.
        seen_other: per row, the verdict there.
        asks: per row, whether it asks for an erased class.

    Raises:
        ValueError: if the columns differ in length.
    """
    lengths = {len(asked), len(seen), len(asked_other), len(seen_other), len(asks)}
    if len(lengths) > 1:
        raise ValueError(f"verdicts need one row for each picture, found columns of {sorted(lengths)} rows")
    return CanvasHits(
        torch.tensor(list(asks), dtype=torch.bool),
        _equal(asked, seen),
        _there(asked_other),
        _equal(asked_other, seen_other),
        _there(asked),
    )


def _there(asked: Sequence[str | None]) -> Tensor:
    return torch.tensor([name is not None for name in asked], dtype=torch.bool)


def _equal(asked: Sequence[str | None], seen: Sequence[str | None]) -> Tensor:
    pairs = zip(asked, seen, strict=True)
    return torch.tensor([name is not None and name == verdict for name, verdict in pairs], dtype=torch.bool)


def _share(hits: Tensor, mask: Tensor) -> Rate:
    return Rate(int(hits[mask].sum()), int(mask.sum()))


def harmonic_mean(*shares: float | Tensor) -> Tensor:
    """Return the harmonic mean of shares in [0, 1], element by element; 0 if one of them is 0.

    Args:
        shares: numbers, or tensors of one shape.
    """
    stacked = torch.stack([torch.as_tensor(share, dtype=torch.float64) for share in shares])
    return len(shares) / (1 / stacked).sum(0)


def erasing_harmonic(efficacy: float, specificity: float, generality: float) -> float:
    """Return MACE's H_o.

    Args:
        efficacy: Acc_e, how often erased concepts are still seen; low is good.
        specificity: Acc_s, how often everything else is right; high is good.
        generality: Acc_g, how often synonyms of erased concepts still show them; low is good.
    """
    return float(harmonic_mean(1 - efficacy, specificity, 1 - generality))
