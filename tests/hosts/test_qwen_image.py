import pytest
import torch
from torch.testing import assert_close

from hosts.family_laws import PROMPTS, FamilyLaws, reloaded
from hosts.tiny_large import make_qwen_image
from semipermeable.errors import ArchitectureError
from semipermeable.hosts import QwenImageHost, host_for
from semipermeable.server.jobs import CallShape
from semipermeable.server.painter import Painter, Row
from semipermeable.server.planning import Plan


class TestQwenImage(FamilyLaws):
    host_class = QwenImageHost

    @pytest.fixture(scope="class")
    def loaded(self, tmp_path_factory):
        pipe = reloaded(make_qwen_image(), tmp_path_factory.mktemp("qwen") / "tiny")
        pipe.default_sample_size = 8
        # The number of tokens before the prompt, with this vocabulary.
        before = pipe.prompt_template_encode.split("{}")[0]
        pipe.prompt_template_encode_start_idx = len(pipe.tokenizer(before).input_ids)
        return pipe

    def test_encoding_agrees_with_the_pipelines_own(self, pipe, host):
        prompts = [PROMPTS[0], PROMPTS[1] + " in a tree"]
        with torch.no_grad():
            text, mask = pipe.encode_prompt(prompts)
        condition = host.condition(prompts)
        assert torch.equal(condition["text"], text)
        assert torch.equal(condition["mask"], mask.bool())
        assert not mask[0].all()
        assert host.condition(prompts[:1])["mask"].all()

    def test_the_gate_reads_the_prompt_after_the_dropped_template(self, pipe, host):
        (one,) = host.encode(["a cat"])
        assert pipe.tokenizer.decode(one.token_ids) == " a cat"
        with torch.no_grad():
            text, _ = pipe.encode_prompt([" a cat"])
        assert_close(one.states[: len(one.token_ids)], text[0, : len(one.token_ids)])

    def test_guided_predictions_keep_the_norm_of_every_patch(self, host):
        generator = torch.Generator().manual_seed(0)
        bare, told = torch.randn(2, 2, 16, 16, generator=generator)
        assert_close(host.guided(bare, told, 4.0).norm(dim=-1), told.norm(dim=-1))
        assert_close(host.guided(bare, told, 1.0), told)

    def test_sigmas_are_the_pipelines(self, pipe, host):
        host.draw(PROMPTS[:1], steps=3, guidance=1.0, generator=torch.Generator().manual_seed(0), output="latent")
        assert_close(host.make_scheduler(3).sigmas, pipe.scheduler.sigmas)

    def test_drawing_with_guidance_avoids_one_space(self, host):
        noise = {"steps": 1, "output": "latent"}
        plain = host.draw(PROMPTS[:1], guidance=4.0, generator=torch.Generator().manual_seed(0), **noise)
        said = host.draw(PROMPTS[:1], guidance=4.0, negative=" ", generator=torch.Generator().manual_seed(0), **noise)
        bare = host.draw(PROMPTS[:1], guidance=1.0, generator=torch.Generator().manual_seed(0), **noise)
        assert torch.equal(plain, said)
        assert not torch.equal(plain, bare)

    def test_the_server_guides_without_a_negative_prompt_too(self, pipe):
        painter, anything = Painter(pipe), Plan("p", "p@0", 1, (), ())
        row = Row(PROMPTS[0], "", 0, anything, ())
        shapes = (CallShape(1, guidance, 32, 32) for guidance in (4.0, 1.0))
        guided, bare = ([p.tobytes() for p in painter.paint([row], shape, lambda: False)] for shape in shapes)
        painter.close()
        assert guided != bare


def test_a_guidance_distilled_model_is_refused():
    pipe = make_qwen_image()
    pipe.transformer.register_to_config(guidance_embeds=True)
    with pytest.raises(ArchitectureError, match="Qwen-Image"):
        host_for(pipe)
