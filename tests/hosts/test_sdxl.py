import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, LCMScheduler

import semipermeable as spm
from hosts.family_laws import PROMPTS, FamilyLaws, reloaded
from hosts.tiny_settings import membranes_for
from hosts.tiny_unets import make_sdxl
from semipermeable.hosts import SDXLHost, host_for, weights_hash


class TestSDXL(FamilyLaws):
    host_class = SDXLHost

    @pytest.fixture(scope="class")
    def loaded(self, tokenizer, tmp_path_factory):
        pipe = make_sdxl(tokenizer)
        return reloaded(pipe, tmp_path_factory.mktemp("sdxl") / "tiny")

    def test_encoding_agrees_with_the_pipelines_own(self, pipe, host):
        text, _, pooled, _ = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
        condition, encoded = host.condition(PROMPTS), host.encode(PROMPTS)
        assert torch.equal(condition["text"], text)
        assert torch.equal(condition["pooled"], pooled)
        assert torch.equal(torch.stack([e.states for e in encoded]), text)
        assert torch.equal(torch.stack([e.pooled for e in encoded]), pooled)

    def test_the_gate_is_bound_to_both_encoders(self, pipe, host):
        before = host.text_encoder_hash()
        assert before not in (weights_hash(pipe.text_encoder), weights_hash(pipe.text_encoder_2))
        weight = next(pipe.text_encoder_2.parameters())
        with torch.no_grad():
            kept = weight.clone()
            weight.view(-1)[0] += 1
        try:
            assert host_for(pipe).text_encoder_hash() != before
        finally:
            with torch.no_grad():
                weight.copy_(kept)


@pytest.mark.parametrize("force_zeros", [True, False])
def test_the_unconditional_row_is_the_pipelines(tokenizer, force_zeros):
    pipe = make_sdxl(tokenizer, force_zeros=force_zeros)
    _, text, _, pooled = pipe.encode_prompt("a cat", do_classifier_free_guidance=True)
    empty = host_for(pipe).unconditional()
    assert torch.equal(empty["text"], text)
    assert torch.equal(empty["pooled"], pooled)
    assert bool((text == 0).all()) is force_zeros


def test_the_refiner_is_no_family_of_ours(tokenizer):
    pipe = make_sdxl(tokenizer)
    pipe.register_modules(text_encoder=None, tokenizer=None)
    assert not SDXLHost.supports(pipe)


DISTILLED = {
    "Turbo": (EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing"), 1, 0.0),
    "Lightning": (EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing"), 4, 0.0),
    "LCM": (LCMScheduler(beta_schedule="scaled_linear", clip_sample=False), 4, 1.0),
}
"""The same classes with another scheduler, few steps and no guidance."""


@pytest.mark.parametrize("name", DISTILLED)
def test_distilled_models_draw_in_few_steps_without_unconditional_rows(tokenizer, name):
    scheduler, steps, guidance = DISTILLED[name]
    pipe = make_sdxl(tokenizer, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    host, seen = host_for(pipe), []
    pipe.unet.register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append(host.call_rows(args, kwargs).conditional), with_kwargs=True
    )
    (membrane,) = membranes_for(pipe)
    generators = {"generator": [torch.Generator().manual_seed(seed) for seed in range(2)]}
    bare = host.draw(PROMPTS, steps=steps, guidance=guidance, output="latent", **generators)
    assert seen == [[True, True]] * steps
    generators = {"generator": [torch.Generator().manual_seed(seed) for seed in range(2)]}
    with spm.attach(pipe, membrane) as guard:
        drawn = host.draw(PROMPTS, steps=steps, guidance=guidance, output="latent", **generators)
        assert {row.prompt: row.gamma for row in guard.trace} == {PROMPTS[0]: 1.0, PROMPTS[1]: 0.0}
    assert [torch.equal(a, b) for a, b in zip(drawn, bare, strict=True)] == [False, True]
