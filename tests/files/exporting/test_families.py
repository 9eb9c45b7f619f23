"""Exports of other families than the bundled one, in diffusers and PEFT: the same latents as the membrane, held open.

Tiny random pipelines of the real classes; without guidance, as in `test_pictures.py`.
"""

import pytest
import torch
from torch.testing import assert_close

import semipermeable as spm
from hosts.tiny_large import make_wan
from hosts.tiny_settings import draw, make_pipe, membranes_for
from semipermeable.equip.baking import bake_folder
from semipermeable.errors import ExportError
from semipermeable.files.exporting import export
from semipermeable.hosts import host_for

TRANSFORMERS = ("sd3", "flux", "wan", "qwen-image", "sana", "z-image")
"""Whose pipelines load LoRA; PixArt's does not."""
TOLERANCE = {"rtol": 1e-3, "atol": 1e-3}


@pytest.fixture(scope="module")
def tokenizer(_bundled):
    return _bundled.tokenizer


@pytest.fixture
def made(tokenizer):
    """Makes a pipeline of a family, a membrane, and what they draw together, held open."""

    def make(family):
        pipe = make_pipe(family, tokenizer)
        # Sana's convolutions are behind gates of its own: there it takes more to see a membrane.
        membrane = membranes_for(pipe, scale=0.1 if family == "sana" else 0.05)[0]
        bare = draw(pipe, guidance=1.0)
        with spm.attach(pipe, membrane, "open"):
            expected = draw(pipe, guidance=1.0)
        assert (expected - bare).abs().max() > 20 * TOLERANCE["atol"]
        return pipe, membrane, bare, expected

    return make


@pytest.mark.parametrize(
    ("family", "layout"), [("sdxl", "kohya"), *((family, "diffusers") for family in ("sdxl", *TRANSFORMERS))]
)
def test_the_pipeline_loads_it_and_draws_the_same(made, tmp_path, family, layout):
    pipe, membrane, bare, expected = made(family)
    export(membrane, tmp_path / "cat.safetensors", layout)
    pipe.load_lora_weights(str(tmp_path), weight_name="cat.safetensors")
    assert_close(draw(pipe, guidance=1.0), expected, **TOLERANCE)
    pipe.unload_lora_weights()
    assert torch.equal(draw(pipe, guidance=1.0), bare)


@pytest.mark.parametrize("family", ["sdxl", "pixart", *TRANSFORMERS])
def test_peft_loads_it_and_draws_the_same(made, tmp_path, family):
    from peft import PeftModel

    pipe, membrane, _, expected = made(family)
    export(membrane, tmp_path / "cat", "peft")
    (name,) = host_for(pipe).denoisers
    wrapped = PeftModel.from_pretrained(getattr(pipe, name), tmp_path / "cat")
    setattr(pipe, name, wrapped.base_model.model)
    assert_close(draw(pipe, guidance=1.0), expected, **TOLERANCE)


@pytest.mark.parametrize("family", ["unet", "sdxl", "pixart", *TRANSFORMERS])
def test_a_baked_folder_is_the_folded_pipeline(tokenizer, tmp_path, family):
    pipe = make_pipe(family, tokenizer)
    (membrane,) = membranes_for(pipe)
    bake_folder(pipe, membrane, tmp_path / "baked")
    again = type(pipe).from_pretrained(tmp_path / "baked", local_files_only=True)
    with spm.fold(pipe, membrane):
        expected = host_for(pipe).denoiser.state_dict()
        found = host_for(again).denoiser.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize("layout", ["diffusers", "peft"])
def test_an_adapter_for_two_denoisers_is_refused(tmp_path, layout):
    """One file of these is for one denoiser; a baked folder has both."""
    pipe = make_wan(boundary_ratio=0.5)
    pipe.default_num_frames, pipe.default_height, pipe.default_width = 5, 32, 32
    pipe.set_progress_bar_config(disable=True)
    (membrane,) = membranes_for(pipe)
    with pytest.raises(ExportError, match=r"sits on two denoisers .*bake a folder instead \(--format folder\)"):
        export(membrane, tmp_path / ("cat" if layout == "peft" else "cat.safetensors"), layout)
    bake_folder(pipe, membrane, tmp_path / "baked")
    baked = type(pipe).from_pretrained(tmp_path / "baked", local_files_only=True)
    with spm.fold(pipe, membrane):
        for name, part in host_for(pipe).denoisers.items():
            for key, weight in getattr(baked, name).state_dict().items():
                assert torch.equal(weight, part.state_dict()[key]), key
