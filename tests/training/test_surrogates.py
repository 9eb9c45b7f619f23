"""What an erased object falls to where its author leaves it open."""

import dataclasses

import pytest

from semipermeable import erase, erase_many, zoo
from semipermeable.concept import Concept
from semipermeable.errors import OutputError
from semipermeable.training import TrainConfig, Workshop, captions_for, enrich
from semipermeable.training.surrogates import candidates, reopened, settled

SPEC = zoo.spec("emoji")
SIBLINGS = TrainConfig(sibling_surrogate=True)
GROUPS = TrainConfig(sibling_surrogate=False)
INSTANT = {"preset": "instant", "progress": False}


@pytest.fixture
def workshop(pipe):
    """Of the bundled model."""
    return Workshop(pipe)


def test_near_twins_are_taken_only_where_there_is_no_other():
    taxi = candidates(enrich("taxi", SPEC), SPEC)
    assert {"bus", "truck"} <= set(taxi)
    assert not {"taxi", "car", "police car"} & set(taxi)
    assert candidates(enrich("guitar", SPEC), SPEC) == ["violin"] == list(SPEC.object("guitar").twins)
    assert "cat face" not in candidates(enrich("cat", SPEC), SPEC)


def test_phrases_to_keep_are_near_twins():
    assert "bus" not in candidates(Concept("taxi", keep=("Bus",)), SPEC)


def test_nothing_falls_to_what_is_erased_whatever_the_case():
    taxi = enrich("taxi", SPEC)
    everything = candidates(taxi, SPEC)
    assert candidates(taxi, SPEC, {"bus"}) == [name for name in everything if name != "bus"]
    assert "truck" not in candidates(Concept("taxi", aliases=("Truck",)), SPEC)


def test_where_a_group_is_used_up_anything_else_serves_but_near_twins():
    taxi = enrich("taxi", SPEC)
    beyond = candidates(taxi, SPEC, {name.casefold() for name in SPEC.groups["vehicle"]})
    assert {"cat", "tree"} <= set(beyond)
    assert not set(SPEC.groups["vehicle"]) & set(beyond)
    ghost = candidates(enrich("ghost", SPEC), SPEC, set(SPEC.groups["creature"]))
    assert "skull" in SPEC.object("ghost").twins
    assert "skull" not in ghost
    assert candidates(taxi, SPEC, {name.casefold() for name in SPEC.object_names}) == []


@pytest.mark.parametrize("name", ["neon", "the varnok seal", "zeppelin", "animal"])
def test_what_is_no_object_has_no_sibling(workshop, name):
    assert candidates(Concept(name), SPEC) == []
    assert settled(workshop, [name], SIBLINGS) == [enrich(name, SPEC)]


def test_the_sibling_is_the_one_whose_captions_are_read_most_like_the_concepts(workshop):
    """By hand: rows from the concept's last word on, in every style."""

    def distance(name):
        total, rows = 0.0, 0
        for style in SPEC.styles:
            one, other = workshop.host.encode([SPEC.caption("taxi", style), SPEC.caption(name, style)])
            (place,) = [i for i, (a, b) in enumerate(zip(one.token_ids, other.token_ids, strict=True)) if a != b]
            moved = (one.states - other.states)[one.first + place :].double().square().sum(1)
            total, rows = total + float(moved.sum()), rows + len(moved)
        return total / rows

    (taxi,) = settled(workshop, ["taxi"], SIBLINGS)
    lengths = {name: len(workshop.host.encode([name])[0].token_ids) for name in ("taxi", *SPEC.groups["vehicle"])}
    alike = [
        name
        for name in candidates(enrich("taxi", SPEC), SPEC)
        if lengths[name] == lengths["taxi"] == 1 and name[0] not in "aeiou"
    ]
    assert len(alike) > 2
    assert taxi == dataclasses.replace(enrich("taxi", SPEC), surrogate=min(alike, key=distance))


def test_the_spec_fills_in_the_word_for_the_group_where_no_sibling_is_wanted_or_nothing_is_left(workshop):
    assert settled(workshop, ["taxi"], GROUPS) == [enrich("taxi", SPEC)]
    assert settled(workshop, SPEC.object_names, SIBLINGS) == [enrich(name, SPEC) for name in SPEC.object_names]


def test_flowers_that_are_all_erased_fall_to_other_things(workshop):
    flowers = settled(workshop, ["rose", "tulip", "sunflower"], SIBLINGS)
    assert {SPEC.object(one.surrogate).group for one in flowers}.isdisjoint({"flower"})
    assert all(captions_for(one, SPEC).specific for one in flowers)


def test_concepts_that_are_erased_together_do_not_fall_to_each_other(workshop):
    rose, tulip = settled(workshop, ["rose", Concept("Tulip")], SIBLINGS)
    assert (rose.surrogate, tulip.surrogate) == ("sunflower", "sunflower")
    (alone,) = settled(workshop, ["rose"], SIBLINGS)
    assert alone.surrogate == "tulip"


def test_what_its_author_wrote_stays(workshop):
    written = [Concept("cat", surrogate="animal"), Concept("dog", surrogate="cat")]
    assert settled(workshop, written, SIBLINGS) == written


def test_the_word_for_the_group_can_be_opened_again():
    for name in ("taxi", "neon", "the varnok seal", "zeppelin"):
        enriched = enrich(name, SPEC)
        wanted = "" if name == "taxi" else enriched.surrogate
        assert reopened(enriched, SPEC) == dataclasses.replace(enriched, surrogate=wanted)
    written = Concept("taxi", surrogate="bicycle")
    assert reopened(written, SPEC) is written


def test_a_sibling_asks_for_nothing_beyond_it(workshop):
    near, group = (captions_for(Concept("taxi", surrogate=word), SPEC) for word in ("bus", "vehicle"))
    assert (near.specific, group.specific) == (True, False)
    assert workshop.eta(near, SIBLINGS) == 0
    assert workshop.eta(near, GROUPS) > 0
    assert workshop.eta(group, SIBLINGS) == workshop.eta(group, GROUPS) > 0
    assert workshop.eta(near, TrainConfig(negative_guidance=0.7)) == 0.7


def test_styles_and_memorised_pictures_go_as_far_as_before(workshop):
    for name in ("neon", "portrait of mevrin"):
        captions = captions_for(enrich(name, SPEC), SPEC)
        assert not captions.specific
        assert workshop.eta(captions, SIBLINGS) == workshop.eta(captions, GROUPS)


def test_a_word_for_a_group_is_none_of_its_things():
    """ "bird" is both in the bundled model."""
    assert "bird" in SPEC.groups
    assert "bird" in SPEC.object_names
    assert "bird" not in candidates(enrich("eagle", SPEC), SPEC)
    assert not captions_for(Concept("owl", surrogate="bird"), SPEC).specific
    assert captions_for(Concept("owl", surrogate="penguin"), SPEC).specific


def test_the_membrane_says_what_it_falls_to_and_how_far(pipe, gateless):
    membrane = erase(pipe, "taxi", **INSTANT)
    assert membrane.concept.surrogate == "bus"
    assert membrane.provenance.metrics["negative_guidance"] == 0
    assert membrane.provenance.training["sibling_surrogate"] is True
    kept = erase(pipe, Concept("taxi", surrogate="vehicle"), **INSTANT)
    assert kept.concept == Concept("taxi", surrogate="vehicle")
    assert kept.provenance.metrics["negative_guidance"] > 0


def test_a_list_is_settled_once(pipe, gateless, tmp_path):
    """All birds are erased, "bird" itself among them, whose group is its own name."""
    names = list(SPEC.groups["bird"])
    made = erase_many(pipe, names, out_dir=tmp_path, at_once=1, **INSTANT)
    assert [one.name for one in made] == names
    assert not {one.concept.surrogate for one in made} & {"", *names}
    again = erase_many(pipe, names, out_dir=tmp_path, at_once=1, **INSTANT)
    assert [one.concept for one in again] == [one.concept for one in made]


def test_a_list_that_comes_to_erase_what_a_membrane_falls_to_is_refused_with_the_reason(pipe, gateless, tmp_path):
    erase_many(pipe, ["rose"], out_dir=tmp_path, **INSTANT)
    with pytest.raises(
        OutputError, match=r"rose.* \(surrogate, 'tulip' there and 'sunflower' here, differ\); remove it"
    ):
        erase_many(pipe, ["rose", "tulip"], out_dir=tmp_path, **INSTANT)


def test_a_pipeline_about_which_nothing_is_known_keeps_what_was_said(tiny_pipe):
    assert settled(Workshop(tiny_pipe), ["cat", Concept("dog", surrogate="fox")], SIBLINGS) == [
        Concept("cat"),
        Concept("dog", surrogate="fox"),
    ]
