"""Membranes in the settings that users of large models have: relatives of a pipeline, adapters, slicing, offloading.

One law for all (`check`): the row that asks for the concept changes, the row beside it keeps its bits, and after
`detach` every bit is back.
"""

import contextlib

import pytest
import torch

import semipermeable as spm
from hosts import tiny_settings as settings
from hosts.family_laws import PROMPTS
from hosts.tiny_settings import add_lora, draw, make_pipe, membranes_for
from semipermeable.equip.baking import bake_folder
from semipermeable.errors import AttachError, SiteError
from semipermeable.hosts import weights_hash
from semipermeable.training import TrainConfig

from training_helpers import finish

FAMILIES = ("unet", "sdxl", "sd3", "flux")


def check(pipe, membrane, **options):
    """Return what is drawn with the membrane, having checked the law."""
    bare = draw(pipe, **options)
    assert bool(torch.isfinite(bare).all())
    with spm.attach(pipe, membrane) as guard:
        drawn = draw(pipe, **options)
        changed = [not torch.equal(a, b) for a, b in zip(drawn, bare, strict=True)]
        assert changed == [True, False]
        assert {row.prompt: row.gamma for row in guard.trace} == {PROMPTS[0]: 1.0, PROMPTS[1]: 0.0}
        assert guard.paths.mixed + guard.paths.folded > 0
    assert torch.equal(draw(pipe, **options), bare)
    assert float((drawn[0] - bare[0]).abs().max()) > 1e-3
    return drawn


@pytest.fixture
def made(tokenizer):
    """Makes a fresh pipeline of a family and a membrane for it."""

    def make(family):
        pipe = make_pipe(family, tokenizer)
        return pipe, membranes_for(pipe)[0]

    return make


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["image_to_image", "inpainting", "controlled"])
def test_relatives_of_a_pipeline(made, family, kind):
    pipe, membrane = made(family)
    relative, options = getattr(settings, kind)(pipe, family)
    plain = draw(pipe)
    check(relative, membrane, **options)
    assert torch.equal(draw(pipe), plain)


@pytest.mark.parametrize("family", ["unet", "sdxl", "flux"])
def test_an_ip_adapter_beside_a_membrane(made, family):
    pipe, membrane = made(family)
    without = draw(pipe)
    pipe, options = settings.with_ip_adapter(pipe, family)
    assert not torch.equal(draw(pipe, **options), without)
    check(pipe, membrane, **options)


@pytest.mark.parametrize("family", ["unet", "sdxl"])
@pytest.mark.parametrize("size", ["auto", "max", 1])
def test_attention_slicing(made, family, size):
    pipe, membrane = made(family)
    with spm.attach(pipe, membrane):
        whole = draw(pipe)
    pipe.enable_attention_slicing(size)
    torch.testing.assert_close(check(pipe, membrane), whole, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_slicing_and_tiling_of_the_vae(made, family):
    pipe, membrane = made(family)
    pipe.vae.enable_slicing()
    pipe.vae.enable_tiling()
    pipe.vae.tile_sample_min_size = 8
    pipe.vae.tile_latent_min_size = 4
    check(pipe, membrane, output="pt")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_beside_a_membrane_adds_up_and_stays(made, family):
    pipe, membrane = made(family)
    bare = draw(pipe)
    add_lora(pipe)
    with_lora = draw(pipe)
    assert not torch.equal(with_lora, bare)
    check(pipe, membrane)
    with spm.attach(pipe, membrane, "open"):
        both = draw(pipe)
    # The same sum by plain weights, W + BA + uv.
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    with spm.fold(pipe, membrane):
        summed = draw(pipe, guidance=1.0)
    with spm.attach(pipe, membrane, "open"):
        torch.testing.assert_close(draw(pipe, guidance=1.0), summed, atol=1e-3, rtol=1e-2)
        torch.testing.assert_close(draw(pipe), both, atol=1e-3, rtol=1e-2)
    assert float((both - with_lora).abs().max()) > 0.02


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_a_lora_that_comes_and_goes_while_a_membrane_is_attached(made, family):
    pipe, membrane = made(family)
    other, _ = made(family)
    add_lora(other)
    with spm.attach(other, membrane):
        expected = draw(other)
    with spm.attach(pipe, membrane):
        without = draw(pipe)
        add_lora(pipe)
        torch.testing.assert_close(draw(pipe), expected, atol=1e-4, rtol=1e-3)
        pipe.delete_adapters(["other"])
        torch.testing.assert_close(draw(pipe), without)
        add_lora(pipe)
    torch.testing.assert_close(draw(pipe), draw(other))
    assert not torch.equal(draw(pipe), without)


def leaves_on_cpu(pipe):
    """Weights of the denoiser lie in a map; a layer has them during its own call only, on `meta` between calls."""
    from accelerate import cpu_offload

    part = settings.host_for(pipe).denoiser
    cpu_offload(part, execution_device="cpu", offload_buffers=True)
    assert all(parameter.device.type == "meta" for parameter in part.parameters())


def whole_model(pipe):
    """The hook that `enable_model_cpu_offload` sets, with the CPU for accelerator."""
    from accelerate import cpu_offload_with_hook

    for part in settings.host_for(pipe).denoisers.values():
        cpu_offload_with_hook(part, execution_device="cpu")


def pipelines_own(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


def groups_of_blocks(pipe):
    for part in settings.host_for(pipe).denoisers.values():
        part.enable_group_offload(
            onload_device=torch.device("cpu"),
            offload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
        )


def groups_of_leaves(pipe):
    for part in settings.host_for(pipe).denoisers.values():
        part.enable_group_offload(
            onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type="leaf_level"
        )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("offload", [leaves_on_cpu, pipelines_own, whole_model, groups_of_blocks, groups_of_leaves])
def test_offloading(made, family, offload):
    pipe, membrane = made(family)
    with spm.attach(pipe, membrane):
        expected = draw(pipe)
    with spm.attach(pipe, membrane, "open") as guard:
        alike = draw(pipe, guidance=1.0)
        assert guard.paths.folded
    offload(pipe)
    torch.testing.assert_close(check(pipe, membrane), expected)
    with spm.attach(pipe, membrane, "open") as guard:
        torch.testing.assert_close(draw(pipe, guidance=1.0), alike, atol=1e-3, rtol=1e-2)
        # A weight that is there for its own layer's call only has no effective weight beside it.
        assert bool(guard.paths.folded) is (offload in (whole_model, pipelines_own))


def test_offloaded_weights_are_hashed_and_never_folded(made):
    pipe, membrane = made("unet")
    known = settings.host_for(pipe).base_hash()
    leaves_on_cpu(pipe)
    assert settings.host_for(pipe).base_hash() == known
    before = draw(pipe)
    with pytest.raises(SiteError, match=r"proj_in' has its weight offloaded.*use attach"):
        spm.fold(pipe, membrane)
    assert torch.equal(draw(pipe), before)
    with pytest.raises(AttachError, match=r"not in memory \(device meta\)"):
        weights_hash(torch.nn.Linear(2, 2, device="meta"))


def by_torchao(linear):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    quantization.quantize_(linear, quantization.Int8WeightOnlyConfig())
    return linear


def by_bitsandbytes_8bit(linear):
    nn = pytest.importorskip("bitsandbytes.nn", reason="bitsandbytes is not installed")
    made = nn.Linear8bitLt(linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False)
    made.load_state_dict(linear.state_dict())
    return made.to("cpu")


def by_bitsandbytes_4bit(linear):
    nn = pytest.importorskip("bitsandbytes.nn", reason="bitsandbytes is not installed")
    sizes = (linear.in_features, linear.out_features, linear.bias is not None)
    made = nn.Linear4bit(*sizes, compute_dtype=torch.float32, quant_type="nf4")
    made.load_state_dict(linear.state_dict())
    # As in a loaded model; but what is narrower than a packed block cannot run so where the CPU multiplies bf16.
    return made.to("cpu").train(linear.in_features % 64 > 0 or linear.out_features % 32 > 0)


def by_gguf(linear):
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    if linear.in_features % 32:
        return linear
    kind = gguf.GGMLQuantizationType.Q8_0
    sizes = (linear.in_features, linear.out_features, linear.bias is not None)
    made = GGUFLinear(*sizes, compute_dtype=torch.float32)
    made.weight = GGUFParameter(torch.from_numpy(gguf.quants.quantize(linear.weight.numpy(), kind)), quant_type=kind)
    made.bias = linear.bias
    return made


def quantised(pipe, quantise):
    denoiser = settings.host_for(pipe).denoiser.requires_grad_(False)
    for name, module in list(denoiser.named_modules()):
        if type(module) is torch.nn.Linear:
            owner, _, leaf = name.rpartition(".")
            setattr(denoiser.get_submodule(owner), leaf, quantise(module))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["unet", "sdxl", "flux"])
@pytest.mark.parametrize("quantise", [by_torchao, by_bitsandbytes_8bit, by_bitsandbytes_4bit, by_gguf])
def test_quantised_base_weights_take_the_side_path_and_never_fold(made, family, quantise):
    pipe, membrane = made(family)
    plain = draw(pipe)
    quantised(pipe, quantise)
    assert not torch.equal(draw(pipe), plain)
    check(pipe, membrane)
    with spm.attach(pipe, membrane, "open") as guard:
        draw(pipe, guidance=1.0)
        assert guard.paths.folded == 0
        assert guard.paths.mixed
    before = draw(pipe)
    with pytest.raises(SiteError, match=r"has a quantised weight .* or use attach"):
        spm.fold(pipe, membrane)
    with pytest.raises(SiteError, match="has a quantised weight"):
        bake_folder(pipe, membrane, "never written")
    assert torch.equal(draw(pipe), before)


@contextlib.contextmanager
def dequantised(pipe):
    """Meanwhile plain layers, with the weights that the quantised ones multiply with, are in their places."""
    denoiser = settings.host_for(pipe).denoiser
    layers = dict(denoiser.named_modules())
    kept = {name: layer for name, layer in layers.items() if isinstance(layer, torch.nn.Linear)}

    def put(name, layer):
        owner, _, leaf = name.rpartition(".")
        setattr(denoiser.get_submodule(owner), leaf, layer)

    with torch.no_grad():
        for name, layer in kept.items():
            plain = torch.nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
            zero = layer(torch.zeros(1, layer.in_features))
            plain.weight.copy_((layer(torch.eye(layer.in_features)) - zero).T)
            if layer.bias is not None:
                plain.bias.copy_(layer.bias)
            put(name, plain)
    yield
    for name, layer in kept.items():
        put(name, layer)


def learnt(pipe, **changes):
    """Erasing losses of a short training, and the pairs."""
    told = {"num_steps": 16, "num_anchors": 0, "num_trajectories": 1, "sampling_steps": 2, "sampling_guidance": 1.0}
    told |= {
        "learning_rate": 3e-3,
        "warmup_steps": 0,
        "schedule": "constant",
        "negative_guidance": 0.0,
        "batch_size": 4,
    }
    figures, trained = finish(settings.host_for(pipe), TrainConfig(**told | {"closed_form": False} | changes))
    return [step.erasing_loss for step in figures], trained.pairs


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["unet", "flux"])
@pytest.mark.parametrize("quantise", [by_torchao, by_bitsandbytes_4bit, by_gguf])
def test_a_membrane_is_trained_beside_quantised_base_weights(made, family, quantise):
    """What a 24 GB card needs for FLUX.1: the weights in 8 or 4 bits stay as they are, gradients pass through them."""
    pipe, _ = made(family)
    quantised(pipe, quantise)
    with dequantised(pipe):
        exact = learnt(pipe, num_steps=0, closed_form=True)[1]
    # Layers may change how they keep their weights when they are first drawn with.
    draw(pipe)
    losses, _ = learnt(pipe)
    still, _ = learnt(pipe, learning_rate=1e-12)
    assert losses[0] == still[0]
    assert sum(losses[8:]) < 0.9 * sum(still[8:])
    found = learnt(pipe, num_steps=0, closed_form=True)[1]
    assert any(u.any() for u, _ in exact.values())
    for name, (u, v) in exact.items():
        torch.testing.assert_close(
            found[name][0] @ found[name][1], u @ v, atol=1e-3 * float((u @ v).abs().max()), rtol=0
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_trains_the_same_membrane_in_less_memory(made, family):
    pipe, _ = made(family)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        plain, pairs = learnt(pipe, num_steps=3)
    everything, kept[:] = sum(kept), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        again, same = learnt(pipe, num_steps=3, gradient_checkpointing=True)
    assert sum(kept) < 0.8 * everything
    torch.testing.assert_close(again, plain, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(same, pairs, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("offload", [leaves_on_cpu, pipelines_own, whole_model, groups_of_blocks, groups_of_leaves])
def test_a_membrane_is_trained_beside_offloaded_weights(made, offload):
    pipe, _ = made("unet")
    expected, pairs = learnt(pipe, closed_form=True, num_steps=4)
    offload(pipe)
    losses, found = learnt(pipe, closed_form=True, num_steps=4)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(found, pairs)
    assert {part.device.type for pair in found.values() for part in pair} == {"cpu"}
