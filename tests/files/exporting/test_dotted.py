"""Adapters as diffusers, PEFT and ComfyUI users have them, without our story."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import semipermeable as spm
from semipermeable.errors import MembraneFileError, SiteError
from semipermeable.files.exporting import export
from semipermeable.files.foreign import resolve_foreign
from semipermeable.rank1 import folded_weight

from helpers import make_tiny_unet, random_membrane

SITE = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
UP, DOWN = torch.arange(64.0).reshape(32, 2), torch.arange(64.0).reshape(2, 32) - 5


@pytest.fixture
def path(tmp_path):
    return tmp_path / "stem.safetensors"


def read(path, tensors, metadata=None):
    save_file(tensors, path, metadata)
    return spm.load(path)


@pytest.mark.parametrize(
    ("down", "up"),
    [
        (f"unet.{SITE}.lora_A.weight", f"unet.{SITE}.lora_B.weight"),
        (f"unet.{SITE}.lora.down.weight", f"unet.{SITE}.lora.up.weight"),
        (f"{SITE}.lora_A.weight", f"{SITE}.lora_B.weight"),
        (f"unet.{SITE[:-5]}.processor.to_q_lora.down.weight", f"unet.{SITE[:-5]}.processor.to_q_lora.up.weight"),
    ],
)
def test_every_naming_of_diffusers(path, down, up):
    membrane = read(path, {down: DOWN, up: UP})
    assert list(membrane.pairs) == [SITE]
    torch.testing.assert_close(membrane.pairs[SITE], (UP, DOWN), rtol=0, atol=0)
    assert not membrane.foreign_names
    assert (membrane.name, membrane.gate_power, membrane.rank) == ("stem", 1, 2)
    assert (membrane.provenance.family, membrane.provenance.training["source"]) == ("unet", "diffusers")


def test_the_old_name_of_the_output_projection(path):
    base = f"unet.{SITE[:-5]}.processor.to_out_lora"
    membrane = read(path, {f"{base}.down.weight": DOWN, f"{base}.up.weight": UP})
    assert list(membrane.pairs) == [f"{SITE[:-5]}.to_out.0"]


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"unet.lora_alpha": 4, "unet.r": 2}, 2.0),
        ({"unet.lora_alpha": 4, "unet.r": 2, "unet.use_rslora": True}, 4 / 2**0.5),
        ({"unet.lora_alpha": 4, "unet.alpha_pattern": {"to_q": 1}}, 0.5),
        ({"unet.lora_alpha": 4, "unet.alpha_pattern": {"^" + SITE.replace(".", "\\."): 6}}, 3.0),
        ({"unet.lora_alpha": 4, "unet.alpha_pattern": {"^to_q": 6, "o_q": 7}}, 2.0),
        ({"unet.r": 2}, 1.0),
    ],
)
def test_the_scale_of_diffusers_metadata(path, config, scale):
    names = (f"unet.{SITE}.lora_A.weight", f"unet.{SITE}.lora_B.weight")
    tensors = dict(zip(names, (DOWN, UP), strict=True))
    u, v = read(path, tensors, {"lora_adapter_metadata": json.dumps(config)}).pairs[SITE]
    torch.testing.assert_close(u, (UP.double() * scale).float(), rtol=0, atol=0)
    torch.testing.assert_close(v, DOWN, rtol=0, atol=0)


def test_what_save_lora_weights_writes_is_read_with_its_scale(tmp_path, tiny_unet):
    """The real writer: some keys end in `.lora.down`, others in `.lora_A`, and alpha differs from the rank."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    config = LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "ff.net.2", "proj_in"], init_lora_weights=False)
    tiny_unet.add_adapter(config)
    weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(tiny_unet))
    assert {name.rsplit(".", 2)[-2] for name in weights} == {"down", "up", "lora_A", "lora_B"}
    metadata = {key: value for key, value in config.to_dict().items() if isinstance(value, int | str | list)}
    StableDiffusionPipeline.save_lora_weights(tmp_path, weights, unet_lora_adapter_metadata=metadata)
    membrane = spm.load(tmp_path / "pytorch_lora_weights.safetensors")
    assert membrane.name == tmp_path.name
    bare = make_tiny_unet().state_dict()
    tiny_unet.fuse_lora()
    for site, (u, v) in membrane.pairs.items():
        fused = tiny_unet.get_submodule(site).base_layer.weight
        torch.testing.assert_close(folded_weight(bare[f"{site}.weight"], u, v), fused.detach(), rtol=0, atol=1e-6)


def peft_folder(folder, **changes):
    names = (f"base_model.model.{SITE}.lora_A.weight", f"base_model.model.{SITE}.lora_B.weight")
    save_file(dict(zip(names, (DOWN, UP), strict=True)), folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4} | changes
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder / "adapter_model.safetensors"


def test_a_peft_folder(tmp_path):
    folder = tmp_path / "van-gogh"
    folder.mkdir()
    membrane = spm.load(peft_folder(folder))
    torch.testing.assert_close(membrane.pairs[SITE][0], UP * 2, rtol=0, atol=0)
    assert (membrane.name, membrane.provenance.training["source"]) == ("van-gogh", "peft")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "sets 'use_dora': it is more than low-rank pairs"),
        ({"peft_type": "LOHA"}, "has 'peft_type' 'LOHA'; only LORA"),
        ({"lora_alpha": 0}, "a number other than 0, found 0"),
        ({"lora_alpha": "4"}, "a number other than 0, found '4'"),
        ({"alpha_pattern": ["to_q"]}, "'alpha_pattern' that is no object"),
        ({"alpha_pattern": {"(a+)+$": 1}}, r"the expression '\(a\+\)\+\$' in 'alpha_pattern'; only names"),
    ],
)
def test_a_peft_configuration_that_says_something_else_is_refused(tmp_path, changes, message):
    with pytest.raises(MembraneFileError, match=message) as caught:
        spm.load(peft_folder(tmp_path, **changes))
    assert caught.value.key == "adapter_config.json"


def test_a_peft_file_without_its_configuration_is_refused(tmp_path):
    path = peft_folder(tmp_path)
    for content in ("{broken", "[]"):
        (tmp_path / "adapter_config.json").write_text(content)
        with pytest.raises(MembraneFileError, match=r"'adapter_config\.json' (is not JSON|must be a JSON object)"):
            spm.load(path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(
        MembraneFileError, match=r"adapter_config\.json beside it cannot be read, which holds its scale"
    ):
        spm.load(path)


@pytest.mark.parametrize("underscored", [False, True])
def test_names_of_the_original_unet_are_resolved(path, tiny_unet, underscored):
    """Most SDXL sliders carry these names under the prefix lora_unet_, ComfyUI's own under diffusion_model."""
    membrane = random_membrane(tiny_unet, rank=2)
    export(membrane, path, "comfyui")
    tensors = load_file(path)
    if underscored:
        renamed = {}
        for name, tensor in tensors.items():
            base, dot, part = name.partition(".lora_") if ".lora_" in name else name.partition(".alpha")
            renamed["lora_unet_" + base.removeprefix("diffusion_model.").replace(".", "_") + dot + part] = tensor
        tensors = renamed
    foreign = read(path, {name: t * 2 if name.endswith("alpha") else t for name, t in tensors.items()})
    assert foreign.foreign_names
    assert foreign.provenance.training["source"] == ("kohya" if underscored else "comfyui")
    resolved = resolve_foreign(foreign, tiny_unet)
    assert set(resolved.pairs) == set(membrane.pairs)
    for site, (u, v) in membrane.pairs.items():
        torch.testing.assert_close(resolved.pairs[site], (u * 2, v), rtol=0, atol=0)


def test_a_name_that_fits_nothing_suggests_a_close_one(path, tiny_unet):
    base = "diffusion_model.input_blocks.3.1.transformer_blocks.0.attn1.to_z"
    foreign = read(path, {f"{base}.lora_down.weight": DOWN, f"{base}.lora_up.weight": UP})
    with pytest.raises(SiteError, match=r"unknown site .*did you mean"):
        resolve_foreign(foreign, tiny_unet)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"unet.{SITE}.lora_B.weight": None}, "is incomplete: its up weight is missing"),
        ({f"unet.{SITE}.lora_A.weight": None}, "is incomplete: its down weight is missing"),
        ({f"unet.{SITE}.lora_B.weight": torch.ones(32, 3)}, r"the ranks differ \(up \(32, 3\), down \(2, 32\)\)"),
        ({f"unet.{SITE}.lora_B.weight": torch.full((32, 2), torch.nan)}, "holds NaN or infinity"),
        ({f"unet.{SITE}.lora.up.weight": UP.clone()}, "are the same part of"),
        ({"text_encoder.q_proj.lora_A.weight": DOWN.clone()}, "changes the text encoder"),
        ({f"unet.{SITE}.lora_magnitude_vector": UP.clone()}, "is no part of a low-rank pair; LoHa"),
        ({"betas": UP.clone()}, "'betas' is no part of a low-rank pair"),
    ],
)
def test_what_is_refused(path, change, message):
    tensors = {f"unet.{SITE}.lora_A.weight": DOWN, f"unet.{SITE}.lora_B.weight": UP} | change
    with pytest.raises(MembraneFileError, match=message):
        read(path, {name: t for name, t in tensors.items() if t is not None})
