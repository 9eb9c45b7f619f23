"""Several membranes while they are trained together: each row of a call sees one of them, or all.

The pairs of K membranes are stacked at every site, u of shape (K, out, k) and v of shape (K, k, in, *kernel). A row
that belongs to membrane c gets u_c (v_c · x), so its loss has no gradient for any other membrane: training is that of
each one alone. A shared row gets the sum over all membranes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semipermeable.rank1 import low_rank_delta
from semipermeable.runtime.trainable import orthonormal
from semipermeable.sites import Site

__all__ = ["SHARED", "SideBySide"]

SHARED = -1
"""Owner of a row that sees the sum of all membranes."""


class SideBySide:
    """Stacked trainable pairs on each site, by forward hooks.

    Args:
        sites: site name to site.
        starts: one mapping of site name to (u, v) for each membrane, all of the same shapes; where training begins.
        device: see `TrainableBinding`.
        avoid: see `TrainableBinding`; holds for every membrane.
    """

    def __init__(
        self,
        sites: Mapping[str, Site],
        starts: Sequence[Mapping[str, tuple[Tensor, Tensor]]],
        device: torch.device,
        avoid: Mapping[str, Sequence[Tensor]] | None = None,
    ) -> None:
        self.owners: Tensor | None = None
        """Which membrane each row of the call belongs to, shape (rows,), or `SHARED`; None: the denoiser is bare."""
        self._pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        for name in sites:
            u, v = (torch.stack([start[name][part] for start in starts]).to(device) for part in (0, 1))
            self._pairs[name] = (nn.Parameter(u.float()), nn.Parameter(v.float()))
        taken = {name: rows for name, rows in (avoid or {}).items() if rows}
        self._avoided = {name: orthonormal(rows).to(self._pairs[name][1].device) for name, rows in taken.items()}
        self.project_()
        self._handles = [
            site.module.register_forward_hook(self._hook_for(name, site), with_kwargs=True)
            for name, site in sites.items()
        ]

    def parameters(self) -> Iterator[nn.Parameter]:
        """All stacked u and v, in site order."""
        for u, v in self._pairs.values():
            yield u
            yield v

    @torch.no_grad()
    def project_(self) -> None:
        """Take out of every v what lies along the regulators to avoid at its site."""
        for name, basis in self._avoided.items():
            v = self._pairs[name][1]
            rows = v.flatten(2).double()
            v.copy_((rows - (rows @ basis.T) @ basis).reshape(v.shape))

    def freeze(self) -> list[dict[str, tuple[Tensor, Tensor]]]:
        """Return detached copies of the pairs of each membrane, on CPU."""
        whole = {name: (u.detach().cpu(), v.detach().cpu()) for name, (u, v) in self._pairs.items()}
        count = len(next(iter(whole.values()))[0])
        return [{name: (u[i].clone(), v[i].clone()) for name, (u, v) in whole.items()} for i in range(count)]

    def remove(self) -> None:
        """Take the hooks off; the denoiser is bare again, bit for bit."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook_for(self, name: str, site: Site) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            if self.owners is None:
                return None
            x: Tensor = args[0] if args else next(iter(kwargs.values()))
            dtype, rows = output.dtype, output.shape[0]
            u, v = (part.to(output) for part in self._pairs[name])
            owners = self.owners.to(output.device).repeat_interleave(rows // self.owners.shape[0])
            shared = owners == SHARED
            if not bool(shared.any()):
                return output + _own(site.layer, x.to(dtype), u[owners], v[owners])
            delta = torch.zeros_like(output)
            mine, ours = (~shared).nonzero().flatten(), shared.nonzero().flatten()
            if len(mine):
                chosen = owners[mine]
                delta = delta.index_copy(0, mine, _own(site.layer, x[mine].to(dtype), u[chosen], v[chosen]))
            joined = u.transpose(0, 1).flatten(1)
            gamma = output.new_ones(len(ours), joined.shape[1])
            delta = delta.index_copy(
                0, ours, low_rank_delta(site.layer, x[ours].to(dtype), joined, v.flatten(0, 1), gamma)
            )
            return output + delta

        return hook


def _own(module: nn.Module, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return u_r (v_r · x_r) for every row r.

    Args:
        module: the site; gives a convolution its geometry.
        x: the site's input, shape (rows, ..., in) or (rows, in, height, width).
        u: one signal per row, shape (rows, out, k).
        v: one regulator per row, shape (rows, k, in, *kernel).
    """
    rows, rank = v.shape[:2]
    if isinstance(module, nn.Conv2d):
        apart, kernels = x.flatten(0, 1)[None], v.flatten(0, 1)
        hidden = F.conv2d(apart, kernels, None, module.stride, module.padding, module.dilation, rows)  # pyright: ignore[reportArgumentType]
        size = hidden.shape[-2:]
        return torch.bmm(u, hidden.reshape(rows, rank, -1)).reshape(rows, u.shape[1], *size)
    tokens = x.reshape(rows, -1, x.shape[-1])
    added = torch.bmm(torch.bmm(tokens, v.transpose(1, 2)), u.transpose(1, 2))
    return added.reshape(*x.shape[:-1], u.shape[1])
