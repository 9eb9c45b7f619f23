import numpy
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

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


def test_what_are_no_tensors_is_refused_naming_the_site():
    array = torch.ones(4, 1).numpy()
    for wrong, found in [
        (torch.ones(4, 1), "found Tensor"),
        ((array, array.T), r"found \(ndarray, ndarray\)"),
        (pair()[:1], r"found \(Tensor\)"),
    ]:
        with pytest.raises(MembraneError, match=rf"site 'x': expected two torch tensors \(u, v\), {found}"):
            Membrane({"x": wrong}, CAT)


def test_a_concept_is_no_name():
    with pytest.raises(MembraneError, match=r"concept must be a Concept, found 'cat'; write Concept\('cat'\)"):
        Membrane({"x": pair()}, "cat")


def test_pairs_of_another_device_are_kept_on_the_cpu(monkeypatch):
    """So that they meet strengths, weights and each other in one place."""
    monkeypatch.setattr(torch, "isfinite", lambda _: numpy.bool_(True))
    with FakeTensorMode():
        u, v = torch.empty(4, 1, device="cuda"), torch.empty(1, 3, device="cuda")
        membrane = Membrane({"x": (u, v)}, CAT)
    assert {part.device.type for part in (u, v)} == {"cuda"}
    assert {part.device.type for part in membrane.pairs["x"]} == {"cpu"}


def test_gate_power_is_one_or_two():
    with pytest.raises(MembraneError, match="gate_power"):
        Membrane({"x": pair()}, CAT, gate_power=3)
