"""`spm erase` on several concepts, and `spm interference` on what it made."""

import json
import os
import socket
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from semipermeable.cli import app
from semipermeable.concept import Concept
from semipermeable.files import load, save_concepts
from semipermeable.training import Share


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

    wolf = ("erase", "wolf", "--preset", "instant", "--surrogate", "dog", "--out", "made/wolf.safetensors")
    apart = spm(*wolf, "--orthogonal-to", "made")
    assert apart.exit_code == 0, apart.output
    assert load(tmp_path / "made" / "wolf.safetensors").provenance.training["orthogonal_to"] == ["cat", "dog"]

    result = spm("interference", "made", "--json", "found.json", "--captions", 2, "--steps", 2)
    assert result.exit_code == 0, result.output
    assert "disturbed" in result.output
    assert "dog and wolf" in result.output
    assert "'wolf' falls to what 'dog' erases, so that its prompts still draw it" in result.output
    found = json.loads((tmp_path / "found.json").read_text())
    assert [one["name"] for one in found["disturbances"]] == ["cat", "dog", "wolf"]
    assert found["undone"] == [["wolf", "dog"]]
    by_pair = {(one["first"], one["second"], one["site"]): one["regulators"] for one in found["overlaps"]}
    assert len(by_pair) == 3 * len(load(cat).pairs)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("cat", "--joint"), "are about several concepts"),
        (("cat", "--at-once", "2"), "are about several concepts"),
        (("cat", "--cluster", "auto"), "are about several concepts"),
        (("--concepts", "broken.toml", "--cluster", "auto"), "broken.toml"),
        (("--concepts", "c.toml", "--resume"), "omit --resume"),
        (("cat", "--orthogonal-to", "empty"), "holds no membrane"),
        (("cat", "--rank", "0"), "rank must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_loaded(spm, tmp_path, monkeypatch, arguments, words):
    save_concepts([Concept("cat")], tmp_path / "c.toml")
    (tmp_path / "broken.toml").write_text("[[concept]]\nnames = 3\n")
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("semipermeable.cluster.connected", None)
    result = spm("erase", *arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("cat",), "one concept is the work of one process"),
        (("--concepts", "c.toml", "--cluster", "auto"), "run it without accelerate launch"),
    ],
)
def test_what_several_processes_cannot_share_is_refused(spm, tmp_path, monkeypatch, arguments, words):
    monkeypatch.setattr("semipermeable.training.launched_share", lambda: Share(index=1, count=2))
    save_concepts([Concept("cat")], tmp_path / "c.toml")
    result = spm("erase", *arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.slow
def test_two_processes_of_accelerate_share_out_the_concepts(spm, tmp_path):
    """As two machines with a common folder would: on one, accelerate starts several processes for GPUs alone."""
    save_concepts([Concept(name, surrogate="animal") for name in ("cat", "dog", "fox")], tmp_path / "c.toml")
    arguments = ["erase", "--concepts", "c.toml", "--out-dir", "made", "--preset", "instant", "--at-once", "1"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2"]
    launch += ["--main_process_port", port, "-m", "semipermeable", *arguments]
    processes = [
        subprocess.Popen(
            launch,
            env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=500) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    made = [[line.split("'")[1] for line in out.splitlines() if "erases" in line] for out, _ in said]
    assert made == [["cat", "fox"], ["dog"]]
    assert ["erasing" in errors for _, errors in said] == [True, False]
    again = spm(*arguments)
    assert again.output.count("is there already") == 3, again.output
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        f"{name}.safetensors" for name in ("cat", "dog", "fox")
    ]


def test_a_folder_without_membranes_has_no_interference(spm, tmp_path):
    (tmp_path / "empty").mkdir()
    result = spm("interference", "empty")
    assert result.exit_code == 2
    assert "holds no membrane" in result.stderr
