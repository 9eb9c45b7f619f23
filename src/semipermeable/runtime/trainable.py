"""One membrane while it is being trained.

The pair at each site is fp32 (master weights), also under autocast. The strengths are an attribute read by the hooks at
forward and at recomputation, so gradient checkpointing sees the same ones; the loop owns the denoiser meanwhile.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from semipermeable.errors import SiteError
from semipermeable.rank1 import low_rank_delta, pair_shapes
from semipermeable.sites import Site

__all__ = ["TrainableBinding", "orthonormal"]

_SPANNED = 1e-6
"""Singular value of unit regulators up to which a direction is not theirs: fp32 regulators are known no better."""


class TrainableBinding:
    """A trainable pair on each site, by forward hooks.

    u starts at zero and v Kaiming-uniform with a=√5 (SPM's released code), so the fresh membrane changes nothing.

    Args:
        sites: site name to site.
        rank: k ≥ 1.
        generator: draws v, on CPU.
        device: where pairs and their optimiser's moments are kept: where the denoiser runs, which need not be where an
            offloaded weight lies between calls.
        avoid: site name to regulators of other membranes, each (k, in, *kernel), to which v is orthogonal at the start
            and after each `project_`. None avoids nothing.
    """

    def __init__(
        self,
        sites: Mapping[str, Site],
        *,
        rank: int = 1,
        generator: torch.Generator,
        device: torch.device,
        avoid: Mapping[str, Sequence[Tensor]] | None = None,
    ) -> None:
        self.gamma: Tensor | float | None = None
        """Strength of the membrane: None = bare, a number for all rows, or one per row with shape (rows,)."""
        self._sites = dict(sites)
        self._pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        for name, site in self._sites.items():
            u_shape, v_shape = pair_shapes(site.layer, rank)
            bound = 1.0 / math.sqrt(math.prod(v_shape[1:]))
            v = torch.rand(v_shape, generator=generator) * (2 * bound) - bound
            self._pairs[name] = (nn.Parameter(torch.zeros(u_shape, device=device)), nn.Parameter(v.to(device)))
        taken = {name: rows for name, rows in (avoid or {}).items() if rows}
        self._avoided = {name: orthonormal(rows).to(self._pairs[name][1].device) for name, rows in taken.items()}
        self.project_()
        self._handles = [
            site.module.register_forward_hook(self._hook_for(name, site), with_kwargs=True)
            for name, site in self._sites.items()
        ]

    def parameters(self) -> Iterator[nn.Parameter]:
        """All u and v, in site order."""
        for u, v in self._pairs.values():
            yield u
            yield v

    def pairs(self) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        """Site name to the live (u, v)."""
        return dict(self._pairs)

    @torch.no_grad()
    def project_(self) -> None:
        """Take out of every v what lies along the regulators to avoid at its site."""
        for name, basis in self._avoided.items():
            v = self._pairs[name][1]
            rows = v.flatten(1).double()
            v.copy_((rows - (rows @ basis.T) @ basis).reshape(v.shape))

    def load_pairs(self, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Copy values into the trainable pairs; sites that are not named keep theirs.

        Raises:
            SiteError: if a site is unknown or a shape differs; nothing has been copied then.
        """
        for name, (u, v) in pairs.items():
            if name not in self._pairs:
                raise SiteError(f"site {name!r} is not trained here")
            own_u, own_v = self._pairs[name]
            if own_u.shape != u.shape or own_v.shape != v.shape:
                raise SiteError(
                    f"site {name!r}: got u {tuple(u.shape)}, v {tuple(v.shape)}; "
                    f"expected u {tuple(own_u.shape)}, v {tuple(own_v.shape)}"
                )
        with torch.no_grad():
            for name, (u, v) in pairs.items():
                self._pairs[name][0].copy_(u)
                self._pairs[name][1].copy_(v)

    def freeze(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return detached copies of all pairs, on CPU."""
        return {name: (u.detach().cpu().clone(), v.detach().cpu().clone()) for name, (u, v) in self._pairs.items()}

    def remove(self) -> None:
        """Take the hooks off; the denoiser is bare again, bit for bit."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook_for(self, name: str, site: Site) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            if self.gamma is None:
                return None
            x: Tensor = args[0] if args else next(iter(kwargs.values()))
            u, v = self._pairs[name]
            rows = output.shape[0]
            gamma = torch.as_tensor(self.gamma, dtype=output.dtype, device=output.device).reshape(-1, 1)
            if gamma.shape[0] > 1 and gamma.shape[0] != rows:
                gamma = gamma.repeat_interleave(rows // gamma.shape[0], 0)
            gamma = gamma.expand(rows, u.shape[1])
            u, v = u.to(output), v.to(output)
            return output + low_rank_delta(site.layer, x.to(output.dtype), u, v, gamma)

        return hook


def orthonormal(regulators: Sequence[Tensor]) -> Tensor:
    """Return an orthonormal basis of the span of regulators, shape (r, in · kernel), float64 on the CPU."""
    rows = torch.cat([v.detach().cpu().double().flatten(1) for v in regulators])
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    _, singular, right = torch.linalg.svd(rows, full_matrices=False)
    return right[singular > _SPANNED]
