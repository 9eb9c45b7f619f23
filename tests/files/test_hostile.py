"""Every way a file can be wrong gives one error that names file and key; nothing crashes, nothing is executed."""

import contextlib
import json
import math
import pickle
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import semipermeable as spm
from semipermeable.concept import Concept
from semipermeable.errors import MembraneFileError
from semipermeable.files.metadata import KEY
from semipermeable.files.native import to_bytes
from semipermeable.membrane import GateState, Membrane, Provenance


def small():
    gate = GateState("transport", {"threshold": 0.5}, {"w": torch.ones(2)})
    pairs = {"a": (torch.ones(3, 1), torch.ones(1, 2)), "b": (torch.ones(2, 2).half(), torch.ones(2, 3, 1, 1))}
    return Membrane(pairs, Concept("cat", aliases=("kitty",)), Provenance(seed=3), gate)


def pack(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def unpack(raw):
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def refused(path, raw, message, key=...):
    path.write_bytes(raw)
    with pytest.raises(MembraneFileError, match=message) as caught:
        spm.load(path)
    assert str(caught.value).startswith(str(path))
    if key is not ...:
        assert caught.value.key == key


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.safetensors"


def put(story, dotted, value):
    *parents, last = dotted.split(".")
    for parent in parents:
        story = story[parent]
    if value is KeyError:
        del story[last]
    else:
        story[last] = value


@pytest.mark.parametrize(
    ("field", "value", "message", "key"),
    [
        ("version", 2, "format version 2; this package reads version 1: update semipermeable", "version"),
        ("version", True, "format version True", "version"),
        ("version", KeyError, "format version None", "version"),
        ("strength", 1, r"unknown metadata field 'strength'.*made by a newer version; update", "strength"),
        ("gate_powr", 1, "unknown metadata field 'gate_powr'; did you mean 'gate_power'", "gate_powr"),
        ("concept", KeyError, "metadata field 'concept' is missing", "concept"),
        ("concept", "cat", "'concept' must be a JSON object, found str", "concept"),
        ("concept.name", 3, "'concept.name' must be text, found 3", "concept.name"),
        ("concept.name", " ", "a concept needs a name", "concept"),
        ("concept.aliases", "kitty", "'concept.aliases' must be a list of texts, found 'kitty'", "concept.aliases"),
        ("concept.aliases", [3], r"'concept.aliases' must be a list of texts, found \[3\]", "concept.aliases"),
        ("concept.colour", "red", r"unknown metadata field 'colour'.*newer version", "concept.colour"),
        ("provenance", None, "'provenance' must be a JSON object, found NoneType", "provenance"),
        ("provenance.seed", 1.5, "'provenance.seed' must be a whole number or null", "provenance.seed"),
        ("provenance.seed", True, "'provenance.seed' must be a whole number or null", "provenance.seed"),
        ("provenance.metrics", {"x": "0"}, "'provenance.metrics' must be an object of numbers", "provenance.metrics"),
        ("provenance.training", [], "'provenance.training' must be an object", "provenance.training"),
        ("provenance.created", None, "'provenance.created' must be text", "provenance.created"),
        ("provenance.family", KeyError, "metadata field 'provenance.family' is missing", "provenance.family"),
        ("gate_power", 3, "'gate_power' must be 1 or 2, found 3", "gate_power"),
        ("gate_power", 1.0, "'gate_power' must be 1 or 2, found 1.0", "gate_power"),
        ("foreign_names", 0, "'foreign_names' must be true or false, found 0", "foreign_names"),
        ("gate", [], "'gate' must be a JSON object, found list", "gate"),
        ("gate", None, "tensor 'gate::w' belongs to a gate, but the metadata says there is none", "gate::w"),
        ("gate.kind", 3, "'gate.kind' must be text", "gate.kind"),
        ("gate.settings", 3, "'gate.settings' must be an object", "gate.settings"),
        ("gate.later", 3, r"unknown metadata field 'later'.*newer version", "gate.later"),
    ],
)
def test_wrong_metadata_fields(path, field, value, message, key):
    header, data = unpack(to_bytes(small()))
    story = json.loads(header["__metadata__"][KEY])
    put(story, field, value)
    header["__metadata__"][KEY] = json.dumps(story)
    refused(path, pack(header, data), message, key)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "must be a JSON object, found list"),
        ('{"version":1,"version":1}', "the key 'version' appears twice"),
        ('{"version":NaN}', "nan is not a finite number|NaN is not a finite number"),
        ('{"version":-Infinity}', "-Infinity is not a finite number"),
        ('{"version":1e999}', "1e999 is not a finite number"),
        ('{"version":' + "9" * 5000 + "}", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_metadata_that_is_not_json(path, text, message):
    header, data = unpack(to_bytes(small()))
    header["__metadata__"][KEY] = text
    refused(path, pack(header, data), message, KEY)


def test_other_metadata_keys_and_types(path):
    header, data = unpack(to_bytes(small()))
    extra = header | {"__metadata__": header["__metadata__"] | {"format": "pt"}}
    refused(path, pack(extra, data), "has the metadata key 'format' beside 'semipermeable'", "format")
    refused(path, pack(header | {"__metadata__": {KEY: 3}}, data), f"metadata key '{KEY}' must be text", KEY)
    refused(path, pack(header | {"__metadata__": []}, data), "must be an object of texts", "__metadata__")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("u::a", {"shape": [1, 3]}, r"'v::a' must have shape \(3, in, \*kernel\)"),
        ("u::a", {"shape": [3]}, r"'u::a' must have shape \(out, k\), found \(3,\)"),
        ("u::a", {"shape": [3, 1, 1]}, r"'u::a' must have shape \(out, k\)"),
        ("v::a", {"shape": [1, 2, 1]}, r"'v::a' must have shape \(1, in, \*kernel\)"),
        (
            "v::a",
            {"shape": [2, 1]},
            r"'v::a' must have shape \(1, in, \*kernel\) to go with u \(3, 1\), found \(2, 1\)",
        ),
        ("u::a", {"shape": [4, 1]}, r"takes 12 bytes, its shape \[4, 1\] needs 16"),
        ("u::a", {"shape": [-3, -1]}, "must be whole numbers"),
        ("u::a", {"shape": [2**62, 4]}, "must be whole numbers"),
        ("u::a", {"shape": "3,1"}, "must be whole numbers"),
        ("u::a", {"shape": [True, 3]}, "must be whole numbers"),
        ("u::a", {"dtype": "I32"}, r"'u::a' must be floating point, found torch\.int32"),
        ("u::a", {"dtype": "F31"}, r"has dtype 'F31'; supported: F64"),
        ("u::a", {"dtype": ["F32"]}, r"has dtype \['F32'\]; supported"),
        ("u::a", {"data_offsets": [0]}, "must be whole numbers"),
        ("u::a", {"data_offsets": [12, 0]}, "takes -12 bytes"),
        ("u::a", {"extra": 1}, "needs exactly dtype, shape and data_offsets"),
    ],
)
def test_wrong_tensor_entries(path, name, change, message):
    header, data = unpack(to_bytes(small()))
    header[name] |= change
    culprit = "v::a" if message.startswith("'v::a'") else name
    refused(path, pack(header, data), message, culprit)


def test_a_header_entry_that_is_no_object(path):
    header, data = unpack(to_bytes(small()))
    refused(path, pack(header | {"u::a": 3}, data), "'u::a' needs exactly dtype", "u::a")


def test_overlaps_gaps_and_loose_bytes(path):
    def entry(begin, end):
        return {"dtype": "F32", "shape": [(end - begin) // 4, 1], "data_offsets": [begin, end]}

    refused(path, pack({"u::a": entry(0, 8), "v::a": entry(4, 12)}, bytes(12)), "starts at byte 4, expected 8", "v::a")
    refused(
        path, pack({"u::a": entry(0, 8), "v::a": entry(12, 16)}, bytes(16)), "starts at byte 12, expected 8", "v::a"
    )
    refused(path, pack({"u::a": entry(0, 8)}, bytes(12)), "holds 4 bytes that belong to no tensor")
    refused(path, pack({"u::a": entry(0, 8)}, bytes(4)), "is truncated: tensor 'u::a' ends at byte 8 of 4", "u::a")


@pytest.mark.parametrize(
    ("name", "new", "message", "key"),
    [
        ("v::a", "v::c", "site 'a' has u but no v: tensor 'v::a' is missing", "v::a"),
        ("u::a", "u::c", "site 'a' has v but no u: tensor 'u::a' is missing", "u::a"),
        ("gate::w", "w", "tensor 'w' is none of u::<site>, v::<site>, gate::<name>", "w"),
        ("gate::w", "x::w", "tensor 'x::w' is none of", "x::w"),
    ],
)
def test_wrong_tensor_names(path, name, new, message, key):
    header, data = unpack(to_bytes(small()))
    header[new] = header.pop(name)
    refused(path, pack(header, data), message, key)


def test_a_file_without_sites(path):
    header, _ = unpack(to_bytes(small()))
    refused(path, pack({"__metadata__": header["__metadata__"]}), "holds no site")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["u::a", "v::a", "gate::w"])
def test_values_that_are_not_finite(path, name, bad):
    header, data = unpack(to_bytes(small()))
    begin = header[name]["data_offsets"][0]
    data = data[:begin] + struct.pack("<f", bad) + data[begin + 4 :]
    refused(path, pack(header, data), f"tensor '{name}' holds NaN or infinity", name)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is no safetensors file: 0 bytes"),
        (b"\xff" * 8 + b"{}", "header of 18446744073709551615 bytes in a file of 10"),
        (struct.pack("<Q", 100_000_001) + b"{}", "header of 100000001 bytes"),
        (struct.pack("<Q", 3) + b"{}", "header of 3 bytes in a file of 10"),
        (pack(b"[]"), "its header is not a JSON object"),
        (pack(b"{}  "), "is no membrane \\(no tensor"),
        (pack(b" {}"), "its header is not a JSON object"),
        (pack(b"{\xff}"), "its header is not JSON"),
        (pack(b'{"u::a":1,"u::a":2}'), "the key 'u::a' appears twice"),
        (pack(b'{"a":' * 50_000), "its header is not JSON"),
        (b"GIF89a" + bytes(40), "truncated or no safetensors file"),
    ],
)
def test_files_that_are_no_safetensors(path, raw, message):
    refused(path, raw, message)


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was executed')",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_are_refused_by_content(path, protocol):
    refused(path, pickle.dumps(Bomb(), protocol), "is a pickle under another name")


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_are_refused_by_content(path, zipped):
    torch.save({"w": Bomb()}, path, _use_new_zipfile_serialization=zipped)
    refused(path, path.read_bytes(), "is a pickle under another name")


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".PT"])
def test_pickles_are_refused_by_extension(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    refused(path, to_bytes(small()), r"may run code when loaded.*convert it to \.safetensors", suffix.lower())


def test_a_header_whose_length_looks_like_a_pickle_is_read(path):
    """The length 0x0280 starts with the two bytes of a protocol-2 pickle."""
    header, data = unpack(to_bytes(small()))
    text = json.dumps(header, separators=(",", ":")).encode()
    length = next(n for n in range(0x0280, 2**16, 0x10000) if n >= len(text)) if len(text) <= 0x0280 else 0x0380
    assert length >= len(text)
    path.write_bytes(pack(text.ljust(length), data))
    assert path.read_bytes()[:1] == b"\x80"
    assert spm.load(path).name == "cat"


def test_other_safetensors_and_missing_files(path, tmp_path):
    save_file({"unet.conv.weight": torch.ones(1)}, path)
    refused(path, path.read_bytes(), "is no membrane .first tensor 'unet.conv.weight'.*spm erase", "unet.conv.weight")
    with pytest.raises(MembraneFileError, match="cannot be read: No such file or directory; check the path"):
        spm.load(tmp_path / "missing.safetensors")
    with pytest.raises(MembraneFileError, match="cannot be read: Is a directory"):
        spm.load(tmp_path)
    with pytest.raises(MembraneFileError, match=r"cannot be read: .*null"):
        spm.load(str(tmp_path / "a\0b"))


def test_every_truncation_is_refused(path):
    raw = to_bytes(small())
    for length in range(0, len(raw), 64):
        refused(path, raw[:length], "truncated|no safetensors file")
    refused(path, raw[:-1], "truncated")


def test_no_flipped_bit_crashes_the_reader(path):
    """A flip inside a text or a number may give another valid membrane; nothing may give another error."""
    raw = to_bytes(small())
    num_read = 0
    for position in range(len(raw)):
        path.write_bytes(raw[:position] + bytes([raw[position] ^ 1 << position % 8]) + raw[position + 1 :])
        with contextlib.suppress(MembraneFileError):
            spm.load(path)
            num_read += 1
    assert 0 < num_read < len(raw) / 2


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 10_000), junk=st.binary(min_size=1, max_size=16), insert=st.booleans())
def test_no_junk_crashes_the_reader(tmp_path_factory, position, junk, insert):
    raw = to_bytes(small())
    position %= len(raw)
    path = tmp_path_factory.mktemp("junk") / "m.safetensors"
    path.write_bytes(raw[:position] + junk + raw[position + (0 if insert else len(junk)) :])
    with contextlib.suppress(MembraneFileError):
        spm.load(path)
