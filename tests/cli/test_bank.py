"""`spm bank`."""

import json

import pytest
from typer.testing import CliRunner

import semipermeable as spm
from semipermeable.cli.app import app

from helpers import make_tiny_unet, random_membrane


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "membranes"
    folder.mkdir()
    for name in ("cat", "van gogh"):
        spm.save(random_membrane(make_tiny_unet(), name, aliases=(f"{name} thing",)), folder / f"{name}.safetensors")
    return folder


def test_pack_then_list(folder, tmp_path):
    out = tmp_path / "bank.safetensors"
    packed = CliRunner().invoke(app, ["bank", "pack", str(folder), "--out", str(out)])
    assert packed.exit_code == 0, packed.output
    assert packed.output.startswith("2 membranes, ")
    listings = [CliRunner().invoke(app, ["bank", "list", str(source)]).output for source in (folder, out)]
    assert listings[0] == listings[1]
    assert listings[0].splitlines() == [
        "cat (cat thing)   gate none, base unknown",
        "van gogh (van gogh thing)   gate none, base unknown",
        "2 membranes",
    ]
    rows = json.loads(CliRunner().invoke(app, ["bank", "list", str(out), "--json"]).output)
    assert [row["name"] for row in rows] == ["cat", "van gogh"]


def test_what_is_no_bank_is_one_sentence(folder, tmp_path):
    for arguments in (
        ["list", str(tmp_path / "nowhere")],
        ["pack", str(tmp_path), "--out", str(folder / "b.safetensors")],
    ):
        found = CliRunner().invoke(app, ["bank", *arguments])
        assert found.exit_code == 2
        assert found.output.startswith("spm: ")
