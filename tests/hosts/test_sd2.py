import pytest
import torch

import semipermeable as spm
from hosts.family_laws import PROMPTS, FamilyLaws, reloaded
from hosts.tiny_unets import make_lcm, make_sd2
from semipermeable.hosts import UNetHost
from semipermeable.sites import find_sites


class TestEpsilon(FamilyLaws):
    """Stable Diffusion 2.x at 512 pixels."""

    host_class = UNetHost
    prediction_type = "epsilon"

    @pytest.fixture(scope="class")
    def loaded(self, tokenizer, tmp_path_factory):
        pipe = make_sd2(tokenizer, self.prediction_type)
        return reloaded(pipe, tmp_path_factory.mktemp("sd2") / self.prediction_type)

    def test_prediction_type(self, host):
        assert host.prediction_type == self.prediction_type

    def test_projections_are_linear_and_padding_is_not_the_end_token(self, pipe, host):
        assert type(find_sites(host.denoiser)["mid_block.attentions.0.proj_in"].layer) is torch.nn.Linear
        assert pipe.tokenizer.pad_token_id == 0 != pipe.tokenizer.eos_token_id

    def test_encoding_agrees_with_the_pipelines_own(self, pipe, host):
        own, _ = pipe.encode_prompt(PROMPTS, "cpu", 1, False)
        encoded = host.encode(PROMPTS)
        assert torch.equal(host.condition(PROMPTS)["text"], own)
        torch.testing.assert_close(torch.stack([e.states for e in encoded]), own)


class TestVelocity(TestEpsilon):
    """Stable Diffusion 2.x at 768 pixels."""

    prediction_type = "v_prediction"


class TestLCM(FamilyLaws):
    """A latent consistency model of the family."""

    host_class = UNetHost
    guidance = 8.5

    @pytest.fixture(scope="class")
    def loaded(self, tokenizer, tmp_path_factory):
        return reloaded(make_lcm(tokenizer), tmp_path_factory.mktemp("lcm") / "lcm")

    def test_the_scale_is_read_by_the_denoiser(self, host):
        assert host.guidance == "embedded"
        assert not torch.equal(self.draw(host, guidance=1.0), self.draw(host, guidance=8.5))

    def test_the_concept_in_a_negative_prompt_opens_nothing(self, pipe, host, membrane):
        """The pipeline knows no negative prompt: one is left out."""
        bare = self.draw(host, PROMPTS[1:])
        with spm.attach(pipe, membrane):
            assert torch.equal(self.draw(host, PROMPTS[1:], negative="a cat"), bare)
