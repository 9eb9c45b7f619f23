from pathlib import Path

import pytest
import torch

from semipermeable import hosts
from semipermeable.errors import ArchitectureError
from semipermeable.hosts import Host, UNetHost, host_for, weights_hash


@pytest.fixture
def host(pipe) -> Host:
    return host_for(pipe)


def test_encode_agrees_with_the_pipelines_own_encoding(pipe, host):
    prompts = ["a neon icon of a cat", "", "an icon of " + "a very " * 40 + "long dog"]
    own, _ = pipe.encode_prompt(prompts, "cpu", 1, False)
    encoded = host.encode(prompts)
    torch.testing.assert_close(torch.stack([e.states for e in encoded]), own, atol=1e-5, rtol=1e-5)
    assert torch.equal(host.condition(prompts)["text"], own)
    assert [e.text for e in encoded] == prompts
    assert encoded[1].token_ids == ()
    assert "".join(encoded[0].tokens).replace("</w>", " ").strip() == prompts[0]
    assert len(encoded[2].token_ids) == pipe.tokenizer.model_max_length - 2
    assert host.encode([]) == []


def test_encoding_leaves_the_pipelines_tokenizer_as_it_was(pipe, host):
    backend = pipe.tokenizer.backend_tokenizer
    pipe.tokenizer("a", padding="longest")
    before = (backend.padding, backend.truncation)
    host.encode(["a neon icon of a cat", "dog"])
    host.condition(["a"])
    assert (backend.padding, backend.truncation) == before


@pytest.mark.parametrize(("guidance", "expected"), [(4.0, [False, False, True, True]), (1.0, [True, True])])
def test_rows_under_guidance(pipe, host, guidance, expected):
    seen = []
    original = pipe.unet.forward

    def spy(*args, **kwargs):
        seen.append(host.call_rows(args, kwargs))
        return original(*args, **kwargs)

    pipe.unet.forward = spy
    try:
        pipe(["a", "b"], num_inference_steps=1, guidance_scale=guidance, output_type="latent")
    finally:
        del pipe.unet.forward
    assert seen[0].conditional == expected
    assert not seen[0].named
    assert len(seen[0].text) == len(expected)


def test_predict_is_the_unets_own_prediction(pipe, host, generator):
    latents = torch.randn(2, *host.latent_shape(), generator=generator)
    timesteps, condition = torch.tensor([10, 900]), host.condition(["a", "b"])
    with torch.no_grad():
        out = host.predict(latents, timesteps, condition)
        assert torch.equal(out, pipe.unet(latents, timesteps, condition["text"]).sample)
    assert host.prediction_type == "epsilon"


def test_the_scheduler_is_a_fresh_copy(pipe, host):
    before = pipe.scheduler.timesteps.clone()
    scheduler = host.make_scheduler(7)
    assert len(scheduler.timesteps) == 7
    assert type(scheduler) is type(pipe.scheduler)
    assert torch.equal(pipe.scheduler.timesteps, before)


def test_weight_hashes_follow_values_not_load_dtype(tiny_unet):
    first = weights_hash(tiny_unet.half())
    assert weights_hash(tiny_unet.float()) == first
    with torch.no_grad():
        next(tiny_unet.parameters()).view(-1)[0] += 1
    assert weights_hash(tiny_unet) != first


def test_no_machine_path_is_published(pipe, host):
    assert "/" not in host.base_model
    assert host.base_model


def test_unsupported_pipelines_are_told_what_is_supported_and_where_to_read_on(pipe):
    class Odd:
        components = dict.fromkeys(["transformer", "text_encoder_2"], object())

    with pytest.raises(ArchitectureError, match=r"Odd \(text_encoder_2, transformer\)") as caught:
        host_for(Odd())
    for host in hosts._HOSTS:
        assert host.describes in str(caught.value)
    assert str(caught.value).endswith("docs/adding-a-family.md shows how to add a family in one file.")
    assert (Path(__file__).parents[2] / "docs" / "adding-a-family.md").is_file()
    assert not UNetHost.supports(object())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_little_noise_is_not_rounded_away(host, dtype):
    clean, noise, t = torch.zeros(4, 1), torch.ones(4, 1), torch.tensor([0, 1, 5, 999])
    wide = host.noised(clean, noise, t)
    alphas = host.pipe.scheduler.alphas_cumprod
    assert torch.equal(wide, ((1 - alphas[t]) ** 0.5)[:, None])
    assert torch.equal(host.noised(clean.to(dtype), noise.to(dtype), t), wide.to(dtype))


def test_a_pipeline_without_a_method_that_encodes_is_not_supported(pipe):
    from diffusers import StableDiffusionInstructPix2PixPipeline

    flags = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    parts = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    editing = StableDiffusionInstructPix2PixPipeline(**{part: getattr(pipe, part) for part in parts}, **flags)
    with pytest.raises(ArchitectureError, match="no host supports StableDiffusionInstructPix2PixPipeline"):
        host_for(editing)
