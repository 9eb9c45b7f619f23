import json

import pytest
import torch

from semipermeable.concept import Concept
from semipermeable.errors import ConfigError
from semipermeable.membrane import Membrane
from semipermeable.training import Workshop, erase_many
from semipermeable.training.interference import measure_interference, overlaps

from training_helpers import quick

KEPT = ["a neon icon of a car", "a tree"]


def _membrane(workshop, name, pairs):
    site = next(iter(workshop.text_projections()))
    return Membrane({site: pairs}, Concept(name))


def _pair(workshop, generator, v=None):
    site = next(iter(workshop.text_projections().values()))
    out, dim = site.weight.shape
    return torch.randn(out, 1, generator=generator), torch.randn(1, dim, generator=generator) if v is None else v


def test_a_membrane_overlaps_wholly_with_itself_and_against_its_opposite(host, generator):
    workshop = Workshop(host)
    u, v = _pair(workshop, generator)
    one, same, opposite = (_membrane(workshop, name, (scale * u, v)) for name, scale in (("a", 1), ("b", 3), ("c", -1)))
    first, second, third = overlaps(workshop, [one, same, opposite], KEPT)
    assert (first.first, first.second, first.weighted) == ("a", "b", True)
    assert (first.regulators, first.changes) == pytest.approx((1, 1))
    assert (second.regulators, second.changes) == pytest.approx((1, -1))
    assert third.changes == pytest.approx(-1)


def test_overlap_does_not_depend_on_how_a_pair_splits_its_norm(host, generator):
    workshop = Workshop(host)
    (u, v), (u_2, v_2) = _pair(workshop, generator), _pair(workshop, generator)
    other = _membrane(workshop, "b", (u_2, v_2))
    found = [overlaps(workshop, [_membrane(workshop, "a", (s * u, v / s)), other], KEPT)[0] for s in (1.0, 50.0)]
    assert found[0].changes == pytest.approx(found[1].changes, rel=1e-4)
    assert found[0].regulators == pytest.approx(found[1].regulators, rel=1e-4)
    assert 0 < found[0].regulators < 1


def test_regulators_orthogonal_on_the_kept_text_do_not_overlap(host, generator):
    workshop = Workshop(host)
    u, v = _pair(workshop, generator)
    seen = (workshop.keep_moment(KEPT) @ v[0].double()).float()
    w = torch.randn(len(seen), generator=generator)
    w = w - seen * (w @ seen) / (seen @ seen)
    found = overlaps(workshop, [_membrane(workshop, "a", (u, v)), _membrane(workshop, "b", (u, w[None]))], KEPT)[0]
    assert (found.regulators, found.changes) == pytest.approx((0, 0), abs=1e-4)


def test_predictions_tell_a_disturbed_membrane_from_an_undisturbed_one(tiny_pipe):
    """A membrane of no effect disturbs nothing; one that undoes another disturbs it by its whole effect."""
    workshop = Workshop(tiny_pipe)
    cat = erase_many(tiny_pipe, ["cat"], config=quick("instant", num_steps=0), progress=False)[0]
    nothing = Membrane({n: (torch.zeros_like(u), v) for n, (u, v) in cat.pairs.items()}, Concept("dog"))
    undoing = Membrane({n: (-u, v) for n, (u, v) in cat.pairs.items()}, Concept("dog"))
    options = {"captions_each": 2, "sampling_steps": 2}
    calm = measure_interference(workshop, [cat, nothing], **options)
    assert calm.disturbances[0].alone > 0
    assert calm.disturbances[0].disturbed == pytest.approx(0, abs=1e-6)
    assert calm.kept_all == pytest.approx(calm.disturbances[0].kept, rel=1e-3)
    undone = measure_interference(workshop, [cat, undoing], **options)
    assert undone.disturbances[0].disturbed == pytest.approx(1, rel=1e-2)
    assert undone.kept_all == pytest.approx(0, abs=1e-9)
    assert undone.worst()[0].changes == pytest.approx(-1, rel=1e-4)
    assert len(json.loads(json.dumps(undone.to_json()))["overlaps"]) == len(cat.pairs)
    assert not any(module._forward_hooks for module in tiny_pipe.unet.modules())


def test_a_concept_that_falls_to_what_another_erases_is_told(tiny_pipe):
    workshop = Workshop(tiny_pipe)
    cat = erase_many(tiny_pipe, ["cat"], config=quick("instant", num_steps=0), progress=False)[0]
    dog = Membrane(cat.pairs, Concept("dog", aliases=("Puppy",), surrogate="animal"))
    for surrogate, wanted in (("puppy", [["cat", "dog"]]), ("", []), ("fox", [])):
        own = Membrane(cat.pairs, Concept("cat", surrogate=surrogate))
        found = measure_interference(workshop, [own, dog], captions_each=1, sampling_steps=1)
        assert found.to_json()["undone"] == wanted


def test_one_membrane_or_two_of_a_name_are_refused(tiny_pipe):
    cat = erase_many(tiny_pipe, ["cat"], config=quick("instant", num_steps=0), progress=False)[0]
    for given in ([cat], [cat, cat]):
        with pytest.raises(ConfigError, match="two or more membranes of different concepts"):
            measure_interference(Workshop(tiny_pipe), given)
