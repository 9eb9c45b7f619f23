"""The arithmetic of one site: an additive low-rank pair beside a frozen Linear or Conv2d.

With signal u of shape (out, k), regulator v of shape (k, in, *kernel) and permeability γ_r of row r (SPM, Eq. 1 and 9,
summed over concepts c):

    y_r = W x_r + Σ_c γ_{r,c} u_c (v_c · x_r)

`v · x` is a k-channel Linear, or a k-channel convolution with the geometry of the site; `u` mixes the k channels. The
sum over concepts is one product with the pairs of all concepts stacked along k, so it is exact: no cross terms.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semipermeable.errors import SiteError

__all__ = ["folded_weight", "low_rank_delta", "pair_shapes"]


def pair_shapes(module: nn.Module, rank: int = 1) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of u and v for a site.

    Raises:
        SiteError: if `module` is neither a Linear nor an ungrouped Conv2d with zero padding.
    """
    if isinstance(module, nn.Linear):
        return (module.out_features, rank), (rank, module.in_features)
    if isinstance(module, nn.Conv2d):
        if module.groups != 1 or module.padding_mode != "zeros":
            raise SiteError("a membrane needs an ungrouped, zero-padded Conv2d")
        return (module.out_channels, rank), (rank, module.in_channels, *module.kernel_size)
    raise SiteError(f"a site must be a Linear or a Conv2d, found {type(module).__name__}")


def low_rank_delta(module: nn.Module, x: Tensor, u: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    """Return Σ_c γ_{r,c} u_c (v_c · x_r) for every row.

    Args:
        module: the site, a Linear or Conv2d; gives the convolution its geometry.
        x: the site's input, shape (rows, ..., in) or (rows, in, height, width).
        u: stacked signals, shape (out, k), dtype of x.
        v: stacked regulators, shape (k, in, *kernel), dtype of x.
        gamma: strength of each stacked pair in each row, shape (rows, k), dtype of x.

    Returns:
        The addition to the site's output, in its shape.
    """
    if isinstance(module, nn.Conv2d):
        hidden = F.conv2d(x, v, None, module.stride, module.padding, module.dilation)  # pyright: ignore[reportArgumentType]
        hidden = hidden * gamma[:, :, None, None]
        return F.conv2d(hidden, u[:, :, None, None])
    hidden = F.linear(x, v)
    hidden = hidden * gamma.reshape(gamma.shape[0], *(1,) * (x.dim() - 2), gamma.shape[1])
    return F.linear(hidden, u)


def folded_weight(weight: Tensor, u: Tensor, v: Tensor, gamma: Tensor | float = 1.0) -> Tensor:
    """Return `weight + u diag(γ) v`, summed in fp32 and rounded once to the weight's dtype.

    Args:
        weight: shape (out, in, *kernel).
        u: shape (out, k).
        v: shape (k, in, *kernel).
        gamma: a number, or one strength per pair, shape (k,).
    """
    scale = torch.as_tensor(gamma, dtype=torch.float32, device=u.device)
    delta = (u.float() * scale) @ v.float().flatten(1)
    return (weight.float() + delta.reshape(weight.shape).to(weight.device)).to(weight.dtype)
