import warnings

import pytest
import torch
from torch import nn

from semipermeable.errors import SiteError
from semipermeable.sites import find_sites, resolve_sites


def test_sites_of_the_unet_are_the_layers_inside_its_transformers(tiny_unet):
    sites = find_sites(tiny_unet)
    assert all(".attentions." in name for name in sites)
    assert "mid_block.attentions.0.transformer_blocks.0.attn2.to_k" in sites
    assert not any("time_emb" in name or "resnets" in name for name in sites)
    num_layers = sum(isinstance(m, nn.Linear | nn.Conv2d) and ".attentions." in n for n, m in tiny_unet.named_modules())
    assert len(sites) == num_layers


def test_a_layer_wrapped_by_peft_stays_one_site_under_its_outer_name(tiny_unet):
    import peft

    before = list(find_sites(tiny_unet))
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False)
    tiny_unet.add_adapter(config)
    after = find_sites(tiny_unet)
    assert list(after) == before
    wrapped = after["mid_block.attentions.0.transformer_blocks.0.attn2.to_k"]
    assert wrapped.module is not wrapped.layer
    assert isinstance(wrapped.layer, nn.Linear)


def test_a_denoiser_without_sites_is_refused():
    with pytest.raises(SiteError, match="nothing to attach to"):
        find_sites(nn.Sequential(nn.Linear(2, 2)))


def test_missing_and_misshapen_sites_are_named_with_the_cure(tiny_unet):
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    with pytest.raises(SiteError, match=r"unknown site .*did you mean 'mid_block\.attentions"):
        resolve_sites(tiny_unet, {name.replace("to_k", "to_kk"): (torch.zeros(1, 1), torch.zeros(1, 1))})
    with pytest.raises(
        SiteError, match=r"site 'mid_block' is a UNetMidBlock2DCrossAttn in this .* Linear or Conv2d only"
    ):
        resolve_sites(tiny_unet, {"mid_block": (torch.zeros(1, 1), torch.zeros(1, 1))})
    with pytest.raises(SiteError, match="made for a model of another size"):
        resolve_sites(tiny_unet, {name: (torch.zeros(1, 1), torch.zeros(1, 1))})


def test_a_layer_that_torch_ao_replaced_is_told_from_another_architecture(tiny_unet):
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    owner, _, leaf = name.rpartition(".")
    parent = tiny_unet.get_submodule(owner)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is deprecated, and still what people have
        replaced = torch.ao.nn.quantized.dynamic.Linear(parent.to_k.in_features, parent.to_k.out_features)
    setattr(parent, leaf, replaced)
    with pytest.raises(SiteError, match=r"was quantised by torch\.ao into a .*Load the model unquantised"):
        resolve_sites(tiny_unet, {name: (torch.zeros(1, 1), torch.zeros(1, 1))})
