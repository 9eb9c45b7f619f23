import pytest
import torch
from torch import nn
from torch.testing import assert_close

from semipermeable.rank1 import pair_shapes
from semipermeable.runtime import SHARED, SideBySide
from semipermeable.sites import find_sites


class _Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.mix = nn.Conv2d(4, 5, 1)
        self.out = nn.Linear(5, 2)

    def forward(self, x):
        return self.out(self.mix(self.conv(x)).flatten(2).transpose(1, 2))


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _Net().double().requires_grad_(False)


def _starts(sites, generator, count=3, rank=2):
    def pair(site):
        return tuple(torch.randn(shape, generator=generator) for shape in pair_shapes(site.layer, rank))

    return [{name: pair(site) for name, site in sites.items()} for _ in range(count)]


def _added(net, x, chosen):
    """The network with Σ u v of the chosen membranes added to its weights."""
    changed = _Net().double()
    changed.load_state_dict(net.state_dict())
    with torch.no_grad():
        for name, module in changed.named_children():
            for pairs in chosen:
                u, v = pairs[name]
                module.weight += (u.double() @ v.double().flatten(1)).reshape(module.weight.shape)
        return changed(x)


def test_each_row_sees_its_own_membrane_or_the_sum_of_all(net, generator):
    sites = find_sites(net, ())
    starts = _starts(sites, generator)
    x = torch.randn(5, 3, 6, 6, generator=generator, dtype=torch.float64)
    bare = net(x)
    stack = SideBySide(sites, starts, torch.device("cpu"))
    assert torch.equal(net(x), bare)
    stack.owners = torch.tensor([1, SHARED, 0, 2, 1])
    given = net(x)
    for row, owner in enumerate(stack.owners.tolist()):
        chosen = starts if owner == SHARED else [starts[owner]]
        assert_close(given[row : row + 1], _added(net, x[row : row + 1], chosen), atol=1e-9, rtol=1e-9)
    stack.owners = torch.tensor([0, 2, 1, 1, 0])
    own = net(x)
    for row, owner in enumerate([0, 2, 1, 1, 0]):
        assert_close(own[row : row + 1], _added(net, x[row : row + 1], [starts[owner]]), atol=1e-9, rtol=1e-9)
    stack.remove()
    assert torch.equal(net(x), bare)


def test_a_row_has_no_gradient_for_another_membrane(net, generator):
    sites = find_sites(net, ())
    stack = SideBySide(sites, _starts(sites, generator), torch.device("cpu"))
    x = torch.randn(2, 3, 6, 6, generator=generator, dtype=torch.float64)
    stack.owners = torch.tensor([0, 2])
    net(x).square().sum().backward()
    for parameter in stack.parameters():
        assert parameter.grad[0].any()
        assert not parameter.grad[1].any()
        assert parameter.grad[2].any()
        parameter.grad = None
    stack.owners = torch.tensor([SHARED, SHARED])
    net(x).square().sum().backward()
    assert all(parameter.grad[1].any() for parameter in stack.parameters())


def test_what_is_avoided_is_projected_away_and_frozen_copies_are_the_members(net, generator):
    sites = find_sites(net, ())
    starts = _starts(sites, generator)
    taken = {"out": [starts[0]["out"][1][:1]]}
    stack = SideBySide(sites, starts, torch.device("cpu"), taken)
    frozen = stack.freeze()
    assert_close(frozen[1]["conv"][0], starts[1]["conv"][0])
    for member in frozen:
        assert_close(member["out"][1] @ taken["out"][0].T, torch.zeros(2, 1), atol=1e-5, rtol=0)
    assert float((starts[1]["out"][1] @ taken["out"][0].T).abs().max()) > 0.1
    stack.remove()
