"""Membranes on a UNet in the original layout, as ComfyUI loads Stable Diffusion 1.x, 2.x and SDXL.

A membrane names its sites as diffusers does ("down_blocks.1.attentions.0.proj_in"); ComfyUI's network has the same
layers under other names ("input_blocks.4.1.proj_in"). The original layout numbers its blocks through, so the number of
resnets of a block has to be known: the first downsampler tells, which is the last entry of the first block.
"""

import dataclasses
import re

from torch import nn

from semipermeable.errors import AttachError
from semipermeable.files.ldm_names import LdmNames
from semipermeable.membrane import Membrane

__all__ = ["numbering", "on_original_layout"]

_DOWNSAMPLER = re.compile(r"input_blocks\.(\d+)\.0\.op")
_UP_ATTENTION = re.compile(r"output_blocks\.(\d+)\.1\.proj_in")


def numbering(denoiser: nn.Module) -> LdmNames:
    """Return how a UNet in the original layout numbers its blocks.

    Raises:
        AttachError: if it is another kind of network.
    """
    names = [name for name, _ in denoiser.named_modules()]
    steps = [int(found[1]) for name in names if (found := _DOWNSAMPLER.fullmatch(name))]
    if not steps:
        raise AttachError(
            f"{type(denoiser).__name__} is no UNet of Stable Diffusion 1.x, 2.x or SDXL; these nodes know no other "
            "network yet"
        )
    step = min(steps)
    up = [int(found[1]) for name in names if (found := _UP_ATTENTION.fullmatch(name))]
    return LdmNames(step - 1, frozenset(number // step for number in up))


def on_original_layout(membrane: Membrane, denoiser: nn.Module) -> Membrane:
    """Give a membrane the site names of a UNet in the original layout.

    Args:
        membrane: with the site names of diffusers.
        denoiser: ComfyUI's `diffusion_model`.

    Raises:
        AttachError: if the network is of another kind, or the layout has no place for a site.
    """
    if membrane.foreign_names:
        raise AttachError(
            f"{membrane.name!r} is an adapter of another program; turn it into a membrane once, where its model is "
            "known: spm import FILE --model MODEL --out NEW.safetensors"
        )
    names = numbering(denoiser)
    pairs = {}
    for site, pair in membrane.pairs.items():
        original = names.of(site)
        if original is None:
            raise AttachError(
                f"site {site!r} of {membrane.name!r} has no place in this UNet; the membrane was made for another model"
            )
        pairs[original] = pair
    return dataclasses.replace(membrane, pairs=pairs)
