"""Running: sharded, resumable, reproducible; and the harness measures itself."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import pytest
from PIL import Image

from evaluation.runner import fakes
from semipermeable import zoo
from semipermeable.errors import ConfigError, UnknownNameError
from semipermeable.evaluation import shards
from semipermeable.evaluation.assembly import read_result
from semipermeable.evaluation.erasers import eraser
from semipermeable.evaluation.erasers.artefacts import Cached
from semipermeable.evaluation.results import Place, read_benchmark, read_shard
from semipermeable.evaluation.runner import RunPlan, Tools, configuration_of, run

TOOLS = Tools(load=fakes.load, eraser=fakes.eraser, panel=fakes.panel)
BENCHMARK = fakes.small_benchmark()


def measure(out, *erasers, tools=TOOLS, **how):
    plan = RunPlan(benchmark=BENCHMARK, erasers=erasers, **{"seeds": 2, **how})
    paths = run(plan, out, bar=fakes.silent, tools=tools)
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return {content["eraser"]: content for content in found}


def value(content, figure):
    return content["figures"][figure]["value"]


def deterministic(content):
    return {key: part for key, part in content.items() if key not in ("costs", "environment")}


def test_the_oracle_and_the_base_model_bracket_every_figure(tmp_path):
    found = measure(tmp_path, "oracle", "blunt", "white")
    base, oracle, blunt, white = (found[name] for name in ("noop", "oracle", "blunt", "white"))
    assert value(base, "target") > 0.8  # the base model does draw the concepts
    assert value(oracle, "target") == 0
    for figure in ("ua", "clip_error", "harmonic"):
        assert value(base, figure) < value(blunt, figure) < value(oracle, figure)
    for figure in ("ira", "cra", "identical", "clip_kept"):
        assert value(white, figure) < value(blunt, figure) or figure == "identical"
        assert value(blunt, figure) < value(oracle, figure) <= value(base, figure)
    assert value(base, "drift") <= value(oracle, "drift") < value(blunt, "drift") < value(white, "drift")
    for figure in ("frechet_base", "kernel_base"):
        assert abs(base["sets"][figure]) < 1e-3 or figure == "kernel_base"
        assert oracle["sets"][figure] < blunt["sets"][figure] < white["sets"][figure]
    assert value(base, "identical") == 1
    for figure in ("frechet_real", "kernel_real"):
        assert 0 < base["sets"][figure] < white["sets"][figure]


def test_an_always_white_eraser_is_broken_on_every_keep_figure(tmp_path):
    white = measure(tmp_path, "white")["white"]
    assert value(white, "ua") == 1  # and this is why erasing alone proves nothing
    for figure in ("ira", "identical", "clip_kept"):
        assert value(white, figure) < 0.1
    for figure in ("ira", "cra", "identical", "clip_kept"):
        assert white["differences_to_base"][figure]["interval"][1] < 0
    assert value(white, "drift") > 0.4
    assert white["differences_to_base"]["drift"]["interval"][0] > 0


def test_shuffled_labels_give_chance(tmp_path):
    found = measure(tmp_path, tools=dataclasses.replace(TOOLS, panel=fakes.shuffled_panel))["noop"]
    asked = [row for case in BENCHMARK.cases for row in case.rows]
    styles = len({row.style for row in asked})
    assert abs(value(found, "cra") - 1 / styles) < 0.15
    # Half of the pictures ask for the concept, every other one for something of its own.
    assert abs(value(found, "target") - 0.45) < 0.2
    assert value(found, "ira") < 0.1
    assert "clip_error" not in found["figures"]
    assert found["notes"] == ["bundled model 'emoji' has no CLIP judge"]


def test_differences_to_the_base_model_are_paired(tmp_path):
    found = measure(tmp_path, "oracle")
    base = found["noop"]["differences_to_base"]
    assert all(part["value"] == 0 and part["interval"] == [0, 0] for part in base.values())
    ua = found["oracle"]["differences_to_base"]["ua"]
    assert ua["value"] == pytest.approx(value(found["oracle"], "ua") - value(found["noop"], "ua"), abs=1e-4)
    assert 0 < ua["interval"][0] < ua["value"] < ua["interval"][1]


def test_same_seeds_same_result(tmp_path):
    first, second = (measure(tmp_path / name, "blunt") for name in "ab")
    for name in first:
        assert deterministic(first[name]) == deterministic(second[name])
        assert first[name]["costs"]["pictures"] == 160
    assert first["blunt"]["costs"]["stored_bytes"] == 1000
    assert first["blunt"]["environment"]["machines"][0]["versions"]["torch"]


def test_what_lies_on_disk(tmp_path):
    measure(tmp_path, "blunt")
    place = Place(tmp_path / "small@1", "blunt")
    assert read_benchmark(tmp_path / "small@1" / "benchmark.json") == BENCHMARK
    case = BENCHMARK.case("cat")
    shard = read_shard(place.shard("cat", 1))
    assert (shard.eraser, shard.case, shard.seed, len(shard.pixels)) == ("blunt", "cat", 1, len(case.rows))
    assert shard.costs.draw_peak_bytes > 1e6
    with Image.open(place.picture("cat", 1, case.rows[0])) as picture:
        assert picture.size == (fakes.SIDE, fakes.SIDE)
        assert picture.text["prompt"] == case.rows[0].prompt
    result = read_result(place.result)
    assert result.shards == (("cat", 0), ("cat", 1), ("horse", 0), ("horse", 1))
    assert len(result.columns.object) == 160
    assert not list(tmp_path.rglob(".spm-*"))


def test_a_finished_shard_is_never_repeated_and_more_seeds_go_on(tmp_path, monkeypatch):
    measure(tmp_path, "blunt", seeds=1)
    drawn = []
    original = shards.draw_rows
    monkeypatch.setattr(shards, "draw_rows", lambda *args: drawn.append(args[2]) or original(*args))
    grown = measure(tmp_path, "blunt", seeds=2)
    assert drawn == [1, 1, 1, 1]  # two erasers, two cases, the second seed only
    again = measure(tmp_path, "blunt", seeds=2)
    assert len(drawn) == 4
    assert again["blunt"] == grown["blunt"]
    assert deterministic(measure(tmp_path / "fresh", "blunt")["blunt"]) == deterministic(grown["blunt"])


def test_a_stopped_run_goes_on_where_it_was(tmp_path):
    seen = []

    def stops(_title):
        def report(done, _total):
            seen.append(done)
            if done > 100:
                raise KeyboardInterrupt

        return nullcontext(report)

    plan = RunPlan(benchmark=BENCHMARK, erasers=("blunt",), seeds=2)
    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path, bar=stops, tools=TOOLS)
    finished = sorted(tmp_path.rglob("shards/*.json"))
    assert 0 < len(finished) < 8
    times = [path.stat().st_mtime_ns for path in finished]
    found = measure(tmp_path, "blunt")
    assert [path.stat().st_mtime_ns for path in finished] == times
    assert deterministic(found["blunt"]) == deterministic(measure(tmp_path / "whole", "blunt")["blunt"])


PROGRAM = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from evaluation.runner import fakes
from semipermeable.evaluation.runner import RunPlan, Tools, configuration_of, run
tools = Tools(load=fakes.load, eraser=fakes.eraser, panel=fakes.panel)
from contextlib import nullcontext
slow = lambda _title: nullcontext(lambda _done, _total: time.sleep(0.3))
run(RunPlan(benchmark=fakes.small_benchmark(), erasers=("blunt",), seeds=2), Path(sys.argv[2]), bar=slow, tools=tools)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(Path(fakes.__file__).parents[2]), str(tmp_path)]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        until = time.monotonic() + 120
        while len(list(tmp_path.rglob("shards/*.json"))) < 2 and time.monotonic() < until:
            assert process.poll() is None
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = len(list(tmp_path.rglob("shards/*.json")))
    assert 2 <= finished < 8
    found = measure(tmp_path, "blunt")
    ignored = {
        "notes",
        "differences_to_base",
        "figures",
        "by_case",
        "columns",
    }  # the two processes may differ in threads
    whole = measure(tmp_path / "whole", "blunt")["blunt"]
    assert found["blunt"]["columns"]["object"] == whole["columns"]["object"]
    assert {k: v for k, v in deterministic(found["blunt"]).items() if k not in ignored} == {
        k: v for k, v in deterministic(whole).items() if k not in ignored
    }


@pytest.mark.slow
def test_workers_draw_the_same(tmp_path):
    alone, shared = measure(tmp_path / "a", "blunt"), measure(tmp_path / "b", "blunt", workers=2)
    for name in alone:
        assert alone[name]["columns"]["object"] == shared[name]["columns"]["object"]
        assert alone[name]["columns"]["drift"] == shared[name]["columns"]["drift"]


@pytest.mark.slow
def test_workers_keep_libraries_off_the_terminal_with_the_bar(tmp_path, capfd):
    measure(tmp_path, "blunt", workers=2, tools=dataclasses.replace(TOOLS, load=fakes.loud_load))
    assert "Loading weights" not in capfd.readouterr().err


def test_other_threads_leave_equality_unjudged(tmp_path):
    measure(tmp_path, "blunt")
    place = Place(tmp_path / "small@1", "blunt")
    path = place.shard("cat", 0)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["numerics"]["threads"] = 99
    path.write_text(json.dumps(content), encoding="utf-8")
    blunt = measure(tmp_path, "blunt")["blunt"]
    assert blunt["columns"]["identical"][:40] == [None] * 40
    assert blunt["figures"]["identical"]["n"] == 60
    assert blunt["notes"][0].startswith("1 of 4 shards ran on another machine, version or thread count")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"seeds": 0}, ConfigError, "seeds and workers must be at least 1"),
        ({"cases": ("cta",)}, UnknownNameError, "unknown case of small@1 'cta'; did you mean 'cat'"),
        ({"train_seed": 7}, ConfigError, "was drawn under configuration"),
    ],
)
def test_refusals_come_before_the_first_picture(tmp_path, changes, error, words):
    measure(tmp_path, "blunt", seeds=1)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=words):
        measure(tmp_path, "blunt", **{"seeds": 2, **changes})
    assert sorted(tmp_path.rglob("*")) == before


def test_the_same_name_with_another_recipe_is_refused(tmp_path):
    class Trained(fakes.FakeEraser):
        recipe: ClassVar = {"learning_rate": 1e-3}

    tools = dataclasses.replace(TOOLS, eraser=lambda spec: Trained(spec, gated=False))
    measure(tmp_path, "blunt", tools=tools)
    measure(tmp_path, "blunt", tools=tools)
    Trained.recipe = {"learning_rate": 2e-3}
    with pytest.raises(ConfigError, match="was drawn under configuration"):
        measure(tmp_path, "blunt", tools=tools)


@pytest.mark.parametrize("spec", ["uce:ridge=1", "gated-uce:ridge=1", "sld:weak"])
def test_the_same_name_with_other_settings_is_refused(tmp_path, spec):
    """An eraser that solves has no recipe: its settings decide, as those of "uce:tuned" do when they are found anew."""

    class Solving(fakes.FakeEraser):
        settings = eraser(spec).settings

    tools = dataclasses.replace(TOOLS, eraser=lambda name: Cached(Solving(name), tmp_path / "artefacts"))
    measure(tmp_path, "blunt", tools=tools)
    measure(tmp_path, "blunt", tools=tools)
    field = dataclasses.fields(Solving.settings)[0].name
    Solving.settings = dataclasses.replace(Solving.settings, **{field: 7.0})
    with pytest.raises(ConfigError, match="was drawn under configuration"):
        measure(tmp_path, "blunt", tools=tools)


def test_a_shipped_membrane_counts_by_content_not_by_name(monkeypatch):
    plan = RunPlan(benchmark=BENCHMARK, erasers=(), seeds=1)
    before = [configuration_of(plan, spec, None, "weights") for spec in ("spm:zoo:cat", "spm:zoo:cat,zoo:neon", "spm")]
    remade = dataclasses.replace(zoo.membrane("cat"), pairs=dict(list(zoo.membrane("cat").pairs.items())[1:]))
    real = zoo.membrane
    monkeypatch.setattr(zoo, "membrane", lambda concept: remade if concept == "cat" else real(concept))
    after = [configuration_of(plan, spec, None, "weights") for spec in ("spm:zoo:cat", "spm:zoo:cat,zoo:neon", "spm")]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False, True]


def test_unknown_erasers_are_refused(tmp_path):
    plan = RunPlan(benchmark=BENCHMARK, erasers=("uec",), seeds=1)
    with pytest.raises(UnknownNameError, match="did you mean 'uce'"):
        run(plan, tmp_path, bar=fakes.silent, tools=dataclasses.replace(Tools(), load=fakes.load, panel=fakes.panel))
    assert list(tmp_path.iterdir()) == []


def test_another_benchmark_of_the_same_name_is_refused(tmp_path):
    measure(tmp_path, seeds=1)
    other = fakes.small_benchmark(per_role=5)
    with pytest.raises(ConfigError, match=r"was drawn under configuration|holds results of small@1 with digest"):
        run(RunPlan(benchmark=other, erasers=(), seeds=1), tmp_path, bar=fakes.silent, tools=TOOLS)


@pytest.mark.parametrize("damage", ["{", "{}", '{"pixels": []}'])
def test_a_damaged_shard_is_named(tmp_path, damage):
    measure(tmp_path, seeds=1)
    path = Place(tmp_path / "small@1", "noop").shard("cat", 0)
    path.write_text(damage, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"cat-seed0\.json.*delete it"):
        measure(tmp_path, seeds=1)


def test_a_lost_picture_is_named(tmp_path):
    measure(tmp_path, seeds=1)
    Place(tmp_path / "small@1", "noop").picture("cat", 0, BENCHMARK.case("cat").rows[3]).unlink()
    with pytest.raises(ConfigError, match=r"\.png.*delete its shard"):
        measure(tmp_path, seeds=1)
