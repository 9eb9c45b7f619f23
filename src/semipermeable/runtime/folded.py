"""Effective weights beside the base ones: `W' = W + Σ_c g_c u_c v_c`, summed in fp32 and rounded once.

The base parameters are never touched. A set of effective weights is used only while the weights that it was made from
are still what they were, and only where rounding to their dtype keeps at least 95 % of the sum (bf16 may not).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from semipermeable.errors import SiteError
from semipermeable.runtime.stacks import Pair
from semipermeable.runtime.sums import run_with_weight
from semipermeable.runtime.taps import Quick, Visitor, is_plain
from semipermeable.sites import Site

__all__ = ["KEPT", "EffectiveWeights", "can_fold", "fold_bytes", "fold_weights", "moves_weights", "require_plain"]

KEPT = 0.95
"""Least share ⟨W' − W, Δ⟩ / ⟨Δ, Δ⟩ of Δ that must survive rounding; with less it is another erasure."""
_CHECKED_ROWS = 64
"""Rounding treats all rows of a weight alike, so the share is measured on this many of them."""
_SAMPLES = 16


class EffectiveWeights:
    """Effective weights of some sites, and what they were made from.

    Args:
        sites: the sites.
        weights: site name to effective weight.
    """

    def __init__(self, sites: Sequence[Site], weights: Mapping[str, Tensor]) -> None:
        self.weights = dict(weights)
        self.stale = False
        """Whether a site has been found to have another base weight than the effective one was made from."""
        self._made_from = {site.name: _made_from(site) for site in sites}
        # Views, made once: they are read for every picture.
        self._few = [_few(site.weight) for site in sites]
        self._sample = torch.cat(self._few)

    def get(self, name: str) -> Tensor | None:
        """Return a site's effective weight, or None if its base weight is no longer the one that it was made from.

        `stale` says so from then on. Asked at the site itself, once a step and site: looking at all sites before a call
        costs more.
        """
        if not self._made_from[name].is_current():
            self.stale = True
            return None
        return self.weights[name]

    def quick(self, site: Site, num_rows: int) -> Quick:
        """Return what runs a site in a call in which all rows act, as long as `get` would return its weight.

        Args:
            site: one of the sites; only while it runs its class's forward.
            num_rows: rows that the call has; a site that sees another number is not run.
        """
        return Quick(_run_quick, (self._made_from[site.name], num_rows, site.name, self.weights[site.name]))

    def current(self) -> bool:
        """Whether all base weights, by sampled values too, are still those that the effective ones were made from.

        Some adapters write into `.data`, which leaves no other mark.
        """
        if self.stale or not all(made_from.is_current() for made_from in self._made_from.values()):
            return False
        return torch.equal(torch.cat(self._few), self._sample)


class _MadeFrom(NamedTuple):
    """A layer and its base weight."""

    layer: nn.Module
    parameters: Mapping[str, Tensor | None]
    weight: Tensor
    version: int
    address: int

    def has_weight(self) -> bool:
        """Whether the layer still holds this very weight, unwritten."""
        _, parameters, weight, version, address = self
        # Not `layer.weight`, a module's slow look-up of parameters.
        return parameters.get("weight") is weight and weight._version == version and weight.data_ptr() == address

    def is_current(self) -> bool:
        """Whether it also still runs its class's forward."""
        return self.has_weight() and is_plain(self.layer)


def _run_quick(about: tuple[_MadeFrom, int, str, Tensor], visitor: Visitor, x: Tensor) -> Tensor | None:
    made_from, num_rows, name, weight = about
    if not made_from.has_weight() or x.shape[0] != num_rows:
        return None
    visitor.fired.add(name)
    return run_with_weight(made_from.layer, x, weight)


def _made_from(site: Site) -> _MadeFrom:
    weight = site.weight
    return _MadeFrom(site.layer, site.layer.__dict__["_parameters"], weight, weight._version, weight.data_ptr())


def _few(weight: Tensor) -> Tensor:
    """A view of some values in the middle of a weight, side by side: read for every picture. Shape (some, )."""
    weight = weight.detach()
    order = sorted(range(weight.dim()), key=lambda dim: -weight.stride(dim))
    flat = weight.permute(order)
    while flat.dim() > 1:
        flat = flat.view(-1) if flat.is_contiguous() else flat[len(flat) // 2]
    start = max(0, len(flat) - _SAMPLES) // 2
    return flat[start : start + _SAMPLES]


def can_fold(site: Site) -> bool:
    """Whether a site is a plain layer with a weight in memory: not wrapped, quantised, offloaded or sharded."""
    layer = site.layer
    if site.module is not layer or type(layer) not in (nn.Linear, nn.Conv2d) or not is_plain(layer):
        return False
    if type(layer.weight) is not nn.Parameter:
        return False
    weight: Tensor = layer.weight
    in_memory = weight.is_floating_point() and weight.device.type != "meta" and not weight.is_inference()
    return in_memory and weight.numel() == _num_weights(layer)


def require_plain(sites: Iterable[Site]) -> None:
    """Refuse sites whose weights cannot be written.

    Raises:
        SiteError: naming the first site whose weight is quantised or kept in one byte, made in inference mode, or
            elsewhere between calls (offloaded).
    """
    for site in sites:
        weight = getattr(site.layer, "weight", None)
        kind = f"{type(site.layer).__name__}, {type(weight).__name__}, {getattr(weight, 'dtype', None)}"
        if isinstance(weight, Tensor) and weight.device.type == "meta":
            raise SiteError(
                f"site {site.name!r} has its weight offloaded: it is in memory only while the layer runs. Fold before "
                "offloading, or use attach, which works beside offloaded weights."
            )
        plain = type(weight) is nn.Parameter and weight.is_floating_point() and weight.element_size() > 1
        if weight is None or not plain or weight.numel() != _num_weights(site.layer):
            raise SiteError(
                f"site {site.name!r} has a quantised weight ({kind}): what a membrane adds would be lost in rounding. "
                "Fold into the unquantised model and quantise afterwards, or use attach, which adds beside the weights."
            )
        if weight.is_inference():
            raise SiteError(
                f"site {site.name!r} has a weight made in torch.inference_mode(), which cannot be written outside. "
                "Load the model outside of it, or use attach, which adds beside the weights."
            )


def moves_weights(denoiser: nn.Module) -> bool:
    """Whether diffusers' group offloading moves the weights in and out during every call."""
    for module in denoiser.modules():
        registry = module.__dict__.get("_diffusers_hook")
        if registry is not None and registry.get_hook("group_offloading") is not None:
            return True
    return False


def _num_weights(layer: nn.Module) -> int:
    if isinstance(layer, nn.Linear):
        return layer.in_features * layer.out_features
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels * layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1]
    return -1


def fold_bytes(sites: Sequence[Site]) -> int:
    """Return the memory that effective weights of these sites take."""
    return sum(site.weight.numel() * site.weight.element_size() for site in sites)


@torch.no_grad()
def fold_weights(
    sites: Sequence[Site], pairs: Mapping[str, Sequence[Pair]], strengths: Tensor
) -> EffectiveWeights | None:
    """Make effective weights; None if rounding would lose too much.

    Args:
        sites: all `can_fold`.
        pairs: site name to the pairs that act there.
        strengths: one per column of the pairs, fp32 on CPU.
    """
    weights: dict[str, Tensor] = {}
    kept = whole = 0.0
    for site in sites:
        base = site.weight.detach()
        u, v = _scaled(pairs[site.name], strengths, base.device)
        weight = torch.addmm(base.flatten(1).float(), u, v).to(base.dtype).view_as(base)
        step = max(1, base.shape[0] // _CHECKED_ROWS)
        delta = u[::step] @ v
        kept += float(((weight[::step].float() - base[::step].float()).flatten(1) * delta).sum())
        whole += float((delta * delta).sum())
        weights[site.name] = weight
    return EffectiveWeights(sites, weights) if kept >= KEPT * whole else None


def _scaled(pairs: Sequence[Pair], strengths: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    u = torch.cat([pair.u.float() * float(strengths[pair.column]) for pair in pairs], 1)
    v = torch.cat([pair.v.float().flatten(1) for pair in pairs], 0)
    return u.to(device), v.to(device)
