"""Baked models: what is written is the folded pipeline, and the pipeline itself stays as it was."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import semipermeable as spm
from semipermeable import generation, zoo
from semipermeable.equip.baking import bake_checkpoint, bake_folder
from semipermeable.errors import AttachError, ExportError, ModelError, OutputError, SiteError
from semipermeable.membrane import Membrane

from helpers import make_tiny_unet, random_membrane


@pytest.fixture
def several(pipe):
    return [random_membrane(pipe.unet, "cat", scale=0.03), random_membrane(pipe.unet, "neon", scale=0.03, seed=1)]


def weights_of(module):
    return {name: weight.clone() for name, weight in module.state_dict().items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


@pytest.fixture
def expected(pipe, several):
    """The weights with both folded in, in one product."""
    with spm.fold(pipe, several):
        return weights_of(pipe.unet)


def test_a_folder_is_the_folded_pipeline(pipe, several, expected, tmp_path):
    before = weights_of(pipe.unet)
    bake_folder(pipe, several, tmp_path / "models" / "baked")
    assert_equal(weights_of(pipe.unet), before)
    loaded = generation.load_model(str(tmp_path / "models" / "baked"), device="cpu")
    assert_equal(weights_of(loaded.unet), expected)
    assert_equal(weights_of(loaded.vae), weights_of(pipe.vae))
    assert_equal(weights_of(loaded.text_encoder), weights_of(pipe.text_encoder))
    told = json.loads((tmp_path / "models" / "baked" / "spm_export.json").read_text())
    assert "has no gate" in told["notice"]
    assert told["membrane"]["concept"]["name"] == "cat + neon"
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["baked"]


def test_a_checkpoint_is_loaded_by_diffusers_as_the_folded_pipeline(pipe, several, expected, tmp_path):
    """The real `from_single_file`; offline it takes the configuration from the bundled folder instead of the hub."""
    from diffusers import StableDiffusionPipeline

    before = weights_of(pipe.unet)
    path = tmp_path / "new" / "baked.safetensors"
    bake_checkpoint(pipe, several, path)
    assert_equal(weights_of(pipe.unet), before)
    loaded = StableDiffusionPipeline.from_single_file(
        str(path), config=str(zoo.path("emoji")), local_files_only=True, safety_checker=None
    )
    assert_equal(weights_of(loaded.unet), expected)
    assert_equal(weights_of(loaded.vae), weights_of(pipe.vae))
    assert_equal(weights_of(loaded.text_encoder), weights_of(pipe.text_encoder))
    assert list(path.parent.iterdir()) == [path]


def test_a_checkpoint_with_its_configuration_beside_it_is_a_model(pipe, several, expected, tmp_path):
    bake_checkpoint(pipe, several, tmp_path / "baked.safetensors")
    with pytest.raises(ModelError, match=r"put a diffusers folder of that family .* at '.*baked', or pass"):
        generation.load_model(str(tmp_path / "baked.safetensors"), device="cpu")
    weights = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(zoo.path("emoji"), tmp_path / "baked", ignore=weights)
    loaded = generation.load_model(str(tmp_path / "baked.safetensors"), device="cpu")
    assert_equal(weights_of(loaded.unet), expected)
    with spm.fold(pipe, several):
        drawn = generation.generate(pipe, "a neon icon of a dog", steps=2, seed=3)[0].pixels
    assert torch.equal(generation.generate(loaded, "a neon icon of a dog", steps=2, seed=3)[0].pixels, drawn)


@pytest.mark.parametrize(
    ("tensor", "shape", "family"),
    [
        ("model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight", (320, 1024), "v2"),
        ("conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias", (1280,), "xl_base"),
        ("model.diffusion_model.input_blocks.0.0.weight", (320, 4, 3, 3), "v1"),
    ],
)
def test_the_shapes_of_a_checkpoint_say_whose_configuration_is_fetched(tmp_path, monkeypatch, tensor, shape, family):
    from diffusers import DiffusionPipeline
    from diffusers.loaders.single_file_utils import DIFFUSERS_DEFAULT_PIPELINE_PATHS

    asked = []
    monkeypatch.setattr(DiffusionPipeline, "load_config", lambda source: asked.append(source))
    tensors = {tensor: torch.zeros(shape), "model.diffusion_model.out.0.weight": torch.zeros(1)}
    save_file(tensors, tmp_path / "big.safetensors")
    with pytest.raises(ModelError, match="cannot be loaded"):
        generation.load_model(str(tmp_path / "big.safetensors"), device="cpu")
    assert asked == [DIFFUSERS_DEFAULT_PIPELINE_PATHS[family]["pretrained_model_name_or_path"]]


def test_the_names_of_a_checkpoint_are_those_of_stable_diffusion(pipe, several, tmp_path):
    path = tmp_path / "baked.safetensors"
    path.write_text("an old file is replaced")
    bake_checkpoint(pipe, several[0], path)
    names = set(load_file(path))
    assert {name.split(".")[0] for name in names} == {"model", "first_stage_model", "cond_stage_model"}
    for name in (
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.out.2.bias",
        "first_stage_model.decoder.conv_in.weight",
        "first_stage_model.quant_conv.weight",
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
    ):
        assert name in names
    with safe_open(path, "pt") as file:
        assert list(file.metadata()) == ["spm_export"]
    from semipermeable.generation.models import _check_checkpoint

    _check_checkpoint(path)


def test_a_dtype_that_rounds_the_membrane_away_is_refused(pipe, tmp_path):
    faint = random_membrane(pipe.unet, "cat", scale=0.002)
    half = type(pipe)(**pipe.components | {"unet": type(pipe.unet).from_config(pipe.unet.config)})
    half.unet.load_state_dict(pipe.unet.state_dict())
    half.unet.to(torch.bfloat16)
    before = weights_of(half.unet)
    with pytest.raises(ExportError, match=r"bfloat16 weights keep only \d+% of 'cat'; bake in fp32 \(--dtype fp32\)"):
        bake_folder(half, faint, tmp_path / "baked")
    assert_equal(weights_of(half.unet), before)
    assert not list(tmp_path.iterdir())
    bake_checkpoint(pipe, faint, tmp_path / "baked.safetensors")


def test_nothing_is_written_or_changed_when_something_is_wrong(pipe, several, tmp_path):
    before = weights_of(pipe.unet)
    with spm.attach(pipe, several), pytest.raises(AttachError, match="detach them before folding"):
        bake_folder(pipe, several, tmp_path / "baked")
    wrong = random_membrane(make_tiny_unet())
    for bake, name in ((bake_folder, "baked"), (bake_checkpoint, "baked.safetensors")):
        with pytest.raises(SiteError, match="was made for"):
            bake(pipe, wrong, tmp_path / "made" / name)
    with pytest.raises(ExportError, match=r"ends in \.safetensors, found .*baked\.ckpt"):
        bake_checkpoint(pipe, several, tmp_path / "baked.ckpt")
    assert not list(tmp_path.iterdir())
    assert_equal(weights_of(pipe.unet), before)


def test_what_is_there_stays(pipe, several, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(OutputError, match="is there already; remove it"):
        bake_folder(pipe, several, tmp_path / "full")
    with pytest.raises(OutputError, match="it is a folder; add a file name"):
        bake_checkpoint(pipe, several, tmp_path / "folder.safetensors")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"cannot write .* choose another place"):
        bake_folder(pipe, several, tmp_path / "file" / "baked")
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert found == ["file", "folder.safetensors", "full", "full/mine.txt"]


def test_another_adapter_must_go_first(pipe, several, tmp_path):
    import copy

    from peft import LoraConfig

    pipe.unet = copy.deepcopy(pipe.unet)
    pipe.unet.add_adapter(LoraConfig(r=1, target_modules=["to_q"]))
    with pytest.raises(ExportError, match="another adapter is loaded into 'unet'; unload or fuse it"):
        bake_folder(pipe, several, tmp_path / "baked")


def test_a_unet_with_a_part_that_was_never_released_is_refused(pipe, tmp_path):
    unet = type(pipe.unet).from_config(pipe.unet.config | {"class_embed_type": "timestep"})
    other = type(pipe)(**pipe.components | {"unet": unet})
    with pytest.raises(
        ExportError, match=r"weight 'class_embedding\.linear_1\.weight' of 'unet' has no place .*folder"
    ):
        bake_checkpoint(other, random_membrane(unet, scale=0.03), tmp_path / "baked.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_weight_without_a_place_is_named(pipe, tmp_path):
    unet = type(pipe.unet).from_config(pipe.unet.config | {"layers_per_block": [1, 2, 1]})
    uneven = type(pipe)(**pipe.components | {"unet": unet})
    with pytest.raises(ExportError, match=r"weight 'conv_in\.weight' of 'unet' has no place in the original layout"):
        bake_checkpoint(uneven, random_membrane(unet, scale=0.03), tmp_path / "baked.safetensors")


def test_a_membrane_of_zeros_bakes_to_the_same_weights(pipe, several, tmp_path):
    zero = Membrane({site: (u * 0, v) for site, (u, v) in several[0].pairs.items()}, several[0].concept)
    before = weights_of(pipe.unet)
    bake_folder(pipe, zero, tmp_path / "baked")
    assert_equal(load_file(tmp_path / "baked" / "unet" / "diffusion_pytorch_model.safetensors"), before)
