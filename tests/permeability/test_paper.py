"""The paper's rule against values computed by hand."""

import dataclasses

import pytest
import torch

from semipermeable.concept import Concept
from semipermeable.errors import PermeabilityError
from semipermeable.permeability import EncodedPrompt, GatedConcept, PaperTransport


def prompt(text, ids, states, pooled=None):
    pooled = None if pooled is None else torch.tensor(pooled)
    return EncodedPrompt(text, tuple(ids), tuple(f"t{i}" for i in ids), torch.tensor(states), pooled)


EMPTY = prompt("", [], [[0.0, 0.0], [0.0, 1.0]])
CAT = prompt("cat", [7], [[1.0, 0.0], [0.0, 0.0]], [1.0, 0.0])
VAN_GOGH = prompt("van gogh", [3, 4, 4], [[1.0, 0.0], [0.0, 0.0]])


def concept(*names):
    return GatedConcept(Concept(names[0].text, aliases=tuple(n.text for n in names[1:])), names, EMPTY)


def test_cosine_of_flattened_states():
    p = prompt("dog", [9], [[3.0, 0.0], [0.0, 4.0]])  # cosine 3 / 5
    [d] = PaperTransport().decide([p], concept(CAT))
    assert d.gamma == pytest.approx(0.6)
    assert d.similarity == pytest.approx(0.6)
    assert d.matched == ()


def test_share_of_distinct_tokens_wins_where_it_is_larger():
    p = prompt("van", [3, 9], [[0.0, 1.0], [0.0, 0.0]])  # cosine 0, one of two distinct tokens
    [d] = PaperTransport().decide([p], concept(VAN_GOGH))
    assert d.gamma == pytest.approx(0.5)
    assert d.matched == ("t3",)


def test_clipped_to_zero():
    p = prompt("anti", [9], [[-1.0, 0.0], [0.0, 0.0]])
    [d] = PaperTransport().decide([p], concept(CAT))
    assert d.gamma == 0.0
    assert d.similarity == pytest.approx(-1.0)


def test_largest_over_aliases():
    kitty = prompt("kitty", [8], [[0.0, 0.0], [0.0, 1.0]])
    p = prompt("a kitty", [1, 8], [[1.0, 0.0], [0.0, 0.5]])
    [alone] = PaperTransport().decide([p], concept(CAT))
    [both] = PaperTransport().decide([p], concept(CAT, kitty))
    assert alone.gamma < 1.0
    assert both.gamma == 1.0


def test_pooled_has_an_effect_and_needs_a_pooled_encoding():
    p = prompt("dog", [9], [[3.0, 0.0], [0.0, 4.0]], [0.0, 1.0])
    [d] = PaperTransport("pooled").decide([p], concept(CAT))
    assert d.gamma == 0.0
    with pytest.raises(PermeabilityError, match="no pooled encoding"):
        PaperTransport("pooled").decide([VAN_GOGH], concept(CAT))
    with pytest.raises(PermeabilityError, match='"flattened" or "pooled"'):
        PaperTransport("mean")


def test_prompts_are_decided_one_by_one():
    prompts = [CAT, EMPTY, VAN_GOGH]
    batch = [d.gamma for d in PaperTransport().decide(prompts, concept(CAT))]
    assert batch == [PaperTransport().decide([p], concept(CAT))[0].gamma for p in prompts]


def test_of_a_rows_texts_the_largest_counts():
    other = prompt("a kitty", [1, 8], [[1.0, 0.0], [0.0, 0.5]])
    row = dataclasses.replace(EMPTY, parts=(other, CAT))
    [alone], [both] = (PaperTransport().decide([p], concept(CAT)) for p in (other, row))
    assert alone.gamma < both.gamma == 1.0
