"""Membranes with switches and strengths; a folder on disk is the whole state."""

import pytest

from semipermeable.errors import MembraneFileError, StudioError
from semipermeable.files import save
from semipermeable.files.exporting import export
from semipermeable.studio.shelf import Shelf

from helpers import make_tiny_unet, random_membrane


@pytest.fixture(scope="module")
def cat():
    return random_membrane(make_tiny_unet(), "cat", seed=1)


@pytest.fixture
def shelf(work):
    return Shelf(work)


def test_what_was_put_is_on_and_another_shelf_sees_it(work, shelf, cat):
    assert shelf.items() == []
    file = shelf.put(cat)
    shelf.switch(file, strength=0.5)
    (item,) = Shelf(work).items()
    assert (item.file, item.name, item.on, item.strength) == ("cat.safetensors", "cat", True, 0.5)
    assert [one.name for one in shelf.acting()] == ["cat"]


def test_the_state_of_a_training_is_no_membrane(work, shelf, cat):
    shelf.put(cat)
    (work.corner("membranes") / "dog.checkpoint.safetensors").write_bytes(b"x")
    assert [item.name for item in shelf.items()] == ["cat"]


def test_a_switch_keeps_the_strength_and_a_strength_the_switch(shelf, cat):
    file = shelf.put(cat)
    shelf.switch(file, strength=2.0)
    shelf.switch(file, on=False)
    assert (shelf.get(file).on, shelf.get(file).strength) == (False, 2.0)
    shelf.switch(file, strength=1.5)
    assert not shelf.get(file).on
    assert shelf.acting() == []


@pytest.mark.parametrize("strength", [-0.1, 3.1, float("nan"), float("inf")])
def test_a_strength_out_of_range_is_refused(shelf, cat, strength):
    file = shelf.put(cat)
    with pytest.raises(StudioError, match="a strength lies between 0 and 3"):
        shelf.switch(file, strength=strength)


def test_a_file_dropped_into_the_folder_is_seen_and_stays_off(work, shelf, cat):
    save(cat, work.corner("membranes") / "mine.safetensors")
    assert [(item.file, item.on) for item in shelf.items()] == [("mine.safetensors", False)]


def test_a_damaged_file_says_so_and_never_acts(work, shelf, cat):
    file = shelf.put(cat)
    (work.corner("membranes") / file).write_bytes(b"not a membrane")
    (item,) = shelf.items()
    assert item.membrane is None
    assert item.problem
    with pytest.raises(StudioError, match=r"cat\.safetensors is switched on but cannot be read .* switch it off"):
        shelf.acting()
    shelf.switch(file, on=False)
    assert shelf.acting() == []


def test_another_programs_adapter_can_be_added(work, shelf, cat, tmp_path):
    export(cat, tmp_path / "upload.safetensors", "kohya")
    file = shelf.add_file(tmp_path / "upload.safetensors")
    assert shelf.get(file).name == "cat"


def test_what_is_no_membrane_is_not_added(work, shelf, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(MembraneFileError):
        shelf.add_file(tmp_path / "x.safetensors")
    assert list(work.corner("membranes").iterdir()) == []


def test_removing_deletes_the_file_and_unknown_names_are_refused(work, shelf, cat):
    file = shelf.put(cat)
    shelf.remove(file)
    assert shelf.items() == []
    for act in (shelf.remove, shelf.get, lambda name: shelf.switch(name, on=True)):
        with pytest.raises(StudioError, match="there is no membrane"):
            act(file)
    with pytest.raises(StudioError):
        shelf.remove("../shelf.json")
    assert (work.root / "shelf.json").is_file()
