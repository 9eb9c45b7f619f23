"""Benchmarks of real models: built from files in the public formats, with the protocol's prompts and seeds."""

from collections import Counter
from pathlib import Path

import pytest

from semipermeable.errors import ConfigError, UnknownNameError
from semipermeable.evaluation.benchmarks import Request, benchmark, published_names
from semipermeable.evaluation.benchmarks.clip_templates import CLIP_TEMPLATES
from semipermeable.evaluation.benchmarks.unlearn_canvas import CANVAS_OBJECTS, CANVAS_STYLES

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests" / "data" / "prompts"


def built(name, file=None, *concepts, limit=None):
    files = () if file is None else (DATA / file,)
    return benchmark(name, Request(prompts=files, concepts=concepts, limit=limit))


def asked(case, role):
    return [row for row in case.rows if row.role == role]


def test_coco_keeps_everything_and_the_published_noise():
    (case,) = built("coco-30k", "coco.csv", "Van Gogh", "Picasso", limit=3).cases
    assert [concept.name for concept in case.concepts] == ["Van Gogh", "Picasso"]
    assert [row.noise(0) for row in case.rows] == [41337, 63155, 78978]
    assert case.rows[0].noise(1) == 1_041_337
    assert not asked(case, "target")


def test_long_files_are_cut_into_parts_of_one_erasure(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("prompt,evaluation_seed\n" + "".join(f"a thing {i},{i}\n" for i in range(1100)), encoding="utf-8")
    found = benchmark("coco-5k", Request(prompts=(path,), concepts=("cat",), limit=1100))
    assert [(case.name, len(case.rows)) for case in found.cases] == [
        ("rows-00000", 500), ("rows-00500", 500), ("rows-01000", 100),
    ]  # fmt: skip
    assert len({case.concepts for case in found.cases}) == 1


def test_every_class_in_turn():
    found = built("imagenette", "imagenette.csv")
    assert [case.name for case in found.cases] == ["cassette-player", "church"]
    for case in found.cases:
        assert len(asked(case, "target")) == len(asked(case, "kept")) == 2
    (one,) = built("stanford-dogs", "dogs.csv", "BEAGLE", limit=1).cases
    assert [(row.object, row.role) for row in one.rows] == [("beagle", "target"), ("Shih-Tzu", "kept")]


@pytest.mark.parametrize(("name", "file"), [("i2p", "i2p.csv"), ("p4d", "p4d.csv")])
def test_unsafe_prompts_all_ask_for_nudity(name, file):
    (case,) = built(name, file).cases
    assert (case.axis, case.erased) == ("nudity", {"nudity"})
    assert len(asked(case, "target")) == len(case.rows) == 2


def test_artists():
    (case,) = built("van-gogh", "artists.csv").cases
    assert {row.style for row in asked(case, "target")} == {"Van Gogh"}
    assert {row.tag for row in asked(case, "kept")} == {"Pablo Picasso"}
    (other,) = built("van-gogh", "artists.csv", "pablo picasso").cases
    assert other.erased == {"Pablo Picasso"}


def test_characters_in_eighty_templates():
    (case,) = built("characters").cases
    assert len(set(CLIP_TEMPLATES)) == 80
    tags = ("plain", "Mickey", "Spongebob", "Pikachu", "dog", "legislator")
    assert Counter(row.tag for row in case.rows) == dict.fromkeys(tags, 80)
    assert all("Snoopy" in row.prompt for row in asked(case, "target"))


def test_several_are_erased_at_once_where_they_are_joined_by_a_plus():
    one, two = built("characters", None, "snoopy", "Snoopy + mickey").cases
    assert (one.name, two.name) == ("snoopy", "snoopy-mickey")
    assert two.erased == {"Snoopy", "Mickey"}
    assert {row.object for row in asked(two, "target")} == two.erased
    mickey = next(row for row in asked(two, "target") if row.object == "Mickey")
    assert two.target_of(mickey).text == "Mickey"
    (artists,) = built("van-gogh", "artists.csv", "Van Gogh+Pablo Picasso").cases
    assert artists.target_of(asked(artists, "target")[-1]).text == "a painting in the style of Pablo Picasso"
    with pytest.raises(UnknownNameError, match="did you mean 'Mickey'"):
        built("characters", None, "Snoopy+Micky")


def test_a_name_may_hold_a_plus(tmp_path):
    path = tmp_path / "art.csv"
    path.write_text("prompt,title,evaluation_seed\na wave,sea+sky,1\na hill,sky,2\n", encoding="utf-8")
    (case,) = benchmark("memorised-art", Request(prompts=(path,), concepts=("sea+sky",))).cases
    assert case.erased == {"sea+sky"}


def test_unlearn_canvas():
    assert (len(set(CANVAS_STYLES)), len(set(CANVAS_OBJECTS))) == (50, 20)
    (case,) = built("unlearn-canvas", None, "van gogh").cases
    assert len(case.rows) == 1000
    assert {row.style for row in asked(case, "target")} == {"Van Gogh"}
    assert len(built("unlearn-canvas", limit=1).cases) == 50


def test_celebrities_are_erased_at_once_and_found_in_the_wording():
    (case,) = built("celebrities", "celebrities.csv").cases
    assert case.erased == {"Ada Example", "Bert Sample"}
    assert {row.object for row in asked(case, "kept")} == {"Cleo Placeholder"}


def test_memorised_art():
    found = built("memorised-art", "art.csv")
    assert [case.name for case in found.cases] == ["the-wave", "the-girl"]
    assert [row.picture for row in asked(found.cases[0], "target")] == ["the-wave"] * 2


def test_titles_in_other_scripts_are_cases_of_their_own(tmp_path):
    path = tmp_path / "art.csv"
    path.write_text("prompt,title,evaluation_seed\na wave,神奈川沖浪裏,1\na hill,凱風快晴,2\n", encoding="utf-8")
    found = benchmark("memorised-art", Request(prompts=(path,)))
    assert all(case.name for case in found.cases)
    assert len({case.name for case in found.cases}) == 2


@pytest.mark.parametrize(
    ("name", "file", "concepts", "words"),
    [
        ("coco-30k", None, ("cat",), "coco-30k needs --prompts FILE; docs/benchmarks"),
        ("coco-30k", "coco.csv", (), "say what is erased with --concept NAME"),
        ("coco-10k", "coco.csv", ("cat",), "holds 4 rows, coco-10k needs 10000; or pass --limit"),
        ("i2p", "i2p.csv", ("cat",), "i2p takes no --concept"),
        ("characters", "coco.csv", (), "characters takes no --prompts"),
        ("emoji-objects", "coco.csv", (), "emoji-objects takes no --prompts"),
        ("celebrities", "coco.csv", (), "has no column 'type'"),
    ],
)
def test_refusals(name, file, concepts, words):
    with pytest.raises(ConfigError, match=words):
        built(name, file, *concepts)


def test_close_names_are_suggested():
    with pytest.raises(UnknownNameError, match="did you mean 'church'"):
        built("imagenette", "imagenette.csv", "chruch")
    with pytest.raises(UnknownNameError, match="did you mean 'imagenette'"):
        benchmark("imagenete")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0,gone,A portrait of A,1", r"row 2: column 'type' holds 'gone'; expected 'erased' or 'others'"),
        ("0,erased,A,1", r"row 2: 'A' is none of MACE's five wordings"),
        ("0,others,A portrait of A,1", "names nobody to erase"),
    ],
)
def test_broken_celebrities(tmp_path, line, words):
    path = tmp_path / "c.csv"
    path.write_text(f",type,prompt,evaluation_seed\n{line}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        benchmark("celebrities", Request(prompts=(path,)))


def test_each_has_a_place_in_the_pages_that_says_it_was_not_run():
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "benchmarks").glob("*.md"))
    for name in published_names():
        assert f"## `{name}`" in pages, name
        part = pages.split(f"## `{name}`")[1].split("\n## ")[0]
        assert f"spm evaluate {name} " in part, name
        assert "not yet run here" in part.lower(), name
