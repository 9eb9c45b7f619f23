"""Names, spec strings, cards, third parties, and the promise that every eraser makes: the pipeline comes back."""

from importlib.metadata import EntryPoint

import pytest

from semipermeable.errors import ConceptError, ConfigError, UnknownNameError
from semipermeable.evaluation.erasers import Card, Registration, card, eraser, names, registry
from semipermeable.evaluation.erasers.noop import Noop

CARD = Card(paper="none", defaults="none", tuned="nothing")


@pytest.mark.parametrize("name", names())
def test_every_eraser_has_a_full_card(name):
    shown = card(f"{name}:anything")
    assert all((shown.paper, shown.defaults, shown.tuned))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ucce", "unknown eraser 'ucce'; did you mean 'uce'"),
        ("noop:max", "takes nothing after its name, found 'max'; write 'noop'"),
        ("spm:cat.bin", r"after 'spm' comes 'instant' or a setting such as rank=…, found 'cat.bin'"),
        ("spm:cat.safetensors,rank=2", r"membrane files \(\.safetensors\) or settings of training, found both"),
        ("sld:huge", r"strength of the eraser 'sld' 'huge'"),
    ],
)
def test_unknown_names_are_refused_with_the_next_step(spec, message):
    with pytest.raises(UnknownNameError, match=message):
        eraser(spec)


def test_an_eraser_needs_concepts_of_different_names(pipe, concept):
    for wrong in ([], [concept, concept]):
        with pytest.raises(ConceptError, match="one or more concepts of different names"):
            Noop().prepare(pipe, wrong, seed=0)


def test_third_parties_bring_a_registration(monkeypatch):
    monkeypatch.setattr(registry, "_third_parties", lambda: (EntryPoint("mine", f"{__name__}:MINE", registry.GROUP),))
    monkeypatch.setattr(EntryPoint, "load", lambda self: Registration(make=lambda argument: Noop(), card=CARD))
    assert "mine" in names()
    assert eraser("mine:x").name == "noop"
    assert card("mine") is CARD
    monkeypatch.setattr(EntryPoint, "load", lambda self: Noop)
    with pytest.raises(ConfigError, match=r"entry point 'mine' .* expected a Registration"):
        eraser("mine")
