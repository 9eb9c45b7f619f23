"""Membranes in the settings that users of large models have: relatives of a pipeline, adapters, slicing, offloading.

One law for all (`check`): the row that asks for the concept changes, the row beside it keeps its bits, and after
`detach` every bit is back.
"""

from contextlib import contextmanager

import pytest
import torch

import semipermeable as spm
from hosts import tiny_settings as settings
from hosts.family_laws import PROMPTS
from hosts.quantising import (
    KINDS,
    by_bitsandbytes_4bit,
    by_bitsandbytes_8bit,
    by_gguf,
    by_torchao,
    dequantised,
    quantised,
)
from hosts.tiny_settings import STEPS, add_lora, draw, make_pipe, membranes_for
from semipermeable.equip.baking import bake_folder
from semipermeable.errors import AttachError, SiteError, SiteNotFiredError
from semipermeable.hosts import viewed, weights_hash
from semipermeable.training import TrainConfig

from training_helpers import finish

FAMILIES = ("unet", "sdxl", "sd3", "flux")
"""With the most relatives and adapters: every setting."""
ALL = (*FAMILIES, "pixart", "wan", "qwen-image", "sana", "z-image")


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


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        (family, kind)
        for family in (*FAMILIES, "qwen-image", "z-image")
        for kind in ("image_to_image", "inpainting", "controlled")
    ]
    + [("sana", "controlled"), ("wan", "video_to_video")],
)
def test_relatives_of_a_pipeline(made, family, kind, monkeypatch):
    pipe, membrane = made(family)
    relative, options = getattr(settings, kind)(pipe, family)
    if kind == "video_to_video":
        settings.without_ftfy(monkeypatch)
    plain = draw(pipe)
    check(relative, membrane, **options)
    assert torch.equal(draw(pipe), plain)


@pytest.mark.parametrize("family", FAMILIES)
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


@pytest.mark.parametrize("family", ALL)
def test_slicing_and_tiling_of_the_vae(made, family):
    pipe, membrane = made(family)
    pipe.vae.enable_slicing()
    pipe.vae.enable_tiling()
    # Smaller than a picture, so that there is more than one tile.
    ratio = getattr(pipe.vae, "spatial_compression_ratio", 4)
    lengths = {"sample_min": 2 * ratio, "latent_min": 2, "sample_stride": ratio}
    if family in ("unet", "sdxl", "sd3", "flux", "pixart", "z-image"):
        lengths = {"sample_min": 8, "latent_min": 4}
    for edge in ("size", "height", "width"):
        for what, length in lengths.items():
            if hasattr(pipe.vae, f"tile_{what}_{edge}"):
                setattr(pipe.vae, f"tile_{what}_{edge}", length)
    check(pipe, membrane, output="pt")


@pytest.mark.parametrize("family", ALL)
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
    settings.merge_lora(pipe)
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


@pytest.mark.parametrize("family", [*FAMILIES, "pixart", "wan"])
def test_fused_projections_are_refused_with_the_reason(made, family):
    """By the denoiser's own `fuse_qkv_projections`; that of the other families does nothing, or is missing."""
    pipe, membrane = made(family)
    denoiser = settings.host_for(pipe).denoiser
    bare = draw(pipe)
    denoiser.fuse_qkv_projections()
    fused = draw(pipe)
    reason = r"has fused query/key/value projections: the sites of a membrane do not run"
    for use in (spm.attach, spm.fold):
        with pytest.raises(AttachError, match=reason):
            use(pipe, membrane)
    with pytest.raises(AttachError, match=reason):
        learnt(pipe, num_steps=1)
    assert torch.equal(draw(pipe), fused)
    denoiser.unfuse_qkv_projections()
    torch.testing.assert_close(draw(pipe), bare, atol=1e-4, rtol=1e-3)


def test_layers_that_a_pipeline_leaves_out_are_an_error_that_says_so(made):
    """Skipped by guidance; diffusers' caches give the outputs of an earlier step."""
    from diffusers import FirstBlockCacheConfig

    skipping = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    pipe, membrane = made("sd3")
    draw(pipe, PROMPTS[:1], **skipping)
    with spm.attach(pipe, membrane), pytest.raises(SiteNotFiredError, match="pass no `skip_guidance_layers`"):
        draw(pipe, PROMPTS[:1], **skipping)
    pipe, membrane = made("wan")
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e6))
    with spm.attach(pipe, membrane, "open"), pytest.raises(SiteNotFiredError, match=r"call the denoiser's `disable_ca"):
        draw(pipe)
    pipe.transformer.disable_cache()
    check(pipe, membrane)


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


OFFLOADS = [leaves_on_cpu, pipelines_own, whole_model, groups_of_blocks, groups_of_leaves]


@pytest.mark.parametrize(
    ("family", "offload"),
    [
        (family, way)
        for family in ALL
        for way in OFFLOADS
        if family in FAMILIES or way in (leaves_on_cpu, pipelines_own, groups_of_blocks)
    ],
)
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


@pytest.mark.parametrize("offload", [pipelines_own, leaves_on_cpu])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("family", ["unet", "pixart"])
def test_every_drawing_with_offloading_is_gated_not_the_first_alone(made, family, first, offload):
    """The pipeline takes its hooks off the view and puts them on anew after each drawing."""
    pipe, membrane = made(family)
    bare, own = draw(pipe), settings.host_for(pipe).denoiser
    if first:
        offload(pipe)
    with spm.attach(pipe, membrane, "open") as guard:
        if not first:
            offload(pipe)
        for number in range(1, 4):
            assert not torch.equal(draw(pipe), bare)
            assert sum(guard.paths) - guard.paths.idle == number * STEPS
    # What was offloaded while attached stays so, and what no longer is, too.
    assert own._hf_hook
    assert torch.equal(draw(pipe), bare)
    assert torch.equal(draw(pipe), bare)
    with spm.attach(pipe, membrane, "open"):
        pipe.remove_all_hooks()
        assert not torch.equal(draw(pipe), bare)
    assert not hasattr(own, "_hf_hook")
    assert torch.equal(draw(pipe), bare)
    assert {parameter.device.type for parameter in own.parameters()} == {"cpu"}


def test_a_siblings_offloading_of_a_shared_denoiser_stays(made):
    pipe, membrane = made("unet")
    sibling = settings._sibling(pipe, "StableDiffusionPipeline")
    bare = draw(pipe)
    for _ in ("not yet offloaded", "offloaded"):
        with spm.attach(pipe, membrane, "open"):
            pipelines_own(sibling)
            assert torch.equal(draw(sibling), bare)
            assert not torch.equal(draw(pipe), bare)
            hook = sibling.unet._hf_hook
        assert pipe.unet is sibling.unet
        assert pipe.unet._hf_hook is hook
        assert torch.equal(draw(pipe), bare)


def test_every_drawing_of_a_view_is_asked_about_with_offloading(made):
    pipe, _ = made("unet")
    bare, asked = draw(pipe), []
    pipelines_own(pipe)

    @contextmanager
    def gate(_args, _kwargs):
        asked.append(1)
        yield None

    with viewed(settings.host_for(pipe), "me", gate):
        for number in range(1, 4):
            assert torch.equal(draw(pipe), bare)
            assert len(asked) == number * STEPS
    assert torch.equal(draw(pipe), bare)
    assert len(asked) == 3 * STEPS


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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "quantise"),
    [
        (family, kind)
        for family in ALL
        for kind in KINDS
        # GGUF's blocks are wider than the layers of the tiny Sana.
        if family in FAMILIES or (kind is not by_bitsandbytes_8bit and (family, kind) != ("sana", by_gguf))
    ],
)
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


@pytest.mark.parametrize("offload", OFFLOADS)
def test_a_membrane_is_trained_beside_offloaded_weights(made, offload):
    pipe, _ = made("unet")
    expected, pairs = learnt(pipe, closed_form=True, num_steps=4)
    offload(pipe)
    losses, found = learnt(pipe, closed_form=True, num_steps=4)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(found, pairs)
    assert {part.device.type for pair in found.values() for part in pair} == {"cpu"}
