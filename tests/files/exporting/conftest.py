"""Membranes on every kind of layer, with a story that uses every field."""

import dataclasses

import pytest
import torch

from semipermeable.concept import Concept
from semipermeable.membrane import GateState, Membrane, Provenance
from semipermeable.rank1 import pair_shapes
from semipermeable.sites import find_sites

from helpers import make_tiny_unet, random_membrane

STORY = Provenance(
    base_model="owner/model", base_hash="ab" * 32, text_encoder_hash="cd" * 32, family="unet",
    prediction_type="epsilon", training={"num_steps": 3}, seed=7, package_version="0.1", metrics={"kept": 0.5},
)  # fmt: skip
GATE = GateState("transport", {"threshold": 0.5}, {"weight": torch.ones(3)})


def on_every_layer(denoiser, *, ranks=(1,), seed=0, scale=0.02):
    """Pairs on all Linears and Conv2ds of a UNet: 1x1 and 3x3, strided, time embedding; ranks in turn."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for index, (name, site) in enumerate(find_sites(denoiser, inside=()).items()):
        u_shape, v_shape = pair_shapes(site.layer, ranks[index % len(ranks)])
        u = torch.randn(u_shape, generator=generator) * scale
        pairs[name] = (u, torch.randn(v_shape, generator=generator) * scale)
    return Membrane(pairs, Concept("Köln cat", ("kitty",), "animal", ("cat face",)), STORY, GATE, 2)


@pytest.fixture
def membrane():
    """Rank 1 on the attention layers, as `erase` makes it."""
    return dataclasses.replace(
        random_membrane(make_tiny_unet(), "cat", aliases=("kitty",)), provenance=STORY, gate=GATE
    )


@pytest.fixture
def everywhere(tiny_unet):
    return on_every_layer(tiny_unet, ranks=(1, 2, 2))
