import pytest
import torch
from torch.testing import assert_close

from semipermeable.training.closed_form import StatePairs, pair_states, second_moment, solve


def _problem(generator):
    weight = torch.randn(10, 6, generator=generator)
    pairs = StatePairs(torch.randn(40, 6, generator=generator), torch.randn(40, 6, generator=generator))
    return weight, pairs, second_moment(torch.randn(100, 6, generator=generator))


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
