"""Bake membranes into the denoiser's weights, and take them out again.

    with fold(pipe, ["cat.safetensors"]):
        pipe.save_pretrained("model-without-cats")

Folding changes the weights that every pipeline sharing this denoiser reads, and has no gate: it acts on every prompt.
Use `attach` to serve; fold to publish a checkpoint.
"""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from semipermeable.equip.attachment import MembraneLike, read_membranes
from semipermeable.equip.gating import strengths_for
from semipermeable.errors import AttachError
from semipermeable.hosts import host_for
from semipermeable.rank1 import folded_weight
from semipermeable.runtime import refuse_rewritten, require_plain, view_owner
from semipermeable.sites import Site, resolve_sites

__all__ = ["Folded", "fold"]

_LAST = "_semipermeable_fold"
"""Attribute of a parameter: which fold wrote it last."""


class _Written(NamedTuple):
    """A weight that a fold has written, what it was, and by which fold that was written."""

    site: Site
    parameter: nn.Parameter
    former: Tensor
    below: object | None


class Folded:
    """Membranes baked into weights; made by `fold`. `unfold` restores the former weights bit for bit.

    Args:
        new: sites, and what is written to their weights.
    """

    def __init__(self, new: Sequence[tuple[Site, Tensor]]) -> None:
        self._mark = object()
        weights = [(site, site.weight) for site, _ in new]
        self._written = [_Written(s, w, w.detach().clone(), vars(w).get(_LAST)) for s, w in weights]
        with torch.no_grad():
            for written, (_, value) in zip(self._written, new, strict=True):
                written.parameter.copy_(value)
                vars(written.parameter)[_LAST] = self._mark

    def unfold(self) -> None:
        """Put the former weights back. Calling it again does nothing.

        Raises:
            AttachError: if one of them has been folded into since, or replaced; nothing is put back then.
        """
        for site, parameter, _, _ in self._written:
            if site.layer.weight is not parameter or vars(parameter).get(_LAST) is not self._mark:
                raise AttachError(
                    f"the weight of site {site.name!r} is no longer what this fold wrote: another fold came later, or "
                    "offloading replaced it. Undo that first: the last fold is the first to unfold."
                )
        with torch.no_grad():
            for _, parameter, former, below in self._written:
                parameter.copy_(former)
                del vars(parameter)[_LAST]
                if below is not None:
                    vars(parameter)[_LAST] = below
        self._written = []

    def __enter__(self) -> "Folded":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.unfold()


def fold(
    pipe: Any, membranes: MembraneLike | Sequence[MembraneLike], strength: float | Mapping[str, float] = 1.0
) -> Folded:
    """Add membranes to the denoiser's weights, in fp32, rounded once.

    Args:
        pipe: a loaded pipeline of a supported family.
        membranes: membranes or paths, one or several.
        strength: factor for all, or a mapping from concept name.

    Raises:
        AttachError: if membranes are attached to the pipeline, or its denoiser is compiled or fused.
        SiteError: if a membrane does not fit, or a weight is quantised, kept in one byte (layerwise casting), made in
            inference mode, or offloaded. The weights are as before then.
    """
    host = host_for(pipe)
    for part in host.denoisers.values():
        if view_owner(part) is not None:
            raise AttachError("membranes are attached to this pipeline; detach them before folding")
        refuse_rewritten(part)
    denoiser = host.denoiser
    several = read_membranes(membranes, denoiser)
    factors = strengths_for(several, strength)
    parts: dict[str, tuple[Site, list[tuple[Tensor, Tensor, float]]]] = {}
    for membrane, factor in zip(several, factors, strict=True):
        sites = resolve_sites(denoiser, dict(membrane.pairs))
        for name, (u, v) in membrane.pairs.items():
            parts.setdefault(name, (sites[name], []))[1].append((u, v, factor))
    require_plain(site for site, _ in parts.values())
    return Folded([(site, _sum(site.weight, pairs)) for site, pairs in parts.values()])


def _sum(weight: Tensor, pairs: Sequence[tuple[Tensor, Tensor, float]]) -> Tensor:
    u = torch.cat([u.to(weight.device) for u, _, _ in pairs], 1)
    v = torch.cat([v.to(weight.device) for _, v, _ in pairs], 0)
    gamma = torch.tensor([factor for u, _, factor in pairs for _ in range(u.shape[1])], device=weight.device)
    return folded_weight(weight.detach(), u, v, gamma)
