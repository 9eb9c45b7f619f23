"""The pairs that act at one site in one denoiser call, stacked for `sums`.

Strengths S have shape (active rows, acting membranes). Three cases, from cheap to dear: all rows have the same
strengths, which are then multiplied into u; rows share most membranes, then the pairs are stacked once and S is
multiplied in row by row; rows have membranes of their own, then every row gets its own stack, padded with zero pairs
to the longest. Projections that read the same input (query, key, value) share one product v · x.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Group", "Pair", "Stack", "group_of", "join", "stack_pairs"]

_WORTH_SHARING = 2
"""Sharing multiplies zeros for the pairs that a row does not have; up to twice its own it is still the cheaper way."""
_SAME_INPUT = (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj"))


class Pair(NamedTuple):
    """One membrane's pair at a site: its column of S, u (out, k), v (k, in, *kernel)."""

    column: int
    u: Tensor
    v: Tensor


class Stack(NamedTuple):
    """Stacked pairs.

    Args:
        u: shape (k, out), or (rows, k, out).
        v: shape (k, in, *kernel), or (rows, k, in, *kernel).
        gamma: strengths that are not in u yet, shape (rows, k), or None.
        own: whether every row has its own pairs.
    """

    u: Tensor
    v: Tensor
    gamma: Tensor | None
    own: bool

    @property
    def num_bytes(self) -> int:
        """Memory it takes."""
        return sum(t.numel() * t.element_size() for t in (self.u, self.v))


class Group(NamedTuple):
    """Which sites read the very same input; `text`: it is the prompt, the same at every step of a sampler."""

    key: str
    text: bool


def group_of(name: str, parent: nn.Module) -> Group | None:
    """Return the group of a site, or None if it shares its input with no other.

    Args:
        name: the site's dotted name.
        parent: the module that holds the site.
    """
    prefix, _, leaf = name.rpartition(".")
    for number, leaves in enumerate(_SAME_INPUT):
        if leaf in leaves:
            crossed = number == 0 and bool(getattr(parent, "is_cross_attention", False))
            if crossed and leaf == "to_q":
                return None
            return Group(f"{prefix}.{number}", text=crossed)
    return None


def stack_pairs(pairs: Sequence[Pair], strengths: Tensor, device: torch.device, dtype: torch.dtype) -> Stack:
    """Stack the pairs of one site.

    Args:
        pairs: at least one.
        strengths: S, fp32 on CPU.
        device: where to.
        dtype: in which dtype; strengths are multiplied into u in fp32 first.
    """
    owner = torch.tensor([pair.column for pair in pairs for _ in range(pair.u.shape[1])])
    s = strengths[:, owner]
    u = torch.cat([pair.u.float() for pair in pairs], 1).T
    v = torch.cat([pair.v for pair in pairs], 0)
    if bool((s == s[0]).all()):
        return Stack((u * s[0][:, None]).to(device, dtype).contiguous(), v.to(device, dtype), None, own=False)
    longest = int((s != 0).sum(1).max())
    if len(owner) <= _WORTH_SHARING * longest:
        return Stack(u.to(device, dtype).contiguous(), v.to(device, dtype), s.to(device, dtype), own=False)
    index, factors = _own_pairs(s, longest)
    u_all, v_all = (torch.cat([t.to(device), t.new_zeros(1, *t.shape[1:]).to(device)]) for t in (u, v))
    index = index.to(device)
    own_u = (u_all[index] * factors.to(device)[:, :, None]).to(dtype)
    return Stack(own_u, v_all[index].to(dtype), None, own=True)


def _own_pairs(s: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Return, for every row, the indices of its pairs (padded with one past the last) and their strengths."""
    index = torch.full((s.shape[0], longest), s.shape[1])
    factors = torch.zeros(s.shape[0], longest)
    for row, values in enumerate(s):
        mine = values.nonzero()[:, 0]
        index[row, : len(mine)] = mine
        factors[row, : len(mine)] = values[mine]
    return index, factors


def join(stacks: Sequence[Stack]) -> tuple[Tensor, list[Stack]] | None:
    """Put the v of several sites with one input together.

    Returns:
        All v, and the stacks with their v as parts of it; None if the sites do not go together.
    """
    shapes = {(stack.own, stack.v.dim(), stack.v.shape[-1], stack.v.shape[0] if stack.own else 0) for stack in stacks}
    if len(stacks) < 2 or len(shapes) != 1 or stacks[0].v.dim() - stacks[0].own != 2:
        return None
    dim = 1 if stacks[0].own else 0
    joined = torch.cat([stack.v for stack in stacks], dim)
    parts = joined.split([stack.v.shape[dim] for stack in stacks], dim)
    return joined, [stack._replace(v=part) for stack, part in zip(stacks, parts, strict=True)]
