"""A membrane in one step: the least-squares rank-k edit of cross-attention keys and values.

A key or value projection W sees rows x of text states. With rows x_t of the concept's captions, rows x_s of the same
captions with the surrogate in its place, and rows x of text to be kept, the wanted change ΔW minimises

    mean ‖ΔW x_t − (1 + η) W (x_s − x_t)‖² + λ mean ‖ΔW x‖²

(the goal of SPM's Eq. 4, asked of W instead of the whole network; with `wording_directions` Q spared, η reaches
(I − Q Qᵀ)(x_s − x_t) alone). Written with M = E[x_t x_tᵀ] + λ E[x xᵀ] and
B = (1 + η) W E[(x_s − x_t) x_tᵀ], the minimum is ΔW = B M⁻¹, and the objective is ‖(ΔW − B M⁻¹) M^½‖² + constant. So
the best edit of rank k is the truncated SVD of B M^−½, brought back by M^−½: u s vᵀ M^−½ (Eckart-Young in the metric
M).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from semipermeable.permeability.decisions import EncodedPrompt
from semipermeable.sites import Site

__all__ = [
    "ClosedForm",
    "StatePairs",
    "complement",
    "cross_attention_sites",
    "null_space",
    "pair_states",
    "projection",
    "second_moment",
    "wording_directions",
]

_FLOOR = 1e-6
"""Smallest eigenvalue of M that counts, relative to the largest: below it fp32 text states are noise."""
_BY_STRUCTURE = ((".attn2.to_k", ".attn2.to_v"), (".context_embedder",))
"""Endings of names of sites that read text alone, the first that a denoiser has."""
_SPANNED = 1e-6
"""Singular value of unit regulators up to which a direction is not theirs: fp32 regulators are known no better."""


@dataclass(frozen=True, eq=False)
class StatePairs:
    """Text states before and after: row i of `target` should be read as row i of `surrogate`, both (rows, dim)."""

    target: Tensor
    surrogate: Tensor

    def mapped(self, read: Callable[[Tensor], Tensor]) -> "StatePairs":
        """Return the pairs after a function of states, e.g. the projection that a denoiser applies to text first."""
        return StatePairs(read(self.target), read(self.surrogate))


def cross_attention_sites(sites: Mapping[str, Site], endings: tuple[str, ...] = ()) -> dict[str, Site]:
    """Return the sites that read text alone.

    Those whose names the host knows; where it knows none, by the structure of diffusers' models: keys and values of
    the second attention of a block (`attn2`), or, where text and image are mixed before every later projection, the
    text's first projection (`context_embedder` of SD3 and FLUX).

    Args:
        sites: of a denoiser.
        endings: of their names (`Host.text_sites`).
    """
    for wanted in (endings, *_BY_STRUCTURE):
        found = {name: site for name, site in sites.items() if wanted and f".{name}".endswith(wanted)}
        if found:
            return found
    return {}


def projection(site: Site, dtype: torch.dtype) -> Tensor:
    """Return the matrix W of a site that reads text, shape (out, dim).

    Where the layer keeps it quantised, or has it in memory during its own calls only, the layer is asked: what it makes
    of the unit vectors, less what it makes of zero. That is the function that generation will see.

    Args:
        site: a Linear's.
        dtype: in which the layer is called, the denoiser's.
    """
    layer: Any = site.layer
    weight = getattr(layer, "weight", None)
    if (
        type(weight) is nn.Parameter
        and weight.is_floating_point()
        and weight.device.type != "meta"
        and weight.ndim == 2
    ):
        return weight
    device = "cpu" if weight is None or weight.device.type == "meta" else weight.device
    with torch.no_grad():
        units = torch.eye(layer.in_features, dtype=dtype, device=device)
        return (layer(units) - layer(torch.zeros_like(units[:1]))).T


def _split(target: Sequence[int], surrogate: Sequence[int]) -> tuple[int, int, int]:
    """Return lengths of the common prefix and, after it, of both changed spans; what follows them is common too."""
    prefix = 0
    while prefix < min(len(target), len(surrogate)) and target[prefix] == surrogate[prefix]:
        prefix += 1
    suffix = 0
    room = min(len(target), len(surrogate)) - prefix
    while suffix < room and target[-1 - suffix] == surrogate[-1 - suffix]:
        suffix += 1
    return prefix, len(target) - prefix - suffix, len(surrogate) - prefix - suffix


def pair_states(target: EncodedPrompt, surrogate: EncodedPrompt, span: Sequence[int]) -> StatePairs:
    """Pair the text states of a caption with those of the same caption with the surrogate in the concept's place.

    Rows start at the concept's first token: what a causal encoder wrote before it is shared with every other caption
    and must stay. Changed tokens meet changed tokens (or, where the concept was dropped, the token that follows), later
    tokens meet themselves, and the end and padding rows meet theirs.

    Args:
        target: a caption of the concept.
        surrogate: the caption it should be read as.
        span: token ids of the concept's name, as they stand in the caption; the whole changed part if not found.
    """
    prefix, num_old, num_new = _split(target.token_ids, surrogate.token_ids)
    start = _find(target.token_ids, span)
    start = prefix if start is None else start
    indices: list[tuple[int, int]] = []
    length = target.states.shape[0]
    for position in range(start, length - target.first):
        if position < prefix:
            other = position
        elif position < prefix + num_old:
            other = prefix + min(position - prefix, max(num_new - 1, 0))
        else:
            other = position - num_old + num_new
        indices.append((target.first + position, min(surrogate.first + other, surrogate.states.shape[0] - 1)))
    rows = torch.tensor(indices)
    return StatePairs(target.states[rows[:, 0]], surrogate.states[rows[:, 1]])


def _find(ids: Sequence[int], span: Sequence[int]) -> int | None:
    for start in range(len(ids) - len(span) + 1):
        if tuple(ids[start : start + len(span)]) == tuple(span):
            return start
    return None


def second_moment(states: Tensor) -> Tensor:
    """Return E[x xᵀ] over rows, shape (dim, dim), float64.

    Args:
        states: shape (rows, dim).
    """
    rows = states.double()
    return rows.T @ rows / rows.shape[0]


def null_space(moment: Tensor, threshold: float, within: Tensor | None = None) -> Tensor:
    """Return an orthonormal basis of the directions in which kept states have next to no part, shape (dim, free).

    Args:
        moment: E[x xᵀ] of what is kept, shape (dim, dim), float64.
        threshold: a direction is free if its eigenvalue is at most this share of the greatest, in [0, 1).
        within: orthonormal basis of the span to look in, shape (dim, r); None looks everywhere.
    """
    seen = moment if within is None else within.T @ moment @ within
    values, vectors = torch.linalg.eigh(seen)
    free = vectors[:, values <= threshold * float(torch.linalg.eigvalsh(moment)[-1])]
    return free if within is None else within @ free


def complement(regulators: Sequence[Tensor], dim: int) -> Tensor:
    """Return an orthonormal basis of what is orthogonal to some regulators, shape (dim, r), float64.

    Args:
        regulators: v of one site each, shape (k, dim); together of any rank.
        dim: of the site's input.
    """
    if not regulators:
        return torch.eye(dim, dtype=torch.float64)
    rows = torch.cat([v.detach().cpu().double() for v in regulators])
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    _, singular, right = torch.linalg.svd(rows, full_matrices=True)
    return right[int((singular > _SPANNED).sum()) :].T


def wording_directions(states: Tensor, share: float) -> Tensor:
    """Return an orthonormal basis of directions in which captions differ at the same place, shape (dim, r), float64.

    The fewest leading directions that hold a share of that variation.

    Args:
        states: of captions that say the same of one thing in different wordings, shape (captions, places, dim).
        share: in [0, 1]; 0 gives no direction, 1 all there are.
    """
    rows = (states.double() - states.double().mean(0)).flatten(0, 1)
    values, vectors = torch.linalg.eigh(second_moment(rows))
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    rank = int((values > values[0] * _FLOOR).sum())
    held = (values.cumsum(0) / values.sum())[:rank]
    return vectors[:, : min(int((held < share).sum()) + 1, rank) if share else 0]


class ClosedForm:
    """The part of the problem that all projections of the same text states share: M, its root, and E[(x_s − x_t) x_tᵀ].

    Args:
        pairs: n paired text states.
        keep: E[x xᵀ] of text to be kept, shape (dim, dim).
        keep_weight: λ > 0.
        within: orthonormal basis of the directions that v may have, shape (dim, r); None allows all. With basis Q the
            minimum over ΔW = D Qᵀ is that of the problem whose states are Qᵀ x.
        spare: orthonormal basis of the directions of x_s − x_t that η does not reach, shape (dim, r); None is none.
    """

    def __init__(
        self,
        pairs: StatePairs,
        keep: Tensor,
        *,
        keep_weight: float,
        within: Tensor | None = None,
        spare: Tensor | None = None,
    ) -> None:
        x_t, x_s = pairs.target.double(), pairs.surrogate.double()
        moment = x_t.T @ x_t / x_t.shape[0] + keep_weight * keep.double()
        cross = (x_s - x_t).T @ x_t / x_t.shape[0]
        if within is not None:
            moment, cross = within.T @ moment @ within, cross @ within
        values, vectors = torch.linalg.eigh(moment)
        values = values.clamp_min(float(values[-1]) * _FLOOR) if len(values) else values
        inverse_root = (vectors / values.sqrt()) @ vectors.T
        self._sought = cross @ inverse_root
        self._spare = spare
        self._back = inverse_root if within is None else inverse_root @ within.T

    def solve(self, weight: Tensor, *, negative_guidance: float, rank: int) -> tuple[Tensor, Tensor]:
        """Return the best pair (u, v) of rank k for one projection, with balanced norms.

        Args:
            weight: W, shape (out, dim).
            negative_guidance: η ≥ 0; how far beyond the surrogate to go.
            rank: k ≥ 1; where it exceeds the rank of the problem the rest is zero.

        Returns:
            u (out, k) and v (k, dim), fp32 on the CPU, with ‖u_i‖ = ‖v_i‖ for each i.
        """
        projected = weight.detach().cpu().double()
        wanted = (1 + negative_guidance) * projected @ self._sought
        if self._spare is not None:
            wanted = wanted - negative_guidance * projected @ self._spare @ (self._spare.T @ self._sought)
        left, singular, right = torch.linalg.svd(wanted, full_matrices=False)
        u = left[:, :rank] * singular[:rank]
        v = right[:rank] @ self._back
        balance = (v.norm(dim=1) / u.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)).sqrt()
        balance = torch.where(singular[:rank] > 0, balance, torch.ones_like(balance))
        u, v = u * balance, v / balance[:, None]
        missing = rank - u.shape[1]
        if missing > 0:
            u = torch.cat([u, u.new_zeros(u.shape[0], missing)], 1)
            v = torch.cat([v, v.new_zeros(missing, v.shape[1])], 0)
        return u.float(), v.float()
