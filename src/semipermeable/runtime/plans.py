"""From the strengths of one denoiser call to what each site does in it.

A plan is made once for a table of strengths and kept, since a sampler asks for the same one at every step. Rows that no
membrane acts on are not touched; when they are unconditional rows beside conditional ones that all act alike, and many
membranes act, it is cheaper to run the two kinds of rows on the two sets of weights (`split`).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from semipermeable.errors import AttachError
from semipermeable.membrane import Membrane
from semipermeable.runtime.folded import EffectiveWeights, can_fold, fold_bytes, fold_weights
from semipermeable.runtime.paths import Path
from semipermeable.runtime.stacks import Group, Pair, Stack, join, stack_pairs
from semipermeable.runtime.taps import Quick, Taps
from semipermeable.sites import Site

__all__ = ["Plan", "Ready", "RowChoice", "make_plan"]

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


class Ready(NamedTuple):
    """What one site on the side path needs for an input of one number of rows, on one device, in one dtype.

    Args:
        where: the rows that act, on the device; see `RowChoice`.
        stack: the site's pairs.
        group: which sites share this one's input, and their v · x; None if none does.
        joined: the v of all sites of the group, shape (k, in) or (rows, k, in); None without a group.
        part: which of them are this site's own.
    """

    where: slice | Tensor | None
    stack: Stack
    group: str | None
    joined: Tensor | None
    part: slice


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
        self._ready: dict[tuple[str, int, torch.device, torch.dtype], Ready] = {}
        self._counted = (-1, 0)
        self._members: dict[str, list[str]] = {}
        for name in (site.name for site in sites):
            if name in groups:
                self._members.setdefault(groups[name].key, []).append(name)
        self._groups = {name: group for name, group in groups.items() if len(self._members.get(group.key, ())) > 1}
        self.texts = frozenset(
            site.name
            for site in sites
            if site.module is site.layer
            and isinstance(site.layer, nn.Linear)
            and site.name in groups
            and groups[site.name].text
        )
        """Names of the sites that read nothing but the prompt."""
        self.taps = Taps(self.sites, self._quick())

    @property
    def num_bytes(self) -> int:
        """Device memory that it holds."""
        number, total = self._counted
        if number != len(self._stacks):
            stacks = list(self._stacks.values())
            folded = self.weights.weights.values() if self.weights else ()
            total = sum(stack.num_bytes for stack in stacks)
            total += sum(weight.numel() * weight.element_size() for weight in folded)
            self._counted = (len(stacks), total)
        return total

    def _quick(self) -> dict[nn.Module, Quick]:
        """What runs the sites whose output is one product with an effective weight, from nothing but the input."""
        num_rows = self.strengths.shape[0]
        if self.weights is None or self.rows(num_rows).where is not None:
            return {}
        sites = ((module, site) for module, site in self.sites.items() if site.name not in self.texts)
        return {module: self.weights.quick(site, num_rows) for module, site in sites}

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

    def ready(self, name: str, num_rows: int, device: torch.device, dtype: torch.dtype) -> Ready:
        """Return what a site needs, made at its first call."""
        key = (name, num_rows, device, dtype)
        ready = self._ready.get(key)
        if ready is None:
            stack = self._stack(name, num_rows, device, dtype)
            where = self.rows(num_rows).where
            joined, part = self._part(name, num_rows, device, dtype)
            ready = self._ready[key] = Ready(
                where.to(device) if isinstance(where, Tensor) else where,
                stack,
                None if joined is None else self._groups[name].key,
                joined,
                part,
            )
        return ready

    def _stack(self, name: str, num_rows: int, device: torch.device, dtype: torch.dtype) -> Stack:
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

    def _part(self, name: str, num_rows: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor | None, slice]:
        """Return the v of all sites that share this site's input, and its own part; None if it shares with none."""
        group = self._groups.get(name)
        both = self._joined.get((group.key, num_rows, device, dtype)) if group else None
        if group is None or both is None:
            return None, slice(None)
        members = self._members[group.key]
        lengths = [self._stacks[member, num_rows, device, dtype].u.shape[-2] for member in members]
        at = members.index(name)
        return both, slice(sum(lengths[:at]), sum(lengths[: at + 1]))


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
