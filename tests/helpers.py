"""Small random networks and membranes."""

import torch

from semipermeable.concept import Concept
from semipermeable.membrane import GateState, Membrane
from semipermeable.permeability import Calibration
from semipermeable.rank1 import pair_shapes
from semipermeable.sites import find_sites


def make_tiny_unet():
    """A UNet2DConditionModel of the bundled model's shape, with few channels and random weights."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=24,
            attention_head_dim=4,
            norm_num_groups=8,
        ).eval()


def transport_gate(weight, *, bias=0.0, threshold=1.0, num_examples=1):
    """A gate of the rule "transport" as a file holds it, with a probe that was never fitted."""
    made = Calibration(
        weight=weight,
        bias=bias,
        threshold=threshold,
        keep=(),
        known=(),
        encoder_hash="",
        num_positives=num_examples,
        num_negatives=num_examples,
        held_out_open_rate=1.0,
        held_out_false_open_rate=0.0,
    )
    return GateState("transport", *made.to_parts())


def random_membrane(
    denoiser, name="cat", *, rank=1, scale=0.05, seed=0, aliases=(), every=1, inside=("Transformer2DModel",)
):
    """A membrane with random pairs on every `every`-th site: it changes pictures, and erases nothing in particular."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for index, (site_name, site) in enumerate(find_sites(denoiser, inside).items()):
        if index % every == 0:
            u_shape, v_shape = pair_shapes(site.layer, rank)
            u = torch.randn(u_shape, generator=generator) * scale
            pairs[site_name] = (u, torch.randn(v_shape, generator=generator) * scale)
    return Membrane(pairs, Concept(name, aliases=aliases))
