"""The index gives a superset of what the rule opens, whatever the names, prompts and gates."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from permeability.fakes import DIM, encode_one, gated, state_of
from semipermeable.concept import Concept
from semipermeable.errors import CalibrationError, ConceptError
from semipermeable.membrane import GateState
from semipermeable.permeability import Transport
from semipermeable.permeability.index import ConceptIndex

from helpers import transport_gate

NAMES = [
    "cat", "cats", "cherry", "ice cream", "sunflower", "sun flower", "van gogh", "wolf", "wolves", "mouse", "mice",
    "猫", "北京", "🐱", "x-ray", "3d", "spider-man", "dandelion", "lion", "a", "pixel art style", "l'été", "ﬁre",
    "o'brien", "tıp", "ß", "strasse", "mona lisa smile", "cta", "act",
]  # fmt: skip
PIECES = [
    *NAMES, "icecream", "ice-cream", "sun-flower", "lionn", "loin", "cherryy", "chery", "van", "gogh", "gogh van",
    "CAT", "Cat's", "cat face", "dandelions", "spiderman", "monalisasmile", "mona lisa", "vann gogh", "the", "on",
    ",", ".", "…", "_", "a_cat", "un été", "FIRE", "straße", "🐱🐶", "北京猫", "pixel-art style", "x ray",
]  # fmt: skip
texts = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=6).map(" ".join),
    st.lists(st.sampled_from(PIECES), max_size=4).map("".join),
    st.text(max_size=20),
    st.text(alphabet="actlion -'", max_size=12),
)
names = st.one_of(
    st.sampled_from(NAMES), st.text(alphabet="aclions -", min_size=1, max_size=10), st.text(min_size=1, max_size=5)
)


def gate_for(word, slack, name="x"):
    """A probe along a word's state: it opens prompts that hold the word, or only just not."""
    weight = state_of(word) / state_of(word).norm()
    score = float(state_of(word).double() @ weight.double())
    return transport_gate(weight, bias=0.25, threshold=score + 0.25 + slack, num_examples=6)


def concepts_of(drawn):
    found = []
    for name, aliases in drawn:
        try:
            found.append(Concept(name, aliases=tuple(aliases)))
        except ConceptError:
            continue
    return found


def check(index, concepts, gates, prompts):
    candidates = index.candidates(prompts)
    rule = Transport()
    opened = 0
    for number, (concept, gate) in enumerate(zip(concepts, gates, strict=True)):
        for prompt, keys, decision in zip(prompts, candidates, rule.decide(prompts, gated(concept, gate)), strict=True):
            opened += decision.gamma > 0
            assert decision.gamma == 0.0 or number in keys, (concept, prompt.text, decision)
    return opened


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(names, st.lists(names, max_size=2)), min_size=1, max_size=5),
    st.lists(texts, min_size=1, max_size=4),
    st.sampled_from([0.0, 1e-5, -1e-5, 0.5, -0.5]),
)
def test_every_concept_that_the_rule_opens_is_a_candidate(drawn, prompts, slack):
    concepts = concepts_of(drawn)
    gates = [None if n % 2 else gate_for(PIECES[n], slack) for n in range(len(concepts))]
    index = ConceptIndex()
    for number, (concept, gate) in enumerate(zip(concepts, gates, strict=True)):
        index.add(number, concept, gate)
    check(index, concepts, gates, [encode_one(text) for text in prompts])


def test_the_property_is_not_empty():
    concepts = [Concept(name) for name in NAMES]
    gates = [gate_for("the", 0.0)] + [None] * (len(NAMES) - 1)
    index = ConceptIndex()
    for number, (concept, gate) in enumerate(zip(concepts, gates, strict=True)):
        index.add(number, concept, gate)
    prompts = [encode_one(text) for text in PIECES]
    assert check(index, concepts, gates, prompts) > len(NAMES)


def test_a_candidate_is_rare():
    index = ConceptIndex()
    for number in range(2000):
        index.add(number, Concept(f"w{number:04x} thing{number}"), gate_for(f"w{number:04x}", 0.0))
    index.add("cat", Concept("cat"), None)
    found = index.candidates([encode_one("a drawing of the cat"), encode_one("w0005"), encode_one("")])
    assert found == [{"cat"}, {5}, set()]


def test_removing_is_the_inverse_of_adding():
    index = ConceptIndex()
    index.add("a", Concept("cat", aliases=("猫",)), gate_for("dog", 0.0))
    index.add("b", Concept("cat face"), None)
    prompt = [encode_one("cat"), encode_one("猫"), encode_one("dog")]
    assert index.candidates(prompt) == [{"a", "b"}, {"a"}, {"a"}]
    index.remove("a")
    index.remove("a")
    assert index.candidates(prompt) == [{"b"}, set(), set()]
    assert len(index) == 1
    index.remove("b")
    assert not any((index._words, index._slips, index._joined, index._probes))
    index.add("a", Concept("dog"), None)
    index.add("a", Concept("cat"), None)
    assert index.candidates([encode_one("dog"), encode_one("cat")]) == [set(), {"a"}]


def test_a_gate_that_the_rule_refuses_is_always_a_candidate():
    index = ConceptIndex()
    index.add("kind", Concept("k"), GateState("mine", {}, {}))
    index.add("damaged", Concept("d"), GateState("transport", {}, {}))
    settings_, tensors = gate_for("the", 0.0).settings, {"weight": torch.ones(DIM + 1)}
    wide = GateState("transport", settings_, tensors)
    index.add("wide", Concept("w"), wide)
    prompt = encode_one("on the road")
    assert index.candidates([prompt]) == [{"kind", "damaged", "wide"}]
    with pytest.raises(CalibrationError, match="width"):
        Transport().decide([prompt], gated(Concept("w"), wide))


def test_states_that_overflowed_in_one_prompt_hide_nothing_in_another():
    index = ConceptIndex()
    for name in ("cat", "dog"):
        index.add(name, Concept(f"no {name} name"), gate_for(name, -0.5))
    whole, broken = encode_one("a cat"), encode_one("a dog")
    assert index.candidates([whole]) == [{"cat"}]
    for bad in (float("nan"), float("inf")):
        states = broken.states.clone()
        states[1, 0] = bad
        assert index.candidates([dataclasses.replace(broken, states=states), whole]) == [{"cat", "dog"}, {"cat"}]


def test_all_texts_of_a_row_count_and_names_as_text_beside_kept_ones():
    index, concepts = ConceptIndex(), [Concept("dog", aliases=("🐶",)), Concept("cat"), Concept("no such name")]
    gates = [None, None, gate_for("tree", -0.5)]
    for number, (concept, gate) in enumerate(zip(concepts, gates, strict=True)):
        index.add(number, concept, gate)
    parts = tuple(encode_one(text) for text in ("a hot dog and a 🐶", "a cat", "a tree"))
    prompts = [dataclasses.replace(encode_one(""), parts=parts), encode_one("a cat"), parts[0]]
    assert index.candidates(prompts) == [{0, 1, 2}, {1}, {0}]
    assert check(index, concepts, gates, prompts) == 5
