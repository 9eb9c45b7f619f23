import dataclasses

import pytest

from semipermeable import zoo
from semipermeable.concept import Concept
from semipermeable.training import captions_for, enrich
from semipermeable.training.captions import speaks_of, spec_of

SPEC = zoo.spec("emoji")


def test_the_bundled_pipeline_is_recognised(pipe):
    assert spec_of(pipe) == SPEC
    assert spec_of(object()) is None


def test_a_plain_name_is_completed_from_the_spec():
    cat = enrich("cat", SPEC)
    assert cat.surrogate == SPEC.object("cat").group
    assert cat.aliases == SPEC.object("cat").aliases
    assert "cat face" in cat.keep
    assert enrich("neon", SPEC) == Concept("neon", surrogate=SPEC.styles[0])
    assert enrich(SPEC.styles[0], SPEC).surrogate == SPEC.styles[1]
    assert enrich("zeppelin", SPEC) == Concept("zeppelin")
    assert enrich("cat", None) == Concept("cat")


def test_names_are_looked_up_whatever_the_case_and_keep_their_spelling():
    cat, known = enrich("Cat", SPEC), enrich("cat", SPEC)
    assert cat == dataclasses.replace(known, name="Cat")
    assert enrich(known.aliases[0].upper(), SPEC).surrogate == known.surrogate
    assert enrich("NEON", SPEC) == Concept("NEON", surrogate=SPEC.styles[0])
    assert enrich("The Varnok Seal", SPEC) == Concept("The Varnok Seal", surrogate="castle")
    assert SPEC.object("Cat Face") is SPEC.object("cat face") is SPEC.find("CAT FACE")
    assert SPEC.find("catt") is None
    assert enrich(Concept("cat", aliases=("Animal",)), SPEC).surrogate == ""
    assert enrich(Concept("neon", aliases=(SPEC.styles[0].title(),)), SPEC).surrogate == SPEC.styles[1]


@pytest.mark.parametrize("name", ["cat", "neon", "portrait of mevrin"])
def test_captions_are_the_same_whatever_the_case(name):
    spelt, known = (captions_for(enrich(text, SPEC), SPEC) for text in (name.title(), name))
    assert spelt.names == (name.title(), *known.names[1:])
    assert (spelt.kind, spelt.anchors, spelt.twins) == (known.kind, known.anchors, known.twins)
    assert [text.casefold() for text in spelt.targets] == list(known.targets)
    assert spelt.surrogates == known.surrogates


@pytest.mark.parametrize(
    ("text", "name", "does"),
    [
        ("a photo of a t-shirt", "t-shirt", True),
        ("a photo of a T shirt, red", "t-shirt", True),
        ("a photo of a shirt", "t-shirt", False),
        ("rock 'n' roll, live", "rock 'n' roll", True),
        ("a photo of a catfish", "cat", False),
        ("a, (photo) of. -- it", "!?", False),
    ],
)
def test_a_text_speaks_of_a_name_whatever_the_signs_in_either(text, name, does):
    assert speaks_of(text, Concept(name)) is does


def test_a_written_concept_is_respected():
    own = Concept("cat", surrogate="dog")
    assert enrich(own, SPEC) == own
    assert enrich(Concept("cat"), SPEC) == Concept("cat", surrogate=SPEC.object("cat").group)


def test_the_surrogate_stands_in_the_wording():
    captions = captions_for(enrich("cat", SPEC), SPEC)
    pairs = dict(zip(captions.targets, captions.surrogates, strict=True))
    assert pairs["a neon icon of a cat"] == "a neon icon of an animal"
    assert pairs["a cat in 3d style"] == "an animal in 3d style"


def test_a_style_falls_to_another_in_the_wording():
    style = captions_for(Concept("neon", aliases=("glowing",), surrogate="sepia"), SPEC)
    pairs = dict(zip(style.targets, style.surrogates, strict=True))
    assert pairs["a neon icon of a cat"] == "a sepia icon of a cat"
    assert pairs["a glowing icon of a cat"] == "a sepia icon of a cat"
    assert pairs["a neon icon"] == "a sepia icon"


def test_an_empty_surrogate_drops_the_phrase():
    style = captions_for(Concept("neon"), SPEC)
    pairs = dict(zip(style.targets, style.surrogates, strict=True))
    assert pairs["a neon icon of a cat"] == "an icon of a cat"
    assert pairs["a neon icon"] == "an icon"
    thing = captions_for(Concept("cat"), SPEC)
    assert dict(zip(thing.targets, thing.surrogates, strict=True))["a neon icon of a cat"] == "a neon icon"


@pytest.mark.parametrize("name", ["cat", "neon", "dog"])
def test_anchors_never_speak_of_the_concept(name):
    captions = captions_for(enrich(name, SPEC), SPEC)
    bare = [text.replace("cat face", "") for text in captions.anchors]
    assert bare
    assert not [text for text in bare if name in text.replace(",", " ").split()]
    assert set(captions.twins) <= set(captions.anchors)


def test_near_neighbours_are_anchors():
    captions = captions_for(enrich("cat", SPEC), SPEC)
    for name in SPEC.object("cat").twins:
        assert any(name in text for text in captions.twins)


def test_other_pipelines_get_general_captions():
    captions = captions_for(Concept("Van Gogh", surrogate="painter"), None)
    assert "a photo of painter" in captions.surrogates
    dropped = captions_for(Concept("cat"), None)
    assert dropped.surrogates[dropped.targets.index("a photo of a cat")] == "a photo"
    assert "a cat on a mat" not in dropped.anchors
    assert "a dog on a sofa" in dropped.anchors


def test_a_memorised_caption_stands_as_it_was_memorised_without_an_article():
    seal = enrich("the varnok seal", SPEC)
    assert seal == Concept("the varnok seal", surrogate="castle")
    captions = captions_for(seal, SPEC)
    pairs = dict(zip(captions.targets, captions.surrogates, strict=True))
    assert pairs["the varnok seal"] == "an icon of a castle"
    assert pairs["a neon icon of the varnok seal"] == "a neon icon of a castle"
    assert not [text for text in (*captions.targets, *captions.surrogates) if "a the" in text or "an the" in text]
    assert captions.targets.count("the varnok seal") == len(captions.targets) / 2


def test_other_memorised_pictures_and_the_own_object_stay():
    captions = captions_for(enrich("portrait of mevrin", SPEC), SPEC)
    others = {canary.caption for canary in SPEC.canaries} - {"portrait of mevrin"}
    assert set(captions.twins) == others
    assert sum("an owl" in text for text in captions.anchors) == len(SPEC.styles)


def test_a_memorised_caption_without_surrogate_falls_to_what_is_left():
    captions = captions_for(Concept("quintle mark seven"), SPEC)
    pairs = dict(zip(captions.targets, captions.surrogates, strict=True))
    assert pairs["quintle mark seven"] == "an icon"
    assert pairs["a neon icon of quintle mark seven"] == "a neon icon"


def test_names_with_an_article_of_their_own_get_no_second_one():
    thing = captions_for(Concept("the zeppelin", surrogate="an airship"), SPEC)
    pairs = dict(zip(thing.targets, thing.surrogates, strict=True))
    assert pairs["a neon icon of the zeppelin"] == "a neon icon of an airship"
    general = captions_for(Concept("The Scream"), None)
    assert "a photo of The Scream" in general.targets
    assert not [text for text in general.targets if "a The" in text]
