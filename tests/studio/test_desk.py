"""What can be done in a studio, on a tiny random model: erase, stop, resume, draw, look elsewhere, export, reload."""

import shutil
import threading
import zipfile

import pytest
import torch
from PIL import Image

import semipermeable as spm
from semipermeable.cli.export import ADAPTERS
from semipermeable.cli.export import BAKED as BAKED_BY_COMMAND
from semipermeable.errors import ConceptError, ConfigError, StudioError, UnknownNameError
from semipermeable.files import load, save
from semipermeable.generation import load_model
from semipermeable.hosts import host_for
from semipermeable.studio import carrying
from semipermeable.studio.carrying import BAKED, MEMBRANE, formats
from semipermeable.studio.desk import Desk
from semipermeable.studio.workfolder import WorkFolder

from helpers import random_membrane


@pytest.fixture
def equipped(desk):
    """A desk with a membrane of "cat" that changes every row it acts on."""
    unet = host_for(desk.rack.open(desk.model)).denoiser
    desk.shelf.put(random_membrane(unet, "cat", scale=0.3, seed=1))
    return desk


def erased(desk, finish, **settings):
    """Erase "cat" in a few steps and return its membrane."""
    run = desk.begin_erasing("cat", surrogate="animal", num_steps=6, **settings)
    (job,) = desk.worker.under_way
    finish(job)
    return run, load(desk.work.place("membranes", "cat.safetensors"))


def opened(path):
    with Image.open(path) as picture:
        return picture.convert("RGB")


def same_pairs(first, second):
    assert first.pairs.keys() == second.pairs.keys()
    return all(
        torch.equal(a, b) for name in first.pairs for a, b in zip(first.pairs[name], second.pairs[name], strict=True)
    )


@pytest.mark.slow
def test_a_run_leaves_figures_previews_and_a_membrane_that_is_on(desk, finish):
    run, membrane = erased(desk, finish)
    run = desk.runs.get(run.stem)
    assert (run.state, run.step) == ("finished", 6)
    assert [one.step for one in desk.runs.losses(run)] == [1, 2, 3, 4, 5, 6]
    shown = desk.runs.previews(run)
    assert [caption for _, caption in shown][:2] == ["before", "kept · before"]
    assert [caption for _, caption in shown][-2:] == ["step 6", "kept · step 6"]
    for path, _ in shown:
        assert opened(path).size == (32, 32)
    assert [item.name for item in desk.shelf.acting()] == ["cat"]
    assert membrane.name == "cat"
    with pytest.raises(StudioError, match="'cat' is erased already; its membrane is on the shelf"):
        desk.resume_erasing(run.stem)


@pytest.mark.slow
def test_stopped_resumed_and_disturbed_is_the_same_as_left_alone(desk, finish, tmp_path, tiny_folder):
    """Stopped at once after a checkpoint, taken up by another program, a drawing between two steps: the same bits."""
    other = Desk(WorkFolder(tmp_path / "other"), [str(tiny_folder)], device="cpu")
    run = other.begin_erasing("cat", surrogate="animal", num_steps=8)
    (job,) = other.worker.under_way
    while not job.ended and other.runs.get(run.stem).step < 5:
        threading.Event().wait(0.02)
    other.worker.stop()
    other.worker.wait(job, 100)
    other.close()
    assert (job.state, other.runs.get(run.stem).state) == ("stopped", "stopped")

    again = Desk(WorkFolder(tmp_path / "other"), [str(tiny_folder)], device="cpu")
    assert (again.run.stem, again.run.state) == ("cat", "stopped")
    again.resume_erasing(run.stem)
    (job,) = again.worker.under_way
    drawing = again.begin_drawing("a cat", seed=0, steps=2)
    again.worker.wait(job, 200)
    again.worker.wait(drawing, 200)
    again.close()
    assert (job.state, drawing.state) == ("done", "done"), (job.message, drawing.message)

    desk.begin_erasing("cat", surrogate="animal", num_steps=8)
    finish(desk.worker.under_way[0])
    first, second = (load(one.work.place("membranes", "cat.safetensors")) for one in (desk, again))
    assert same_pairs(first, second)
    assert desk.runs.losses(desk.run) == again.runs.losses(again.run)


def test_a_run_that_a_crash_cut_off_is_found_stopped(work, desk, tiny_folder):
    run = desk.runs.mark(
        desk.runs.create(_concept("cat"), model=desk.model, preset="fast", num_steps=3, seed=0, preview_every=None),
        "running",
        step=2,
    )
    assert Desk(work, [str(tiny_folder)], device="cpu").runs.get(run.stem).state == "stopped"


def _concept(name):
    from semipermeable.concept import Concept

    return Concept(name)


@pytest.mark.parametrize(
    ("name", "settings", "error", "words"),
    [
        ("", {}, ConceptError, "a concept needs a name"),
        ("cat", {"keep": "cat"}, ConceptError, "is to be erased and to be kept"),
        ("cat", {"preset": "slow"}, ConfigError, "unknown preset 'slow'"),
        ("cat", {"num_steps": -1}, ConfigError, "num_steps must be at least 0"),
    ],
)
def test_what_cannot_be_erased_is_refused_before_anything_is_written(desk, name, settings, error, words):
    with pytest.raises(error, match=words):
        desk.begin_erasing(name, **settings)
    assert desk.worker.under_way == []
    assert desk.run is None


def test_the_bundled_model_tells_what_it_knows(work):
    desk = Desk(work, device="cpu")
    try:
        assert desk.model == "emoji"
        assert {"cat", "neon"} <= set(desk.concepts())
    finally:
        desk.close()


def test_a_drawing_shows_before_after_and_why(equipped, finish):
    job = equipped.begin_drawing("a neon icon of a cat", seed=3, steps=2)
    finish(job)
    shown = equipped.album.drawing()
    before, after = (opened(path) for path in shown.pictures)
    assert before.size == after.size
    assert before.tobytes() != after.tobytes()
    (bar,) = shown.bars
    assert (bar.concept, bar.gamma, bar.words) == ("cat", 1.0, ("cat",))
    assert not shown.identical
    assert shown.drift > 0


def test_a_prompt_about_something_else_is_drawn_unchanged(equipped, finish):
    finish(equipped.begin_drawing("a neon icon of a dog", seed=3, steps=2))
    shown = equipped.album.drawing()
    assert shown.identical
    assert (shown.bars[0].gamma, shown.bars[0].words) == (0.0, ())
    assert shown.pictures[0].read_bytes() == shown.pictures[1].read_bytes()


def test_switches_and_strengths_act(equipped, finish):
    def drift():
        finish(equipped.begin_drawing("a cat", seed=0, steps=2))
        return equipped.album.drawing().drift

    full = drift()
    equipped.shelf.switch("cat.safetensors", strength=0.25)
    assert 0 < drift() < full
    equipped.shelf.switch("cat.safetensors", strength=0.0)
    assert drift() == 0
    equipped.shelf.switch("cat.safetensors", on=False, strength=1.0)
    assert drift() == 0
    assert equipped.album.drawing().bars == ()


def test_holding_the_gate_open_acts_on_every_prompt(equipped, finish):
    finish(equipped.begin_drawing("a dog", seed=0, steps=2, hold_open=True))
    shown = equipped.album.drawing()
    assert shown.bars[0].gamma == 1
    assert shown.drift > 0


def test_a_new_drawing_leaves_no_old_pictures_and_a_restart_shows_the_last(equipped, finish, tiny_folder):
    for seed in (0, 1):
        finish(equipped.begin_drawing("a cat", seed=seed, steps=1))
    assert len(list(equipped.work.corner("drawings").glob("*.png"))) == 2
    reloaded = Desk(equipped.work, [str(tiny_folder)], device="cpu")
    try:
        assert reloaded.album.drawing() == equipped.album.drawing()
        assert (reloaded.setting("prompt", ""), reloaded.setting("seed", 0)) == ("a cat", 1)
    finally:
        reloaded.close()


@pytest.mark.parametrize(("prompt", "words"), [("  ", "the prompt is empty"), ("", "the prompt is empty")])
def test_an_empty_prompt_ends_in_a_sentence(equipped, finish, prompt, words):
    job = finish(equipped.begin_drawing(prompt, seed=0, steps=2), "failed")
    assert words in job.message


def test_a_membrane_of_another_model_ends_in_a_sentence(desk, finish, tiny_unet):
    membrane = random_membrane(tiny_unet, "cat")
    save(membrane, desk.work.place("membranes", "cat.safetensors"))
    desk.shelf.switch("cat.safetensors", on=True)
    job = finish(desk.begin_drawing("a cat", seed=0, steps=1), "failed")
    assert "Switch off the membranes that belong to another model." in job.message


def test_stopping_a_drawing_leaves_the_last_one(equipped, finish):
    finish(equipped.begin_drawing("a cat", seed=0, steps=1))
    before = equipped.album.drawing()
    job = equipped.begin_drawing("a cat", seed=1, steps=999)
    while not job.done:
        threading.Event().wait(0.01)
    equipped.worker.stop(job.number)
    finish(job, "stopped")
    assert equipped.album.drawing() == before


def test_neighbours_are_drawn_with_that_membrane_alone(equipped, finish):
    finish(equipped.begin_elsewhere("cat.safetensors", seed=0, steps=1))
    concept, rows = equipped.album.elsewhere()
    assert concept == "cat"
    assert len(rows) >= 4
    assert all(row.identical and row.gamma == 0 for row in rows)
    finish(equipped.begin_elsewhere("cat.safetensors", seed=0, steps=1, hold_open=True))
    _, rows = equipped.album.elsewhere()
    assert all(row.drift > 0 and row.gamma == 1 for row in rows)
    assert all(opened(row.picture).width > 64 for row in rows)


def test_every_format_of_the_command_line_is_offered():
    assert set(formats()) == {MEMBRANE, *ADAPTERS, *BAKED_BY_COMMAND}


@pytest.mark.parametrize("layout", formats())
def test_every_format_can_be_carried_away_and_read_back(equipped, finish, tmp_path, layout):
    item = equipped.shelf.get("cat.safetensors")
    job = finish(equipped.begin_export(item.file, layout))
    path = equipped.exported()
    assert job.message == f"{path.name} is ready to download"
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as bundle:
            bundle.extractall(tmp_path)
    if layout in BAKED:
        is_the_model_with_it_folded_in(path, layout, tmp_path, equipped)
        return
    found = load(path if path.suffix != ".zip" else next(tmp_path.rglob("adapter_model.safetensors")))
    assert found.name == "cat"
    assert len(found.pairs) == len(item.membrane.pairs)
    assert found.gate_power == item.membrane.gate_power


def is_the_model_with_it_folded_in(path, layout, tmp_path, desk):
    pipe = desk.rack.open(desk.model)
    bare = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    with spm.fold(pipe, desk.shelf.get("cat.safetensors").membrane):
        wanted = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    assert any(not torch.equal(bare[name], weight) for name, weight in wanted.items())
    model = tmp_path / "cat"
    if layout == "checkpoint":
        # A single file needs its configuration beside it.
        shutil.copytree(desk.model, model, ignore=shutil.ignore_patterns("*.safetensors"))
        model = shutil.copy(path, tmp_path / "cat.safetensors")
    found = load_model(str(model), device="cpu").unet.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], weight) for name, weight in wanted.items())


def test_a_baked_model_can_be_stopped_while_it_is_packed_and_leaves_nothing(equipped, finish, monkeypatch):
    entered, let = threading.Event(), threading.Event()
    bake = carrying.bake_folder

    def slow(*values):
        bake(*values)
        entered.set()
        let.wait(60)

    monkeypatch.setattr(carrying, "bake_folder", slow)
    job = equipped.begin_export("cat.safetensors", "folder")
    assert entered.wait(300), job.message
    equipped.worker.stop(job.number)
    let.set()
    finish(job, "stopped")
    assert list(equipped.work.corner("exports").iterdir()) == []
    assert equipped.exported() is None


def test_what_comes_with_a_model_is_offered_and_goes_on_the_shelf(work, desk):
    assert desk.shipped() == []
    desk.choose_model("emoji")
    assert {"apple", "horse"} <= set(desk.shipped())
    desk.take_shipped("horse")
    assert [item.name for item in desk.shelf.acting()] == ["horse"]
    assert any(test.case == "horse" for test in desk.tests()), "made for this model, so that it can be evaluated"
    with pytest.raises(UnknownNameError, match="unknown zoo membrane 'hrose'; did you mean"):
        desk.take_shipped("hrose")


def test_an_unknown_format_membrane_or_model_is_refused(equipped, finish):
    with pytest.raises(StudioError, match=r"there is no membrane '\.\./desk\.json' on the shelf"):
        equipped.begin_export("../desk.json", "kohya")
    job = finish(equipped.begin_export("cat.safetensors", "koyha"), "failed")
    assert "did you mean 'kohya'" in job.message
    for name in ("/etc", "../..", "owner/name", "."):
        with pytest.raises(StudioError, match="unknown model"):
            equipped.choose_model(name)
        with pytest.raises(StudioError, match="unknown model"):
            equipped.rack.open(name)


def test_a_model_folder_in_the_work_folder_can_be_chosen(work, tiny_folder):
    (work.corner("models") / "mine").mkdir()
    for part in tiny_folder.iterdir():
        (work.corner("models") / "mine" / part.name).symlink_to(part)
    desk = Desk(work, device="cpu")
    try:
        desk.choose_model("mine")
        assert Desk(work, device="cpu").model == "mine"
        host_for(desk.rack.open("mine"))
    finally:
        desk.close()
