"""Erasers towards the surrogate that this package's preset takes."""

import pytest
import torch

from semipermeable.errors import UnknownNameError
from semipermeable.evaluation.erasers import Eraser, eraser
from semipermeable.evaluation.erasers.artefacts import Cached
from semipermeable.evaluation.erasers.siblings import TowardsSiblings
from semipermeable.evaluation.erasers.spm import Spm
from semipermeable.training import TrainConfig, Workshop, enrich
from semipermeable.training.surrogates import reopened, settled


@pytest.fixture
def fallen(pipe, spec, concept):
    """The concept with its sibling as surrogate."""
    (found,) = settled(Workshop(pipe), [reopened(concept, spec)], TrainConfig(sibling_surrogate=True))
    assert found.surrogate != concept.surrogate
    return found


def test_it_erases_as_if_the_sibling_had_been_named(pipe, concept, fallen, style):
    for name in ("uce", "rece", "mace-closed-form", "speed", "gated-uce"):
        found = eraser(f"{name}:sibling").prepare(pipe, [concept, style], seed=0)
        wanted = eraser(name).prepare(pipe, [fallen, style], seed=0)
        assert found.config == wanted.config


def test_its_words_are_the_siblings(pipe, spec, concept, fallen, prompts, drawn):
    instead = [spec.caption(fallen.surrogate, spec.styles[0]), prompts[1]]
    with eraser("prompt-substitution:sibling").prepare(pipe, [concept], seed=0).applied(pipe) as erased:
        assert torch.equal(drawn(erased, prompts), drawn(pipe, instead))


def test_other_settings_stand_beside_the_word():
    found = eraser("uce:tuned,sibling")
    assert isinstance(found, TowardsSiblings)
    assert isinstance(found, Eraser)
    assert (found.name, found.gated) == ("uce:tuned,sibling", False)
    assert found.settings == eraser("uce:tuned").settings
    assert found.recipe is None
    assert eraser("gated-uce:sibling,ridge=2").settings.ridge == 2
    assert eraser("gated-uce:sibling").gated


def test_what_is_trained_towards_a_sibling_is_an_artefact_of_its_own():
    (plain,), (found,) = (eraser(spec).recipe.values() for spec in ("concept-ablation", "concept-ablation:sibling"))
    assert found == {**plain, "surrogate": "sibling"}
    assert Cached(eraser("concept-ablation:sibling"), None).recipe == {"concept-ablation": found}


@pytest.mark.parametrize("name", ["noop", "sld", "esd-x", "leco", "spm", "spm-reference", "negative-prompt"])
def test_who_does_not_read_the_surrogate_or_chooses_it_refuses_the_word(name):
    with pytest.raises(UnknownNameError):
        eraser(f"{name}:sibling")


@pytest.mark.parametrize("spec", ["uce:siblings", "rece:tuned,sibling", "prompt-substitution:siblings"])
def test_who_is_refused_another_word_is_told_of_this_one(spec):
    name = spec.partition(":")[0]
    with pytest.raises(UnknownNameError, match=f"after.*'{name}:sibling' aims at a sibling"):
        eraser(spec)


def test_our_own_takes_the_word_for_the_group_as_left_open(pipe, concept, fallen, style):
    workshop = Workshop(pipe)

    def told(**settings):
        method = Spm("spm", "transport", TrainConfig(num_steps=0, **settings))
        return [subject.concept for subject in method.subjects(workshop, [concept, style])]

    assert told() == [fallen, style]
    assert told(sibling_surrogate=False) == [concept, style]
    assert enrich(fallen, workshop.spec) == fallen


def test_membranes_from_files_are_asked_about_the_concept_as_it_is(pipe, concept):
    method = Spm("spm", "transport", TrainConfig(), files=("zoo:cat",))
    assert [subject.concept for subject in method.subjects(Workshop(pipe), [concept])] == [concept]
