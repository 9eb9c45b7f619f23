"""`spm evaluate` and `spm report`: refusals at once, and one small comparison on the bundled model."""

import dataclasses
import json

import pytest
import typer
from typer.testing import CliRunner

from evaluation.runner import fakes
from semipermeable.cli import evaluate
from semipermeable.evaluation import benchmarks, runner

APP = typer.Typer()
APP.command("evaluate")(evaluate.evaluate_command)
APP.command("report")(evaluate.report_command)


def spm(*arguments):
    return CliRunner().invoke(APP, list(map(str, arguments)))


def refused(result, *words):
    said = " ".join(result.stderr.split())
    assert result.exit_code == 2, result.output
    assert all(word in said for word in words), said


@pytest.fixture
def small(monkeypatch):
    """Two cases of the first benchmark with six rows and two steps each."""
    whole = benchmarks.benchmark("emoji-objects")
    rows = {
        case.name: [r for role in ("target", "kept") for r in [x for x in case.rows if x.role == role][:3]]
        for case in whole.cases
    }
    cases = tuple(dataclasses.replace(case, rows=tuple(rows[case.name])) for case in whole.cases[:2])
    sampler = dataclasses.replace(whole.sampler, steps=2)
    found = dataclasses.replace(whole, cases=cases, sampler=sampler)
    monkeypatch.setattr(benchmarks, "benchmark", lambda name, request: found)
    return found


@pytest.mark.slow
def test_compare_and_report_on_the_bundled_model(tmp_path, small):
    out = tmp_path / "results"
    result = spm("evaluate", small.name, "--eraser", "negative-prompt", "--seeds", 1, "--case", "horse", "--out", out)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split()[:3] == ["eraser", "H", "UA"] or "UA" in lines[0]
    assert {line.split()[0] for line in lines[2:4]} == {"noop", "negative-prompt"}
    base = json.loads((out / small.key / "noop" / "result.json").read_text(encoding="utf-8"))
    assert base["figures"]["identical"]["value"] == 1
    assert base["erasures"]["horse"]["eraser"] == "noop"
    assert len(list(out.rglob("*.png"))) == 12
    result = spm("report", out, "--out", tmp_path / "report.html")
    assert result.exit_code == 0, result.output
    assert "negative-prompt" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("evaluate", "emoji-object", "--eraser", "uce"), ("did you mean 'emoji-objects'",)),
        (("evaluate", "emoji-objects", "--eraser", "uec"), ("unknown eraser 'uec'", "uce")),
        (("evaluate", "emoji-objects", "--eraser", "uce", "--case", "castel"), ("did you mean 'castle'",)),
        (("report", "nowhere"), ("no results below 'nowhere'", "spm evaluate")),
    ],
)
def test_refusals(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    refused(spm(*arguments), *words)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_option_is_a_usage_error():
    assert spm("report", "x", "--cluster", "pixel").exit_code == 2
    assert spm("evaluate", "emoji-objects").exit_code == 2


def test_the_table_shows_intervals(monkeypatch, tmp_path):
    tools = runner.Tools(load=fakes.load, eraser=fakes.eraser, panel=fakes.panel)
    monkeypatch.setattr(runner, "Tools", lambda: tools)
    monkeypatch.setattr(benchmarks, "benchmark", lambda name, request: fakes.small_benchmark())
    result = spm("evaluate", "small", "--eraser", "white", "--seeds", 1, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    white = next(line for line in result.stdout.splitlines() if line.startswith("white"))
    assert "1.000 [" in white
    assert "0.000 [0.000, " in white
