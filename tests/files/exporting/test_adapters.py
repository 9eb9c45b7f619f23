"""Every adapter layout: what is in the file, that it reads back exactly, and what is refused."""

import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import semipermeable as spm
from semipermeable.errors import ExportError, MembraneFileError, OutputError, SiteError
from semipermeable.files.export_story import EXPORT_KEY
from semipermeable.files.exporting import LAYOUTS, export
from semipermeable.files.native import to_bytes
from semipermeable.membrane import Membrane

from helpers import make_tiny_unet, random_membrane

ALL = sorted(LAYOUTS)
ONE_FILE = sorted(name for name, layout in LAYOUTS.items() if not layout.folder)


def exported(membrane, folder, layout, **extra):
    """Export and return the file that holds the weights."""
    path = folder / ("adapter" if LAYOUTS[layout].folder else "adapter.safetensors")
    export(membrane, path, layout, **extra)
    return path / "adapter_model.safetensors" if path.is_dir() else path


def gateless(membrane):
    return to_bytes(dataclasses.replace(membrane, gate=None))


@pytest.mark.parametrize("layout", ALL)
def test_what_is_exported_reads_back_to_the_bit(membrane, tmp_path, layout):
    again = spm.load(exported(membrane, tmp_path, layout))
    assert to_bytes(again) == gateless(membrane)


@pytest.mark.parametrize("layout", sorted(set(ALL) - {"reference"}))
def test_every_kind_of_layer_and_mixed_ranks_read_back_to_the_bit(everywhere, tiny_unet, tmp_path, layout):
    assert {v.shape[2:] for _, v in everywhere.pairs.values()} == {(), (1, 1), (3, 3)}
    assert everywhere.gate_power == 2
    again = spm.load(exported(everywhere, tmp_path, layout, denoiser=tiny_unet))
    assert to_bytes(again) == gateless(everywhere)


@pytest.mark.parametrize("layout", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_stays(membrane, tmp_path, layout, dtype):
    pairs = {site: (u.to(dtype), v.to(dtype)) for site, (u, v) in membrane.pairs.items()}
    changed = dataclasses.replace(membrane, pairs=pairs)
    assert to_bytes(spm.load(exported(changed, tmp_path, layout))) == gateless(changed)


@pytest.mark.parametrize("layout", ALL)
def test_equal_membranes_give_equal_bytes_whatever_their_strides(membrane, tmp_path, layout):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    strided = {site: (u.t().contiguous().t(), v) for site, (u, v) in membrane.pairs.items()}
    one = exported(membrane, tmp_path / "one", layout)
    two = exported(dataclasses.replace(membrane, pairs=strided), tmp_path / "two", layout)
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("layout", ALL)
def test_the_file_says_that_the_gate_is_lost_and_what_the_scale_is(membrane, tmp_path, layout):
    with safe_open(exported(membrane, tmp_path, layout), "pt") as file:
        metadata = file.metadata()
    told = json.loads(metadata[EXPORT_KEY])
    assert "has no gate" in told["notice"]
    assert told["scale"].startswith("u = (alpha / k) * up, v = down; alpha = k")
    assert told["membrane"]["gate"] is None
    assert told["membrane"]["concept"]["name"] == "cat"
    if layout == "kohya":
        assert "has no gate" in metadata["ss_training_comment"]
        assert metadata["ss_network_dim"] == "1"


def test_the_names_of_every_layout(membrane, tmp_path):
    site = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    u, v = membrane.pairs[site]
    expected = {
        "kohya": ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", "lora_down", "lora_up"),
        "reference": ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", "lora_down", "lora_up"),
        "comfyui": ("diffusion_model.input_blocks.3.1.transformer_blocks.0.attn1.to_q", "lora_down", "lora_up"),
        "diffusers": (f"unet.{site}", "lora_A", "lora_B"),
        "peft": (f"base_model.model.{site}", "lora_A", "lora_B"),
    }
    assert set(expected) == set(LAYOUTS)
    for layout, (base, down, up) in expected.items():
        (tmp_path / layout).mkdir()
        tensors = load_file(exported(membrane, tmp_path / layout, layout))
        torch.testing.assert_close(tensors[f"{base}.{down}.weight"], v, rtol=0, atol=0)
        torch.testing.assert_close(tensors[f"{base}.{up}.weight"], u, rtol=0, atol=0)
        per_site = 2 if down == "lora_A" else 3
        assert len(tensors) == per_site * len(membrane.pairs)
        if per_site == 3:
            assert tensors[f"{base}.alpha"] == 1.0


def test_a_convolution_has_a_1x1_convolution_up(membrane, tmp_path):
    tensors = load_file(exported(membrane, tmp_path, "kohya"))
    base = "lora_unet_mid_block_attentions_0_proj_in"
    assert tensors[f"{base}.lora_up.weight"].shape == (32, 1, 1, 1)
    assert tensors[f"{base}.lora_down.weight"].shape == (1, 32, 1, 1)


@pytest.mark.parametrize("layout", ["kohya", "comfyui"])
def test_alpha_is_left_out_where_ranks_differ(everywhere, tiny_unet, tmp_path, layout):
    """Left out, it is the scale 1 by convention; diffusers would mistake one layer's alpha for another's."""
    tensors = load_file(exported(everywhere, tmp_path, layout, denoiser=tiny_unet))
    assert not any(name.endswith("alpha") for name in tensors)
    assert len(tensors) == 2 * len(everywhere.pairs)


def test_a_transformer_gets_its_own_prefix(tmp_path):
    pairs = {"transformer_blocks.0.attn1.to_q": (torch.ones(2, 1), torch.ones(1, 2))}
    membrane = Membrane(pairs, spm.Concept("cat"))
    path = exported(membrane, tmp_path, "diffusers")
    assert min(load_file(path)) == "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight"
    assert to_bytes(spm.load(path)) == to_bytes(membrane)
    for layout in ("kohya", "reference"):
        with pytest.raises(ExportError, match=r"no layer of a UNet.*export as diffusers or peft"):
            exported(membrane, tmp_path, layout)


def test_peft_configuration_says_what_the_tensors_are(everywhere, tmp_path):
    folder = exported(everywhere, tmp_path, "peft").parent
    config = json.loads((folder / "adapter_config.json").read_text())
    ones = {site for site, (u, _) in everywhere.pairs.items() if u.shape[1] == 1}
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 2)
    assert config["base_model_name_or_path"] == "owner/model"
    assert set(config["rank_pattern"]) == {"^" + site.replace(".", "\\.") for site in ones}
    assert config["alpha_pattern"] == config["rank_pattern"]
    assert set(config["target_modules"]) == set(everywhere.pairs)


def test_a_foreign_membrane_keeps_its_names_or_asks_for_the_model(membrane, tiny_unet, tmp_path):
    path = exported(membrane, tmp_path, "kohya")
    tensors = load_file(path)
    save_file(tensors, path)
    foreign = spm.load(path)
    assert foreign.foreign_names
    other = tmp_path / "other"
    other.mkdir()
    assert load_file(exported(foreign, other, "kohya")).keys() == tensors.keys()
    assert to_bytes(spm.load(other / "adapter.safetensors")) == to_bytes(foreign)
    for layout in ("diffusers", "peft", "comfyui"):
        with pytest.raises(ExportError, match=r"site names of another program; give the model.*--model"):
            exported(foreign, other, layout)
    found = spm.load(exported(foreign, other, "diffusers", denoiser=tiny_unet))
    for site, pair in membrane.pairs.items():
        torch.testing.assert_close(found.pairs[site], pair, rtol=0, atol=0)


def test_comfyui_numbers_need_proof_or_the_model(tiny_unet, tmp_path):
    whole = random_membrane(tiny_unet)
    pairs = {site: pair for site, pair in whole.pairs.items() if ".attentions.1." not in site}
    part = dataclasses.replace(whole, pairs=pairs)
    with pytest.raises(ExportError, match=r"do not tell how many layers.*--model"):
        exported(part, tmp_path, "comfyui")
    assert to_bytes(spm.load(exported(part, tmp_path, "comfyui", denoiser=tiny_unet))) == to_bytes(part)


@pytest.mark.parametrize("layout", ONE_FILE)
def test_a_wrong_ending_is_refused(membrane, tmp_path, layout):
    with pytest.raises(ExportError, match=r"ends in \.safetensors, found .*change the name"):
        export(membrane, tmp_path / "adapter.bin", layout)
    with pytest.raises(OutputError, match="create the folder first"):
        export(membrane, tmp_path / "nowhere" / "adapter.safetensors", layout)
    assert not list(tmp_path.iterdir())


def test_a_peft_folder_must_be_new(membrane, tmp_path):
    with pytest.raises(ExportError, match="is a folder, found the file name"):
        export(membrane, tmp_path / "adapter.safetensors", "peft")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="is there already; remove it or give the name of a new folder"):
        export(membrane, tmp_path / "full", "peft")
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine.txt"]


def test_an_unknown_layout_suggests_a_close_one(membrane, tmp_path):
    with pytest.raises(ExportError, match="unknown adapter format 'koya'; did you mean 'kohya'"):
        export(membrane, tmp_path / "adapter.safetensors", "koya")


def test_the_reference_layout_has_one_rank_and_no_comma(everywhere, membrane, tmp_path):
    with pytest.raises(ExportError, match=r"one rank for all sites, found \[1, 2\]"):
        exported(everywhere, tmp_path, "reference")
    comma = dataclasses.replace(membrane, concept=spm.Concept("cat, dog"))
    with pytest.raises(ExportError, match="splits names at commas, found 'cat, dog'"):
        exported(comma, tmp_path, "reference")
    path = exported(membrane, tmp_path, "reference")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert {key: metadata[key] for key in ("prompts", "rank", "alpha")} == {
        "prompts": "cat,kitty", "rank": "1", "alpha": "1.0",
    }  # fmt: skip
    del metadata[EXPORT_KEY]
    save_file(load_file(path), path, metadata)
    read = spm.load(path)
    assert (read.gate_power, read.concept.names) == (2, ("cat", "kitty"))


def test_two_sites_with_one_kohya_name_are_refused(tmp_path):
    pair = (torch.ones(2, 1), torch.ones(1, 2))
    membrane = Membrane({"mid_block.a_b": pair, "mid_block.a.b": pair}, spm.Concept("cat"))
    with pytest.raises(ExportError, match="two sites of 'cat' have one name"):
        exported(membrane, tmp_path, "kohya")


def test_a_membrane_of_another_size_is_refused_before_anything_is_written(membrane, tmp_path):
    from diffusers import UNet2DConditionModel

    other = UNet2DConditionModel.from_config(make_tiny_unet().config | {"block_out_channels": (8, 16)})
    wrong = random_membrane(other)
    foreign = exported(wrong, tmp_path, "kohya")
    save_file(load_file(foreign), foreign)
    with pytest.raises(SiteError, match="another size"):
        export(spm.load(foreign), tmp_path / "out.safetensors", "diffusers", denoiser=make_tiny_unet())
    assert not (tmp_path / "out.safetensors").exists()


def rewritten(path, change):
    """Give the story of an exported file other content, as a careless tool would."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    told = json.loads(metadata[EXPORT_KEY])
    metadata[EXPORT_KEY] = change(told)
    save_file(load_file(path), path, metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: "{broken", "is not JSON .* remove that metadata key"),
        (lambda _: "[]", "is not of version 1"),
        (lambda told: json.dumps(told | {"version": 2}), "is not of version 1"),
        (lambda told: json.dumps(told | {"more": 1}), "is not of version 1"),
        (lambda told: json.dumps(told | {"names": {"a": 1}}), "'names' .* must be texts"),
        (lambda told: json.dumps(told | {"names": {}}), "its sites are not those"),
        (lambda told: json.dumps(told | {"names": told["names"] | {"a": "b"}}), "its sites are not those"),
        (lambda told: json.dumps(told | {"names": dict.fromkeys(told["names"], "b")}), "its sites are not those"),
        (lambda told: json.dumps(told | {"membrane": {}}), "format version None"),
    ],
)
def test_a_damaged_story_is_refused(membrane, tmp_path, change, message):
    path = exported(membrane, tmp_path, "kohya")
    rewritten(path, change)
    with pytest.raises(MembraneFileError, match=message):
        spm.load(path)
