"""What the programs in benchmarks/ keep of earlier runs: nothing is passed off as something else."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from semipermeable.errors import ConfigError, UnknownNameError

SCRIPTS = Path(__file__).parent.parent / "benchmarks"


def module_of(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tuning():
    """The module that searches settings of rivals."""
    return module_of("tune_rivals")


def candidate(spec, pictures, harmonic):
    return {"eraser": spec, "pictures": pictures, "harmonic": harmonic}


def test_a_candidate_keeps_the_number_of_pictures_it_was_judged_on(tuning):
    tried = {"uce": [candidate("uce", 32, 0.9), candidate("uce:ridge=5", 32, 0.8)]}
    joined = tuning.joined(tried, "uce", candidate("uce", 64, 0.7))
    assert joined["uce"] == [*tried["uce"], candidate("uce", 64, 0.7)]
    again = tuning.joined(joined, "uce", candidate("uce", 32, 0.5))
    assert [one["harmonic"] for one in again["uce"]] == [0.5, 0.8, 0.7]
    assert set(tuning.joined(tried, "rece", candidate("rece", 64, 1.0))) == {"uce", "rece"}


def test_only_candidates_judged_on_the_same_pictures_are_compared(tuning):
    few = [candidate("uce", 32, 0.9), candidate("uce:ridge=5", 32, 0.95)]
    assert tuning.best_of([*few, candidate("uce", 64, 1.0)])["eraser"] == "uce:ridge=5"  # a search that was stopped
    many = [candidate("uce", 64, 0.7), candidate("uce:ridge=5", 64, 0.6)]
    assert tuning.best_of([*few, *many]) == many[0]


def test_the_file_says_of_every_candidate_how_many_pictures_it_had(tuning):
    assert {one["pictures"] for name in tuning.GRID for one in tuning.tried_before()[name]} == {32}
    assert "uce" in tuning.judged("uce", 32)
    assert not tuning.judged("uce", 64)


def test_cells_made_in_another_way_do_not_get_a_new_header(tmp_path):
    out = tmp_path / "making.json"
    out.write_text(json.dumps({"num_target": 96, "cells": {"church": {}}}), encoding="utf-8")
    command = [sys.executable, SCRIPTS / "making.py", "--concept", "church", "--out", out]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "had another num_target" in found.stderr
    assert "--fresh" in found.stderr
    assert json.loads(out.read_text(encoding="utf-8")) == {"num_target": 96, "cells": {"church": {}}}


def test_a_training_of_several_results_counts_once_among_their_hours(tmp_path, capsys):
    def write(table, row, concept, eraser, rule):
        erasure = {"eraser": eraser, "rule": rule, "concepts": [concept], "num_steps": 24}
        costs = {"pictures": 720, "busy_seconds_per_picture": 0.5, "prepare_seconds": 1800.0}
        path = tmp_path / table / "emoji-objects@2" / row / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(
            json.dumps({"eraser": eraser, "costs": costs, "erasures": {concept: erasure}}), encoding="utf-8"
        )

    write("few", "spm", "horse", "spm", "transport")
    write("main", "spm-open", "horse", "spm-open", "open")
    write("main", "spm", "rose", "spm", "transport")
    module_of("bench").show_hours(tmp_path, ["few", "main"])
    few, main, total = capsys.readouterr().out.splitlines()
    assert (few.split(), main.split()) == (
        ["drawing", "0.1", "h", "training", "0.5", "h", "few"],
        ["drawing", "0.2", "h", "training", "0.5", "h", "main"],
    )
    assert total.startswith("0.7 h")


def test_a_table_drawn_again_is_held_to_the_committed_one(tmp_path, capsys):
    def write(root, row, style, ua, experiment="a1"):
        figures = {key: {"value": value} for key, value in (("ua", ua), ("ira", 1.0), ("cra", 0.5))}
        columns = {"object": ["cat", "dog"], "style": ["flat", style], "picture": None}
        told = {
            "eraser": row,
            "experiment": experiment,
            "benchmark_digest": "d",
            "figures": figures,
            "columns": columns,
        }
        path = tmp_path / root / "main" / "emoji-objects@2" / row / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(told), encoding="utf-8")

    show = module_of("bench").show_differences
    for row in ("leco", "rece", "uce", "only-here"):
        write("committed", row, "flat", 0.25)
    with pytest.raises(ConfigError, match=r"holds no result of these tables; draw some: bench.py --results"):
        show(tmp_path / "committed", tmp_path / "drawn", ["main"])
    write("drawn", "leco", "flat", 0.25, experiment="a2")
    write("drawn", "rece", "flat", 0.25)
    write("drawn", "uce", "neon", 0.75)
    show(tmp_path / "committed", tmp_path / "drawn", ["main"])
    assert capsys.readouterr().out.splitlines() == [
        "main/emoji-objects@2/leco  is not of the same experiment",
        "main/emoji-objects@2/rece  0 of 2 judged otherwise   UA 0.250 0.250   IRA 1.000 1.000   CRA 0.500 0.500",
        "main/emoji-objects@2/uce  1 of 2 judged otherwise   UA 0.250 0.750   IRA 1.000 1.000   CRA 0.500 0.500",
        "1 of 3 results have every verdict as committed",
    ]
    chosen = {"benchmarks": ["emoji-objects"], "erasers": ["uce"]}
    show(tmp_path / "committed", tmp_path / "drawn", ["main"], **chosen)
    line, count = capsys.readouterr().out.splitlines()
    assert line.startswith("main/emoji-objects@2/uce  1 of 2")
    assert count == "0 of 1 results have every verdict as committed"
    with pytest.raises(UnknownNameError, match="unknown eraser of these experiments 'ucee'; did you mean 'uce'"):
        show(tmp_path / "committed", tmp_path / "drawn", ["main"], erasers=["ucee"])
    with pytest.raises(UnknownNameError, match="emoji-objects@1"):
        show(tmp_path / "committed", tmp_path / "drawn", ["main"], benchmarks=["emoji-objects@1"])
