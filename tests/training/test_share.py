"""Shares of a run under accelerate: dealt by rank, and the device of each process."""

import sys
from types import SimpleNamespace

import pytest

from semipermeable.errors import ConfigError
from semipermeable.training import Share, erase_each, launched_share
from semipermeable.training import share as module

from training_helpers import quick


def test_without_accelerate_the_share_is_the_whole_and_accelerate_is_not_imported(monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert launched_share() == Share() == Share(index=0, count=1, device=None)


def state(num_processes, index=0, device="cpu"):
    return SimpleNamespace(
        num_processes=num_processes, process_index=index, device=device, destroy_process_group=lambda: None
    )


@pytest.mark.parametrize(
    ("found", "share"),
    [(state(1), Share()), (state(3, 2, "cuda:2"), Share(index=2, count=3, device="cuda:2"))],
)
def test_what_accelerate_dealt(monkeypatch, found, share):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setitem(sys.modules, "accelerate", SimpleNamespace(PartialState=lambda cpu: found))
    monkeypatch.setattr(module.atexit, "register", lambda _end: None)
    assert launched_share() == share


def test_a_process_has_its_own_device_unless_another_kind_is_asked_for():
    share = Share(index=1, count=2, device="cuda:1")
    assert [share.device_for(wanted) for wanted in (None, "cuda", "cuda:0", "cpu")] == [
        "cuda:1",
        "cuda:1",
        "cuda:0",
        "cpu",
    ]
    assert [Share().device_for(wanted) for wanted in (None, "cuda")] == [None, "cuda"]


def test_there_is_no_third_of_two():
    with pytest.raises(ConfigError, match="share 2 of 2 does not exist; count from 0 to 1"):
        Share(index=2, count=2)


def test_shares_make_everything_once_whenever_they_look(gateless, tiny_pipe, tmp_path):
    options = {"config": quick("instant", num_steps=0), "out_dir": tmp_path, "at_once": 2, "progress": False}
    names = ["cat", "dog", "rose", "wolf", "fox"]

    def made_by(index):
        steps = erase_each(tiny_pipe, names, share=Share(index=index, count=2), **options)
        return [(one.membrane.name, one.found) for one in steps]

    late = made_by(1)
    assert late == [("rose", False), ("wolf", False)]
    first = made_by(0)
    assert [name for name, found in first if found] == ["rose", "wolf"]
    assert [name for name, found in first if not found] == ["cat", "dog", "fox"]
    assert made_by(1) == []
    assert all(found for _, found in made_by(0))
