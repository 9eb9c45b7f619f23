import pytest
import torch
from diffusers import FluxImg2ImgPipeline

import semipermeable as spm
from hosts.family_laws import PROMPTS, FamilyLaws, reloaded
from hosts.tiny_dits import make_flux
from semipermeable.concept import Concept
from semipermeable.errors import ArchitectureError
from semipermeable.hosts import FluxHost, host_for
from semipermeable.membrane import Membrane

from helpers import random_membrane


class TestFluxDev(FamilyLaws):
    host_class = FluxHost
    training_steps = 40
    guidance = 3.5
    guidance_embeds = True

    @pytest.fixture(scope="class")
    def loaded(self, tokenizer, tmp_path_factory):
        folder = tmp_path_factory.mktemp("flux") / "tiny"
        pipe = reloaded(make_flux(tokenizer, guidance_embeds=self.guidance_embeds), folder)
        pipe.default_sample_size = 8
        return pipe

    def test_guidance_is_read_by_the_denoiser_or_by_no_one(self, host):
        assert host.guidance == ("embedded" if self.guidance_embeds else "none")

    def test_encoding_agrees_with_the_pipelines_own(self, pipe, host):
        with torch.no_grad():
            text, pooled, _ = pipe.encode_prompt(PROMPTS, prompt_2=None)
        condition = host.condition(PROMPTS)
        assert torch.equal(condition["text"], text)
        assert torch.equal(condition["pooled"], pooled)


class TestFluxSchnell(TestFluxDev):
    guidance_embeds = False


def test_a_negative_pass_without_a_name_is_decided_on_as_any_other(tokenizer):
    """As docs/families.md says: nothing tells it from the prompt's, and drawn bare is what a row must never be."""
    pipe = make_flux(tokenizer)
    relative = FluxImg2ImgPipeline(**pipe.components)
    relative.set_progress_bar_config(disable=True)
    pairs = random_membrane(pipe.transformer, inside=FluxHost.site_classes, scale=0.05).pairs
    told = {"image": torch.rand(1, 3, 8, 8), "height": 8, "width": 8, "num_inference_steps": 2, "output_type": "latent"}
    with spm.attach(relative, Membrane(pairs, Concept("cat"))) as guard:
        for prompt, avoided in (PROMPTS[::-1], PROMPTS):
            relative(prompt, negative_prompt=avoided, true_cfg_scale=3.0, **told)
    assert [(row.prompt, row.gamma) for row in guard.trace][:2] == [(PROMPTS[1], 0.0), (PROMPTS[0], 1.0)]
    assert {row.prompt: row.gamma for row in guard.trace} == {PROMPTS[0]: 1.0, PROMPTS[1]: 0.0}


def test_what_clip_alone_reads_is_read_in_every_row_of_a_batch(tokenizer):
    """T5's rows are equal then, and they are all that tells rows apart."""
    pipe = make_flux(tokenizer)
    pairs = random_membrane(pipe.transformer, inside=FluxHost.site_classes, scale=0.05).pairs
    told = {"height": 8, "width": 8, "num_inference_steps": 1, "output_type": "latent"}
    with spm.attach(pipe, Membrane(pairs, Concept("cat"))) as guard:
        pipe(["a photo of a cat", "a photo of a dog"], prompt_2=["in oil", "in oil"], **told)
    assert [(row.prompt, row.gamma) for row in guard.trace] == [("a photo of a cat | in oil | a photo of a dog", 1.0)]


def test_a_pipeline_without_t5_is_no_flux_of_ours(tokenizer):
    pipe = make_flux(tokenizer)
    pipe.register_modules(text_encoder_2=None, tokenizer_2=None)
    with pytest.raises(ArchitectureError, match="FLUX"):
        host_for(pipe)
