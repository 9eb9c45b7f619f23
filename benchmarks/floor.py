"""What membranes cost at least: multiplications and bytes, of one denoiser call, beside what the call costs anyway.

A site with `in` inputs (times the kernel, for a convolution) and `out` outputs, on n tokens of a row that acts, with k
pairs, needs on the side path at least

    2 n k (in + out)     floating-point operations: v · x, then u times that
    4 n (in + 2 out)     bytes in fp32: the input is read once more, the output read and written once more

and on the folded path nothing. On both paths the keys and values of the prompt are computed in the first step only,
which takes operations away from the others. Seconds follow from two rates measured on the machine itself: of matrix
products of the width of the model, and of copying.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from semipermeable.sites import find_sites

_TEXT = ("attn2.to_k", "attn2.to_v")


class SiteCost(NamedTuple):
    """One site in one row of a call."""

    name: str
    tokens: int
    inputs: int
    outputs: int
    text: bool

    @property
    def flops(self) -> float:
        """Of the site itself."""
        return 2.0 * self.tokens * self.inputs * self.outputs

    def added_flops(self, pairs: int) -> float:
        """Of k pairs beside it."""
        return 2.0 * self.tokens * pairs * (self.inputs + self.outputs)

    @property
    def added_bytes(self) -> float:
        """Read and written once more beside it, in fp32."""
        return 4.0 * self.tokens * (self.inputs + 2 * self.outputs)


class CallCost(NamedTuple):
    """One row of one denoiser call.

    Args:
        flops: of everything.
        sites: those inside the transformer blocks.
    """

    flops: float
    sites: tuple[SiteCost, ...]

    def share(self, pairs: int, active: float = 1.0, acting: Sequence[str] | None = None) -> float:
        """Return operations with pairs on the side path over those without, text kept.

        Args:
            pairs: of every row that acts.
            active: share of the rows that act.
            acting: names of the sites with pairs; None is all.
        """
        sites = [site for site in self.sites if acting is None or site.name in acting]
        added = sum(site.added_flops(pairs) for site in sites if not site.text)
        return 1 + (active * added - self.saved_flops(acting)) / self.flops

    def saved_flops(self, acting: Sequence[str] | None = None) -> float:
        """Return operations of keys and values of the prompt, which later steps do not need."""
        return sum(site.flops for site in self.sites if site.text and (acting is None or site.name in acting))

    def side_seconds(self, pairs: int, rows: float, rates: Mapping[str, float]) -> float:
        """Return the least seconds that pairs in so many rows add to a call, less those of the prompt's sites."""
        sites = [site for site in self.sites if not site.text]
        work = rows * sum(site.added_flops(pairs) for site in sites) / rates["flops_per_s"]
        return work + rows * sum(site.added_bytes for site in sites) / rates["bytes_per_s"]


@torch.no_grad()
def call_cost(unet: Any, latent_size: int) -> CallCost:
    """Count one row of a call.

    Args:
        unet: a UNet2DConditionModel.
        latent_size: height and width of its latents.
    """
    seen: dict[str, tuple[int, ...]] = {}
    sites = find_sites(unet)

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], _out: Any) -> None:
            seen[name] = tuple(args[0].shape)

        return hook

    handles = [site.module.register_forward_hook(watch(name)) for name, site in sites.items()]
    latents = torch.zeros(1, unet.config.in_channels, latent_size, latent_size)
    text = torch.zeros(1, 77, unet.config.cross_attention_dim)
    try:
        with FlopCounterMode(display=False) as counter:
            unet(latents, torch.tensor([500]), text)
    finally:
        for handle in handles:
            handle.remove()
    costs = []
    for name, site in sites.items():
        shape, layer = seen[name], site.layer
        if isinstance(layer, nn.Conv2d):
            tokens = shape[2] * shape[3] // (layer.stride[0] * layer.stride[1])
            inputs = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
            costs.append(SiteCost(name, tokens, inputs, layer.out_channels, text=False))
        else:
            assert isinstance(layer, nn.Linear)
            tokens = int(torch.Size(shape[1:-1]).numel())
            costs.append(SiteCost(name, tokens, layer.in_features, layer.out_features, text=name.endswith(_TEXT)))
    return CallCost(float(counter.get_total_flops()), tuple(costs))


def machine_rates(width: int) -> dict[str, float]:
    """Measure what bounds this machine with the threads in force: the best of several runs.

    Args:
        width: of the square matrix product.
    """
    a, b = torch.ones(width, width), torch.ones(width, width)
    source, target = torch.ones(2**25), torch.empty(2**25)
    return {
        "flops_per_s": 2.0 * width**3 / _best(lambda: torch.mm(a, b)),
        "bytes_per_s": 2.0 * source.numel() * 4 / _best(lambda: target.copy_(source)),
    }


def _best(work: Any, runs: int = 9) -> float:
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)
