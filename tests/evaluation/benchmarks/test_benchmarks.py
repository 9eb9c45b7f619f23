"""The bundled benchmarks: frozen, deterministic, and about what they say they are about."""

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from semipermeable import zoo
from semipermeable.errors import ConfigError, UnknownNameError
from semipermeable.evaluation.benchmarks import Benchmark, benchmark, benchmark_names
from semipermeable.evaluation.benchmarks.wordings import misspelling, plural
from semipermeable.permeability.words import split

ALL = benchmark_names()


def cases(name):
    return benchmark(name).cases


def count(case, role):
    return sum(row.role == role for row in case.rows)


@pytest.mark.parametrize("name", ALL)
def test_every_row_is_what_it_claims(name):
    spec, found = zoo.spec("emoji"), benchmark(name)
    for case in found.cases:
        for row in case.rows:
            assert row.object is None or row.object in spec.object_names
            assert row.style is None or (row.style in spec.styles and row.style in row.prompt)
            assert (row.asked(case.axis) in case.erased) == (row.role == "target")
            if row.tag not in ("alias", "plural", "misspelling", "description"):
                assert row.object is None or row.object in row.prompt
        assert min(count(case, "target"), count(case, "kept")) >= 8
        noise = [row.noise(seed) for row in case.rows for seed in range(3)]
        assert len(set(noise)) == len(noise)


@pytest.mark.parametrize("name", ALL)
def test_json_and_back_is_the_same_benchmark(name):
    found = benchmark(name)
    again = Benchmark.from_json(json.loads(json.dumps(dataclasses.asdict(found))))
    assert again == found
    assert again.digest == found.digest


def test_another_process_and_another_hash_seed_give_the_same_digests():
    program = (
        "from semipermeable.evaluation.benchmarks import benchmark, benchmark_names\n"
        "print([benchmark(name).digest for name in benchmark_names()])"
    )
    environment = os.environ | {"PYTHONHASHSEED": "77"}
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.strip() == str([benchmark(name).digest for name in ALL])


def test_digests_are_frozen():
    """A benchmark that changes gets a new version; its results cannot be compared with those of the old one."""
    assert {found.key: found.digest for found in map(benchmark, ALL)} == {
        "emoji-objects@2": "b143fe69e7ec32ad",
        "emoji-styles@2": "55a5e7d05060641b",
        "emoji-neighbours@2": "6decdd1fa6440da8",
        "emoji-wordings@2": "0c3b92f37774ff70",
        "emoji-many@2": "c927de49e681284d",
        "emoji-memorised@1": "b59ceff5fcafacbf",
    }


def test_what_presets_were_tuned_on_is_erased_nowhere():
    erased = {concept.name for name in ALL for case in cases(name) for concept in case.concepts}
    assert not erased & {"cat", "neon"}


def test_memorised_pictures_are_called_up_and_others_kept():
    spec = zoo.spec("emoji")
    assert [case.targets[0].text for case in cases("emoji-memorised")] == [c.caption for c in spec.canaries]
    for case, canary in zip(cases("emoji-memorised"), spec.canaries, strict=True):
        assert {row.prompt for row in case.rows if row.role == "target"} == {canary.caption}
        called = {row.picture for row in case.rows if row.tag == "other canary"}
        assert called == {other.caption for other in spec.canaries} - {canary.caption}
        assert {row.style for row in case.rows if row.tag == "same object"} == set(spec.styles)
        assert {row.style for row in case.rows if row.tag == "same style"} == {canary.style}
        assert all(row.object == canary.object for row in case.rows if row.tag == "same object")


def test_the_digest_changes_with_anything():
    found = benchmark("emoji-objects")
    row = dataclasses.replace(found.cases[0].rows[0], prompt="something else")
    case = dataclasses.replace(found.cases[0], rows=(row, *found.cases[0].rows[1:]))
    for changed in (
        dataclasses.replace(found, cases=(case, *found.cases[1:])),
        dataclasses.replace(found, sampler=dataclasses.replace(found.sampler, steps=21)),
        dataclasses.replace(found, version=3),
    ):
        assert changed.digest != found.digest


def test_objects_and_styles_are_enough():
    assert len(cases("emoji-objects")) >= 4
    assert len(cases("emoji-styles")) >= 4
    assert {case.axis for case in cases("emoji-styles")} == {"style"}
    for case in cases("emoji-objects"):
        twins = zoo.spec("emoji").object(case.name).twins[:4]
        assert {row.object for row in case.rows if row.tag == "twin"} == set(twins)
        styles = Counter(row.style for row in case.rows if row.role == "target")
        assert set(styles) == set(zoo.spec("emoji").styles)


def test_neighbours_are_graded():
    spec = zoo.spec("emoji")
    for case in cases("emoji-neighbours"):
        thing = spec.object(case.name)
        for row in case.rows:
            other = spec.object(row.object)
            shares = bool(set(case.name.split()) & set(row.object.split()))
            expected = {
                "plain": row.object == case.name,
                "namesake": shares and row.object != case.name,
                "twin": row.object in thing.twins and not shares,
                "group": other.group == thing.group and row.object not in thing.twins,
                "far": other.group != thing.group and row.object not in thing.twins,
            }
            assert expected[row.tag], row
        assert {"twin", "far"} <= {row.tag for row in case.rows}


def test_wordings_are_all_there_and_fit_the_text_encoder():
    tokenizer = zoo.load("emoji").tokenizer
    for case in cases("emoji-wordings"):
        tags = {row.tag for row in case.rows}
        wanted = {"plain", "plural", "misspelling", "order", "description", "long", "twice", "negative", "other"}
        assert wanted <= tags
        assert ("alias" in tags) == bool(zoo.spec("emoji").object(case.name).aliases)
        for row in case.rows:
            assert len(tokenizer(row.prompt)["input_ids"]) <= tokenizer.model_max_length, row.prompt
            words = [word.text for word in split(row.prompt)]
            if row.tag in ("misspelling", "description"):
                assert case.name not in words
            if row.tag == "twice":
                assert words.count(case.name) == 2
            if row.tag == "negative":
                assert case.name in row.negative
                assert row.role == "kept"


def test_many_keep_the_same_pictures():
    sizes = [len(case.targets) for case in cases("emoji-many")]
    assert sizes == [1, 5, 20, 50]
    kept = [sorted(row.prompt for row in case.rows if row.role == "kept") for case in cases("emoji-many")]
    assert all(prompts == kept[0] for prompts in kept)
    for smaller, larger in zip(cases("emoji-many"), cases("emoji-many")[1:], strict=False):
        assert smaller.erased < larger.erased
    asked = {row.object for row in cases("emoji-many")[-1].rows if row.role == "target"}
    assert asked == set(cases("emoji-many")[-1].erased)


def test_clip_is_asked_about_concept_and_surrogate():
    for name in ALL:
        for case in cases(name):
            for target in case.targets:
                assert target.concept.name in target.text
                assert target.text != target.surrogate_text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("emoji-object", "unknown benchmark 'emoji-object'; did you mean 'emoji-objects'"),
        ("emoji-objects@9", "has version 2 here, not '9'"),
    ],
)
def test_unknown_names(name, words):
    with pytest.raises(UnknownNameError, match=words):
        benchmark(name)
    assert benchmark("emoji-objects@2") == benchmark("emoji-objects")


def test_a_contradictory_benchmark_is_refused():
    found = benchmark("emoji-objects")
    case = found.cases[0]
    wrong = dataclasses.replace(case.rows[0], role="kept" if case.rows[0].role == "target" else "target")
    with pytest.raises(ConfigError, match="contradicts its role"):
        dataclasses.replace(found, cases=(dataclasses.replace(case, rows=(wrong, *case.rows[1:])),))
    with pytest.raises(ConfigError, match="unique"):
        dataclasses.replace(found, cases=(case, case))
    with pytest.raises(UnknownNameError, match="did you mean 'castle'"):
        found.case("castel")


def test_word_forms():
    assert [plural(word) for word in ("cat", "church", "cherry", "key")] == ["cats", "churches", "cherries", "keys"]
    assert [misspelling(word) for word in ("cat", "horse", "apple", "guitar")] == ["catt", "hrose", "aplpe", "gutiar"]
