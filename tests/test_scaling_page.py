"""docs/scaling.md says what benchmarks/results/ says, and nothing else."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def page():
    """The module that writes the page."""
    place = ROOT / "benchmarks" / "scaling_page.py"
    spec = importlib.util.spec_from_file_location("scaling_page", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_figure_of_the_page_is_one_of_the_results(page):
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text) == text, "run: python benchmarks/scaling.py --write"
    assert {found[1] for found in page.MARKED.findall(text)} == set(page.SECTIONS)
    assert page.PICTURE.is_file()


def test_another_result_would_be_another_page(page, monkeypatch, tmp_path):
    """The comparison above can fail: one changed ratio, or one more concept, changes the text."""
    text = page.PAGE.read_text(encoding="utf-8")
    scaling = json.loads(page.SCALING.read_text(encoding="utf-8"))
    scaling["concepts"][0]["cpu"] += 1
    (tmp_path / "scaling.json").write_text(json.dumps(scaling), encoding="utf-8")
    monkeypatch.setattr(page, "SCALING", tmp_path / "scaling.json")
    assert page.filled(text) != text


def test_a_bar_is_met_by_the_median_and_the_scatter_is_told(page):
    case = {"bar": 1.02, "cpu": 1.01, "cpu_interval": [1.0, 1.015]}
    assert page.verdict(case) == "met"
    assert page.verdict(case | {"cpu_interval": [1.0, 1.03]}) == "met, within the scatter"
    assert page.verdict(case | {"cpu": 1.03, "cpu_interval": [1.025, 1.04]}) == "missed"
    assert page.verdict(case | {"cpu": 1.03, "cpu_interval": [1.0, 1.04]}) == "missed, within the scatter"
    assert page.verdict(case | {"bar": None}) == "–"


@pytest.mark.parametrize(("call_us", "told"), [(11.0, "met, timed by itself"), (9000.0, "missed, timed by itself")])
def test_what_an_idle_picture_pays_decides_where_the_scatter_hides_it(page, monkeypatch, tmp_path, call_us, told):
    alone = {page.IDLE_ALONE: {"call_us": call_us, "picture_us": 50.0}}
    (tmp_path / "emoji.json").write_text(json.dumps({"cases": alone}), encoding="utf-8")
    monkeypatch.setitem(page.PATHS, "bundled", tmp_path / "emoji.json")
    case = {"bar": 1.01, "cpu": 0.97, "cpu_interval": [0.95, 1.07], "cpu_bare_s": 1.0, "steps": 2}
    assert page.decided(page.IDLE, case) == told
    assert page.decided("one active on all rows", case) == "met, within the scatter"
    assert page.decided(page.IDLE, case | {"cpu_interval": [0.96, 0.99]}) == "met"


@pytest.mark.parametrize(
    ("num_bytes", "shown"), [(0, "0 B"), (999, "999 B"), (18_150, "18.1 kB"), (1_695_744, "1.7 MB"), (1.7e11, "170 GB")]
)
def test_sizes_are_for_reading(page, num_bytes, shown):
    assert page.size(num_bytes) == shown
