"""Artefacts: trained once, used again, the same bits and the same cost."""

import json

import pytest
import torch

from evaluation.erasers.quick import INSTANT, quick
from semipermeable.errors import ConfigError
from semipermeable.evaluation.costs import Meter
from semipermeable.evaluation.erasers import Eraser, Erasure, eraser
from semipermeable.evaluation.erasers.artefacts import Cached, cached_eraser, preparation
from semipermeable.evaluation.erasers.spm import Spm


def stories(folder):
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


@pytest.mark.parametrize("name", ["esd-x", "leco", "spm-reference"])
def test_what_was_trained_is_found_again_bit_for_bit(name, pipe, concept, prompts, drawn, tmp_path, monkeypatch):
    first = Cached(quick(name), tmp_path).prepare(pipe, [concept], seed=1)
    (story,) = stories(tmp_path).values()
    assert isinstance(first, Erasure)
    assert preparation(first, Meter()).seconds == story["cost"]["seconds"] > 0
    kind = type(quick(name))
    trains = "membrane_of" if hasattr(kind, "membrane_of") else "prepare"
    monkeypatch.setattr(kind, trains, lambda *args, **kwargs: pytest.fail("trained again"))
    again = Cached(quick(name), tmp_path).prepare(pipe, [concept], seed=1)
    assert again.config == first.config
    assert again.stored_bytes == first.stored_bytes
    assert preparation(again, Meter()) == preparation(first, Meter())
    with first.applied(pipe) as erased:
        wanted = drawn(erased, prompts[:1])
    with again.applied(pipe) as erased:
        assert torch.equal(drawn(erased, prompts[:1]), wanted)


def test_rules_share_membranes_and_concepts_are_kept_apart(pipe, concept, style, tmp_path):
    gated = Cached(Spm("spm", "transport", INSTANT), tmp_path)
    held = Cached(Spm("spm-open", "open", INSTANT), tmp_path)
    assert isinstance(gated, Eraser)
    assert (gated.gated, held.gated) == (True, False)
    gated.prepare(pipe, [concept], seed=0)
    both = held.prepare(pipe, [concept, style], seed=0)
    assert len(stories(tmp_path)) == 2
    total = sum(story["cost"]["seconds"] for story in stories(tmp_path).values())
    assert preparation(both, Meter()).seconds == pytest.approx(total)
    assert [m.name for m in both.erasure.membranes] == [concept.name, style.name]
    for changed in (
        Cached(Spm("spm", "transport", INSTANT), tmp_path),
        cached_eraser(tmp_path, "spm:num_steps=0,rank=2"),
    ):
        changed.prepare(pipe, [concept], seed=3)
    assert len(stories(tmp_path)) == 4


def test_what_needs_no_training_is_not_kept(pipe, concept, tmp_path):
    erasure = cached_eraser(tmp_path, "uce").prepare(pipe, [concept], seed=0)
    measured = Meter(seconds=1.5)
    assert preparation(erasure, measured) is measured
    assert list(tmp_path.iterdir()) == []
    assert erasure.config == eraser("uce").prepare(pipe, [concept], seed=0).config


def test_a_damaged_artefact_is_named(pipe, concept, tmp_path):
    method = Cached(quick("leco"), tmp_path)
    method.prepare(pipe, [concept], seed=0)
    (tensors,) = tmp_path.glob("*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"?")
    with pytest.raises(
        ConfigError, match=r"is not what was trained: SHA-256 .*; delete .*\.json' and it is trained again"
    ):
        method.prepare(pipe, [concept], seed=0)
    tensors.unlink()
    with pytest.raises(ConfigError, match="there is no file"):
        method.prepare(pipe, [concept], seed=0)
