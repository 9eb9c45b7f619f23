"""docs/file-format.md says what the code does: its reader runs, its tables are complete."""

import json
import re
import struct
import tomllib
from dataclasses import fields
from pathlib import Path

import torch

import semipermeable as spm
from semipermeable.concept import Concept
from semipermeable.files.container import DTYPES
from semipermeable.files.native import to_bytes
from semipermeable.membrane import GateState, Membrane, Provenance

PAGE = Path(__file__).parents[2] / "docs" / "file-format.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_reader_on_the_page_reads_our_files(tmp_path):
    u, v = torch.tensor([[0.5], [-2.0]]), torch.arange(12.0).reshape(1, 3, 2, 2)
    gate = GateState("transport", {"threshold": 0.5}, {"u": torch.tensor([0.25])})
    spm.save(Membrane({"gate": (u, v)}, Concept("café"), Provenance(seed=1), gate), tmp_path / "m.safetensors")
    namespace = {}
    exec(blocks("python")[0], namespace)
    story, sites, tensors = namespace["read"](tmp_path / "m.safetensors")
    assert story["concept"]["name"] == "café"
    assert sites == {"gate": {"u": ([2, 1], (0.5, -2.0)), "v": ([1, 3, 2, 2], tuple(float(i) for i in range(12)))}}
    assert tensors == {"u": ([1], (0.25,))}


def test_every_field_and_dtype_is_in_the_tables():
    text = PAGE.read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `([a-z_.]+)` \|", text, re.MULTILINE))
    named = {f"concept.{f.name}" for f in fields(Concept)} | {f"provenance.{f.name}" for f in fields(Provenance)}
    assert rows == named | {"version", "foreign_names", "gate", "gate.kind", "gate.settings", "gate_power"}
    assert f"`{' '.join(DTYPES)}`" in text


def test_the_concept_file_on_the_page_is_read(tmp_path):
    (tmp_path / "c.toml").write_text(blocks("toml")[0], encoding="utf-8")
    assert spm.load_concepts(tmp_path / "c.toml") == (Concept("cat", ("kitty",), "dog", ("cat face",)),)
    assert set(tomllib.loads(blocks("toml")[0])["concept"][0]) == {f.name for f in fields(Concept)}


def test_tensors_lie_in_the_order_on_the_page():
    order = re.search(r"ordered by dtype, `([A-Z0-9 ]+)`", PAGE.read_text(encoding="utf-8")).group(1).split()
    assert sorted(order) == sorted(DTYPES)
    tensors = {f"{name}{index}": torch.zeros(1, dtype=DTYPES[name]) for name in DTYPES for index in "é2"}
    raw = to_bytes(Membrane({"x": (torch.ones(1, 1),) * 2}, Concept("cat"), gate=GateState("g", {}, tensors)))
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    names = [name.removeprefix("gate::") for name in header if name.startswith("gate::")]
    assert next(iter(header)) == "__metadata__"
    assert names == [f"{name}{index}" for name in order for index in "2é"]
    assert [list(entry) for entry in list(header.values())[1:]] == [["dtype", "shape", "data_offsets"]] * (
        len(names) + 2
    )
