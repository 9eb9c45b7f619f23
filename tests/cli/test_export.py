"""`spm export`, `spm import`, `spm merge`: what they write, what they say, and what they refuse."""

import dataclasses

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from semipermeable.cli import export as commands
from semipermeable.concept import Concept
from semipermeable.files import load, save
from semipermeable.files.exporting import LAYOUTS

from helpers import random_membrane

app = typer.Typer(pretty_exceptions_enable=False)
app.command("export", epilog=commands.EXPORT_EXAMPLE)(commands.export_command)
app.command("import", epilog=commands.IMPORT_EXAMPLE)(commands.import_command)
app.command("merge", epilog=commands.MERGE_EXAMPLE)(commands.merge_command)


@pytest.fixture
def spm(tmp_path, monkeypatch):
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def cat(tmp_path, pipe):
    save(random_membrane(pipe.unet, "cat", scale=0.03), tmp_path / "cat.safetensors")
    return "cat.safetensors"


@pytest.fixture
def neon(tmp_path, pipe):
    save(random_membrane(pipe.unet, "neon", scale=0.03, seed=1), tmp_path / "neon.safetensors")
    return "neon.safetensors"


def assert_refused(result, *words):
    """One sentence on stderr that holds these words, exit code 2."""
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    for word in ("spm: ", *words):
        assert word in lines[0]


def flat(text):
    return " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize("command", ["export", "import", "merge"])
def test_every_help_shows_an_example(spm, command):
    assert f"Example: spm {command}" in flat(spm(command, "--help").output)


def test_the_formats_are_those_that_exist():
    assert set(commands.ADAPTERS) == set(LAYOUTS)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_export_says_that_the_gate_is_lost_and_import_brings_the_membrane_back(spm, tmp_path, cat, layout):
    out = "adapter" if layout == "peft" else "adapter.safetensors"
    result = spm("export", cat, "--format", layout, "--out", out)
    assert result.exit_code == 0, result.output
    assert f"{out}: erases 'cat'" in result.stdout
    assert "has no gate: it acts on every prompt" in flat(result.stderr)
    result = spm("import", out, "--out", "again.safetensors")
    assert result.exit_code == 0, result.output
    assert "erases cat;" in result.stdout
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / cat).read_bytes()


def test_import_takes_names_and_finds_sites(spm, tmp_path, cat, pipe):
    spm("export", cat, "--out", "adapter.safetensors")
    save_file(load_file(tmp_path / "adapter.safetensors"), tmp_path / "leco.safetensors")
    arguments = ("import", "leco.safetensors", "--name", "Van Gogh", "--alias", "Vincent", "--gate-power", 2)
    result = spm(*arguments, "--model", "emoji", "--out", "gogh.safetensors")
    assert result.exit_code == 0, result.output
    membrane = load(tmp_path / "gogh.safetensors")
    assert membrane.concept.names == ("Van Gogh", "Vincent")
    assert (membrane.gate_power, membrane.foreign_names) == (2, False)
    assert set(membrane.pairs) == set(load(tmp_path / cat).pairs)


def test_merge_adds_up(spm, tmp_path, cat, neon):
    result = spm("merge", cat, neon, "--gamma", "1,-0.5", "--out", "both.safetensors")
    assert result.exit_code == 0, result.output
    assert "rank 2" in result.stdout
    assert "has no gate" in result.stderr
    merged, one, two = (load(tmp_path / name) for name in ("both.safetensors", cat, neon))
    for site, (u, v) in merged.pairs.items():
        (a, b), (c, d) = one.pairs[site], two.pairs[site]
        expected = a.double() @ b.double().flatten(1) - 0.5 * (c.double() @ d.double().flatten(1))
        torch.testing.assert_close(u.double() @ v.double().flatten(1), expected, rtol=1e-12, atol=1e-16)


def test_merge_joins_foreign_names_when_it_knows_the_model(spm, tmp_path, cat, neon):
    spm("export", cat, "--out", "adapter.safetensors")
    save_file(load_file(tmp_path / "adapter.safetensors"), tmp_path / "leco.safetensors")
    assert_refused(spm("merge", "leco.safetensors", neon, "--out", "b.safetensors"), "another program", "--model")
    result = spm(
        "merge", "leco.safetensors", neon, "--model", "emoji", "--format", "diffusers", "--out", "b.safetensors"
    )
    assert result.exit_code == 0, result.output
    assert load(tmp_path / "b.safetensors").rank == 2


@pytest.mark.parametrize(("layout", "out"), [("folder", "baked"), ("checkpoint", "baked.safetensors")])
def test_export_bakes_several(spm, tmp_path, cat, neon, layout, out):
    result = spm("export", cat, neon, "--format", layout, "--model", "emoji", "--out", out)
    assert result.exit_code == 0, result.output
    assert f"{out}: emoji without cat, neon" in result.stdout
    assert "has no gate" in result.stderr
    written = tmp_path / out / "model_index.json" if layout == "folder" else tmp_path / out
    assert written.is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("export", "cat.safetensors", "--format", "koya", "--out", "x"), ("unknown format 'koya'", "'kohya'")),
        (("export", "cat.safetensors", "--out", "x.bin"), ("ends in .safetensors", "x.bin")),
        (("export", "nowhere.safetensors", "--out", "x.safetensors"), ("cannot be read", "check the path")),
        (("export", "cat.safetensors", "cat.safetensors", "--out", "x.safetensors"), ("found 2", "spm merge")),
        (("export", "cat.safetensors", "--dtype", "fp16", "--out", "x.safetensors"), ("--dtype is for baked",)),
        (("export", "cat.safetensors", "--format", "folder", "--out", "x"), ("say which, e.g. --model emoji",)),
        (("export", "cat.safetensors", "--format", "folder", "--model", "emojy", "--out", "x"), ("'emojy'", "'emoji'")),
        (("import", "nowhere.safetensors", "--out", "x.safetensors"), ("cannot be read", "check the path")),
        (("import", "cat.safetensors", "--gate-power", "3", "--out", "x.safetensors"), ("gate_power must be 1",)),
        (("import", "cat.safetensors", "--name", " ", "--out", "x.safetensors"), ("a concept needs a name",)),
        (("import", "cat.safetensors", "--name", "", "--out", "x.safetensors"), ("a concept needs a name",)),
        (("import", ".", "--out", "x.safetensors"), (".: ", "cannot be read")),
        (("import", "model.ckpt", "--out", "x.safetensors"), (".ckpt files may run code",)),
        (("merge", "cat.safetensors", "--gamma", "1,x", "--out", "x.safetensors"), ("numbers joined by commas",)),
        (("merge", "cat.safetensors", "--gamma", "1,2", "--out", "x.safetensors"), ("as many γ, found 2",)),
        (("merge", "cat.safetensors", "--gamma", "nan", "--out", "x.safetensors"), ("finite",)),
        (("merge", "cat.safetensors", "--format", "folder", "--out", "x"), ("unknown format 'folder'",)),
    ],
)
def test_what_is_refused(spm, tmp_path, cat, arguments, words):
    assert_refused(spm(*arguments), *words)
    assert [path.name for path in tmp_path.iterdir()] == [cat]


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "cat.safetensors", "--out", "./cat.safetensors"),
        ("export", "cat.safetensors", "--out", "model.safetensors", "--model", "model.safetensors"),
        ("export", "lora", "--out", "lora/adapter_model.safetensors"),
        ("export", "cat.safetensors", "--format", "checkpoint", "--model", "emoji", "--out", "cat.safetensors"),
        ("import", "cat.safetensors", "--out", "cat.safetensors"),
        ("merge", "neon.safetensors", "cat.safetensors", "--out", "cat.safetensors"),
    ],
)
def test_what_is_read_is_never_replaced(spm, tmp_path, cat, neon, arguments):
    assert spm("export", cat, "--format", "peft", "--out", "lora").exit_code == 0
    (tmp_path / "model.safetensors").write_bytes(b"a model")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert_refused(spm(*arguments), "is read for it and would be lost", "choose another name")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_import_keeps_what_it_is_not_told(spm, tmp_path, pipe):
    told = Concept("cat", ("moggy",), surrogate="animal", keep=("cat face",))
    save(dataclasses.replace(random_membrane(pipe.unet, "cat"), concept=told), tmp_path / "cat.safetensors")
    spm("export", "cat.safetensors", "--out", "lora.safetensors")
    for options, names in (
        (("--alias", "kitty"), ("cat", "kitty", "moggy")),
        (("--name", "tabby"), ("tabby",)),
        (("--name", "tabby", "--alias", "kitty"), ("tabby", "kitty")),
    ):
        assert spm("import", "lora.safetensors", *options, "--out", "again.safetensors").exit_code == 0
        concept = load(tmp_path / "again.safetensors").concept
        assert (concept.names, concept.surrogate, concept.keep) == (names, "animal", ("cat face",))
