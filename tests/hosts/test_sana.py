import pytest
import torch
from torch.testing import assert_close

from hosts.family_laws import PROMPTS, FamilyLaws, reloaded
from hosts.tiny_large import make_sana
from semipermeable.errors import ArchitectureError
from semipermeable.hosts import SanaHost, host_for


class TestSana(FamilyLaws):
    host_class = SanaHost

    @pytest.fixture(scope="class")
    def loaded(self, tmp_path_factory):
        return reloaded(make_sana(), tmp_path_factory.mktemp("sana") / "tiny")

    def test_encoding_agrees_with_what_the_denoiser_reads(self, pipe, host):
        """The instruction stands before prompts and not before the negative prompt."""
        seen = []
        handle = pipe.transformer.register_forward_pre_hook(
            lambda _module, _args, kwargs: seen.append(kwargs), with_kwargs=True
        )
        host.draw(PROMPTS, steps=1, guidance=4.0, generator=torch.Generator().manual_seed(0), output="latent")
        handle.remove()
        rows = ((host.unconditional(), slice(0, 1)), (host.condition(PROMPTS), slice(2, 4)))
        for condition, place in rows:
            text, mask = seen[0]["encoder_hidden_states"][place], seen[0]["encoder_attention_mask"][place]
            length = condition["text"].shape[1]
            assert torch.equal(condition["text"], text[:, :length])
            assert torch.equal(condition["mask"], mask[:, :length].bool())
            assert not mask[:, length:].any()

    def test_own_tokens_stand_behind_bos_alone(self, pipe, host):
        """Of the long instruction nothing stays, and the mask ends with the prompt."""
        condition, (one,) = host.condition(["a cat"]), host.encode(["a cat"])
        assert one.first == 1
        assert int(condition["mask"].sum()) == 1 + len(one.token_ids)
        assert pipe.tokenizer.decode(one.token_ids) == " a cat"

    def test_prompts_are_written_in_lower_case_but_kept_as_they_are(self, host):
        one, other = host.encode([" A Neon Icon of a Cat", "a neon icon of a cat"])
        assert one.token_ids == other.token_ids
        assert one.text == " A Neon Icon of a Cat"

    def test_depthwise_convolutions_are_no_sites(self, membrane):
        layers = {name.rsplit(".", 1)[1] for name in membrane.pairs}
        assert {"conv_inverted", "conv_point"} <= layers
        assert "conv_depth" not in layers

    def test_text_sites_read_projected_states(self, pipe, host):
        condition, read = host.condition(PROMPTS[:1]), []
        block = pipe.transformer.transformer_blocks[0].attn2.to_k
        handle = block.register_forward_pre_hook(lambda _module, args: read.append(args[0]))
        latents = torch.randn((1, *host.latent_shape()), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            host.predict(latents, torch.tensor([999]), condition)
        handle.remove()
        assert_close(read[0][0], host.text_inputs(condition["text"][0]))


def test_sprint_is_refused():
    pipe = make_sana()
    pipe.transformer.register_to_config(guidance_embeds=True)
    with pytest.raises(ArchitectureError, match="Sana"):
        host_for(pipe)
