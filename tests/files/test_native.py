"""The package's own format: everything comes back, and equal membranes give equal bytes, everywhere and always."""

import dataclasses
import hashlib
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import semipermeable as spm
from semipermeable.concept import Concept
from semipermeable.errors import MembraneError, OutputError
from semipermeable.files.native import to_bytes
from semipermeable.membrane import GateState, Membrane, Provenance

GOLDEN_SHA256 = "69781cf9ed0e21e31aa494b8e61a4be413e54a31eae162bed76566f9890dde62"
"""Of `golden()`'s file. If this changes, files in the world are no longer what we write: raise the format version."""

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def golden():
    """A small membrane that uses every field of the format."""
    ramp = torch.arange(12, dtype=torch.float32)
    return Membrane(
        {
            "mid.proj_in": (ramp[:3, None].half(), (ramp / 8).reshape(1, 3, 2, 2)),
            "down.0.to_k": (ramp[:8].reshape(4, 2), -ramp[:6].reshape(2, 3).double()),
        },
        Concept("café ☕", aliases=("coffee",), surrogate="tea", keep=("tea house",)),
        Provenance(
            base_model="zoo:emoji",
            base_hash="ab" * 32,
            text_encoder_hash="cd" * 32,
            family="unet",
            prediction_type="epsilon",
            training={"steps": 120, "lr": 0.004, "parts": [True, None, "x"], "nested": {"b": 1, "a": 2}},
            seed=7,
            package_version="0.1.0",
            metrics={"erased": 0.875, "kept": 1},
            created="2025-01-02",
        ),
        GateState(
            "transport", {"threshold": 0.61, "words": ["cat"]}, {"weight": ramp[:4], "ids": torch.tensor([3, 1])}
        ),
        gate_power=2,
        foreign_names=True,
    )


def assert_same(found, expected):
    for field in ("concept", "provenance", "gate_power", "foreign_names"):
        assert getattr(found, field) == getattr(expected, field)
    assert list(found.pairs) == list(expected.pairs)
    tensors = [(found.pairs[site], expected.pairs[site]) for site in expected.pairs]
    assert (found.gate is None) == (expected.gate is None)
    if expected.gate is not None:
        assert (found.gate.kind, found.gate.settings) == (expected.gate.kind, expected.gate.settings)
        assert set(found.gate.tensors) == set(expected.gate.tensors)
        tensors += [((found.gate.tensors[n],), (expected.gate.tensors[n],)) for n in expected.gate.tensors]
    for ours, theirs in tensors:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_every_field_comes_back(tmp_path):
    spm.save(golden(), tmp_path / "m.safetensors")
    assert_same(spm.load(tmp_path / "m.safetensors"), golden())


def test_save_load_save_gives_the_same_bytes(tmp_path):
    spm.save(golden(), tmp_path / "a.safetensors")
    spm.save(spm.load(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_golden_bytes():
    assert hashlib.sha256(to_bytes(golden())).hexdigest() == GOLDEN_SHA256


def test_bytes_do_not_depend_on_the_process_or_on_insertion_order(tmp_path):
    spm.save(golden(), tmp_path / "a.safetensors")
    expected = hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()
    program = (
        "import hashlib, sys, semipermeable as spm\n"
        "from semipermeable.files.native import to_bytes\n"
        "print(hashlib.sha256(to_bytes(spm.load(sys.argv[1]))).hexdigest())"
    )
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-c", program, str(tmp_path / "a.safetensors")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": hash_seed})
        assert done.stdout.strip() == expected
    turned = dataclasses.replace(golden(), pairs=dict(reversed(golden().pairs.items())))
    assert to_bytes(turned) == to_bytes(golden())


def test_strided_and_shared_tensors_are_stored_as_their_values(tmp_path):
    wide = torch.arange(12.0).reshape(3, 4)
    gate = GateState("probe", {}, {"a": wide.T, "b": wide.T})
    membrane = Membrane({"x": (wide[:, 1:2], wide[:1, ::2])}, Concept("cat"), gate=gate)
    spm.save(membrane, tmp_path / "m.safetensors")
    assert_same(spm.load(tmp_path / "m.safetensors"), membrane)


def test_names_that_look_like_each_other_stay_apart(tmp_path):
    pair = (torch.ones(2, 1), torch.ones(1, 3))
    sites = dict.fromkeys(("gate", "u", "gate::u", "u::x", "", "ü.💡"), pair)
    gate = GateState("probe", {}, {"u": torch.zeros(1), "gate": torch.zeros(2), "u::gate": torch.zeros(())})
    membrane = Membrane(sites, Concept("cat"), gate=gate)
    spm.save(membrane, tmp_path / "m.safetensors")
    assert_same(spm.load(tmp_path / "m.safetensors"), membrane)


def test_loaded_tensors_do_not_change_with_the_file(tmp_path):
    path = tmp_path / "m.safetensors"
    spm.save(golden(), path)
    loaded = spm.load(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert_same(loaded, golden())


def test_gate_power_can_be_overridden(tmp_path):
    spm.save(golden(), tmp_path / "m.safetensors")
    assert spm.load(tmp_path / "m.safetensors", gate_power=1).gate_power == 1
    with pytest.raises(MembraneError, match=r"gate_power must be 1 .* or 2 .*, found 3"):
        spm.load(tmp_path / "m.safetensors", gate_power=3)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
words = texts.map(lambda t: "x" + " ".join(t.split()))
finite = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def membranes(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def tensor(*shape):
        return torch.randn(shape, generator=generator).to(draw(st.sampled_from(FLOATS)))

    size = st.integers(1, 5)
    pairs = {}
    for name in draw(st.lists(texts, min_size=1, max_size=3, unique=True)):
        rank, kernel = draw(size), draw(st.sampled_from([(), (1, 1), (3, 2)]))
        pairs[name] = (tensor(draw(size), rank), tensor(rank, draw(size), *kernel))
    concept = Concept(
        draw(words), aliases=("a " + draw(words),), surrogate="s " + draw(words), keep=("k " + draw(words),)
    )
    provenance = Provenance(
        base_model=draw(texts),
        training=draw(st.dictionaries(texts, plain, max_size=3)),
        seed=draw(st.none() | st.integers()),
        metrics=draw(st.dictionaries(texts, finite, max_size=3)),
    )
    names = draw(st.lists(texts, max_size=2, unique=True))
    shapes = st.lists(st.integers(0, 3), max_size=3)
    gate = GateState(
        draw(texts), draw(st.dictionaries(texts, plain, max_size=3)), {n: tensor(*draw(shapes)) for n in names}
    )
    return Membrane(pairs, concept, provenance, draw(st.sampled_from([gate, None])), draw(st.sampled_from([1, 2])))


@settings(max_examples=60, deadline=None)
@given(membranes())
def test_any_membrane_comes_back_with_its_bytes(tmp_path_factory, membrane):
    path = tmp_path_factory.mktemp("any") / "m.safetensors"
    spm.save(membrane, path)
    loaded = spm.load(path)
    assert_same(loaded, membrane)
    assert to_bytes(loaded) == path.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"provenance": Provenance(metrics={"loss": math.nan})}, r"membrane.provenance.metrics.loss is nan"),
        ({"provenance": Provenance(training={"lr": [math.inf]})}, r"membrane.provenance.training.lr\[0\] is inf"),
        ({"provenance": Provenance(training={"a": {3: 1}})}, r"training.a has the key 3; keys must be text"),
        ({"provenance": Provenance(training={"device": torch.device("cpu")})}, r"training.device is a device"),
        ({"provenance": Provenance(seed="seven")}, r"'provenance.seed' must be a whole number or null, found 'seven'"),
        ({"gate": GateState("g", {"a": object()})}, r"gate.settings.a is a object"),
        ({"gate": GateState("g", {}, {"w": torch.tensor([math.nan])})}, r"'gate::w' holds NaN or infinity"),
        (
            {"gate": GateState("g", {}, {"w": torch.zeros(1, dtype=torch.complex64)})},
            r"'gate::w' has dtype torch.compl",
        ),
        ({"gate": GateState("g", {}, {"\ud800": torch.zeros(1)})}, r"is not valid Unicode"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(MembraneError, match=message):
        spm.save(dataclasses.replace(golden(), **change), tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_settings_nested_without_end_are_refused(tmp_path):
    deep = {}
    for _ in range(5000):
        deep = {"a": deep}
    with pytest.raises(MembraneError, match="nested too deeply"):
        spm.save(dataclasses.replace(golden(), gate=GateState("g", deep)), tmp_path / "m.safetensors")


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"ends in \.safetensors; change the name"):
        spm.save(golden(), tmp_path / "m.pt")
