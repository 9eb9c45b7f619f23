"""Exports in the programs they are for: the same pictures as the membrane, held open.

Guidance is 1: a LoRA acts on the unconditional rows too, a membrane does not. With guidance, a LoRA equals `fold`.
"""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import semipermeable as spm
from semipermeable.files.exporting import export, merge
from semipermeable.files.ldm_names import names_of_unet
from semipermeable.rank1 import folded_weight

from helpers import make_tiny_unet, random_membrane

PROMPTS = ["an icon of a cat", "an icon of a dog"]
TOLERANCE = 1e-4
"""Absolute, on final latents of unit scale: the order of sums differs, in fp32, over two steps."""


def draw(pipe, guidance=1.0):
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    return pipe(
        PROMPTS, num_inference_steps=2, guidance_scale=guidance, generator=generators, output_type="latent"
    ).images


@pytest.fixture
def own(pipe):
    """The bundled pipeline with a UNet of its own, which PEFT may rebuild."""
    pipe.unet = copy.deepcopy(pipe.unet)
    return pipe


@pytest.fixture
def cat(pipe):
    return random_membrane(pipe.unet, "cat", rank=2, scale=0.03)


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "reference"])
def test_diffusers_loads_it_and_draws_the_same(own, cat, tmp_path, layout):
    bare, guided = draw(own), draw(own, guidance=4.0)
    with spm.attach(own, [cat], permeability="open"):
        expected = draw(own)
    with spm.fold(own, [cat]):
        baked = draw(own, guidance=4.0)
    assert (expected - bare).abs().max() > 100 * TOLERANCE
    assert (baked - guided).abs().max() > 100 * TOLERANCE
    export(cat, tmp_path / "cat.safetensors", layout)
    own.load_lora_weights(str(tmp_path), weight_name="cat.safetensors")
    torch.testing.assert_close(draw(own), expected, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(draw(own, guidance=4.0), baked, rtol=0, atol=TOLERANCE)
    own.unload_lora_weights()
    assert torch.equal(draw(own), bare)


def test_peft_loads_it_and_draws_the_same(own, cat, tmp_path):
    from peft import PeftModel

    with spm.attach(own, [cat], permeability="open"):
        expected = draw(own)
    export(cat, tmp_path / "cat", "peft")
    wrapped = PeftModel.from_pretrained(own.unet, tmp_path / "cat")
    own.unet = wrapped.base_model.model
    torch.testing.assert_close(draw(own), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_a_merged_adapter_draws_what_several_membranes_do(own, cat, tmp_path, layout):
    neon = random_membrane(own.unet, "neon", scale=0.03, seed=1, every=2)
    with spm.attach(own, [cat, neon], permeability="open", strength={"cat": 1.0, "neon": 0.5}):
        expected = draw(own)
    export(merge([cat, neon], [1.0, 0.5]), tmp_path / "both.safetensors", layout)
    own.load_lora_weights(str(tmp_path), weight_name="both.safetensors")
    torch.testing.assert_close(draw(own), expected, rtol=0, atol=TOLERANCE)


def test_another_programs_eraser_of_rank_four_is_gated_like_a_membrane(own, tmp_path):
    """A LECO file: what its prompt asks for falls as diffusers draws it with the LoRA, other rows keep their bits."""
    eraser = random_membrane(own.unet, "cat", rank=4, scale=0.03)
    export(eraser, tmp_path / "ours.safetensors", "kohya")
    told = {"prompts": json.dumps({"target": "cat", "neutral": ""}), "config": "{}"}
    save_file(load_file(tmp_path / "ours.safetensors"), tmp_path / "leco.safetensors", told)
    bare = draw(own)
    with spm.attach(own, tmp_path / "leco.safetensors") as guard:
        (held,) = guard.membranes
        assert (held.rank, held.concept.names) == (4, ("cat",))
        gated = draw(own)
        assert {row.prompt: row.gamma for row in guard.trace} == {PROMPTS[0]: 1.0, PROMPTS[1]: 0.0}
    assert torch.equal(gated[1], bare[1])
    own.load_lora_weights(str(tmp_path), weight_name="leco.safetensors")
    torch.testing.assert_close(gated[0], draw(own)[0], rtol=0, atol=TOLERANCE)
    assert (gated[0] - bare[0]).abs().max() > 100 * TOLERANCE


def output(unet):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    text = torch.randn(1, 5, unet.config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        return unet(latents, 500, encoder_hidden_states=text).sample


@pytest.fixture
def folded(everywhere):
    """A UNet with pairs of mixed ranks in all its Linears and Conv2ds, and what it draws."""
    unet = make_tiny_unet()
    with torch.no_grad():
        for site, (u, v) in everywhere.pairs.items():
            weight = unet.get_submodule(site).weight
            weight.copy_(folded_weight(weight, u, v))
    expected = output(unet)
    assert (expected - output(make_tiny_unet())).abs().max() > 100 * TOLERANCE
    return unet, expected


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_diffusers_loads_every_kind_of_layer(everywhere, folded, tiny_unet, tmp_path, layout):
    """1x1, 3x3 and strided convolutions, time embedding; ranks differ from site to site."""
    from diffusers import StableDiffusionPipeline

    export(everywhere, tmp_path / "all.safetensors", layout)
    weights, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
        str(tmp_path), weight_name="all.safetensors", return_lora_metadata=True
    )
    tiny_unet.load_lora_adapter(weights, prefix="unet", network_alphas=alphas, metadata=metadata)
    torch.testing.assert_close(output(tiny_unet), folded[1], rtol=0, atol=TOLERANCE)


def test_peft_loads_every_kind_of_layer(everywhere, folded, tiny_unet, tmp_path):
    from peft import PeftModel

    export(everywhere, tmp_path / "all", "peft")
    wrapped = PeftModel.from_pretrained(tiny_unet, tmp_path / "all")
    torch.testing.assert_close(output(wrapped.base_model.model), folded[1], rtol=0, atol=TOLERANCE)


def test_comfyui_finds_every_weight(everywhere, folded, tiny_unet, tmp_path):
    """Its documented rule, for it is not installed: W += alpha / k · up · down of NAME for a weight `NAME.weight`."""
    export(everywhere, tmp_path / "all.safetensors", "comfyui", denoiser=tiny_unet)
    adapter = load_file(tmp_path / "all.safetensors")
    names = names_of_unet(name for name, _ in tiny_unet.named_modules())
    expected = folded[0].state_dict()
    touched = 0
    for name, weight in tiny_unet.state_dict().items():
        base = f"diffusion_model.{names.of(name)}".removesuffix(".weight")
        if f"{base}.lora_up.weight" not in adapter:
            assert torch.equal(weight, expected[name])
            continue
        up, down = adapter[f"{base}.lora_up.weight"].flatten(1), adapter[f"{base}.lora_down.weight"]
        delta = adapter.get(f"{base}.alpha", down.shape[0]) / down.shape[0] * (up @ down.flatten(1))
        torch.testing.assert_close(weight + delta.reshape(weight.shape), expected[name], rtol=0, atol=1e-6)
        touched += 1
    assert touched == len(everywhere.pairs)
