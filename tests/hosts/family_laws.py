"""The laws of a family, on a tiny random pipeline of it that was saved and loaded again as a local folder.

A family's test file subclasses `FamilyLaws` and gives it a pipeline:

    class TestSDXL(FamilyLaws):
        host_class = SDXLHost

        @pytest.fixture(scope="class")
        def loaded(self, tmp_path_factory): ...
"""

import inspect
import re
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

import semipermeable as spm
from semipermeable.concept import Concept
from semipermeable.errors import AttachError
from semipermeable.hosts import Condition, host_for
from semipermeable.membrane import Membrane, Provenance
from semipermeable.permeability.transport import visible
from semipermeable.training import TrainConfig
from semipermeable.training.trajectories import denoise, step_arguments

from helpers import random_membrane
from training_helpers import finish

PROMPTS = ["a neon icon of a cat", "a neon icon of a dog"]
CONCEPT = Concept("cat", surrogate="dog")


def reloaded(pipe, folder, **parts):
    """Save a pipeline and load the folder again with `DiffusionPipeline`, as a user does, some parts replaced."""
    from diffusers import DiffusionPipeline

    pipe.save_pretrained(folder)
    again = DiffusionPipeline.from_pretrained(folder, local_files_only=True, **parts)
    again.set_progress_bar_config(disable=True)
    return again


class FamilyLaws:
    """Laws that hold for every family; a subclass says which, and overrides what its models cannot do."""

    host_class: type
    guidance = 4.0
    """A scale at which the pipeline computes unconditional rows; its own default where the denoiser reads the scale."""
    steps = 2
    """Of denoising."""
    scale = 0.05
    """Of random pairs: large enough to change every open row."""
    grows = True
    """Whether the denoiser reads further in a call with a greater `max_sequence_length`, where there is one."""
    training_steps = 20
    learning_rate = 3e-3

    @pytest.fixture
    def pipe(self, loaded):
        """The loaded pipeline with a scheduler of its own."""
        loaded.scheduler = type(loaded.scheduler).from_config(loaded.scheduler.config)
        yield loaded
        assert all("forward" not in vars(module) for module in host_for(loaded).denoisers.values())

    @pytest.fixture
    def host(self, pipe):
        return host_for(pipe)

    @pytest.fixture
    def membrane(self, host):
        return self.random(host, "cat")

    def random(self, host, name, seed=0):
        pairs = random_membrane(host.denoiser, inside=host.site_classes, scale=self.scale, seed=seed).pairs
        return Membrane(pairs, Concept(name), Provenance(family=host.family))

    def draw(self, host, prompts=PROMPTS, *, guidance=None, **options):
        """Final latents, each row with its own noise."""
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
        scale = self.guidance if guidance is None else guidance
        return host.draw(prompts, steps=self.steps, guidance=scale, generator=generators, output="latent", **options)

    def test_the_family_is_recognised(self, host):
        assert type(host) is self.host_class
        assert host.base_model
        assert "/" not in host.base_model

    def test_gamma_zero_is_bit_exact_in_a_batch_with_an_open_row_and_detach_is_exact(self, pipe, host, membrane):
        own, bare = host.denoisers, self.draw(host)
        with spm.attach(pipe, membrane) as guard:
            changed = [not torch.equal(a, b) for a, b in zip(self.draw(host), bare, strict=True)]
            assert changed == [True, False]
            gamma = {row.prompt: row.gamma for row in guard.trace}
            assert gamma == {PROMPTS[0]: 1.0, PROMPTS[1]: 0.0}
        assert host.denoisers == own
        assert torch.equal(self.draw(host), bare)

    def test_without_guidance_too(self, pipe, host, membrane):
        bare = self.draw(host, guidance=1.0)
        with spm.attach(pipe, membrane):
            changed = [not torch.equal(a, b) for a, b in zip(self.draw(host, guidance=1.0), bare, strict=True)]
        assert changed == [True, False]

    def test_the_concept_in_a_negative_prompt_opens_nothing(self, pipe, host, membrane):
        bare = self.draw(host, PROMPTS[1:], negative="a cat")
        assert not torch.equal(bare, self.draw(host, PROMPTS[1:]))
        with spm.attach(pipe, membrane):
            assert torch.equal(self.draw(host, PROMPTS[1:], negative="a cat"), bare)

    def test_embeddings_of_the_pipelines_own_are_recognised(self, pipe, host, membrane):
        with spm.attach(pipe, membrane, on_unknown="error") as guard:
            self.draw(host)
            assert {row.prompt for row in guard.trace} == set(PROMPTS)

    def test_what_any_encoder_reads_the_gate_reads(self, pipe, host, membrane):
        """Where a pipeline takes a prompt for each encoder, all of them count, and a negative prompt for each none."""
        taken = inspect.signature(type(pipe).__call__).parameters
        told = {"num_inference_steps": 1, "output_type": "latent", **host.size_arguments()}
        with spm.attach(pipe, membrane) as guard:
            for name in (name for name in taken if re.fullmatch(r"prompt_\d", name)):
                pipe(PROMPTS[1:], **{name: PROMPTS[0]}, **host.draw_arguments(self.guidance, None), **told)
                assert [(row.prompt, row.gamma) for row in guard.trace] == [(f"{PROMPTS[1]} | {PROMPTS[0]}", 1.0)]
                avoided = {f"negative_{name}": ["a cat"], **host.draw_arguments(self.guidance, ["a tree"])}
                guard.trace.clear()
                pipe(PROMPTS[1:], **avoided, **told)
                assert [(row.prompt, row.gamma) for row in guard.trace] == [(PROMPTS[1], 0.0)]
                guard.trace.clear()

    def test_what_a_longer_window_lets_through_the_gate_reads(self, pipe, host):
        if not (host.window() and self.grows):
            return
        text = "a " * (host.window() + 8) + "cat"
        required = inspect.signature(pipe.encode_prompt).parameters.values()
        told = {one.name: None for one in required if one.default is one.empty} | {"prompt": [text]}
        seen = [
            visible(host.encode(host.observe(pipe.encode_prompt, (), told | window).known[0][1])[0])
            for window in ({"max_sequence_length": host.window()}, {"max_sequence_length": 2 * host.window()})
        ]
        assert ["cat" in one for one in seen] == [False, True]

    def test_folded_equals_the_side_path_and_several_add_up(self, pipe, host, membrane):
        other = self.random(host, "tree", seed=1)
        bare = self.draw(host, guidance=1.0)
        with spm.attach(pipe, [membrane, other], "open"):
            beside = self.draw(host, guidance=1.0)
        with spm.attach(pipe, [other, membrane], "open"):
            assert_close(self.draw(host, guidance=1.0), beside, atol=1e-4, rtol=1e-3)
        weights = {name: value.clone() for name, value in host.denoiser.state_dict().items()}
        with spm.fold(pipe, [membrane, other]):
            folded = self.draw(host, guidance=1.0)
        assert_close(folded, beside, atol=1e-3, rtol=1e-2)
        assert float((beside - bare).abs().max()) > 10 * float((folded - beside).abs().max())
        assert all(torch.equal(value, weights[name]) for name, value in host.denoiser.state_dict().items())

    def test_saved_and_loaded_it_draws_the_same(self, pipe, host, membrane, tmp_path):
        path = tmp_path / "cat.safetensors"
        spm.save(membrane, path)
        with spm.attach(pipe, membrane):
            drawn = self.draw(host)
        with spm.attach(pipe, path) as guard:
            assert torch.equal(self.draw(host), drawn)
            assert guard.membranes[0].provenance.family == host.family

    def test_a_second_attachment_is_refused(self, pipe, membrane):
        with spm.attach(pipe, membrane), pytest.raises(AttachError, match="already holds"):
            spm.attach(pipe, membrane)

    def test_states_follow_the_words(self, host):
        """Own token i has its state at `first + i`: what stands before a word is alike, wherever the text ends."""
        short, long = host.encode(["a neon icon of a cat", "a neon icon of a cat in a tree"])
        assert long.token_ids[: len(short.token_ids)] == short.token_ids
        assert "".join(t.strip("▁Ġ").removesuffix("</w>") for t in short.tokens) == "aneoniconofacat"
        name = host.encode(["cat"])[0]
        assert short.token_ids[-len(name.token_ids) :] == name.token_ids
        assert short.states.shape[0] >= short.first + len(short.token_ids)
        other = host.encode(["a neon icon of a dog"])[0]
        same = short.first + len(short.token_ids) - len(name.token_ids)
        assert not torch.allclose(short.states[same], other.states[same])
        assert host.encode([]) == []
        assert host.encode([""])[0].token_ids == ()

    def test_trajectories_are_what_the_pipeline_draws(self, host):
        seen = denoise(
            host,
            host.condition(PROMPTS),
            host.unconditional(),
            num_steps=self.steps,
            guidance=self.guidance,
            generator=torch.Generator().manual_seed(3),
        )
        drawn = host.draw(
            PROMPTS,
            steps=self.steps,
            guidance=self.guidance,
            generator=torch.Generator().manual_seed(3),
            output="latent",
        )
        last = self.last_step(host, seen)
        assert_close(last.to(drawn), drawn, atol=1e-4, rtol=1e-3)

    def last_step(self, host, seen):
        """Step from the last latent that the network read to the picture, with a scheduler brought to that place."""
        scheduler, generator = host.make_scheduler(self.steps), torch.Generator().manual_seed(3)
        empty, condition = host.unconditional(), host.condition(PROMPTS)
        x = host.initial_latents(scheduler, len(PROMPTS), generator)
        extra = step_arguments(scheduler, generator)
        for t in scheduler.timesteps:
            read = host.model_input(scheduler, x, t)
            with torch.no_grad():
                output = host.predict(read, t.expand(len(PROMPTS)), condition)
                if host.guidance == "classifier-free" and self.guidance != 1:
                    bare = host.predict(read, t.expand(len(PROMPTS)), empty.repeat(len(PROMPTS)))
                    output = host.guided(bare, output, self.guidance)
            x = scheduler.step(output, t, x, **extra).prev_sample
        assert_close(read, seen.latents[-1], atol=1e-4, rtol=1e-3)
        return x

    def test_noise_and_its_target_belong_together(self, host):
        """From x_t and the true prediction, the clean latents come back."""
        clean = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0))
        noise = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(1))
        t = torch.tensor([100, 700])
        x, told = host.noised(clean, noise, t), host.training_target(clean, noise, t)
        if host.prediction_type == "flow":
            found = x - (t / 1000).reshape(-1, 1, 1, 1) * told
        else:
            alpha = host.pipe.scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1).sqrt()
            sigma = (1 - alpha**2).sqrt()
            found = (x - sigma * told) / alpha if host.prediction_type == "epsilon" else alpha * x - sigma * told
        assert_close(found, clean, atol=1e-4, rtol=1e-3)

    def test_training_lowers_the_erasing_loss(self, pipe, host):
        config = TrainConfig(
            num_steps=self.training_steps,
            batch_size=4,
            num_anchors=0,
            num_trajectories=2,
            sampling_steps=self.steps,
            sampling_guidance=self.guidance,
            learning_rate=self.learning_rate,
            warmup_steps=0,
            schedule="constant",
            negative_guidance=0.0,
            closed_form=False,
        )
        before = {name: value.clone() for name, value in host.denoiser.state_dict().items()}
        learnt, _ = finish(host, config)
        assert all(torch.equal(value, before[name]) for name, value in host.denoiser.state_dict().items())
        # the same rows at every step, seen by a membrane that stays at zero
        bare, _ = finish(host, replace(config, learning_rate=1e-12))
        half = self.training_steps // 2
        assert learnt[0].erasing_loss == bare[0].erasing_loss
        assert sum(s.erasing_loss for s in learnt[half:]) < 0.7 * sum(s.erasing_loss for s in bare[half:])

    def test_the_closed_form_starts_lower_where_there_is_one(self, pipe, host):
        config = TrainConfig(num_steps=1, learning_rate=1e-9, num_anchors=0, num_trajectories=1, sampling_steps=2)
        _, trained = finish(host, config)
        moved = {name for name, (u, _) in trained.pairs.items() if float(u.abs().max()) > 1e-3}
        assert moved == {name for name in trained.pairs if name.endswith(host.text_sites)}

    @pytest.mark.slow
    def test_erase_stores_a_gate_and_where_it_came_from(self, pipe, host):
        config = TrainConfig(num_steps=1, num_anchors=2, num_trajectories=1, sampling_steps=2)
        membrane = spm.erase(pipe, CONCEPT, config=config, progress=False)
        origin = membrane.provenance
        assert (origin.family, origin.prediction_type) == (host.family, host.prediction_type)
        assert (origin.base_hash, origin.text_encoder_hash) == (host.base_hash(), host.text_encoder_hash())
        assert membrane.gate is not None
        with spm.attach(pipe, membrane) as guard:
            self.draw(host)
            assert {row.prompt: row.gamma for row in guard.trace} == {PROMPTS[0]: 1.0, PROMPTS[1]: 0.0}

    def test_rows_of_a_condition_are_independent(self, host):
        """A row's prediction does not hang on what it is batched with, nor on how long the others are."""
        alone, both = host.condition(PROMPTS[:1]), host.condition([PROMPTS[0], PROMPTS[1] + " in a tree"])
        joined = Condition.cat([alone, both[[1]]])
        scheduler = host.make_scheduler(4)
        x = host.initial_latents(scheduler, 2, torch.Generator().manual_seed(0))
        t = scheduler.timesteps[:2]
        with torch.no_grad():
            single = host.predict(x[:1], t[:1], alone)
            assert_close(host.predict(x, t, joined)[:1], single, atol=1e-4, rtol=1e-3)
            assert_close(host.predict(x, t, both)[:1], single, atol=1e-4, rtol=1e-3)
