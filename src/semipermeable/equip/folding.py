"""Bake membranes into the denoiser's weights, and take them out again.

    with fold(pipe, ["cat.safetensors"]):
        pipe.save_pretrained("model-without-cats")

Folding changes the weights that every pipeline sharing this denoiser reads, and has no gate: it acts on every prompt.
Use `attach` to serve; fold to publish a checkpoint.
"""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

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


class Folded:
    """Membranes baked into weights; made by `fold`. `unfold` restores the former weights bit for bit."""

    def __init__(self, weights: list[tuple[nn.Parameter, Tensor]]) -> None:
        self._weights = weights

    def unfold(self) -> None:
        """Put the former weights back. Calling it again does nothing."""
        with torch.no_grad():
            for parameter, former in self._weights:
                parameter.copy_(former)
        self._weights = []

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
        SiteError: if a membrane does not fit, or a weight is quantised or offloaded. The weights are as before then.
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
    new = [(site.weight, _sum(site.weight, pairs)) for site, pairs in parts.values()]
    former = [(parameter, parameter.detach().clone()) for parameter, _ in new]
    with torch.no_grad():
        for parameter, value in new:
            parameter.copy_(value)
    return Folded(former)


def _sum(weight: Tensor, pairs: Sequence[tuple[Tensor, Tensor, float]]) -> Tensor:
    u = torch.cat([u.to(weight.device) for u, _, _ in pairs], 1)
    v = torch.cat([v.to(weight.device) for _, v, _ in pairs], 0)
    gamma = torch.tensor([factor for u, _, factor in pairs for _ in range(u.shape[1])], device=weight.device)
    return folded_weight(weight.detach(), u, v, gamma)
