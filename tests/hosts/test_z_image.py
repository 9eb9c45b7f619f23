import pytest
import torch
from torch.testing import assert_close

import semipermeable as spm
from hosts.family_laws import PROMPTS, FamilyLaws, reloaded
from hosts.tiny_large import make_z_image
from semipermeable.errors import AttachError
from semipermeable.hosts import ZImageHost


class TestZImage(FamilyLaws):
    host_class = ZImageHost

    @pytest.fixture(scope="class")
    def loaded(self, tmp_path_factory):
        pipe = reloaded(make_z_image(), tmp_path_factory.mktemp("z") / "tiny")
        pipe.default_sample_size = 8
        return pipe

    def test_encoding_agrees_with_the_pipelines_own(self, pipe, host):
        prompts = [PROMPTS[0], PROMPTS[1] + " in a tree"]
        with torch.no_grad():
            rows, _ = pipe.encode_prompt(list(prompts))
        condition = host.condition(prompts)
        assert len(rows[0]) != len(rows[1])
        for row, text, mask in zip(rows, condition["text"], condition["mask"], strict=True):
            assert torch.equal(text[mask], row)

    def test_own_tokens_stand_behind_the_template(self, pipe, host):
        (one,) = host.encode(["a cat"])
        before = pipe.tokenizer("<|im_start|>user\n").input_ids
        assert one.first == len(before)
        assert pipe.tokenizer.decode(one.token_ids) == " a cat"

    def test_the_pipelines_scale_is_one_less(self, host):
        assert host.draw_arguments(4.0, None)["guidance_scale"] == 3.0
        assert host.draw_arguments(1.0, None)["guidance_scale"] == 0.0

    def test_where_guidance_is_cut_off_all_rows_are_conditional(self, pipe, host, membrane):
        """With `cfg_truncation` the last steps have no unconditional rows, and an open prompt stays open."""
        seen = []
        with spm.attach(pipe, membrane) as guard:
            rows = pipe.transformer.register_forward_pre_hook(lambda _module, args: seen.append(len(args[2])))
            pipe(
                list(PROMPTS),
                num_inference_steps=2,
                guidance_scale=3.0,
                cfg_truncation=0.1,
                generator=torch.Generator().manual_seed(0),
                output_type="latent",
                **host.size_arguments(),
            )
            rows.remove()
            per_prompt = [row.gamma for row in guard.trace if row.prompt == PROMPTS[1]]
        assert seen == [4, 2]
        assert per_prompt == [0.0, 0.0]
        assert [row.gamma for row in guard.trace if row.prompt == PROMPTS[0]] == [1.0, 1.0]

    def test_sigmas_are_the_pipelines(self, pipe, host):
        host.draw(PROMPTS[:1], steps=3, guidance=1.0, generator=torch.Generator().manual_seed(0), output="latent")
        assert_close(host.make_scheduler(3).sigmas, pipe.scheduler.sigmas)

    def test_a_call_without_text_is_refused(self, host):
        with pytest.raises(AttachError, match="cap_feats"):
            host.call_rows(([], torch.zeros(1)), {"cap_feats": None})
