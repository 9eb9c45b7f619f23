"""Adding pairs to a site's output in place, for pairs that all rows share and for rows that have pairs of their own.

For active row r with its k pairs, `y_r += Σ_j u_{r,j} g_{r,j} (v_{r,j} · x_r)`. Shared pairs are two matrix products
over all rows; own pairs are two batched products with one matrix a row, so that no row pays for another row's
concepts. The second product accumulates into the output: a sum of its own would read and write every value once more,
and on a CPU that costs more than the products.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["accumulate_", "products", "run_with_weight"]


def products(layer: nn.Module, x: Tensor, v: Tensor, *, own: bool) -> Tensor:
    """Return v · x, the k hidden values of every row and place.

    Args:
        layer: the site, a Linear or Conv2d.
        x: its input, shape (rows, ..., in) or (rows, in, height, width).
        v: shape (k, in, *kernel), or (rows, k, in, *kernel) where every row has its own.
        own: whether every row has its own.

    Returns:
        Shape (rows, ..., k) for a Linear with shared pairs, (rows, places, k) with own ones; (rows, k, height, width).
    """
    if not isinstance(layer, nn.Conv2d):
        if not own:
            return F.linear(x, v)
        return torch.bmm(x.reshape(x.shape[0], -1, x.shape[-1]), v.transpose(1, 2))
    geometry = (layer.stride, layer.padding, layer.dilation)
    if not own:
        return F.conv2d(x, v, None, *geometry)  # pyright: ignore[reportArgumentType, reportCallIssue]
    rows, k = v.shape[:2]
    joined = x.reshape(1, rows * x.shape[1], *x.shape[2:])
    hidden = F.conv2d(joined, v.flatten(0, 1), None, *geometry, rows)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return hidden.reshape(rows, k, *hidden.shape[2:])


def accumulate_(layer: nn.Module, out: Tensor, hidden: Tensor, u: Tensor, gamma: Tensor | None) -> None:
    """Add Σ u γ hidden to a site's output, in place.

    Args:
        layer: the site.
        out: its output for the active rows, changed in place.
        hidden: what `products` gave.
        u: shape (k, out), or (rows, k, out) where every row has its own; times the strengths unless `gamma` is given.
        gamma: strength of each shared pair in each row, shape (rows, k), or None.
    """
    if hidden.dtype is not out.dtype:
        # Autocast multiplies in its own dtype, also where a layer gives its output in that of its input.
        hidden = hidden.to(out.dtype)
    if isinstance(layer, nn.Conv2d):
        _accumulate_channels_(out, hidden, u, gamma)
        return
    rows, k = out.shape[0], u.shape[-2]
    if gamma is None and u.dim() == 2 and out.is_contiguous():
        out.view(-1, out.shape[-1]).addmm_(hidden.reshape(-1, k), u)
        return
    flat = hidden.reshape(rows, -1, k)
    if gamma is not None:
        flat = flat * gamma[:, None, :]
    if not out.is_contiguous():
        out.add_(torch.matmul(flat, u).reshape(out.shape))
    elif u.dim() == 2:
        out.view(-1, out.shape[-1]).addmm_(flat.reshape(-1, k), u)
    else:
        out.view(rows, -1, out.shape[-1]).baddbmm_(flat, u)


def _accumulate_channels_(out: Tensor, hidden: Tensor, u: Tensor, gamma: Tensor | None) -> None:
    if gamma is not None:
        hidden = hidden * gamma[:, :, None, None]
    rows, channels = out.shape[:2]
    signals = u.transpose(-1, -2)
    signals = signals.expand(rows, *signals.shape) if signals.dim() == 2 else signals
    flat = hidden.flatten(2)
    if out.is_contiguous():
        out.view(rows, channels, -1).baddbmm_(signals, flat)
    else:
        out.add_(torch.bmm(signals, flat).reshape(out.shape))


def run_with_weight(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """Return what a Linear or a zero-padded Conv2d gives with another weight."""
    bias: Tensor | None = layer.__dict__["_parameters"]["bias"]  # `layer.bias` is a module's slow look-up
    if isinstance(layer, nn.Conv2d):
        geometry = (layer.stride, layer.padding, layer.dilation)
        return F.conv2d(x, weight, bias, *geometry)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return F.linear(x, weight, bias)
