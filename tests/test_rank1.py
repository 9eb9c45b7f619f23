"""The law of one site: y_r = W x_r + Σ_c γ_{r,c} u_c (v_c · x_r), exactly, for every layer geometry."""

import pytest
import torch
from torch import nn

from semipermeable.errors import SiteError
from semipermeable.rank1 import folded_weight, low_rank_delta, pair_shapes

LAYERS = [
    (nn.Linear(6, 5), (3, 6)),
    (nn.Linear(6, 5, bias=False), (3, 7, 6)),
    (nn.Conv2d(6, 5, 1), (3, 6, 4, 4)),
    (nn.Conv2d(6, 5, 3, stride=2, padding=1), (3, 6, 8, 8)),
    (nn.Conv2d(6, 5, (1, 3), padding=(0, 2), dilation=(1, 2)), (3, 6, 5, 9)),
]


def draw(layer, shape, rank, generator):
    u_shape, v_shape = pair_shapes(layer, rank)
    u, v = (torch.randn(s, generator=generator, dtype=torch.float64) for s in (u_shape, v_shape))
    return u, v, torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_delta_is_what_the_folded_weight_adds(layer, shape, rank, generator):
    layer = layer.double()
    u, v, x = draw(layer, shape, rank, generator)
    gamma = torch.tensor([0.0, 1.0, 0.3], dtype=torch.float64)
    y = layer(x) + low_rank_delta(layer, x, u, v, gamma[:, None].expand(3, rank))
    for row in range(3):
        weight = layer.weight + float(gamma[row]) * (u @ v.flatten(1)).reshape(layer.weight.shape)
        with torch.no_grad():
            expected = torch.func.functional_call(layer, {"weight": weight}, (x[row : row + 1],))
        torch.testing.assert_close(y[row : row + 1], expected)


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_stacked_pairs_add_up_without_cross_terms(layer, shape, generator):
    layer = layer.double()
    u1, v1, x = draw(layer, shape, 1, generator)
    u2, v2, _ = draw(layer, shape, 2, generator)
    g1 = torch.rand(3, 1, generator=generator, dtype=torch.float64)
    g2 = torch.rand(3, 2, generator=generator, dtype=torch.float64)
    together = low_rank_delta(layer, x, torch.cat([u1, u2], 1), torch.cat([v1, v2]), torch.cat([g1, g2], 1))
    apart = low_rank_delta(layer, x, u1, v1, g1) + low_rank_delta(layer, x, u2, v2, g2)
    torch.testing.assert_close(together, apart)


def test_flipping_both_signs_is_the_same_membrane(generator):
    layer = nn.Linear(6, 5).double()
    u, v, x = draw(layer, (3, 7, 6), 2, generator)
    gamma = torch.rand(3, 2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(low_rank_delta(layer, x, -u, -v, gamma), low_rank_delta(layer, x, u, v, gamma))
    weight = layer.weight.detach()
    assert torch.equal(folded_weight(weight, -u, -v), folded_weight(weight, u, v))


def test_delta_is_linear_in_gamma(generator):
    layer = nn.Conv2d(4, 4, 3, padding=1).double()
    u, v, x = draw(layer, (2, 4, 6, 6), 1, generator)
    a, b = torch.rand(2, 1, generator=generator, dtype=torch.float64), torch.rand(2, 1, dtype=torch.float64)
    sum_of = low_rank_delta(layer, x, u, v, a) + 2 * low_rank_delta(layer, x, u, v, b)
    torch.testing.assert_close(low_rank_delta(layer, x, u, v, a + 2 * b), sum_of)


def test_folding_in_half_precision_rounds_once(generator):
    weight = torch.randn(5, 6, generator=generator).half()
    u, v = torch.randn(5, 1, generator=generator), torch.randn(1, 6, generator=generator)
    assert torch.equal(folded_weight(weight, u, v, 0.5), (weight.float() + 0.5 * u @ v).half())


@pytest.mark.parametrize(
    "layer", [nn.LayerNorm(4), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 1, padding_mode="circular")]
)
def test_other_layers_are_refused(layer):
    with pytest.raises(SiteError):
        pair_shapes(layer)
