import pytest
import torch

import semipermeable as spm
from hosts.family_laws import PROMPTS, FamilyLaws, reloaded
from hosts.tiny_dits import make_sd3
from semipermeable.concept import Concept
from semipermeable.hosts import SD3Host, host_for
from semipermeable.membrane import Membrane
from semipermeable.permeability.transport import visible

from helpers import random_membrane


class TestSD3(FamilyLaws):
    host_class = SD3Host
    training_steps = 40
    with_t5 = True

    @pytest.fixture(scope="class")
    def loaded(self, tokenizer, tmp_path_factory):
        left_out = {} if self.with_t5 else {"text_encoder_3": None, "tokenizer_3": None}
        return reloaded(make_sd3(tokenizer), tmp_path_factory.mktemp("sd3") / "tiny", **left_out)

    def test_encoding_agrees_with_the_pipelines_own(self, pipe, host):
        with torch.no_grad():
            text, _, pooled, _ = pipe.encode_prompt(
                PROMPTS, prompt_2=None, prompt_3=None, do_classifier_free_guidance=False
            )
        condition, encoded = host.condition(PROMPTS), host.encode(PROMPTS)
        assert torch.equal(condition["text"], text)
        assert torch.equal(condition["pooled"], pooled)
        window = pipe.tokenizer.model_max_length
        first = window if self.with_t5 else 0
        for row, one in enumerate(encoded):
            assert torch.equal(one.states, text[row, first : first + len(one.states)])
            assert torch.equal(one.pooled, pooled[row])

    def test_the_gate_reads_as_far_as_the_longest_encoder(self, host):
        far = host.encode(["a photo of a dog " * 8 + "and a cat"])[0]
        assert ("cat" in visible(far)) is self.with_t5

    def test_the_gate_is_bound_to_the_encoder_it_reads(self, pipe, host):
        before, read = host.text_encoder_hash(), pipe.text_encoder_3 if self.with_t5 else pipe.text_encoder_2
        weight = next(read.parameters())
        with torch.no_grad():
            kept = weight.clone()
            weight.view(-1)[0] += 1
        try:
            assert host_for(pipe).text_encoder_hash() != before
        finally:
            with torch.no_grad():
                weight.copy_(kept)


class TestSD3WithoutT5(TestSD3):
    """A pipeline loaded without T5 to save memory."""

    with_t5 = False
    grows = False


def test_a_window_that_grew_is_decided_anew(tokenizer):
    """γ of a text is remembered, but not for a call whose encoder reads more of it."""
    pipe = make_sd3(tokenizer)
    pipe.set_progress_bar_config(disable=True)
    pairs = random_membrane(pipe.transformer, inside=SD3Host.site_classes, scale=0.05).pairs
    prompt = "a dog " * 90 + "and a cat"
    with spm.attach(pipe, Membrane(pairs, Concept("cat"))) as guard:
        for window in (256, 512, 256):
            pipe(prompt, max_sequence_length=window, num_inference_steps=1, output_type="latent")
    assert [(row.prompt, row.gamma) for row in guard.trace] == [(prompt, 0.0), (prompt, 1.0), (prompt, 0.0)]
