"""Closed-form edits against what their papers state."""

import pytest
import torch

from semipermeable.equip import attach
from semipermeable.errors import AttachError, ConfigError
from semipermeable.evaluation.erasers import eraser
from semipermeable.evaluation.erasers.cross_attention import Problem, remap, text_sites
from semipermeable.evaluation.erasers.rece import recalling_states
from semipermeable.evaluation.erasers.speed import _last_words, null_projection, speed_edit
from semipermeable.hosts import host_for
from semipermeable.training.closed_form import StatePairs

from helpers import random_membrane

OUT, DIM, ERASED, KEPT = 12, 20, 3, 5


@pytest.fixture
def case(generator):
    """W, erased states, destinations and states to keep, all at random."""

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    return draw(OUT, DIM), StatePairs(draw(ERASED, DIM), draw(ERASED, DIM)), draw(KEPT, DIM)


def uce(weight, pairs, kept, ridge=1e-9):
    goal = pairs.surrogate.double() @ weight.double().T
    return remap(weight, pairs.target, goal, kept.double().T @ kept.double(), ridge=ridge)


def test_uce_sends_concepts_to_destinations_and_keeps_the_rest(case):
    weight, pairs, kept = case
    edited = uce(weight, pairs, kept)
    torch.testing.assert_close(edited @ pairs.target.double().T, (weight @ pairs.surrogate.T).double(), **close(1e-5))
    torch.testing.assert_close(edited @ kept.double().T, (weight @ kept.T).double(), **close(1e-5))


def close(tolerance):
    return {"rtol": tolerance, "atol": tolerance}


def test_uce_is_the_papers_formula(case):
    weight, pairs, kept = (x.double() if isinstance(x, torch.Tensor) else x for x in case)
    c, goal, ridge = pairs.target.double(), pairs.surrogate.double(), 0.1
    numerator = weight @ (goal.T @ c + kept.T @ kept + ridge * torch.eye(DIM))
    denominator = c.T @ c + kept.T @ kept + ridge * torch.eye(DIM)
    torch.testing.assert_close(uce(weight, pairs, kept, ridge), numerator @ torch.linalg.inv(denominator))


def test_speed_leaves_kept_states_alone_and_moves_the_concept(case):
    weight, pairs, kept = case
    edited = speed_edit(weight, pairs, null_projection(kept, 1e-6))
    torch.testing.assert_close(edited @ kept.double().T, (weight @ kept.T).double(), **close(1e-5))
    before = (weight.double() @ (pairs.target - pairs.surrogate).double().T).norm()
    after = (edited @ pairs.target.double().T - (weight @ pairs.surrogate.T).double()).norm()
    assert after < 0.5 * before


def test_speed_minimises_its_objective(case, generator):
    weight, pairs, kept = case
    free = null_projection(kept, 1e-6)
    best = speed_edit(weight, pairs, free) - weight.double()

    def objective(change):
        missed = (weight.double() + change) @ pairs.target.double().T - (weight @ pairs.surrogate.T).double()
        return missed.square().sum() + change.square().sum()

    for _ in range(10):
        other = torch.randn(OUT, DIM, generator=generator, dtype=torch.float64) @ free
        assert objective(best + 1e-3 * other) > objective(best)


def test_speed_keeps_the_empty_prompt_of_the_model_to_rounding(pipe, concept):
    host, erasure = host_for(pipe), eraser("speed").prepare(pipe, [concept], seed=0)
    empty = host.encode([""])[0].states.double()
    assert len(_last_words(host, ["a tree", "the tree", "a house", ""])) == 2
    values = {name: site for name, site in text_sites(pipe).items() if name.endswith(".to_v")}
    for name, site in values.items():
        base, edited = site.weight.detach().double(), erasure.weights[f"{name}.weight"].double()
        assert not torch.equal(base, edited)
        shift = (empty @ (edited - base).T).norm() / (empty @ base.T).norm()
        assert float(shift) < 1e-5


def test_rece_finds_the_state_that_recalls_best_and_closes_it(case):
    weight, pairs, kept = case
    base = {"k": weight, "v": weight.flip(0) * 2}
    edited = {name: uce(w, pairs, kept, 0.1) for name, w in base.items()}
    found = recalling_states(base, edited, pairs.target, 0.1)

    def missed(weights, states):
        return sum((states @ weights[n].double().T - (pairs.target @ base[n].T).double()).square().sum() for n in base)

    def objective(states):
        return missed(edited, states) + 0.1 * states.square().sum()

    assert missed(edited, found) < 0.5 * missed(edited, pairs.target.double())
    assert all(objective(found) < objective(found + 1e-2 * torch.randn_like(found)) for _ in range(10))
    goals = {n: (pairs.surrogate @ w.T).double() for n, w in base.items()}
    closed = {n: remap(w, found, goals[n], torch.zeros(DIM, DIM).double(), ridge=1e-6) for n, w in edited.items()}
    assert missed(closed, found) > 2 * missed(edited, found)


def test_rece_is_harder_to_recall_than_uce(pipe, concept):
    base = {f"{name}.weight": site.weight.detach() for name, site in text_sites(pipe).items()}
    states = Problem.of(pipe, [concept]).states().target

    def recalled(name):
        edited = eraser(name).prepare(pipe, [concept], seed=0).weights
        found = recalling_states(base, edited, states, 0.1)
        return sum((found @ edited[n].double().T - (states @ w.T).double()).square().sum() for n, w in base.items())

    assert recalled("rece") > recalled("uce")


def test_mace_moves_the_words_around_the_concept_towards_the_surrogates(pipe, concept):
    problem = Problem.of(pipe, [concept])
    around = problem.states(lambda own: slice(own, None))
    own = problem.states(lambda own: slice(0, own))
    assert len(own.target) + len(around.target) == len(problem.states().target)
    edited = eraser("mace-closed-form").prepare(pipe, [concept], seed=0).weights
    for name, site in text_sites(pipe).items():
        weight = site.weight.detach()
        goal = around.surrogate @ weight.T
        before = (around.target @ weight.T - goal).norm()
        assert (around.target @ edited[f"{name}.weight"].T - goal).norm() < 0.8 * before


def test_closed_form_edits_touch_only_cross_attention_keys_and_values(pipe, concept):
    both = {f"{site}.weight" for site in text_sites(pipe)}
    for name in ("uce", "rece", "speed:edited=kv", "mace-closed-form"):
        assert set(eraser(name).prepare(pipe, [concept], seed=0).weights) == both
    values = {name for name in both if ".to_v." in name}
    assert set(eraser("speed").prepare(pipe, [concept], seed=0).weights) == values


def test_speed_confines_itself_more_with_a_lower_threshold(case):
    weight, pairs, kept = case
    kept = torch.cat([kept, 0.01 * torch.randn(6, DIM, generator=torch.Generator().manual_seed(2))])
    moved = []
    for threshold in (1e-9, 1e-2):
        edited = speed_edit(weight, pairs, null_projection(kept, threshold))
        moved.append(float((kept.double() @ (edited - weight.double()).T).norm()))
    assert moved[0] < 1e-6 < moved[1]
    with pytest.raises(ConfigError, match="edited must be one of 'v', 'k', 'kv', found 'q'"):
        eraser("speed:edited=q")


def test_gated_uce_draws_open_rows_as_uce_without_its_unconditional_rows(pipe, concept, prompts, drawn):
    with eraser("uce").prepare(pipe, [concept], seed=0).applied(pipe) as erased:
        always = drawn(erased, prompts[:1], guidance_scale=1.0)
    with eraser("gated-uce").prepare(pipe, [concept], seed=0).applied(pipe) as erased:
        gated = drawn(erased, prompts[:1], guidance_scale=1.0)
    torch.testing.assert_close(gated, always, atol=2e-3, rtol=0)


def test_weights_of_another_model_and_attached_membranes_are_refused(pipe, concept, tiny_unet):
    erasure = eraser("uce").prepare(pipe, [concept], seed=0)
    with attach(pipe, [random_membrane(pipe.unet)]):
        with pytest.raises(AttachError, match="detach it before other weights"), erasure.applied(pipe):
            pass
        with pytest.raises(AttachError, match="detach it before other weights"):
            eraser("uce").prepare(pipe, [concept], seed=0)
    pipe.unet = tiny_unet
    with pytest.raises(AttachError, match="was prepared on another model"), erasure.applied(pipe):
        pass
