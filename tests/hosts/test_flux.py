import pytest
import torch

from hosts.family_laws import PROMPTS, FamilyLaws, reloaded
from hosts.tiny_dits import make_flux
from semipermeable.errors import ArchitectureError
from semipermeable.hosts import FluxHost, host_for


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


def test_a_pipeline_without_t5_is_no_flux_of_ours(tokenizer):
    pipe = make_flux(tokenizer)
    pipe.register_modules(text_encoder_2=None, tokenizer_2=None)
    with pytest.raises(ArchitectureError, match="FLUX"):
        host_for(pipe)
