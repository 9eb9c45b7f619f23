"""Original layouts against the converters that diffusers itself loads such files with.

Whole pipelines are baked and loaded back in `tests/equip/test_baking.py`.
"""

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_open_clip_checkpoint,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from semipermeable.errors import ExportError
from semipermeable.files.original_layout import flux_weights, open_clip_weights, unet_weights, vae_weights

from helpers import make_tiny_unet


@pytest.fixture(scope="module")
def flux_state():
    """The names of FLUX.1 with one block of each kind and its 3,072 channels out; two channels in are enough.

    diffusers' converter cuts joined matrices at 3,072 whatever the model's width is.
    """
    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(*weight.shape[:1], *(2 for _ in weight.shape[1:]), generator=generator)
        for name, weight in model.state_dict().items()
    }


def test_diffusers_converts_flux_back(flux_state):
    original = flux_weights(flux_state)
    assert all(torch.equal(original[name].chunk(2)[0], flux_state["norm_out.linear.weight"].chunk(2)[1])
               for name in ["final_layer.adaLN_modulation.1.weight"])  # fmt: skip
    back = convert_flux_transformer_checkpoint_to_diffusers(dict(original))
    assert back.keys() == flux_state.keys()
    for name, weight in flux_state.items():
        assert torch.equal(back[name], weight), name


def test_some_names_of_flux_by_heart(flux_state):
    """As in the file that Black Forest Labs released."""
    original = flux_weights(flux_state)
    for name, rows in {
        "img_in.weight": 3072,
        "time_in.in_layer.weight": 3072,
        "guidance_in.out_layer.bias": 3072,
        "double_blocks.0.img_mod.lin.weight": 6 * 3072,
        "double_blocks.0.txt_attn.qkv.bias": 3 * 3072,
        "double_blocks.0.img_attn.norm.key_norm.scale": 128,
        "single_blocks.0.linear1.weight": 7 * 3072,
        "single_blocks.0.modulation.lin.bias": 3 * 3072,
        "final_layer.linear.weight": 64,
    }.items():
        assert original[name].shape[0] == rows, name


def small_clip(cls):
    config = CLIPTextConfig(
        vocab_size=20, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, projection_dim=6
    )
    return cls(config)


@pytest.mark.parametrize("cls", [CLIPTextModel, CLIPTextModelWithProjection])
def test_diffusers_converts_open_clip_back(cls):
    encoder = small_clip(cls)
    state = encoder.state_dict()
    original = {f"model.{name}": weight for name, weight in open_clip_weights(state).items()}
    back = convert_open_clip_checkpoint(encoder, original, prefix="model.")
    plain = {name.removeprefix("text_model."): weight for name, weight in state.items()}
    back = {name.removeprefix("text_model."): weight for name, weight in back.items()}
    assert back.keys() == plain.keys()
    for name, weight in plain.items():
        assert torch.equal(back[name], weight), name


@pytest.mark.parametrize(
    ("convert", "part"),
    [(unet_weights, "unet"), (vae_weights, "vae"), (open_clip_weights, "text encoder"), (flux_weights, "transformer")],
)
def test_a_weight_without_a_place_is_named(convert, part):
    with pytest.raises(ExportError, match=rf"weight 'motion\.weight' of '{part}' has no place .*--format folder"):
        convert({"motion.weight": torch.zeros(1)})


@pytest.mark.parametrize("name", ["attn.to_q.weight", "attn.norm_q.bias", "attn.to_gate.weight"])
def test_half_a_flux_block_is_refused(name):
    """A part of q, k and v alone; something that released blocks do not have."""
    with pytest.raises(ExportError, match="has no place"):
        flux_weights({f"transformer_blocks.0.{name}": torch.zeros(1)})


def test_numbers_are_not_copied():
    state = make_tiny_unet().state_dict()
    assert {id(weight) for weight in unet_weights(state).values()} == {id(weight) for weight in state.values()}
