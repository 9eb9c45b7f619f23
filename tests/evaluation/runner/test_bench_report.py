"""The comparison as a page: whole, offline, ranked apart, honest about what is missing."""

import json
import math
import re
import shutil
from html.parser import HTMLParser

import pytest

from evaluation.runner import fakes
from semipermeable.errors import ConfigError
from semipermeable.evaluation.bench_plane import HEIGHT, WIDTH, histogram, plane
from semipermeable.evaluation.bench_report import _gate, read_sections, write_bench_report
from semipermeable.evaluation.results import Place
from semipermeable.evaluation.runner import RunPlan, Tools, run
from semipermeable.evaluation.scores import Estimate

TOOLS = Tools(load=fakes.load, eraser=fakes.eraser, panel=fakes.panel)
VOID = {"meta", "img", "br", "link", "input", "line", "circle", "rect", "path"}
ERASERS = ("white", "blunt", "oracle", "sharp")


class Checker(HTMLParser):
    """Collects references and text; fails on tags that do not nest."""

    def __init__(self):
        super().__init__()
        self.open, self.references, self.tags, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for key, value in attrs if key in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    run(RunPlan(benchmark=fakes.small_benchmark(), erasers=ERASERS, seeds=2), out, bar=fakes.silent, tools=TOOLS)
    return out


@pytest.fixture
def copied(results, tmp_path):
    shutil.copytree(results, tmp_path / "copied")
    return tmp_path / "copied"


def page(folder, **how):
    path = folder.parent / "report.html"
    write_bench_report(folder, path, **how)
    html = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    return html, checker, " ".join(" ".join(checker.text).split())


def test_one_file_without_network(results):
    html, checker, text = page(results)
    assert all(reference.startswith("data:image/png;base64,") for reference in checker.references)
    assert not re.search(r"https?://|@import|url\(|<script", html)
    assert "small@1" in text
    for eraser in ERASERS:
        assert eraser in text
    assert "nan" not in text.lower().split()
    # Two cases, two rows of each role, five who drew.
    assert checker.tags.count("img") == 2 * 4 * 5


def test_gated_and_open_are_ranked_apart(results):
    (section,) = read_sections(results)
    assert [one.result.eraser for one in section.gated] == ["oracle", "sharp"]
    assert [one.result.eraser for one in section.open] == ["blunt", "white"]
    assert section.base.result.eraser == "noop"
    for group in (section.gated, section.open):
        ranks = [one.rank for one in group]
        assert ranks == sorted(ranks, reverse=True)


def test_best_is_bold_within_its_group_and_the_base_model_takes_no_part(results):
    html, _, _ = page(results)
    gated, opened = re.findall(r"<h4>(?:Gated|Always open)</h4>(.*?)</table>", html, re.S)[:2]
    assert "<b>" not in gated.split("oracle")[0]
    columns = re.findall(r"<th title[^>]*>([^<]+)", opened)
    blunt = re.findall(r"<td class=\"number[^>]*>(.*?)</td>", opened.split("blunt</td>")[1].split("<tr>")[0], re.S)
    bold = {name.strip(" ↑↓\n"): "<b>" in cell for name, cell in zip(columns, blunt, strict=True)}
    assert bold["H"]
    assert bold["IRA"]
    assert not bold["UA"]  # white erases everything
    assert not bold["identical"]  # both leave nothing as it was


def test_report_and_result_agree(results):
    (section,) = read_sections(results)
    for one in section.entries:
        written = json.loads(one.place.result.read_text(encoding="utf-8"))["figures"]
        for name, found in written.items():
            assert one.figures[name].value == pytest.approx(found["value"], abs=1e-5)
            assert one.figures[name].low == pytest.approx(found["interval"][0], abs=1e-5)


def test_gates_tell_what_opened_them_and_where_they_were_wrong(results):
    html, _, text = page(results)
    assert html.count("What opened the gates") == 2
    assert 'title="name found: &#39;cat&#39;">cat γ 1</span>' in html
    (section,) = read_sections(results)
    case = section.benchmark.cases[0]
    by_name = {one.result.eraser: _gate(one, case) for one in section.gated}
    others = sum(row.role == "kept" for row in case.rows)
    assert (by_name["oracle"]["asked"], by_name["oracle"]["others"]) == (1.0, 0.0)
    assert (by_name["sharp"]["asked"], by_name["sharp"]["others"]) == (1.0, 0.75)
    assert [by_name[name]["num_wrong"] for name in ("oracle", "sharp")] == [0, others]
    assert all(found["num_closed"] == 0 for found in by_name.values())
    assert f"{case.name} γ 0.75, always" in text
    assert all(one.result.openings == {} for one in (section.base, *section.open))


def test_the_level_changes_intervals_and_no_value(results):
    (prompts,), (concepts,) = read_sections(results), read_sections(results, "concept")
    mine, theirs = prompts.open[0].figures["drift"], concepts.open[0].figures["drift"]
    assert mine.value == theirs.value
    assert (mine.low, mine.high) != (theirs.low, theirs.high)
    assert "over concepts" in page(results, level="concept")[2]


def test_pictures_that_were_not_kept(copied):
    shutil.rmtree(Place(copied / "small@1", "blunt").folder / "pictures")
    _, checker, text = page(copied)
    assert checker.tags.count("img") == 2 * 4 * 4
    assert "picture not kept" in text


def test_names_from_outside_are_escaped(copied):
    path = Place(copied / "small@1", "blunt").result
    content = json.loads(path.read_text(encoding="utf-8"))
    content["eraser"], content["notes"] = "<b onclick=x>blunt", ["no <i>CLIP"]
    path.write_text(json.dumps(content), encoding="utf-8")
    html, _, text = page(copied)
    assert "<b onclick" not in html
    assert "Not measured: no <i>CLIP" in text


def spoil(copied, eraser, **changes):
    path = Place(copied / "small@1", eraser).result
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_what_cannot_be_compared_is_refused(copied, tmp_path):
    spoil(copied, "blunt", shards=[["cat", 0]])
    with pytest.raises(ConfigError, match="'blunt' ran on other cases or seeds than the base model"):
        read_sections(copied)
    Place(copied / "small@1", "noop").result.unlink()
    with pytest.raises(ConfigError, match="no result of the base model"):
        read_sections(copied)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no results below"):
        read_sections(tmp_path / "empty")


def test_a_changed_benchmark_file_is_refused(copied):
    path = copied / "small@1" / "benchmark.json"
    path.write_text(path.read_text(encoding="utf-8").replace("a flat icon", "a fine icon"), encoding="utf-8")
    with pytest.raises(ConfigError, match="was changed"):
        read_sections(copied)


def test_the_plane_holds_every_mark():
    points = [(i, f"e{i}", False, Estimate(0.9, 0.8, 1.0, 9), Estimate(0.95, 0.91, 0.99, 9)) for i in range(8)]
    points.append((9, "odd", True, Estimate(math.nan, math.nan, math.nan, 0), Estimate(0.5, 0.4, 0.6, 9)))
    found = plane(points)
    assert len(found["marks"]) == 8
    for mark in found["marks"]:
        assert 0 < mark["left"] < mark["x"] < mark["right"] < WIDTH
        assert 0 < mark["top"] < mark["y"] < mark["bottom"] < HEIGHT
    assert len({mark["label"] for mark in found["marks"]}) == 8


def test_the_word_at_the_base_model_keeps_clear_of_the_axis_and_of_numbers():
    top = Estimate(1.0, 0.9, 1.0, 9)
    points = [(number, f"e{number}", True, Estimate(0.0, 0.0, 0.1, 9), top) for number in range(4)]
    found = plane(points)
    (word, height), *numbers = (mark["label"] for mark in found["marks"])
    half = 13  # of the word, in pixels
    assert word - half > found["frame"][0]
    assert not [at for at in numbers if at[1] == height and abs(at[0] - word) < half + 4]


def test_histogram_counts_everything_once():
    found = histogram([0.0, 0.001, 0.005, 0.02, 0.05, 0.1, 1.0, 0.0])
    assert [bar["share"] for bar in found] == [0.25, 0.125, 0.125, 0.125, 0.125, 0.25]
    assert [bar["label"] for bar in found] == ["none", "< 0.003", "< 0.01", "< 0.03", "< 0.1", "≥ 0.1"]


def test_machines_of_one_commit_are_all_named(copied):
    for number, path in enumerate(sorted(copied.rglob("result.json"))):
        content = json.loads(path.read_text(encoding="utf-8"))
        content["environment"]["machines"][0] |= {"commit": None, "processor": f"processor number {number}"}
        path.write_text(json.dumps(content), encoding="utf-8")
    _, _, text = page(copied)
    assert [number for number in range(len(ERASERS) + 1) if f"processor number {number}" not in text] == []
