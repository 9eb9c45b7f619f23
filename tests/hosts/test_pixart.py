import pytest
import torch

from hosts.family_laws import PROMPTS, FamilyLaws, reloaded
from hosts.tiny_dits import make_pixart
from semipermeable.hosts import PixArtHost


class TestPixArt(FamilyLaws):
    host_class = PixArtHost

    @pytest.fixture(scope="class")
    def loaded(self, tmp_path_factory):
        return reloaded(make_pixart(), tmp_path_factory.mktemp("pixart") / "tiny")

    def test_encoding_agrees_with_the_pipelines_own(self, pipe, host):
        with torch.no_grad():
            text, mask, _, _ = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
        condition = host.condition(PROMPTS)
        length = condition["text"].shape[1]
        assert torch.equal(condition["text"], text[:, :length])
        assert torch.equal(condition["mask"], mask[:, :length].bool())
        assert not mask[:, length:].any()

    def test_prompts_are_written_in_lower_case_but_kept_as_they_are(self, host):
        one, other = host.encode(["A Neon Icon of a Cat", "a neon icon of a cat"])
        assert one.token_ids == other.token_ids
        assert one.text == "A Neon Icon of a Cat"

    def test_text_sites_read_projected_states(self, pipe, host):
        """What `text_inputs` gives is what the cross-attention's keys are made from."""
        condition, read = host.condition(PROMPTS[:1]), []
        block = pipe.transformer.transformer_blocks[0].attn2.to_k
        handle = block.register_forward_pre_hook(lambda _module, args: read.append(args[0]))
        scheduler = host.make_scheduler(2)
        latents = host.initial_latents(scheduler, 1, torch.Generator().manual_seed(0))
        with torch.no_grad():
            host.predict(latents, scheduler.timesteps[:1], condition)
        handle.remove()
        torch.testing.assert_close(read[0][0], host.text_inputs(condition["text"][0]))
