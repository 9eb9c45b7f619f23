"""LPIPS (Zhang et al. 2018, arXiv 1801.03924) between same-seed pictures; `lpips` is loaded only when it is used."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from semipermeable.errors import ConfigError

__all__ = ["perceptual_distances"]


def perceptual_distances(
    before: Tensor, after: Tensor, network: Callable[[Tensor, Tensor], Tensor] | None = None
) -> Tensor:
    """Return the perceptual distance of each pair, shape (rows,).

    Args:
        before: pictures in [0, 1], shape (rows, 3, height, width).
        after: the same prompts and seeds, erased.
        network: takes two batches in [−1, 1] and gives one distance per pair; None is AlexNet of the package `lpips`.

    Raises:
        ConfigError: if no network is given and `lpips` is not installed.
    """
    measure = network or _alexnet()
    with torch.inference_mode():
        return measure(before.float() * 2 - 1, after.float() * 2 - 1).flatten()


def _alexnet() -> Callable[[Tensor, Tensor], Tensor]:
    try:
        import lpips  # pyright: ignore[reportMissingImports] - optional: it needs torchvision, which we do without
    except ImportError as error:
        raise ConfigError(
            "LPIPS needs the package lpips, which brings torchvision: pip install lpips; or pass a network"
        ) from error
    network: Any = lpips.LPIPS(net="alex", verbose=False)
    return network.eval()
