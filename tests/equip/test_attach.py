"""The laws of an attachment, on the bundled model."""

import contextlib
import copy
import threading
from dataclasses import replace

import pytest
import torch

import semipermeable as spm
from semipermeable.errors import (
    ArchitectureError,
    AttachError,
    PermeabilityError,
    SiteError,
    SiteNotFiredError,
    UnknownPromptError,
)
from semipermeable.hosts import host_for
from semipermeable.permeability import Decision

from helpers import make_tiny_unet, random_membrane

PROMPTS = ["an icon of a cat", "an icon of a dog"]


def draw(pipe, prompts, *, images=1, guidance=4.0, seed=0, steps=2, **extra):
    """Final latents, one row per image; every image has its own seeded noise."""
    given = prompts if prompts is not None else extra["prompt_embeds"]
    rows = (1 if isinstance(given, str) else len(given)) * images
    generators = [torch.Generator().manual_seed(seed + r) for r in range(rows)]
    return pipe(
        prompts,
        num_inference_steps=steps,
        guidance_scale=guidance,
        num_images_per_prompt=images,
        generator=generators,
        output_type="latent",
        **extra,
    ).images


@pytest.fixture
def membrane(pipe):
    """Random pairs named after "cat"; large enough to change every open row."""
    return random_membrane(pipe.unet, "cat", scale=0.03)


def changed(a, b):
    return [not torch.equal(x, y) for x, y in zip(a, b, strict=True)]


def test_detach_is_bit_exact(pipe, membrane):
    bare, unet, keys = draw(pipe, PROMPTS), pipe.unet, list(pipe.unet.state_dict())
    with spm.attach(pipe, membrane) as guard:
        assert list(pipe.unet.state_dict()) == keys
        assert changed(draw(pipe, PROMPTS), bare) == [True, False]
    assert not guard.attached
    assert pipe.unet is unet
    assert "encode_prompt" not in vars(pipe)
    assert torch.equal(draw(pipe, PROMPTS), bare)
    guard.detach()


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("images", [1, 2])
def test_only_rows_about_the_concept_change(pipe, membrane, guidance, images):
    bare = draw(pipe, PROMPTS, images=images, guidance=guidance)
    with spm.attach(pipe, [membrane]):
        out = draw(pipe, PROMPTS, images=images, guidance=guidance)
    assert changed(out, bare) == [True] * images + [False] * images


def test_a_single_prompt_string_is_gated(pipe, membrane):
    bare = draw(pipe, PROMPTS[0])
    with spm.attach(pipe, membrane):
        assert changed(draw(pipe, PROMPTS[0]), bare) == [True]


def test_a_concept_in_the_negative_prompt_stays_closed(pipe, membrane):
    negative = ["an icon of a cat"] * 2
    bare = draw(pipe, PROMPTS[::-1], negative_prompt=negative)
    bare_alone = draw(pipe, PROMPTS[1:], negative_prompt=negative[:1])
    with spm.attach(pipe, membrane):
        out = draw(pipe, PROMPTS[::-1], negative_prompt=negative)
        assert changed(out, bare) == [False, True]
        alone = draw(pipe, PROMPTS[1:], negative_prompt=negative[:1])
    assert torch.equal(alone, bare_alone)


def test_all_zero_gamma_is_bit_identical(pipe, membrane):
    bare = draw(pipe, PROMPTS)
    for rule in ("closed", 0.0, {"cat": 0.0}):
        with spm.attach(pipe, membrane, permeability=rule):
            assert torch.equal(draw(pipe, PROMPTS), bare)


def test_embeddings_encoded_while_attached_keep_their_text(pipe, membrane):
    bare, two_bare = draw(pipe, PROMPTS), draw(pipe, PROMPTS, images=2)
    with spm.attach(pipe, membrane, on_unknown="error"):
        positive, negative = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
        out = draw(pipe, None, prompt_embeds=positive, negative_prompt_embeds=negative)
        two = draw(pipe, None, images=2, prompt_embeds=positive, negative_prompt_embeds=negative)
    assert changed(out, bare) == [True, False]
    assert changed(two, two_bare) == [True, True, False, False]


def test_unknown_embeddings_follow_on_unknown(pipe, membrane):
    positive, negative = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
    given = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
    bare = draw(pipe, None, **given)
    with spm.attach(pipe, membrane) as guard:
        assert changed(draw(pipe, None, **given), bare) == [True, True]
        assert "unknown" in str(guard.trace)
    with spm.attach(pipe, membrane, on_unknown="closed"):
        assert torch.equal(draw(pipe, None, **given), bare)
    with spm.attach(pipe, membrane, on_unknown="error"), pytest.raises(UnknownPromptError, match="Encode inside"):
        draw(pipe, None, **given)


class Prediction:
    """One call of the bundled denoiser on fixed noise under two captions, as a sampler makes it."""

    def __init__(self, pipe):
        self.pipe = pipe
        self.noise = torch.randn(2, *host_for(pipe).latent_shape(), generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def __call__(self):
        states, _ = self.pipe.encode_prompt(PROMPTS, "cpu", 1, False)
        return self.pipe.unet(self.noise, torch.tensor(500), states).sample


def test_a_site_is_an_exact_sum_linear_in_gamma(pipe, membrane):
    """Read at the first site alone, whose input no γ changes: the network after it is not linear."""
    first = next(name for name, _ in pipe.unet.named_modules() if name in membrane.pairs)
    other = random_membrane(pipe.unet, "dog", scale=0.03, seed=3, rank=2)
    both = [replace(one, pairs={first: one.pairs[first]}) for one in (membrane, other)]
    predict, seen = Prediction(pipe), []
    handle = pipe.unet.get_submodule(first).register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        for cat, dog in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.25, 0.0), (0.25, 0.75)):
            with spm.attach(pipe, both, {"cat": cat, "dog": dog}):
                predict()
    finally:
        handle.remove()
    bare, cat, dog, quarter, mixed = seen
    assert (cat - bare).abs().max() > 0.01
    assert (dog - bare).abs().max() > 0.01
    torch.testing.assert_close(quarter - bare, 0.25 * (cat - bare), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(mixed - bare, 0.25 * (cat - bare) + 0.75 * (dog - bare), atol=2e-5, rtol=1e-4)


def test_the_order_of_membranes_and_the_signs_of_a_pair_do_not_matter(pipe, membrane):
    other = random_membrane(pipe.unet, "dog", scale=0.03, seed=3, rank=2)
    turned = replace(membrane, pairs={name: (-u, -v) for name, (u, v) in membrane.pairs.items()})
    predict = Prediction(pipe)
    bare, found = predict(), []
    for membranes in ([membrane, other], [other, membrane], [turned, other]):
        with spm.attach(pipe, membranes, "open"):
            found.append(predict())
    assert changed(found[0], bare) == [True, True]
    torch.testing.assert_close(found[1], found[0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(found[2], found[0], atol=2e-5, rtol=1e-4)


def test_strength_and_gamma_multiply(pipe, membrane):
    outs = []
    for rule, strength in ((0.5, 1.0), (1.0, 0.5), ({"cat": 0.25}, {"cat": 2.0})):
        with spm.attach(pipe, membrane, permeability=rule, strength=strength):
            outs.append(draw(pipe, PROMPTS))
    torch.testing.assert_close(outs[0], outs[1])
    torch.testing.assert_close(outs[0], outs[2])


def test_gate_power_two_squares_gamma(pipe, membrane):
    with spm.attach(pipe, replace(membrane, gate_power=2), permeability=0.5):
        squared = draw(pipe, PROMPTS)
    with spm.attach(pipe, membrane, permeability=0.25):
        torch.testing.assert_close(draw(pipe, PROMPTS), squared)


def test_folded_weights_draw_what_the_open_attachment_draws(pipe, membrane):
    bare = draw(pipe, PROMPTS)
    other = random_membrane(pipe.unet, "dog", scale=0.03, seed=3, rank=2)
    with spm.attach(pipe, [membrane, other], permeability="open", strength=0.5):
        side = draw(pipe, PROMPTS, guidance=1.0)
    weights = {name: w.clone() for name, w in pipe.unet.state_dict().items()}
    with spm.fold(pipe, [membrane, other], strength=0.5):
        folded = draw(pipe, PROMPTS, guidance=1.0)
    torch.testing.assert_close(side, folded, atol=1e-3, rtol=1e-3)
    assert all(torch.equal(w, weights[name]) for name, w in pipe.unet.state_dict().items())
    assert torch.equal(draw(pipe, PROMPTS), bare)


def test_two_pipelines_sharing_a_denoiser_run_in_their_own_threads(pipe, membrane):
    kinds = ["cat", "dog", None]
    siblings = [type(pipe)(**pipe.components, requires_safety_checker=False) for _ in kinds]
    for sibling in siblings:
        # Everything is shared but what holds state between two calls: the scheduler, and the tokenizer's padding.
        sibling.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        sibling.tokenizer = copy.deepcopy(pipe.tokenizer)
        sibling.set_progress_bar_config(disable=True)
    bare = draw(pipe, PROMPTS)
    guards = [
        spm.attach(sibling, random_membrane(pipe.unet, kind, scale=0.03))
        for sibling, kind in zip(siblings, kinds, strict=True)
        if kind
    ]
    alone = [draw(sibling, PROMPTS) for sibling in siblings]
    outs = {}

    def run(index):
        outs[index] = [draw(siblings[index], PROMPTS) for _ in range(3)]

    threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for guard in guards:
        guard.detach()
    for index, expected in enumerate(([True, False], [False, True], [False, False])):
        assert [changed(out, bare) for out in outs[index]] == [expected] * 3
        assert all(torch.equal(out, alone[index]) for out in outs[index])
    assert torch.equal(draw(pipe, PROMPTS), bare)


def test_membranes_can_be_added_and_removed_live(pipe, membrane):
    bare = draw(pipe, PROMPTS)
    with spm.attach(pipe, membrane) as guard:
        guard.add(random_membrane(pipe.unet, "dog", scale=0.03, seed=5))
        assert changed(draw(pipe, PROMPTS), bare) == [True, True]
        guard.remove("cat")
        assert changed(draw(pipe, PROMPTS), bare) == [False, True]
        with pytest.raises(AttachError, match="no membrane called 'bird' is attached; attached: 'dog'"):
            guard.remove("bird")
        with pytest.raises(AttachError, match="two membranes erase 'dog'"):
            guard.add(random_membrane(pipe.unet, "dog"))
        guard.remove("dog")
        assert torch.equal(draw(pipe, PROMPTS), bare)
    with pytest.raises(AttachError, match="has been detached"):
        guard.add(membrane)


def test_of_two_threads_that_add_at_once_neither_loses_its_membrane(pipe, membrane, monkeypatch):
    both = threading.Barrier(2)
    with spm.attach(pipe, []) as guard:
        prepare = guard._prepare

        def slowly(membranes):
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(0.5)
            return prepare(membranes)

        monkeypatch.setattr(guard, "_prepare", slowly)
        others = [membrane, random_membrane(pipe.unet, "dog", seed=5)]
        threads = [threading.Thread(target=guard.add, args=(other,)) for other in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {m.name for m in guard.membranes} == {"cat", "dog"}


def test_what_changes_while_a_call_is_prepared_is_for_the_next_call(pipe, membrane):
    """As when another thread adds and removes membranes while this one draws."""

    class Busy:
        def decide(self, prompts, concept):
            while changes:
                changes.pop()()
            return [Decision(float(concept.concept.name in p.text), "named") for p in prompts]

    def exchange():
        guard.add(random_membrane(pipe.unet, "dog", scale=0.03, seed=5))
        guard.remove("cat")

    changes = []
    bare = draw(pipe, PROMPTS, steps=1)
    with spm.attach(pipe, membrane, Busy()):
        cat = draw(pipe, PROMPTS, steps=1)
    assert changed(cat, bare) == [True, False]
    with spm.attach(pipe, membrane, Busy()) as guard:
        changes.append(exchange)
        assert torch.equal(draw(pipe, PROMPTS, steps=1), cat)
        assert changed(draw(pipe, PROMPTS, steps=1), bare) == [False, True]
    with spm.attach(pipe, membrane, Busy()) as guard:
        changes.append(guard.detach)
        assert torch.equal(draw(pipe, PROMPTS, steps=1), cat)
        assert torch.equal(draw(pipe, PROMPTS, steps=1), bare)


def test_a_second_attachment_is_refused(pipe, membrane):
    with spm.attach(pipe, membrane), pytest.raises(AttachError, match=r"already holds Attachment\(\[cat\]"):
        spm.attach(pipe, random_membrane(pipe.unet, "dog"))
    assert "encode_prompt" not in vars(pipe)


def test_paths_are_loaded(pipe, membrane, tmp_path):
    spm.save(membrane, tmp_path / "cat.safetensors")
    bare = draw(pipe, PROMPTS)
    with spm.attach(pipe, [tmp_path / "cat.safetensors"]):
        assert changed(draw(pipe, PROMPTS), bare) == [True, False]


def test_the_trace_names_every_prompt_with_its_reason(pipe, membrane):
    with spm.attach(pipe, membrane) as guard:
        draw(pipe, PROMPTS, images=2)
        rows = guard.trace.as_dicts()
    assert [(row["prompt"], row["concept"], row["gamma"]) for row in rows] == [
        (PROMPTS[0], "cat", 1.0),
        (PROMPTS[1], "cat", 0.0),
    ]
    assert all(row["reason"] for row in rows)
    assert PROMPTS[0] in str(guard.trace)


def test_a_rule_of_ones_own(pipe, membrane):
    class EveryOther:
        def decide(self, prompts, concept):
            return [Decision(float("dog" in p.text), "mine") for p in prompts]

    bare = draw(pipe, PROMPTS)
    with spm.attach(pipe, membrane, permeability=EveryOther()):
        assert changed(draw(pipe, PROMPTS), bare) == [False, True]


def test_a_rule_outside_the_unit_interval_is_refused(pipe, membrane):
    class Loud:
        def decide(self, prompts, concept):
            return [Decision(2.0, "loud") for _ in prompts]

    with spm.attach(pipe, membrane, permeability=Loud()), pytest.raises(PermeabilityError, match="strength"):
        draw(pipe, PROMPTS)


def test_misuse_is_refused_before_anything_changes(pipe, membrane):
    unet = pipe.unet
    cases = [
        (PermeabilityError, "dog", {"permeability": {"dog": 1.0}}),
        (PermeabilityError, "dog", {"strength": {"dog": 1.0}}),
        (PermeabilityError, "strength must be a finite number, found nan", {"strength": float("nan")}),
        (PermeabilityError, "strength must be a finite number, found None", {"strength": None}),
        (PermeabilityError, "strength must be a finite number, found 'strong'", {"strength": "strong"}),
        (PermeabilityError, "strength of 'cat' must be a finite number, found '1'", {"strength": {"cat": "1"}}),
        (PermeabilityError, "on_unknown", {"on_unknown": "maybe"}),
    ]
    for error, message, options in cases:
        with pytest.raises(error, match=message):
            spm.attach(pipe, membrane, **options)
    for nothing in (None, 5, [None], [membrane, 5]):
        for use in (spm.attach, spm.fold):
            with pytest.raises(AttachError, match="membranes are Membrane objects, paths, or names zoo:CONCEPT; found"):
                use(pipe, nothing)
    other = random_membrane(make_tiny_unet())
    with pytest.raises(SiteError):
        spm.attach(pipe, other)
    with pytest.raises(ArchitectureError, match="Supported: UNet pipelines"):
        spm.attach(object(), membrane)
    assert pipe.unet is unet
    assert not any(m._forward_hooks for m in unet.modules())


def test_fused_and_compiled_denoisers_are_refused(pipe, membrane):
    attention = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    attention.fused_projections = True
    try:
        with pytest.raises(AttachError, match=r"unfuse_qkv_projections"):
            spm.attach(pipe, membrane)
    finally:
        attention.fused_projections = False
    attention._compiled_call_impl = lambda *a, **k: None
    try:
        with pytest.raises(AttachError, match=r"attn1' is compiled"):
            spm.attach(pipe, membrane)
    finally:
        attention._compiled_call_impl = None


def test_projections_fused_after_attaching_are_caught(pipe, membrane):
    attention = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    original = attention.to_k
    with spm.attach(pipe, membrane):
        attention.to_k = torch.nn.Linear(original.in_features, original.out_features, bias=False)
        try:
            with pytest.raises(SiteNotFiredError, match=r"attn2\.to_k"):
                draw(pipe, PROMPTS)
        finally:
            attention.to_k = original
        draw(pipe, PROMPTS)


def test_an_exception_in_the_pipeline_leaves_it_usable(pipe, membrane):
    bare = draw(pipe, PROMPTS)

    def stop(*_):
        raise KeyboardInterrupt

    with spm.attach(pipe, membrane):
        with pytest.raises(KeyboardInterrupt):
            draw(pipe, PROMPTS, callback_on_step_end=stop)
        assert changed(draw(pipe, PROMPTS), bare) == [True, False]
    assert torch.equal(draw(pipe, PROMPTS), bare)


def test_another_lora_stays_in_force_and_untouched(pipe, membrane):
    import peft

    target = [n for n, _ in pipe.unet.named_modules() if n.endswith("attn2.to_q")]
    pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=target, init_lora_weights=False), "style")
    try:
        bare = draw(pipe, PROMPTS)
        with spm.attach(pipe, membrane):
            assert changed(draw(pipe, PROMPTS), bare) == [True, False]
        assert torch.equal(draw(pipe, PROMPTS), bare)
    finally:
        pipe.unet.delete_adapters("style")
        from diffusers.utils.peft_utils import recurse_remove_peft_layers

        recurse_remove_peft_layers(pipe.unet)
        pipe.unet._hf_peft_config_loaded = False
