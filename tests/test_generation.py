"""Drawing, grids, PNG facts, safe output and model loading."""

import errno
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from semipermeable import zoo
from semipermeable.errors import ArchitectureError, ConfigError, ModelError, OutputError, PermeabilityError, PromptError
from semipermeable.files import save
from semipermeable.generation import (
    Job,
    Row,
    comparison_grid,
    draw,
    generate,
    jobs_for,
    load_model,
    picture_facts,
    picture_name,
    read_facts,
    staged_file,
    staged_folder,
    write_png,
)
from semipermeable.generation.drawing import Drawing, batch_size_for
from semipermeable.generation.output import check_writable

from helpers import random_membrane

STEPS = 2


def test_picture_j_of_every_prompt_has_seed_plus_j():
    jobs = jobs_for(["a cat", "a dog"], seed=7, images_per_prompt=2)
    assert jobs == [Job("a cat", 7), Job("a cat", 8), Job("a dog", 7), Job("a dog", 8)]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompt"),
        ([" "], "the prompt is empty"),
        (["a cat", ""], "prompt 2 of 2 is empty"),
        (["a cat", "a \ud800"], "prompt 2 of 2 is not valid Unicode"),
    ],
)
def test_prompts_that_are_none_are_named(prompts, message):
    with pytest.raises(PromptError, match=message):
        jobs_for(prompts)


def test_a_picture_does_not_depend_on_its_companions(pipe):
    alone = generate(pipe, "a 3d icon of a dog", seed=3, steps=STEPS)[0]
    first = list(draw(pipe, [Job("a 3d icon of a dog", 3), Job("a neon icon of a bus", 9)], steps=STEPS))
    second = list(draw(pipe, [Job("a 3d icon of a dog", 3), Job("a flat icon of a key", 4)], steps=STEPS))
    assert torch.equal(first[0].pixels, second[0].pixels)
    torch.testing.assert_close(alone.pixels, first[0].pixels, atol=1e-4, rtol=0)
    assert not torch.equal(first[1].pixels, second[1].pixels)


def test_the_seed_makes_the_picture(pipe):
    one, two, again = (generate(pipe, "a cat", seed=seed, steps=STEPS)[0].pixels for seed in (1, 2, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, two)


def test_batch_size_changes_nothing_but_rounding(pipe):
    prompts = ["a cat", "a dog", "a bus"]
    together = generate(pipe, prompts, steps=STEPS, batch_size=3)
    one_by_one = generate(pipe, prompts, steps=STEPS, batch_size=1)
    for a, b in zip(together, one_by_one, strict=True):
        assert a.job == b.job
        torch.testing.assert_close(a.pixels, b.pixels, atol=1e-4, rtol=0)


def test_membranes_act_are_recorded_and_come_off(pipe):
    unet = pipe.unet
    membrane = random_membrane(unet, "cat")
    bare = generate(pipe, "a neon icon of a cat", steps=STEPS)[0]
    drawn = generate(pipe, "a neon icon of a cat", [membrane], permeability=0.5, steps=STEPS)[0]
    assert drawn.gamma == {"cat": 0.5}
    assert "0.5" in drawn.decisions[0].reason
    assert (drawn.pixels - bare.pixels).abs().max() > 0.01
    assert pipe.unet is unet
    assert bare.decisions == ()


def test_one_membrane_need_not_be_in_a_list(pipe, tmp_path):
    membrane = random_membrane(pipe.unet, "cat")
    path = tmp_path / "cat.safetensors"
    save(membrane, path)
    from_object = generate(pipe, "a cat", membrane, permeability="open", steps=STEPS)[0]
    from_path = generate(pipe, "a cat", str(path), permeability="open", steps=STEPS)[0]
    assert torch.equal(from_object.pixels, from_path.pixels)


def test_strength_multiplies_gamma(pipe):
    membrane = random_membrane(pipe.unet, "cat")
    half = generate(pipe, "a cat", [membrane], permeability=0.5, steps=STEPS)[0]
    product = generate(pipe, "a cat", [membrane], permeability="open", strength=0.5, steps=STEPS)[0]
    torch.testing.assert_close(half.pixels, product.pixels, atol=1e-4, rtol=0)


def test_a_bad_rule_leaves_the_pipeline_bare(pipe):
    unet = pipe.unet
    with pytest.raises(PermeabilityError, match="unknown permeability 'tranport'; did you mean 'transport'"):
        generate(pipe, "a cat", [random_membrane(unet)], permeability="tranport", steps=STEPS)
    assert pipe.unet is unet


def test_negative_prompt_and_guidance_have_an_effect(pipe):
    plain, negative, unguided = (
        generate(pipe, "a cat", steps=STEPS, **options)[0].pixels
        for options in ({}, {"negative": "a flat icon"}, {"guidance": 1.0})
    )
    assert not torch.equal(plain, negative)
    assert not torch.equal(plain, unguided)


def test_progress_ends_at_the_total(pipe):
    seen = []
    generate(pipe, ["a cat", "a dog", "a bus"], steps=STEPS, batch_size=2, progress=lambda *pair: seen.append(pair))
    assert [done for done, _ in seen] == [1, 2, 3, 4, 4]
    assert {total for _, total in seen} == {4}


def test_the_bundled_model_is_drawn_in_large_batches(pipe):
    assert batch_size_for(pipe) == 32


def drawing(prompt, seed=0):
    ramp = torch.linspace(0, 1, 3 * 4 * 4).reshape(3, 4, 4)
    return Drawing(Job(prompt, seed), ramp)


def test_pixels_become_eight_bits():
    image = drawing("a cat").image
    assert image.size == (4, 4)
    assert image.getpixel((0, 0))[0] == 0
    assert image.getpixel((3, 3))[2] == 255


def test_png_facts_survive(tmp_path):
    one = drawing("ein Kätzchen, γ 猫", 5)
    membranes = [{"concept": "cat", "file": "cat.safetensors", "sha256": "ab"}]
    facts = picture_facts(
        one, model="emoji", membranes=membranes, strength=1.5, negative="dull", steps=25, guidance=4.0
    )
    write_png(one.image, facts, tmp_path / "one.png")
    found = read_facts(tmp_path / "one.png")
    assert found == facts
    assert (found["prompt"], found["seed"], found["membranes"]) == ("ein Kätzchen, γ 猫", 5, membranes)
    with Image.open(tmp_path / "one.png") as picture:
        assert list(picture.convert("RGB").getdata()) == list(one.image.getdata())


def test_names_of_pictures_are_readable_and_differ():
    assert picture_name(drawing("a neon icon of a cat")) == "a-neon-icon-of-a-cat-seed0.png"
    names = [picture_name(drawing(text)) for text in ("a cat", "a cat!", "A cat", "猫", "犬", "x" * 80, "x" * 81)]
    assert len(set(names)) == len(names)
    assert all("/" not in name and len(name) < 100 for name in names)


def test_grid_holds_every_picture():
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    rows = [Row("a very long prompt that cannot possibly fit " * 5, (red, blue), "γ cat = 1")] * 3
    sheet = comparison_grid(rows, ("before", "after"), across=2, side=64)
    counts = {colour: number for number, colour in sheet.getcolors(1 << 20)}
    assert counts[255, 0, 0] == counts[0, 0, 255] == 3 * 64 * 64


def test_grid_refuses_ragged_rows():
    with pytest.raises(ValueError, match="2 pictures"):
        comparison_grid([Row("a cat", (Image.new("RGB", (8, 8)),))], ("before", "after"))


def test_staged_files_appear_only_at_the_end(tmp_path):
    target = tmp_path / "new" / "deep"
    with staged_folder(target) as stage:
        (stage / "a.txt").write_text("a")
        assert not (target / "a.txt").exists()
    assert [path.name for path in target.iterdir()] == ["a.txt"]


def write_and_fail(stage, name, error):
    with stage as place:
        (place / name if place.is_dir() else place).write_text("new")
        raise error


def test_a_failure_leaves_everything_as_it_was(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(RuntimeError, match="broken"):
        write_and_fail(staged_folder(tmp_path), "a.txt", RuntimeError("broken"))
    with pytest.raises(KeyboardInterrupt):
        write_and_fail(staged_file(tmp_path / "new" / "deep" / "b.txt"), "", KeyboardInterrupt())
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_full_disk_is_one_sentence(tmp_path):
    with pytest.raises(OutputError, match="disk is full; free some space"), staged_folder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not (tmp_path / "out").exists()


def test_other_os_errors_keep_their_traceback(tmp_path):
    with pytest.raises(OSError, match="strange") as caught, staged_folder(tmp_path):
        raise OSError(errno.EIO, "strange")
    assert not isinstance(caught.value, OutputError)


@pytest.mark.parametrize("folder", [True, False])
def test_a_file_in_the_way_is_found_before_the_work(tmp_path, folder):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"not a folder|a file of that name"):
        check_writable(tmp_path / "file" / "out", folder=folder)
    with pytest.raises(OutputError, match="a folder of that name"):
        check_writable(tmp_path)


def test_checking_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "a" / "b", folder=True)
    check_writable(tmp_path / "a" / "b.txt")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_too_long_is_found_before_the_work(tmp_path):
    target = tmp_path / ("x" * 300)
    with pytest.raises(OutputError, match="the name is too long; choose a shorter one"):
        check_writable(target)
    with pytest.raises(OutputError, match="the name is too long"), staged_file(target):
        pass


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_results_have_the_permissions_of_any_new_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        (tmp_path / "plain").touch()
        with staged_file(tmp_path / "picture.png") as path:
            Image.new("RGB", (2, 2)).save(path)
        with staged_file(tmp_path / "weights.safetensors") as path:
            save_file({"weight": torch.zeros(2)}, path)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}


@pytest.mark.parametrize("name", ["model.ckpt", "folder/model.bin", "model.pt", "model.PTH"])
def test_pickles_are_refused_with_the_reason(name):
    with pytest.raises(ModelError, match=r"is a pickle, and opening a pickle can run any code.*\.safetensors"):
        load_model(name, device="cpu")


def test_models_that_are_not_there(tmp_path):
    with pytest.raises(ModelError, match="unknown model 'emojy'; did you mean 'emoji'"):
        load_model("emojy", device="cpu")
    for missing in ("./nowhere", str(tmp_path / "nowhere"), "nowhere.safetensors"):
        with pytest.raises(ModelError, match="no file or folder"):
            load_model(missing, device="cpu")
    with pytest.raises(ModelError, match="no file or folder '~nosuchuser/model'"):
        load_model("~nosuchuser/model", device="cpu")
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        load_model(str(tmp_path), device="cpu")
    with pytest.raises(ModelError, match=r"'nobody/nothing' cannot be loaded .*check the name and the network"):
        load_model("nobody/nothing", device="cpu")


def test_files_that_are_no_checkpoint(tmp_path, pipe):
    (tmp_path / "damaged.safetensors").write_bytes(b"\x00" * 7)
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load_model(str(tmp_path / "damaged.safetensors"), device="cpu")
    save(random_membrane(pipe.unet), tmp_path / "cat.safetensors")
    with pytest.raises(ModelError, match="is a membrane, not a model; pass it as --membrane"):
        load_model(str(tmp_path / "cat.safetensors"), device="cpu")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="no Stable Diffusion checkpoint"):
        load_model(str(tmp_path / "other.safetensors"), device="cpu")
    save_file({"model.diffusion_model.weight": torch.zeros(2)}, tmp_path / "half.safetensors")
    with pytest.raises(ModelError, match=r"half\.safetensors' cannot be loaded"):
        load_model(str(tmp_path / "half.safetensors"), device="cpu")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelError, match=r"neither a folder nor a \.safetensors"):
        load_model(str(tmp_path / "notes.txt"), device="cpu")


def test_a_folder_is_loaded_like_the_bundled_model(pipe):
    folder = load_model(str(zoo.path("emoji")), device="cpu")
    pictures = [generate(p, "a 3d icon of a dog", steps=STEPS)[0].pixels for p in (pipe, folder)]
    assert torch.equal(*pictures)


def test_pipelines_of_other_families_are_refused(tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ArchitectureError, match="no host supports DDPMPipeline"):
        load_model(str(tmp_path), device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "not a torch device"),
        ({"device": "hpu"}, "cannot be moved to device hpu .*try --device cpu"),
        ({"device": "cuda:7"}, "not available on this machine"),
        ({"device": "cpu", "dtype": "fp8"}, "unknown dtype 'fp8'"),
    ],
)
def test_devices_and_dtypes(options, message):
    with pytest.raises(ModelError, match=message):
        load_model("emoji", **options)


def test_dtype_is_what_was_asked_for():
    assert load_model("emoji", device="cpu").dtype == torch.float32
    assert load_model("emoji", device="cpu", dtype="bf16").dtype == torch.bfloat16


def test_pickled_weights_in_a_folder_are_refused(tmp_path):
    """A diffusers folder may hold `.bin` weights beside its configuration; they must not be opened."""
    source = zoo.path("emoji")
    for path in source.rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(Path(str(weights).replace(".safetensors", ".bin")))
    with pytest.raises(ModelError, match=r"cannot be loaded .*holds \.safetensors weights"):
        load_model(str(tmp_path), device="cpu")


@pytest.mark.parametrize(
    ("steps", "message"),
    [(0, "between 1 and 1000"), (1001, "between 1 and 1000"), (1000, "begins at timestep 1000")],
)
def test_steps_the_scheduler_cannot_take_are_refused_before_anything_is_drawn(pipe, steps, message):
    before = pipe.scheduler.timesteps.clone()
    with pytest.raises(ConfigError, match=message):
        next(iter(draw(pipe, [Job("a cat", 0)], steps=steps)))
    assert torch.equal(pipe.scheduler.timesteps, before)
