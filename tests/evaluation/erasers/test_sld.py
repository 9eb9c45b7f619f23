"""Safe Latent Diffusion against its equations."""

import pytest
import torch

from semipermeable.evaluation.erasers import eraser
from semipermeable.evaluation.erasers.sld import STRENGTHS, Sld, SldSettings, safety_guidance

ZERO = SldSettings(scale=0.0, threshold=1.0, warmup=0, momentum_scale=0.0, momentum=0.0)


def changed_by(pipe, method, concept, prompts, drawn, **options):
    with method.prepare(pipe, [concept], seed=0).applied(pipe) as erased:
        return drawn(erased, prompts, **options)


def test_zero_strength_is_the_base_model_bit_for_bit(pipe, concept, prompts, drawn):
    assert torch.equal(changed_by(pipe, Sld("sld", ZERO), concept, prompts, drawn), drawn(pipe, prompts))


def test_without_guidance_there_is_nothing_to_steer(pipe, concept, prompts, drawn):
    bare = drawn(pipe, prompts, guidance_scale=1.0)
    assert torch.equal(changed_by(pipe, eraser("sld:max"), concept, prompts, drawn, guidance_scale=1.0), bare)


def test_a_later_start_and_a_weaker_strength_change_less(pipe, concept, prompts, drawn):
    bare = drawn(pipe, prompts[:1])
    shift = [
        float((changed_by(pipe, eraser(f"sld:{name}"), concept, prompts[:1], drawn) - bare).square().mean())
        for name in ("weak", "max")
    ]
    assert 0 < shift[0] < shift[1]


def test_warmup_is_scaled_to_the_steps_drawn(pipe, concept, prompts, drawn):
    late = SldSettings(scale=5000, threshold=1.0, warmup=50, momentum_scale=0.0, momentum=0.0)
    assert torch.equal(changed_by(pipe, Sld("sld", late), concept, prompts, drawn), drawn(pipe, prompts))


def test_the_guidance_is_the_papers(generator):
    empty, prompt, concept, momentum = torch.randn(4, 2, 4, 3, 3, generator=generator)
    settings = STRENGTHS["medium"]
    guidance, following = safety_guidance(empty, prompt, concept, momentum, settings)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in empty.shape)).tolist():
        e, p, s, v = (float(x[tuple(index)]) for x in (empty, prompt, concept, momentum))
        mu = min(1.0, 1000 * abs(p - s)) if p - s < 0.01 else 0.0
        wanted = mu * (s - e) + 0.3 * v
        assert float(guidance[tuple(index)]) == pytest.approx(wanted, abs=1e-5)
        assert float(following[tuple(index)]) == pytest.approx(0.4 * v + 0.6 * wanted, abs=1e-5)


def test_fully_scaled_it_steers_from_the_concept_as_a_negative_prompt_does(pipe, concept, prompts, drawn):
    """μ = 1 everywhere: ε(∅) + g (ε(p) − ε(S)), which a linear read of the equations demands."""
    full = SldSettings(scale=1e9, threshold=1e9, warmup=0, momentum_scale=0.0, momentum=0.0)
    steered = changed_by(
        pipe, Sld("sld", full), concept, prompts[:1], drawn, num_inference_steps=1, output_type="latent"
    )
    noise = {"num_inference_steps": 1, "output_type": "latent", "guidance_scale": 4.0}
    bare = drawn(pipe, prompts[:1], **noise)
    towards = drawn(pipe, [", ".join(concept.names)], **noise)
    nothing = drawn(pipe, [""], **noise)
    torch.testing.assert_close(steered, bare - (towards - nothing), atol=1e-3, rtol=1e-3)


def test_gated_rows_are_steered_as_ungated_ones(pipe, concept, prompts, drawn):
    gated = changed_by(pipe, eraser("gated-sld:max"), concept, prompts, drawn)
    always = changed_by(pipe, eraser("sld:max"), concept, prompts, drawn)
    assert torch.equal(gated[0], always[0])
    assert torch.equal(gated[1], drawn(pipe, prompts)[1])
    assert not torch.equal(always[1], gated[1])
