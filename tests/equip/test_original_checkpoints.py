"""Single files in the original layouts of Stable Diffusion 2.x, XL and FLUX.1, loaded back by diffusers' own loaders.

Tiny random pipelines of the real classes; offline the configuration comes from a folder. Stable Diffusion 1.x, on the
bundled model, is in `test_baking.py`.
"""

import shutil

import pytest
import torch
from diffusers import FluxTransformer2DModel, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file

import semipermeable as spm
from hosts.tiny_dits import make_flux, make_pixart
from hosts.tiny_settings import draw, make_sd1, membranes_for
from hosts.tiny_unets import make_sd2, make_sdxl
from semipermeable import generation
from semipermeable.equip.baking import bake_checkpoint
from semipermeable.errors import ExportError, ModelError
from semipermeable.hosts import host_for

UNETS = {
    "v2": (lambda tokenizer: make_sd2(tokenizer, "v_prediction"), StableDiffusionPipeline),
    "v2, epsilon": (lambda tokenizer: make_sd2(tokenizer, "epsilon"), StableDiffusionPipeline),
    "xl": (make_sdxl, StableDiffusionXLPipeline),
}


@pytest.fixture(scope="module")
def tokenizer(_bundled):
    return _bundled.tokenizer


@pytest.fixture
def bake(tmp_path):
    """Bakes two membranes and writes the pipeline's configuration, without weights, beside the file."""

    def baked(pipe, *, keep=()):
        pipe.set_progress_bar_config(disable=True)
        several = membranes_for(pipe, 2, scale=0.03)
        before = {name: weight.clone() for name, weight in host_for(pipe).denoiser.state_dict().items()}
        bake_checkpoint(pipe, several, tmp_path / "baked.safetensors")
        assert_equal(host_for(pipe).denoiser.state_dict(), before)
        pipe.save_pretrained(tmp_path / "baked")
        for weights in (tmp_path / "baked").rglob("*.safetensors"):
            if weights.parent.name not in keep:
                weights.unlink()
        return several, tmp_path / "baked.safetensors", tmp_path / "baked"

    return baked


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


@pytest.mark.parametrize("family", UNETS)
def test_a_unet_checkpoint_is_loaded_back_as_the_folded_pipeline(tokenizer, bake, family):
    make, cls = UNETS[family]
    pipe = make(tokenizer)
    several, path, folder = bake(pipe)
    loaded = cls.from_single_file(str(path), config=str(folder), local_files_only=True)
    with spm.fold(pipe, several):
        assert_equal(loaded.unet.state_dict(), pipe.unet.state_dict())
        expected = draw(pipe)
    for part in ("vae", "text_encoder", "text_encoder_2"):
        if getattr(pipe, part, None) is not None:
            assert_equal(getattr(loaded, part).state_dict(), getattr(pipe, part).state_dict())
    model = generation.load_model(str(path), device="cpu")
    assert type(model) is cls
    assert torch.equal(draw(model), expected)


def test_the_names_of_a_checkpoint_are_those_of_its_family(tokenizer, bake):
    """By heart: what A1111, Forge and ComfyUI tell Stable Diffusion 2.x and XL by."""
    names = set(load_file(bake(make_sd2(tokenizer, "epsilon"))[1]))
    assert "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight" in names
    assert "cond_stage_model.model.ln_final.weight" in names
    assert not any(name.startswith("cond_stage_model.transformer.") for name in names)


def test_the_names_of_an_xl_checkpoint(tokenizer, bake):
    names = set(load_file(bake(make_sdxl(tokenizer))[1]))
    assert {".".join(name.split(".")[:3]) for name in names if name.startswith("conditioner")} == {
        "conditioner.embedders.0",
        "conditioner.embedders.1",
    }
    for name in (
        "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight",
        "conditioner.embedders.1.model.text_projection",
        "conditioner.embedders.1.model.transformer.resblocks.2.mlp.c_proj.bias",
        "model.diffusion_model.label_emb.0.0.weight",
        "first_stage_model.encoder.mid.attn_1.q.weight",
    ):
        assert name in names


@pytest.fixture
def narrow(monkeypatch):
    """diffusers' converter cuts at FLUX.1's 3,072 channels; the same code, for the tiny model's."""

    def to(width):
        convert = convert_flux_transformer_checkpoint_to_diffusers
        code = convert.__code__
        assert 3072 in code.co_consts
        constants = tuple(width if constant == 3072 else constant for constant in code.co_consts)
        monkeypatch.setattr(convert, "__code__", code.replace(co_consts=constants))

    return to


@pytest.mark.parametrize("dev", [True, False])
def test_a_flux_checkpoint_is_loaded_back_as_the_folded_denoiser(tokenizer, bake, narrow, dev):
    pipe = make_flux(tokenizer, guidance_embeds=dev)
    several, path, folder = bake(pipe, keep=("vae", "text_encoder", "text_encoder_2"))
    names = set(load_file(path))
    assert ("guidance_in.in_layer.weight" in names) is dev
    assert {name.split(".")[0] for name in names} - {"guidance_in"} == {
        "img_in", "txt_in", "time_in", "vector_in", "double_blocks", "single_blocks", "final_layer",
    }  # fmt: skip
    narrow(pipe.transformer.inner_dim)
    loaded = FluxTransformer2DModel.from_single_file(
        str(path), config=str(folder), subfolder="transformer", local_files_only=True
    )
    model = generation.load_model(str(path), device="cpu")
    model.default_sample_size = pipe.default_sample_size = 8
    with spm.fold(pipe, several):
        assert_equal(loaded.state_dict(), pipe.transformer.state_dict())
        assert torch.equal(draw(model), draw(pipe))


def test_a_flux_checkpoint_needs_the_rest_of_its_pipeline(tokenizer, bake):
    _, path, folder = bake(make_flux(tokenizer))
    with pytest.raises(ModelError, match=r"cannot be loaded .*denoiser of FLUX\.1 alone"):
        generation.load_model(str(path), device="cpu")
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match=r"denoiser of FLUX\.1 alone; put a diffusers folder of FLUX\.1 .*baked'"):
        generation.load_model(str(path), device="cpu")


def test_other_families_have_folders_only(tmp_path):
    pipe = make_pixart()
    with pytest.raises(
        ExportError, match=r"Stable Diffusion 1\.x, 2\.x, XL and FLUX\.1, found .*'pixart'; bake a folder"
    ):
        bake_checkpoint(pipe, membranes_for(pipe, scale=0.03), tmp_path / "baked.safetensors")
    assert not list(tmp_path.iterdir())


def test_an_ip_adapter_has_no_place_in_a_checkpoint(tokenizer, tmp_path):
    from hosts.tiny_settings import with_ip_adapter

    pipe, _ = with_ip_adapter(make_sd1(tokenizer), "unet")
    with pytest.raises(ExportError, match="of 'unet' has no place in the original layout"):
        bake_checkpoint(pipe, membranes_for(pipe, scale=0.03), tmp_path / "baked.safetensors")
