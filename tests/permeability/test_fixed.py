import math

import pytest

from semipermeable.errors import PermeabilityError
from semipermeable.permeability import Constant, Decision, PaperTransport, PerConcept, Transport, resolve

from .fakes import encoder, gated

PROMPTS = encoder()(["a cat", "a dog", ""])


def gammas(rule, concept="cat"):
    return [d.gamma for d in rule.decide(PROMPTS, gated(concept))]


def test_names_and_numbers():
    assert isinstance(resolve("transport"), Transport)
    assert isinstance(resolve("paper"), PaperTransport)
    assert gammas(resolve("open")) == [1.0, 1.0, 1.0]
    assert gammas(resolve("closed")) == [0.0, 0.0, 0.0]
    assert gammas(resolve(0.25)) == [0.25] * 3
    assert gammas(resolve(1)) == [1.0] * 3


def test_mapping_by_concept_others_follow_transport():
    rule = resolve({"dog": 0.5})
    assert isinstance(rule, PerConcept)
    assert rule.names == ("dog",)
    assert gammas(rule, "dog") == [0.5] * 3
    assert gammas(rule, "cat") == [1.0, 0.0, 0.0]
    assert gammas(PerConcept({"dog": 0.5}, otherwise=Constant(0.1)), "cat") == [0.1] * 3


def test_own_object():
    class Mine:
        def decide(self, prompts, concept):
            return [Decision(0.5, "mine")] * len(prompts)

    mine = Mine()
    assert resolve(mine) is mine


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("tranport", "did you mean 'transport'"),
        (2.0, "strength=2"),
        (-0.1, "finite number in \\[0, 1\\]"),
        (math.nan, "finite number in \\[0, 1\\]"),
        (math.inf, "finite number in \\[0, 1\\]"),
        (True, "permeability is True"),
        (None, "permeability is None"),
        (Transport, "permeability is <class"),
        ({}, "names no concept"),
        ({"cat": 3}, "permeability of 'cat' is 3"),
        ({"cat": "open"}, "permeability of 'cat' must be a number"),
        ({3: 1.0}, "the key 3"),
    ],
)
def test_helpful_errors(spec, says):
    with pytest.raises(PermeabilityError, match=says):
        resolve(spec)
