"""Experiments and the results that answer them."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from evaluation.runner import fakes
from semipermeable.errors import ConfigError, UnknownNameError
from semipermeable.evaluation import experiments
from semipermeable.evaluation.benchmarks import benchmark
from semipermeable.evaluation.erasers import eraser
from semipermeable.evaluation.experiments import (
    Experiment,
    Folders,
    finished,
    read_experiments,
    run_experiments,
    unfinished,
)
from semipermeable.evaluation.results import read_benchmark, read_json
from semipermeable.evaluation.runner import Tools
from semipermeable.training import TrainConfig

HOME = Path(__file__).parents[2]
COMMITTED = Folders(experiments=HOME / "experiments", results=HOME / "results", out=HOME / "out" / "bench")
TOOLS = Tools(load=fakes.load, eraser=fakes.eraser, panel=fakes.panel)


@pytest.fixture(scope="module")
def everyone():
    return read_experiments(COMMITTED.experiments)


def test_every_committed_experiment_can_be_run(everyone):
    found = {name: benchmark(name) for name in {one.benchmark for one in everyone.values()}}
    for path, one in everyone.items():
        assert path.parent.name == one.benchmark
        assert eraser(one.eraser).name == one.eraser
        assert [found[one.benchmark].case(name).name for name in one.cases] == list(one.cases)
    assert len({one.configuration for one in everyone.values()}) == len(everyone)


def test_a_tables_erasers_draw_the_same_pictures_and_the_base_model_is_among_them(everyone):
    for table, name in {(one.table, one.benchmark) for one in everyone.values()}:
        group = [one for one in everyone.values() if (one.table, one.benchmark) == (table, name)]
        assert len({one.plan for one in group}) == 1
        assert "noop" in {one.eraser for one in group}


def test_committed_results_answer_their_experiments_as_they_stand(everyone):
    answered = {COMMITTED.place(one, committed=True).result: one for one in everyone.values()}
    for path in sorted(COMMITTED.results.rglob("result.json")):
        content = read_json(path)
        assert path in answered, f"{path} answers no experiment"
        assert content["experiment"] == answered[path].configuration
        assert content["benchmark_digest"] == read_benchmark(path.parents[1] / "benchmark.json").digest
        assert not list(path.parent.rglob("*.png"))


def written(folder, *erasers, table="main", seeds=1):
    for name in erasers:
        one = Experiment(table=table, benchmark="small@1", eraser=name, seeds=seeds)
        path = folder / "experiments" / table / "small@1" / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(one.to_toml(), encoding="utf-8")
    return Folders(experiments=folder / "experiments", results=folder / "results", out=folder / "out")


def run(folders, small=None, tools=TOOLS, **chosen):
    small = small or fakes.small_benchmark(objects=("cat",), per_role=4)
    found = {"small@1": small}.__getitem__
    return list(run_experiments(folders, bar=fakes.silent, find=found, tools=tools, **chosen))


def test_what_is_finished_is_skipped_and_what_changed_is_not(tmp_path):
    folders = written(tmp_path, "noop", "white")
    assert len(run(folders)) == 2
    assert run(folders, tools=replace(TOOLS, load=partial(pytest.fail, "drawn again"))) == []
    written(tmp_path, "blunt")
    (path,) = run(folders)
    content = json.loads(path.read_text(encoding="utf-8"))
    (one,) = [one for one in read_experiments(folders.experiments).values() if one.eraser == "blunt"]
    assert (content["experiment"], content["eraser"]) == (one.configuration, "blunt")
    assert not list((tmp_path / "results").rglob("*.png"))
    other = fakes.small_benchmark(objects=("cat",), per_role=3)
    assert not finished(one, folders, other)
    assert not finished(replace(one, seeds=2), folders, fakes.small_benchmark(objects=("cat",), per_role=4))


def test_chosen_rows_alone_are_drawn(tmp_path):
    folders = written(tmp_path, "noop", "white", "blunt")
    for wrong in ({"erasers": ["whit"]}, {"benchmarks": ["smal"]}):
        with pytest.raises(UnknownNameError, match="did you mean"):
            run(folders, **wrong)
    assert not (tmp_path / "out").exists()
    assert [path.parent.name for path in run(folders, erasers=["white"], benchmarks=["small"])] == ["white"]
    assert [path.parent.name for path in run(folders, benchmarks=["small@1"])] == ["blunt", "noop"]


def test_what_is_listed_is_what_a_run_then_draws(tmp_path):
    folders = written(tmp_path, "white", "noop", "blunt")
    found = {"small@1": fakes.small_benchmark(objects=("cat",), per_role=4)}.__getitem__

    def listed(**chosen):
        groups = unfinished(folders, find=found, tools=TOOLS, **chosen)
        return [one.eraser for _, group in groups for one in group]

    assert listed(erasers=["white"]) == ["white"]
    assert not (tmp_path / "out").exists()
    expected = listed()
    assert [path.parent.name for path in run(folders)] == expected == ["blunt", "noop", "white"]
    assert listed() == []


def test_what_tuned_means_is_part_of_the_configuration(monkeypatch):
    hashes = set()
    for fields in ({"ridge": 1.0}, {"ridge": 2.0}):
        monkeypatch.setattr(experiments, "tuned_settings", lambda fields=fields: {"uce": fields})
        for spec in ("uce:tuned", "uce"):
            hashes.add((spec, Experiment(table="main", benchmark="small@1", eraser=spec, seeds=1).configuration))
    assert sorted(spec for spec, _ in hashes) == ["uce", "uce:tuned", "uce:tuned"]


def test_what_a_preset_means_is_part_of_the_configuration(monkeypatch):
    hashes = []
    for rate in (1e-3, 2e-3):
        meant = {"spm": SimpleNamespace(training=TrainConfig(learning_rate=rate)), "uce": eraser("uce")}
        monkeypatch.setattr(experiments, "eraser", meant.__getitem__)
        hashes.append([Experiment(table="t", benchmark="b@1", eraser=spec, seeds=1).configuration for spec in meant])
    assert [a == b for a, b in zip(*hashes, strict=True)] == [False, True]


def test_a_file_gives_back_what_was_written():
    for changes in ({}, {"cases": ("a", "b"), "train_seed": 3}):
        one = Experiment(table="main", benchmark="small@1", eraser="spm:rank=2", seeds=2, **changes)
        assert one.to_toml().count("\n") == 3 + len(changes)
        assert (
            len({one.configuration, replace(one, eraser="spm").configuration, replace(one, seeds=3).configuration}) == 3
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            'benchmark = "a@1"\neraser = "noop"\nseeds = 1\nseedz = 2\n',
            r"x\.toml.*unknown key 'seedz'; did you mean 'seeds'",
        ),
        ('benchmark = "a@1"\neraser = "noop"\n', r"x\.toml.* has no 'seeds'"),
        ('benchmark = "a"\neraser = "noop"\nseeds = 1\n', "names no version; write NAME@VERSION"),
        ("benchmark = ", r"x\.toml.* cannot be read"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, content, message):
    (tmp_path / "main").mkdir()
    (tmp_path / "main" / "x.toml").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_experiments(tmp_path)


def test_no_experiments_are_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no experiments of table fast below"):
        read_experiments(tmp_path, ["fast"])
