"""From the strengths of one denoiser call to what each site does in it.

A plan is made once for a table of strengths and kept, since a sampler asks for the same one at every step. Rows that no
membrane acts on are not touched; when they are unconditional rows beside conditional ones that all act alike, and many
membranes act, it is cheaper to run the two kinds of rows on the two sets of weights (`split`).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from semipermeable.errors import AttachError
from semipermeable.membrane import Membrane
from semipermeable.runtime.folded import EffectiveWeights, can_fold, fold_bytes, fold_weights
from semipermeable.runtime.paths import Path
from semipermeable.runtime.stacks import Group, Pair, Stack, join, stack_pairs
from semipermeable.sites import Site

__all__ = ["Plan", "RowChoice", "make_plan"]

SPLIT_RANK = 48
"""From this many pairs at one site on, half of the rows on each set of weights is taken to cost less than the sums
beside one product; an estimate from the number of multiplications, see docs/bank.md."""


class RowChoice(NamedTuple):
    """Which rows of a site's input act.

    Args:
        where: None for all, a slice where they lie together, else their indices.
        strengths: of these rows, shape (active rows, acting membranes), fp32 on CPU.
    """

    where: slice | Tensor | None
    strengths: Tensor


class Plan:
    """What each site does for one table of strengths.

    Args:
        path: folded or mixed.
        sites: the sites at which something acts.
        pairs: site name to the pairs that act there.
        strengths: shape (rows, acting membranes), fp32 on CPU.
        groups: site name to the group of sites that share its input.
        weights: effective weights, if the path is folded.
        membranes: the acting ones; who knows them by identity only is sure that they live as long as the plan.
    """

    def __init__(
        self,
        path: Path,
        sites: Sequence[Site],
        pairs: Mapping[str, Sequence[Pair]],
        strengths: Tensor,
        groups: Mapping[str, Group],
        weights: EffectiveWeights | None,
        membranes: Sequence[Membrane],
    ) -> None:
        self.path = path
        self.membranes = tuple(membranes)
        self.sites = {site.module: site for site in sites}
        self.names = frozenset(site.name for site in sites)
        self.weights = weights
        self.pairs = pairs
        self.strengths = strengths
        self._rows: dict[int, RowChoice] = {}
        self._stacks: dict[tuple[str, int, torch.device, torch.dtype], Stack] = {}
        self._joined: dict[tuple[str, int, torch.device, torch.dtype], Tensor] = {}
        self._members: dict[str, list[str]] = {}
        for name in (site.name for site in sites):
            if name in groups:
                self._members.setdefault(groups[name].key, []).append(name)
        self._groups = {name: group for name, group in groups.items() if len(self._members.get(group.key, ())) > 1}

    @property
    def num_bytes(self) -> int:
        """Device memory that it holds."""
        held = sum(stack.num_bytes for stack in list(self._stacks.values()))
        folded = self.weights.weights.values() if self.weights else ()
        return held + sum(weight.numel() * weight.element_size() for weight in folded)

    def rows(self, num_rows: int) -> RowChoice:
        """Return which of `num_rows` rows act; every row of the call may appear several times, one after the other.

        Raises:
            AttachError: if the number of rows is no multiple of that of the call.
        """
        if num_rows not in self._rows:
            strengths, rest = self.strengths, num_rows % self.strengths.shape[0]
            if rest:
                raise AttachError(
                    f"a site saw {num_rows} rows while the denoiser was called with {strengths.shape[0]}; "
                    "this denoiser mixes rows in a way no host describes"
                )
            strengths = strengths.repeat_interleave(num_rows // strengths.shape[0], 0)
            index = (strengths != 0).any(1).nonzero()[:, 0]
            self._rows[num_rows] = RowChoice(_where(index, num_rows), strengths[index])
        return self._rows[num_rows]

    def stack(self, name: str, num_rows: int, device: torch.device, dtype: torch.dtype) -> Stack:
        """Return the pairs of a site; those of sites with the same input are made together."""
        key = (name, num_rows, device, dtype)
        if key not in self._stacks:
            group = self._groups.get(name)
            names = self._members[group.key] if group else [name]
            strengths = self.rows(num_rows).strengths
            made = [stack_pairs(self.pairs[member], strengths, device, dtype) for member in names]
            joined = join(made) if group else None
            if group and joined:
                made = joined[1]
                self._joined[group.key, num_rows, device, dtype] = joined[0]
            for member, stack in zip(names, made, strict=True):
                self._stacks[member, num_rows, device, dtype] = stack
        return self._stacks[key]

    def joined(self, name: str, num_rows: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, slice] | None:
        """Return the v of all sites that share this site's input, and its own part; None if it shares with none."""
        group = self._groups.get(name)
        both = self._joined.get((group.key, num_rows, device, dtype)) if group else None
        if group is None or both is None:
            return None
        begin = 0
        for member in self._members[group.key]:
            stack = self._stacks[member, num_rows, device, dtype]
            length = stack.u.shape[-2]
            if member == name:
                return both, slice(begin, begin + length)
            begin += length
        return None


def _where(index: Tensor, num_rows: int) -> slice | Tensor | None:
    if len(index) == num_rows:
        return None
    first, last = int(index[0]), int(index[-1])
    return slice(first, last + 1) if last - first + 1 == len(index) else index


def make_plan(
    sites: Sequence[Site],
    pairs: Mapping[str, Sequence[Pair]],
    strengths: Tensor,
    groups: Mapping[str, Group],
    membranes: Sequence[Membrane],
    *,
    most_fold_bytes: int,
    unconditional: tuple[bool, ...],
) -> Plan:
    """Choose the path and make the plan. The choice depends on the arguments only: same call, same bits.

    Args:
        sites: the sites at which a membrane acts.
        pairs: site name to the pairs that act there.
        strengths: shape (rows, acting membranes), fp32 on CPU; some row acts.
        groups: site name to its group.
        membranes: the acting ones.
        most_fold_bytes: memory that effective weights may take; 0 never folds.
        unconditional: which rows may differ from the base model by rounding although nothing acts on them; () is none.
    """
    acts = (strengths != 0).any(1)
    active = strengths[acts]
    alike = bool((active == active[0]).all())
    all_rows = len(active) == len(strengths)
    split = not all_rows and _splits(acts, pairs, unconditional)
    weights = None
    if alike and (all_rows or split) and all(can_fold(site) for site in sites) and fold_bytes(sites) <= most_fold_bytes:
        weights = fold_weights(sites, pairs, active[0])
    path = Path.MIXED if weights is None else Path.FOLDED
    return Plan(path, sites, pairs, strengths, groups, weights, membranes)


def _splits(acts: Tensor, pairs: Mapping[str, Sequence[Pair]], unconditional: tuple[bool, ...]) -> bool:
    """Whether the idle rows only guide, lie together at one end, and enough pairs act for halves to be cheaper."""
    idle = [row for row, active in enumerate(acts.tolist()) if not active]
    if len(unconditional) != len(acts) or not all(unconditional[row] for row in idle):
        return False
    lie_apart = isinstance(_where(acts.nonzero()[:, 0], len(acts)), slice) and bool(acts[0]) != bool(acts[-1])
    return lie_apart and max(sum(pair.u.shape[1] for pair in several) for several in pairs.values()) >= SPLIT_RANK
