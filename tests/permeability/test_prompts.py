import pytest

from semipermeable.concept import Concept
from semipermeable.errors import CalibrationError
from semipermeable.permeability import kind_of, negatives, wordings
from semipermeable.permeability.prompts import means, plural
from semipermeable.permeability.vocabulary import COMPOUNDS, NOUNS
from semipermeable.permeability.words import find, split

CAT = Concept("cat", aliases=("kitten",))


def test_every_wording_holds_a_name():
    for concept in (CAT, Concept("neon"), Concept("ice cream"), Concept("cherries")):
        for example in wordings(concept):
            words = split(example.text)
            assert any(find(name, words, known=set()) for name in concept.names), example
            assert example.subject in concept.names


def test_wordings_hold_plurals_slips_and_capitals():
    texts = [example.text for example in wordings(CAT)]
    assert any("cats" in text for text in texts)
    assert any("caat" in text for text in texts)
    assert any("CAT" in text for text in texts)
    assert len(texts) == len(set(texts))


def test_no_negative_means_the_concept():
    vocabulary = [
        "cat",
        "Cats",
        "a photo of a cat",
        "cat face",
        "a photo of a cat face",
        "dog",
        "a dog in the sun",
        "neon",
    ]
    examples = negatives(CAT, vocabulary)
    subjects = {example.subject for example in examples}
    assert {"cat face", "dog", "neon", "a dog in the sun", "a photo of a cat face"} <= subjects
    assert not {"cat", "Cats", "a photo of a cat"} & subjects
    assert "a neon icon of a dog" in {e.text for e in examples} | {e.text.replace("3d", "neon") for e in examples}


@pytest.mark.parametrize("name", ["tree", "house", "car", "star"])
def test_no_template_brings_the_concept_into_a_prompt_about_something_else(name):
    concept = Concept(name)
    for example in negatives(concept, ["dog", "neon", "watercolour", "flat"]):
        assert not means(concept, example.text, ()), example
    assert len({example.text for example in negatives(concept, ["watercolour"]) if "watercolour" in example.text}) > 4


def test_a_style_is_recognised_and_never_painted_into_its_negatives():
    assert kind_of(Concept("neon")) == "style"
    assert kind_of(Concept("ghibli style")) == "style"
    assert kind_of(CAT) == "object"
    assert not any("neon" in example.text for example in negatives(Concept("neon"), ["flat", "dog"]))
    assert any(example.text == "a flat icon" for example in negatives(Concept("neon"), ["flat", "dog"]))


def test_kind_has_an_effect():
    assert wordings(Concept("neon"), kind="object") != wordings(Concept("neon"))


def test_without_a_vocabulary_plain_english_is_used():
    subjects = {example.subject for example in negatives(CAT)}
    assert {"dog", "tiger", "house", "watercolour"} <= subjects


def test_nothing_left_is_an_error():
    with pytest.raises(CalibrationError, match="all 2 entries"):
        negatives(Concept("cat"), ["cat", "cats"])


@pytest.mark.parametrize(
    ("one", "many"),
    [("cat", "cats"), ("bus", "buses"), ("cherry", "cherries"), ("cherries", "cherries"), ("key", "keys")],
)
def test_plural(one, many):
    assert plural(one) == many


@pytest.mark.parametrize(
    "aliases",
    [
        ("neon", "3d", "flat", "pencil sketch", "blueprint", "watercolour", "pixel art"),
        ("tree", "house", "ball", "chair"),
        ("tree", "house", "ball", "chair", "key", "fish", "car", "star"),
    ],
)
@pytest.mark.parametrize("kind", ["object", "style"])
def test_a_concept_may_name_what_the_templates_hold(aliases, kind):
    wide = Concept("anything", aliases=aliases)
    assert {example.subject for example in wordings(wide, kind)} >= {"anything", *aliases}
    assert not any(means(wide, example.text, COMPOUNDS) for example in negatives(wide, kind=kind))


def test_a_concept_that_names_everything_is_refused():
    with pytest.raises(CalibrationError, match="every built-in name"):
        wordings(Concept("anything", aliases=NOUNS))
