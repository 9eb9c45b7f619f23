"""A membrane in one step: the least-squares rank-k edit of cross-attention keys and values.

A key or value projection W sees rows x of text states. With rows x_t of the concept's captions, rows x_s of the same
captions with the surrogate in its place, and rows x of text to be kept, the wanted change ΔW minimises

    mean ‖ΔW x_t − (1 + η) W (x_s − x_t)‖² + λ mean ‖ΔW x‖²

(the goal of SPM's Eq. 4, asked of W instead of the whole network). Written with M = E[x_t x_tᵀ] + λ E[x xᵀ] and
B = (1 + η) W E[(x_s − x_t) x_tᵀ], the minimum is ΔW = B M⁻¹, and the objective is ‖(ΔW − B M⁻¹) M^½‖² + constant. So
the best edit of rank k is the truncated SVD of B M^−½, brought back by M^−½: u s vᵀ M^−½ (Eckart-Young in the metric
M).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from semipermeable.permeability.decisions import EncodedPrompt
from semipermeable.sites import Site

__all__ = ["StatePairs", "cross_attention_sites", "pair_states", "second_moment", "solve"]

_FLOOR = 1e-6
"""Smallest eigenvalue of M that counts, relative to the largest: below it fp32 text states are noise."""


@dataclass(frozen=True, eq=False)
class StatePairs:
    """Text states before and after: row i of `target` should be read as row i of `surrogate`, both (rows, dim)."""

    target: Tensor
    surrogate: Tensor


def cross_attention_sites(sites: Mapping[str, Site]) -> dict[str, Site]:
    """Return the sites that project text into keys and values, by the names that diffusers gives them."""
    return {name: site for name, site in sites.items() if name.endswith((".attn2.to_k", ".attn2.to_v"))}


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
        indices.append((target.first + position, min(target.first + other, length - 1)))
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


def solve(
    weight: Tensor, pairs: StatePairs, keep: Tensor, *, keep_weight: float, negative_guidance: float, rank: int
) -> tuple[Tensor, Tensor]:
    """Return the best pair (u, v) of rank k for one projection, with balanced norms.

    Args:
        weight: W, shape (out, dim).
        pairs: n paired text states.
        keep: E[x xᵀ] of text to be kept, shape (dim, dim).
        keep_weight: λ > 0.
        negative_guidance: η ≥ 0; how far beyond the surrogate to go.
        rank: k ≥ 1; where it exceeds the rank of the problem the rest is zero.

    Returns:
        u (out, k) and v (k, dim), fp32 on the CPU, with ‖u_i‖ = ‖v_i‖ for each i.
    """
    x_t, x_s = pairs.target.double(), pairs.surrogate.double()
    moment = x_t.T @ x_t / x_t.shape[0] + keep_weight * keep.double()
    cross = (1 + negative_guidance) * weight.detach().double().cpu() @ ((x_s - x_t).T @ x_t / x_t.shape[0])
    values, vectors = torch.linalg.eigh(moment)
    values = values.clamp_min(float(values[-1]) * _FLOOR)
    inverse_root = (vectors / values.sqrt()) @ vectors.T
    left, singular, right = torch.linalg.svd(cross @ inverse_root, full_matrices=False)
    u = left[:, :rank] * singular[:rank]
    v = right[:rank] @ inverse_root
    balance = (v.norm(dim=1) / u.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)).sqrt()
    balance = torch.where(singular[:rank] > 0, balance, torch.ones_like(balance))
    u, v = u * balance, v / balance[:, None]
    missing = rank - u.shape[1]
    if missing > 0:
        u = torch.cat([u, u.new_zeros(u.shape[0], missing)], 1)
        v = torch.cat([v, v.new_zeros(missing, v.shape[1])], 0)
    return u.float(), v.float()
