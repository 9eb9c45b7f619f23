"""`spm erase` on several concepts, and `spm interference` on what it made."""

import json

import pytest
from typer.testing import CliRunner

from semipermeable.cli import app
from semipermeable.concept import Concept
from semipermeable.files import load, save_concepts


@pytest.fixture
def spm(tmp_path, monkeypatch):
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.mark.slow
def test_many_instant_membranes_are_made_once_and_measured(spm, tmp_path):
    save_concepts([Concept("cat", surrogate="animal"), Concept("dog", surrogate="animal")], tmp_path / "c.toml")
    arguments = ("erase", "--concepts", "c.toml", "--out-dir", "made", "--preset", "instant", "--rank", 2)
    first = spm(*arguments)
    assert first.exit_code == 0, first.output
    cat = tmp_path / "made" / "cat.safetensors"
    before = cat.read_bytes()
    assert load(cat).rank == 2
    again = spm(*arguments)
    assert again.output.count("is there already") == 2
    assert cat.read_bytes() == before
    assert spm(*arguments, "--seed", 1).exit_code == 2

    apart = spm("erase", "wolf", "--preset", "instant", "--orthogonal-to", "made", "--out", "made/wolf.safetensors")
    assert apart.exit_code == 0, apart.output
    assert load(tmp_path / "made" / "wolf.safetensors").provenance.training["orthogonal_to"] == ["cat", "dog"]

    result = spm("interference", "made", "--json", "found.json", "--captions", 2, "--steps", 2)
    assert result.exit_code == 0, result.output
    assert "disturbed" in result.output
    assert "dog and wolf" in result.output
    found = json.loads((tmp_path / "found.json").read_text())
    assert [one["name"] for one in found["disturbances"]] == ["cat", "dog", "wolf"]
    by_pair = {(one["first"], one["second"], one["site"]): one["regulators"] for one in found["overlaps"]}
    assert len(by_pair) == 3 * len(load(cat).pairs)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("cat", "--joint"), "are about several concepts"),
        (("cat", "--at-once", "2"), "are about several concepts"),
        (("--concepts", "c.toml", "--resume"), "omit --resume"),
        (("cat", "--orthogonal-to", "empty"), "holds no .safetensors"),
        (("cat", "--rank", "0"), "rank must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_loaded(spm, tmp_path, arguments, words):
    save_concepts([Concept("cat")], tmp_path / "c.toml")
    (tmp_path / "empty").mkdir()
    result = spm("erase", *arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())


def test_a_folder_without_membranes_has_no_interference(spm, tmp_path):
    (tmp_path / "empty").mkdir()
    result = spm("interference", "empty")
    assert result.exit_code == 2
    assert "holds no .safetensors" in result.stderr
