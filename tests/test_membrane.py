import pytest
import torch

from semipermeable.concept import Concept
from semipermeable.errors import MembraneError
from semipermeable.membrane import Membrane

CAT = Concept("cat")


def pair(out=4, k=1, inside=3):
    return torch.ones(out, k), torch.ones(k, inside)


def test_a_membrane_keeps_its_own_copy_and_cannot_be_changed():
    u, v = pair()
    membrane = Membrane({"b": (u, v), "a": pair(k=2)}, CAT)
    u.zero_()
    assert membrane.pairs["b"][0].sum() == 4
    assert list(membrane.pairs) == ["a", "b"]
    assert (membrane.rank, membrane.num_parameters, membrane.name) == (2, 7 + 14, "cat")
    with pytest.raises(TypeError):
        membrane.pairs["c"] = pair()


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({}, "has no site"),
        ({"x": (torch.ones(4), torch.ones(1, 3))}, r"site 'x': expected u \(out, k\)"),
        ({"x": (torch.ones(4, 2), torch.ones(1, 3))}, "site 'x': expected"),
        ({"x": (torch.ones(4, 0), torch.ones(0, 3))}, "site 'x': expected"),
        ({"x": (torch.ones(4, 1, dtype=torch.int32), torch.ones(1, 3))}, "must be floating point"),
        ({"x": (torch.full((4, 1), float("nan")), torch.ones(1, 3))}, "site 'x': u holds NaN"),
        ({"x": (torch.ones(4, 1), torch.full((1, 3), float("inf")))}, "site 'x': v holds NaN or infinity"),
    ],
)
def test_inconsistent_pairs_are_refused_naming_the_site(pairs, message):
    with pytest.raises(MembraneError, match=message):
        Membrane(pairs, CAT)


def test_gate_power_is_one_or_two():
    with pytest.raises(MembraneError, match="gate_power"):
        Membrane({"x": pair()}, CAT, gate_power=3)
