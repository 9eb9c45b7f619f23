"""Original names against the converters that diffusers itself loads checkpoints with."""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

from semipermeable.files.ldm_names import LdmNames, names_of_membrane, names_of_unet, vae_name
from semipermeable.sites import find_sites

from helpers import make_tiny_unet


def small_sd1_unet():
    """The blocks of Stable Diffusion 1.x, with few channels."""
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8, 16, 16), norm_num_groups=4, cross_attention_dim=12,
        attention_head_dim=2,
    )  # fmt: skip


def small_sdxl_unet():
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8, 16), norm_num_groups=4, cross_attention_dim=12, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=4, projection_class_embeddings_input_dim=32,
    )  # fmt: skip


@pytest.mark.parametrize("make", [small_sd1_unet, small_sdxl_unet, make_tiny_unet])
def test_diffusers_converts_the_names_back(make):
    unet = make()
    names = names_of_unet(name for name, _ in unet.named_modules())
    weights = unet.state_dict()
    original = {f"model.diffusion_model.{names.of(name)}": weight for name, weight in weights.items()}
    assert len(original) == len(weights)
    back = convert_ldm_unet_checkpoint(original, unet.config)
    assert back.keys() == weights.keys()
    for name, weight in weights.items():
        assert back[name] is weight, name


def test_some_names_of_sd1_by_heart():
    """As in the file that CompVis released."""
    names = names_of_unet(name for name, _ in small_sd1_unet().named_modules())
    assert names == LdmNames(2, frozenset({1, 2, 3}))
    for name, original in {
        "down_blocks.0.attentions.0.norm.weight": "input_blocks.1.1.norm.weight",
        "down_blocks.2.resnets.1.conv_shortcut.weight": "input_blocks.8.0.skip_connection.weight",
        "down_blocks.2.downsamplers.0.conv.weight": "input_blocks.9.0.op.weight",
        "mid_block.attentions.0.proj_in.weight": "middle_block.1.proj_in.weight",
        "mid_block.resnets.1.conv2.bias": "middle_block.2.out_layers.3.bias",
        "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.1.conv.weight",
        "up_blocks.1.upsamplers.0.conv.weight": "output_blocks.5.2.conv.weight",
        "up_blocks.3.attentions.2.transformer_blocks.0.ff": "output_blocks.11.1.transformer_blocks.0.ff",
        "time_embedding.linear_2.weight": "time_embed.2.weight",
        "conv_norm_out.weight": "out.0.weight",
    }.items():  # fmt: skip
        assert names.of(name) == original


@pytest.mark.parametrize("make", [small_sd1_unet, small_sdxl_unet, make_tiny_unet])
def test_a_whole_membrane_proves_the_numbering_and_a_part_does_not(make):
    unet = make()
    sites = list(find_sites(unet))
    assert names_of_membrane(sites) == names_of_unet(name for name, _ in unet.named_modules())
    assert names_of_membrane(site for site in sites if not site.startswith("up_")) is None
    assert names_of_membrane(site for site in sites if ".attentions.1." not in site) is None
    assert names_of_membrane([*sites, "down_blocks.0.resnets.0.conv1"]) is None


def test_names_without_a_place():
    names = LdmNames(2, frozenset())
    for name in (
        "down_blocks.0.resnets.2.conv1", "down_blocks.0.resnets.0.conv3", "down_blocks.0.motion_modules.0.proj_in",
        "down_blocks.0.upsamplers.0.conv", "down_blocks.0.downsamplers.1.conv", "mid_block.resnets.2.conv1",
        "mid_block.attentions.1.proj_in", "encoder_hid_proj", "",
    ):  # fmt: skip
        assert names.of(name) is None, name
    assert names_of_unet(["transformer_blocks.0.attn.to_q"]) is None
    assert names_of_unet(["down_blocks.0.resnets.0", "up_blocks.0.resnets.0"]) is None
    for name in ("scheduler.betas", "encoder.down_blocks.0.motion", "encoder.mid_block.resnets.2.norm1.weight"):
        assert vae_name(name, 3) is None


def test_diffusers_converts_the_vae_back():
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 8, 8), layers_per_block=2, norm_num_groups=2,
    )  # fmt: skip
    weights = vae.state_dict()
    original = {}
    for name, weight in weights.items():
        value = weight[:, :, None, None] if ".attentions." in name and weight.dim() == 2 else weight
        original[f"first_stage_model.{vae_name(name, 3)}"] = value
    assert len(original) == len(weights)
    assert "first_stage_model.decoder.mid.attn_1.proj_out.weight" in original
    back = convert_ldm_vae_checkpoint(original, vae.config)
    assert back.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(back[name], weight, rtol=0, atol=0)
