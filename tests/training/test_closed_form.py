import pytest
import torch
from torch.testing import assert_close

from semipermeable.sites import find_sites
from semipermeable.training.closed_form import (
    ClosedForm,
    StatePairs,
    complement,
    cross_attention_sites,
    null_space,
    pair_states,
    second_moment,
    wording_directions,
)


def _problem(generator):
    weight = torch.randn(10, 6, generator=generator)
    pairs = StatePairs(torch.randn(40, 6, generator=generator), torch.randn(40, 6, generator=generator))
    return weight, pairs, second_moment(torch.randn(100, 6, generator=generator))


def solve(weight, pairs, keep, *, keep_weight, negative_guidance, rank, within=None, spare=None):
    problem = ClosedForm(pairs, keep, keep_weight=keep_weight, within=within, spare=spare)
    return problem.solve(weight, negative_guidance=negative_guidance, rank=rank)


def _objective(delta, weight, pairs, keep, eta, lam):
    x_t, x_s = pairs.target.double(), pairs.surrogate.double()
    wanted = (1 + eta) * (x_s - x_t) @ weight.double().T
    erase = (x_t @ delta.T - wanted).pow(2).sum(1).mean()
    return erase + lam * torch.einsum("oi,ij,oj->", delta, keep, delta)


def test_full_rank_is_the_least_squares_solution(generator):
    weight, pairs, keep = _problem(generator)
    u, v = solve(weight, pairs, keep, keep_weight=0.3, negative_guidance=1.0, rank=6)
    delta = (u.double() @ v.double()).requires_grad_()
    (gradient,) = torch.autograd.grad(_objective(delta, weight, pairs, keep, 1.0, 0.3), delta)
    assert_close(gradient, torch.zeros_like(gradient), atol=1e-4, rtol=0)


@pytest.mark.parametrize("rank", [1, 2])
def test_no_step_away_from_the_truncated_solution_is_better(generator, rank):
    weight, pairs, keep = _problem(generator)
    u, v = (part.double() for part in solve(weight, pairs, keep, keep_weight=0.3, negative_guidance=1.0, rank=rank))
    best = float(_objective(u @ v, weight, pairs, keep, 1.0, 0.3))
    assert best < float(_objective(torch.zeros_like(weight).double(), weight, pairs, keep, 1.0, 0.3))
    for _ in range(50):
        du, dv = (0.02 * torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in (u, v))
        assert float(_objective((u + du) @ (v + dv), weight, pairs, keep, 1.0, 0.3)) >= best - 1e-9


def test_norms_are_balanced_and_missing_rank_is_zero(generator):
    weight, pairs, keep = _problem(generator)
    u, v = solve(weight, pairs, keep, keep_weight=0.3, negative_guidance=0.0, rank=8)
    assert u.shape == (10, 8)
    assert v.shape == (8, 6)
    assert_close(u.norm(dim=0), v.norm(dim=1), atol=1e-5, rtol=1e-4)
    assert not u[:, 6:].any()


def test_more_weight_on_what_is_kept_moves_it_less(generator):
    weight, pairs, keep = _problem(generator)
    moved = []
    for lam in (0.1, 10.0):
        u, v = solve(weight, pairs, keep, keep_weight=lam, negative_guidance=1.0, rank=1)
        moved.append(float(torch.einsum("oi,ij,oj->", (u @ v).double(), keep, (u @ v).double())))
    assert moved[1] < moved[0] / 10


def test_rows_start_at_the_concept_and_keep_their_roles(host):
    target, surrogate = host.encode(["a cat in neon style", "a sea animal in neon style"])
    span = host.encode(["cat"])[0].token_ids
    pairs = pair_states(target, surrogate, span)
    start = target.first + target.token_ids.index(span[0])
    assert_close(pairs.target, target.states[start:])
    shift = len(surrogate.token_ids) - len(target.token_ids)
    assert shift > 0
    after = start + len(span)
    assert_close(pairs.surrogate[len(span)], surrogate.states[after + shift])


def test_a_dropped_concept_meets_the_word_that_follows(host):
    target, surrogate = host.encode(["a neon icon", "an icon"])
    span = host.encode(["neon"])[0].token_ids
    pairs = pair_states(target, surrogate, span)
    icon = surrogate.first + surrogate.token_ids.index(target.token_ids[-1])
    assert_close(pairs.surrogate[len(span)], surrogate.states[icon])


def test_the_concept_lands_where_it_should_when_nothing_stands_against_it(generator):
    weight, pairs, _ = _problem(generator)
    one = StatePairs(pairs.target[:1], pairs.surrogate[:1])
    u, v = solve(weight, one, torch.eye(6) * 1e-9, keep_weight=1.0, negative_guidance=0.0, rank=1)
    assert_close((weight + u @ v) @ one.target[0], weight @ one.surrogate[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("lam", [0.1, 1.0, 10.0])
def test_the_change_on_what_is_kept_is_bounded_by_what_was_asked(generator, lam):
    weight, pairs, keep = _problem(generator)
    wanted = 2 * (pairs.surrogate - pairs.target).double() @ weight.double().T
    for rank in (1, 3, 6):
        u, v = solve(weight, pairs, keep, keep_weight=lam, negative_guidance=1.0, rank=rank)
        delta = (u @ v).double()
        moved = float(torch.einsum("oi,ij,oj->", delta, keep, delta))
        assert moved <= float(wanted.square().sum(1).mean()) / lam


def test_a_null_space_edit_changes_nothing_on_what_is_kept(generator):
    weight, pairs, _ = _problem(generator)
    kept = torch.randn(50, 3, generator=generator) @ torch.randn(3, 6, generator=generator)
    keep = second_moment(kept)
    free = null_space(keep, 1e-10)
    assert free.shape == (6, 3)
    u, v = solve(weight, pairs, keep, keep_weight=1.0, negative_guidance=1.0, rank=2, within=free)
    assert v.any()
    assert_close(kept @ (u @ v).T, torch.zeros(50, 10), atol=1e-4, rtol=0)
    free_u, free_v = solve(weight, pairs, keep, keep_weight=1.0, negative_guidance=1.0, rank=2)
    assert float((kept @ (free_u @ free_v).T).norm()) > 0.1


def test_a_confined_edit_is_the_best_of_its_span(generator):
    weight, pairs, keep = _problem(generator)
    span = torch.linalg.qr(torch.randn(6, 4, generator=generator, dtype=torch.float64))[0]
    u, v = solve(weight, pairs, keep, keep_weight=0.3, negative_guidance=1.0, rank=4, within=span)
    inside = (u.double() @ v.double() @ span).requires_grad_()
    (gradient,) = torch.autograd.grad(_objective(inside @ span.T, weight, pairs, keep, 1.0, 0.3), inside)
    assert_close(gradient, torch.zeros_like(gradient), atol=1e-4, rtol=0)


def test_a_full_span_confines_nothing(generator):
    weight, pairs, keep = _problem(generator)
    options = {"keep_weight": 0.3, "negative_guidance": 1.0, "rank": 2}
    turned = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    u, v = solve(weight, pairs, keep, **options)
    again_u, again_v = solve(weight, pairs, keep, **options, within=turned)
    assert_close(again_u @ again_v, u @ v, atol=1e-5, rtol=1e-4)


def test_eta_reaches_what_is_not_spared_and_nothing_else(generator):
    _, pairs, keep = _problem(generator)
    weight = torch.eye(6)
    spare = torch.linalg.qr(torch.randn(6, 2, generator=generator, dtype=torch.float64)).Q

    def change(eta, spare):
        u, v = solve(weight, pairs, keep, keep_weight=0.3, negative_guidance=eta, rank=6, spare=spare)
        return u.double() @ v.double()

    at_the_surrogate = change(0.0, None)
    assert_close(change(0.0, spare), at_the_surrogate, atol=1e-6, rtol=1e-5)
    beyond, further = (change(2.0, chosen) - at_the_surrogate for chosen in (spare, None))
    assert_close(spare.T @ beyond, torch.zeros(2, 6).double(), atol=1e-5, rtol=0)
    assert_close(beyond, further - spare @ (spare.T @ further), atol=1e-5, rtol=1e-4)
    assert float(beyond.norm()) > 0.1
    within = torch.linalg.qr(torch.randn(6, 3, generator=generator, dtype=torch.float64)).Q
    u, v = solve(
        weight, pairs, keep, keep_weight=0.3, negative_guidance=2.0, rank=6, within=within, spare=torch.eye(6).double()
    )
    confined = solve(weight, pairs, keep, keep_weight=0.3, negative_guidance=0.0, rank=6, within=within)
    assert_close(u @ v, confined[0] @ confined[1], atol=1e-5, rtol=1e-4)


def test_the_directions_of_wordings_hold_the_share_that_was_asked_for(generator):
    places, strong, weak = torch.randn(5, 6, generator=generator), torch.eye(6)[0], torch.eye(6)[1]
    states = torch.stack([places + a * 3 * strong + b * weak for a in (-1, 1) for b in (-1, 1)])
    for share, expected in (
        (0.0, []),
        (0.5, [strong]),
        (0.89, [strong]),
        (0.91, [strong, weak]),
        (1.0, [strong, weak]),
    ):
        found = wording_directions(states, share)
        wanted = torch.stack(expected, 1).double() if expected else torch.zeros(6, 0).double()
        assert found.shape == wanted.shape
        assert_close(found @ found.T, wanted @ wanted.T, atol=1e-6, rtol=0)
    assert wording_directions(states[:1], 1.0).shape == (6, 0), "one caption has one wording"


def test_the_complement_is_orthogonal_to_every_regulator(generator):
    first, second = torch.randn(2, 6, generator=generator), torch.randn(1, 6, generator=generator)
    basis = complement([first, second, first * 2], 6)
    assert basis.shape == (6, 3)
    assert_close(basis.T @ basis, torch.eye(3, dtype=torch.float64))
    assert_close(torch.cat([first, second]).double() @ basis, torch.zeros(3, 3, dtype=torch.float64), atol=1e-6, rtol=0)
    assert torch.equal(complement([], 4), torch.eye(4, dtype=torch.float64))


def _names(module, wanted=()):
    return set(cross_attention_sites(find_sites(module, ()), wanted))


def test_sites_are_found_by_the_hosts_names_or_by_structure(host):
    unet = host.denoiser
    assert _names(unet) == _names(unet, host.text_sites)
    assert all(name.endswith((".attn2.to_k", ".attn2.to_v")) for name in _names(unet))
    assert _names(unet, (".attn1.to_q",))
    assert all(name.endswith(".attn1.to_q") for name in _names(unet, (".attn1.to_q",)))


def test_where_text_and_image_are_mixed_the_first_projection_of_text_is_taken():
    from diffusers import FluxTransformer2DModel

    flux = FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=12,
        axes_dims_rope=(2, 2, 4),
    )
    assert _names(flux) == {"context_embedder"}
    assert not _names(torch.nn.Sequential(torch.nn.Linear(2, 2)))
