"""Trained erasers: which weights move, and that they move towards their goals."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from evaluation.erasers.quick import ESD, quick
from semipermeable.errors import ConfigError, DivergenceError, UnknownNameError
from semipermeable.evaluation.erasers import eraser
from semipermeable.evaluation.erasers.concept_ablation import AblationSettings, ConceptAblation
from semipermeable.evaluation.erasers.esd import Esd, EsdSettings
from semipermeable.evaluation.erasers.finetuning import Tuning
from semipermeable.evaluation.erasers.spm_reference import cross_summed
from semipermeable.evaluation.erasers.weights import swapped
from semipermeable.files import save
from semipermeable.hosts import host_for
from semipermeable.membrane import Membrane

from helpers import random_membrane


def moved(pipe, erasure):
    base = pipe.unet.state_dict()
    return {name for name, value in erasure.weights.items() if not torch.equal(value, base[name])}


def test_esd_x_changes_only_cross_attention(pipe, concept):
    names = moved(pipe, Esd("x", ESD).prepare(pipe, [concept], seed=0))
    assert names == {name for name in pipe.unet.state_dict() if ".attn2." in name}


def test_esd_u_changes_only_the_rest(pipe, concept):
    names = moved(pipe, Esd("u", ESD, "esd-u").prepare(pipe, [concept], seed=0))
    assert names
    left_out = ("time_embedding.", "conv_norm_out.", "conv_out.")
    assert not any(".attn2." in name or name.startswith(left_out) for name in names)


def test_concept_ablation_changes_only_cross_attention_keys_and_values(pipe, concept):
    names = moved(pipe, quick("concept-ablation").prepare(pipe, [concept], seed=0))
    assert names
    assert all(name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")) for name in names)


def errors(pipe, erasure, condition, goal):
    """Mean squared distance to a goal at pure noise and a late time, before and after."""
    host = host_for(pipe)
    noise = torch.randn(4, *host.latent_shape(), generator=torch.Generator().manual_seed(5))
    t = torch.full((4,), 900)

    def predicted(text):
        return host.predict(noise, t, host.condition([text]).repeat(4))

    with torch.no_grad():
        wanted, before = goal(predicted), predicted(condition)
        with swapped(pipe.unet, erasure.weights):
            after = predicted(condition)
    return float((before - wanted).square().mean()), float((after - wanted).square().mean())


def test_esd_learns_to_steer_away_by_itself(pipe, concept):
    settings = EsdSettings(num_steps=15, learning_rate=1e-4, sampling_steps=3)
    erasure = Esd("x", settings).prepare(pipe, [concept], seed=0)
    before, after = errors(pipe, erasure, concept.name, lambda p: 2 * p("") - p(concept.name))
    assert after < 0.9 * before


def test_concept_ablation_learns_the_anchor(pipe, concept, prompts, spec):
    settings = AblationSettings(num_steps=15, batch_size=4, learning_rate=2e-4, num_pictures=4, sampling_steps=3)
    erasure = ConceptAblation(settings).prepare(pipe, [concept], seed=0)
    anchor = spec.caption(concept.surrogate, spec.styles[0])
    before, after = errors(pipe, erasure, prompts[0], lambda p: p(anchor))
    assert after < 0.9 * before


@pytest.mark.parametrize("name", ["esd-x", "esd-u", "concept-ablation"])
def test_several_concepts_are_trained_for_as_many_steps_as_alone(pipe, concept, style, name, monkeypatch):
    losses, step = [], Tuning.step
    monkeypatch.setattr(Tuning, "step", lambda tuning, loss: (losses.append(loss.item()), step(tuning, loss)))
    quick(name).prepare(pipe, [concept], seed=0)
    alone = len(losses)
    quick(name).prepare(pipe, [concept, style], seed=0)
    assert (alone, len(losses) - alone) == (2, 4)


def test_divergence_is_an_error_and_leaves_the_pipeline(pipe, concept):
    former = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    flags = [parameter.requires_grad for parameter in pipe.unet.parameters()]
    with pytest.raises(DivergenceError, match="lower learning_rate"):
        Esd("x", dataclasses.replace(ESD, learning_rate=1e30, num_steps=6)).prepare(pipe, [concept], seed=0)
    assert all(torch.equal(value, former[name]) for name, value in pipe.unet.state_dict().items())
    assert [parameter.requires_grad for parameter in pipe.unet.parameters()] == flags


def test_leco_is_a_membrane_of_rank_four_held_open(pipe, concept):
    erasure = quick("leco").prepare(pipe, [concept], seed=0)
    assert [membrane.rank for membrane in erasure.membranes] == [4]
    assert erasure.rule == "open"


def test_membranes_come_from_files_one_per_concept(pipe, concept, style, tmp_path, prompts, drawn):
    path = tmp_path / "one.safetensors"
    save(random_membrane(pipe.unet, concept.name), path)
    erasure = eraser(f"spm-open:{path}").prepare(pipe, [concept], seed=0)
    assert erasure.stored_bytes == path.stat().st_size
    assert eraser(f"spm:{path}").prepare(pipe, [concept], seed=3).config["seed"] is None
    with pytest.raises(UnknownNameError, match="no membrane file given erases it"):
        eraser(f"spm:{path}").prepare(pipe, [style], seed=0)
    with pytest.raises(UnknownNameError, match="no membrane file given erases it"):
        eraser(f"spm:{path}").prepare(pipe, [concept, style], seed=0)


def weight_change(membranes, gamma):
    return {name: u @ v.flatten(1) for name, (u, v) in cross_summed(membranes, gamma).items()}


def test_the_references_strength_is_gamma_squared(tiny_unet):
    membrane = random_membrane(tiny_unet)
    half, whole = weight_change([membrane], [0.5]), weight_change([membrane], [1.0])
    for name in whole:
        torch.testing.assert_close(half[name], 0.25 * whole[name])


def test_the_reference_has_cross_terms_and_depends_on_signs(tiny_unet):
    one, two = random_membrane(tiny_unet), random_membrane(tiny_unet, "dog", seed=1)
    same = Membrane({name: (-u, -v) for name, (u, v) in one.pairs.items()}, one.concept)
    both, flipped = weight_change([one, two], [1, 1]), weight_change([same, two], [1, 1])
    apart = {name: weight_change([one], [1])[name] + weight_change([two], [1])[name] for name in both}
    assert any(not torch.allclose(both[name], apart[name]) for name in both)
    assert any(not torch.allclose(both[name], flipped[name]) for name in both)


def test_the_reference_gates_a_whole_batch_by_its_first_prompt(pipe, concept, prompts, drawn, tmp_path):
    path = tmp_path / "one.safetensors"
    save(random_membrane(pipe.unet, concept.name), path)
    with eraser(f"spm-reference:{path}").prepare(pipe, [concept], seed=0).applied(pipe) as erased:
        assert not torch.allclose(drawn(erased, prompts)[1], drawn(erased, prompts[1:] * 2)[1], atol=1e-4)


def test_the_reference_draws_with_checkpoints_of_its_own_format(pipe, concept, prompts, drawn, tmp_path):
    membrane = random_membrane(pipe.unet, concept.name)
    save(membrane, tmp_path / "native.safetensors")
    tensors = {}
    for site, (u, v) in membrane.pairs.items():
        base = "lora_unet_" + site.replace(".", "_")
        tensors |= {f"{base}.lora_up.weight": u.clone(), f"{base}.lora_down.weight": v.clone()}
        tensors[f"{base}.alpha"] = torch.tensor(float(membrane.rank))
    meta = {"prompts": concept.name, "rank": str(membrane.rank), "alpha": str(float(membrane.rank))}
    save_file(tensors, tmp_path / "theirs.safetensors", meta)
    pictures = []
    for name in ("native", "theirs"):
        made = eraser(f"spm-reference:{tmp_path / name}.safetensors").prepare(pipe, [concept], seed=0)
        with made.applied(pipe) as erased:
            pictures.append(drawn(erased, prompts))
    assert torch.equal(*pictures)


def test_the_reference_cannot_add_factors_of_two_ranks(tiny_unet):
    one, two = random_membrane(tiny_unet), random_membrane(tiny_unet, "dog", rank=2)
    with pytest.raises(ConfigError, match=r"all need one rank; at .* that of 'dog' has 2, others have 1"):
        cross_summed([one, two], [1, 1])
