"""The default rule on the bundled model's own text encoder, against words and neighbours of that model."""

import pytest
import torch

from semipermeable import zoo
from semipermeable.concept import Concept
from semipermeable.hosts import host_for
from semipermeable.membrane import GateState
from semipermeable.permeability import GatedConcept, PaperTransport, Transport, fit, negatives, wordings

UNSEEN = ("my favourite {}, flat", "look at this {}!", "in neon style, one {}", "a house, a tree and a {}")


@pytest.fixture(scope="module")
def spec():
    return zoo.spec("emoji")


@pytest.fixture
def host(pipe):
    return host_for(pipe)


def fitted(host, spec, concept):
    return fit(
        concept,
        host.encode,
        positives=wordings(concept),
        negatives=negatives(concept, [*spec.object_names, *spec.styles]),
        encoder_hash=host.text_encoder_hash(),
        generator=torch.Generator().manual_seed(0),
    )


def gate_for(host, spec, concept):
    gate = GateState("transport", *fitted(host, spec, concept).to_parts())
    return GatedConcept(concept, tuple(host.encode(list(concept.names))), host.encode([""])[0], gate)


def gammas(rule, host, texts, concept):
    return [decision.gamma for decision in rule.decide(host.encode(texts), concept)]


def test_the_cat_opens_in_any_wording_and_its_neighbours_stay_closed(host, spec):
    cat = gate_for(host, spec, Concept("cat", aliases=spec.object("cat").aliases))
    opened = [t.format(form) for t in UNSEEN for form in (*cat.concept.names, "cats", "CAT", "cta", "cat's toy")]
    assert gammas(Transport(), host, opened, cat) == [1.0] * len(opened)
    others = [name for name in spec.object_names if name not in cat.concept.names]
    assert set(spec.object("cat").twins) <= set(others)
    closed = [
        "",
        *(t.format(name) for t in UNSEEN for name in others),
        *(f"a {s} icon" for s in spec.styles),
        "an animal",
    ]
    assert gammas(Transport(), host, closed, cat) == [0.0] * len(closed)


def test_a_style_opens_and_other_styles_stay_closed(host, spec):
    neon = gate_for(host, spec, Concept("neon"))
    opened = ["a neon icon of a dog", "a dog, neon style", "in neon style", "Neon: a cat"]
    assert gammas(Transport(), host, opened, neon) == [1.0] * len(opened)
    closed = [spec.caption(o, s) for o in spec.object_names[::7] for s in spec.styles if s != "neon"]
    assert gammas(Transport(), host, closed, neon) == [0.0] * len(closed)


def test_the_papers_rule_never_closes_here(host, spec):
    cat = Concept("cat")
    gated = GatedConcept(cat, tuple(host.encode(["cat"])), host.encode([""])[0])
    unrelated = gammas(PaperTransport(), host, ["", "an icon of a dog"], gated)
    assert min(unrelated) > 0.05
    assert gammas(PaperTransport(), host, ["an icon of a cat"], gated) == [1.0]


def test_a_probe_that_cannot_find_its_own_names_is_off(host, spec):
    penguin = fitted(host, spec, Concept("penguin"))
    assert penguin.held_out_open_rate < 0.5
    assert penguin.threshold is None
    neon = fitted(host, spec, Concept("neon"))
    assert neon.held_out_open_rate >= 0.5
    assert neon.threshold is not None


def test_no_negative_of_a_fit_opens_the_gate(host, spec):
    neon = gate_for(host, spec, Concept("neon"))
    closed = [example.text for example in negatives(neon.concept, [*spec.object_names, *spec.styles])]
    assert gammas(Transport(), host, closed, neon) == [0.0] * len(closed)
