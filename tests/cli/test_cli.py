"""The command line: what it does, what it writes, and what it says when something goes wrong."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from semipermeable import generation, training, zoo
from semipermeable.cli import app
from semipermeable.cli.erase import load_folder
from semipermeable.cli.problems import guarded
from semipermeable.concept import Concept
from semipermeable.files import load, save, save_concepts
from semipermeable.generation import read_facts
from semipermeable.training import TrainConfig

from helpers import random_membrane

COMMANDS = [("erase",), ("generate",), ("inspect",), ("demo",), ("zoo",), ("zoo", "list"), ("zoo", "info")]


@pytest.fixture
def spm(tmp_path, monkeypatch):
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def cat_file(tmp_path, pipe):
    path = tmp_path / "cat.safetensors"
    save(random_membrane(pipe.unet, "cat"), path)
    return path


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def assert_refused(result, *words):
    """One sentence on stderr that holds these words, exit code 2."""
    assert result.exit_code == 2, result.output
    assert not isinstance(result.exception, AssertionError)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("spm: ")
    for word in words:
        assert word in lines[0]


def flat(text):
    """Undo the line breaks and frames of a help page."""
    return " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_shows_an_example(spm, command):
    result = spm(*command, "--help")
    assert result.exit_code == 0
    assert "Example: spm " + " ".join(command) in flat(result.output) or command == ("zoo",)
    assert "spm " + " ".join(command) in flat(result.output)


def test_version(spm):
    from semipermeable import __version__

    assert spm("--version").output.strip() == f"semipermeable {__version__}"


def test_the_command_line_starts_light():
    program = (
        "import sys; from semipermeable.cli import app; from typer.testing import CliRunner\n"
        "assert CliRunner().invoke(app, ['generate', '--help']).exit_code == 0\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'PIL'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_what_the_libraries_say_on_import_stays_off_the_terminal():
    # torchao is installed for the tests, and complains of kernels for hardware that this machine has not.
    program = (
        "from semipermeable.cli.options import loaded\n"
        "loaded('emoji', 'cpu', None)\n"
        "import sys; print('torchao' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (found.stdout.strip(), found.stderr.strip()) == ("True", "")


def test_generate_writes_pictures_that_know_their_story(spm, tmp_path, cat_file):
    result = spm(
        "generate", "a neon icon of a cat", "a 3d icon of a dog", "-m", cat_file, "--permeability", "0.5",
        "--steps", 2, "--seed", 4, "-n", 2, "--out", "pictures", "--compare", "--negative", "dull",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    names = [f"{slug}-seed{seed}.png" for slug in ("a-3d-icon-of-a-dog", "a-neon-icon-of-a-cat") for seed in (4, 5)]
    assert files_in(tmp_path / "pictures") == sorted([*names, "before_after.png"])
    facts = read_facts(tmp_path / "pictures" / "a-neon-icon-of-a-cat-seed5.png")
    assert (facts["prompt"], facts["seed"], facts["gamma"]) == ("a neon icon of a cat", 5, {"cat": 0.5})
    assert facts["membranes"][0]["concept"] == "cat"
    assert facts["membranes"][0]["file"] == "cat.safetensors"
    assert (facts["negative_prompt"], facts["steps"], facts["model"]) == ("dull", 2, "emoji")
    assert "γ cat = 0.5" in result.output
    assert result.output.count("pictures/") == 5


def test_generate_reads_prompts_from_a_file(spm, tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\n\n  a dog \n", encoding="utf-8")
    assert spm("generate", "--prompts-file", "prompts.txt", "--steps", 1).exit_code == 0
    assert files_in(tmp_path / "pictures") == ["a-cat-seed0.png", "a-dog-seed0.png"]


def test_generate_is_repeatable(spm, tmp_path):
    for folder in ("one", "two"):
        assert spm("generate", "a cat", "--steps", 2, "--seed", 3, "--out", folder).exit_code == 0
    one, two = (tmp_path / folder / "a-cat-seed3.png" for folder in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a cat", "--model", "emojy"), ("unknown model 'emojy'", "did you mean 'emoji'?")),
        (("a cat", "--model", "model.ckpt"), ("is a pickle", ".safetensors")),
        (("a cat", "--model", "./nowhere"), ("no file or folder './nowhere'", "check the path")),
        (("a cat", "--device", "cuda:9"), ("not available", "--device cpu")),
        ((" ",), ("the prompt is empty", "write what to draw")),
        ((), ("no prompt was given",)),
        (("a cat", "--prompts-file", "nowhere.txt"), ("nowhere.txt", "cannot be read")),
        (("a cat", "-m", "nowhere.safetensors"), ("nowhere.safetensors",)),
        (("a cat", "--device", "privateuseone"), ("cannot be moved to device privateuseone", "--device cpu")),
        (("a cat", "--model", "~nosuchuser/model"), ("no file or folder '~nosuchuser/model'", "check the path")),
        (("a cat \udcff",), ("the prompt is not valid Unicode", "write it in UTF-8")),
        (("a cat", "--negative", "\udcff"), ("the negative prompt is not valid Unicode", "write it in UTF-8")),
        (("a cat", "-m", "x" * 300), ("too long",)),
        (("a cat", "--device", "meta"), ("holds no numbers", "--device cpu")),
        (("a cat", "--guidance", "nan"), ("guidance must be a finite number", "4 is usual")),
        (("a cat", "--steps", "1001"), ("between 1 and 1000, found 1001",)),
        (("a cat", "--steps", "1000"), ("begins at timestep 1000", "25 is usual")),
        (("a cat", "--permeability", "tranport"), ("did you mean 'transport'",)),
        (("a cat", "--permeability", "1.5"), ("γ lies in [0, 1]", "strength=1.5")),
        (("a cat", "--out", "file/pictures"), ("'file/pictures' cannot be written", "choose another")),
        (("a cat", "--out", "file"), ("'file' cannot be written", "choose another name")),
        (("a cat", "-m", "file"), ("file",)),
    ],
)
def test_generate_refuses_in_one_sentence_and_writes_nothing(spm, tmp_path, arguments, words):
    (tmp_path / "file").write_text("in the way")
    assert_refused(spm("generate", *arguments), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_generate_refuses_a_membrane_of_another_model(spm, tmp_path, tiny_unet):
    save(random_membrane(tiny_unet, "cat"), tmp_path / "tiny.safetensors")
    assert_refused(spm("generate", "a cat", "-m", "tiny.safetensors", "--steps", 1), "site", "model of another size")
    assert files_in(tmp_path) == ["tiny.safetensors"]


def test_compare_needs_a_membrane(spm):
    result = spm("generate", "a cat", "--compare")
    assert result.exit_code == 2
    assert "give at least one --membrane" in flat(result.stderr)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(spm, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    assert_refused(spm("generate", "a cat", "--out", "locked"), "permission denied", "may write to")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ("disk is full", "free some space")),
        (torch.OutOfMemoryError("CUDA out of memory."), ("out of memory", "--batch-size 1")),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), ("out of memory",)),
        (MemoryError(), ("out of memory",)),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ("out of memory",)),
        (PermissionError(errno.EACCES, "Permission denied", "there.png"), ("permission denied", "choose a folder")),
    ],
)
def test_full_disk_and_memory(spm, tmp_path, monkeypatch, error, words):
    """The failure comes in the middle of writing the second picture."""
    write, written = generation.write_png, []

    def failing(image, facts, path):
        if written:
            raise error
        written.append(path)
        write(image, facts, path)

    monkeypatch.setattr(generation, "write_png", failing)
    result = spm("generate", "a cat", "a dog", "--steps", 1, "--out", "pictures")
    assert written
    assert_refused(result, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EDQUOT, ("disk is full", "free some space")),
        (errno.EACCES, ("'there.png'", "permission denied", "choose a place")),
        (errno.EROFS, ("'there.png'", "read-only", "choose another place")),
        (errno.ENOMEM, ("out of memory", "--batch-size 1")),
    ],
)
def test_what_the_system_refuses_anywhere_is_one_sentence(capsys, number, words):
    def refused():
        raise OSError(number, os.strerror(number), "there.png")

    with pytest.raises(typer.Exit) as caught:
        guarded(refused)()
    assert caught.value.exit_code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words)


def test_a_bug_keeps_its_traceback(spm, monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(generation, "write_png", broken)
    result = spm("generate", "a cat", "--steps", 1)
    assert isinstance(result.exception, RuntimeError)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_leaves_nothing(tmp_path, number):
    command = [sys.executable, "-m", "semipermeable", "generate", "a cat", "--steps", "999", "-n", "32"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores Ctrl-C, and so would this child of a test run started as one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        try:
            time.sleep(15)
            assert process.poll() is None, process.communicate()
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    # An interrupt in the middle of an extension's import makes Python end by the signal itself; shells call both 130.
    assert process.returncode in (128 + number, -signal.SIGINT), errors
    assert ("spm: stopped; nothing half-written was left behind." in errors) == (number == signal.SIGINT)
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_inspect_prints_and_prints_json(spm, tmp_path, cat_file):
    result = spm("inspect", cat_file)
    assert result.exit_code == 0, result.output
    facts = json.loads(spm("inspect", cat_file, "--json").output)
    membrane = load(cat_file)
    assert facts["concept"]["name"] == "cat"
    assert facts["bytes"] == cat_file.stat().st_size
    assert set(facts["sites"]) == set(membrane.pairs)
    assert facts["sha256"] in result.output.replace("\n", "").replace(" ", "")
    for word in ("cat", f"{len(membrane.pairs)}, rank 1", "none: always open"):
        assert word in result.output


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"PK\x03\x04"])
def test_inspect_refuses_what_is_no_membrane(spm, tmp_path, content):
    (tmp_path / "bad.safetensors").write_bytes(content)
    assert_refused(spm("inspect", "bad.safetensors"), "bad.safetensors")


@pytest.mark.parametrize("content", [b"{}", b"[]", b"\xff", b'{"files": {}}', b'{"files": {"spec.json": 5}}'])
def test_a_folder_that_is_no_bundle_is_one_sentence(spm, tmp_path, content):
    (tmp_path / "b1").mkdir()
    (tmp_path / "b1" / "manifest.json").write_bytes(content)
    assert_refused(spm("zoo", "info", "./b1"), "'b1'", "manifest.json")


def test_zoo_list_and_info(spm):
    taught = zoo.spec("emoji")
    assert f"emoji: {len(taught.objects)} objects in {len(taught.styles)} styles" in spm("zoo", "list").output
    shown = spm("zoo", "info", "emoji").output
    assert all(style in shown for style in taught.styles)
    assert all(name in shown for name in taught.object_names)
    assert json.loads(spm("zoo", "info", "emoji", "--json").output)["objects"] == list(taught.object_names)
    assert_refused(spm("zoo", "info", "emojy"), "did you mean 'emoji'")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("build", "emoji", "--out", "file/bundle"), ("'file/bundle' cannot be written", "choose another")),
        (("build", "emoji", "--out", "new", "--effort", "inf"), ("effort must be positive and finite, not inf",)),
        (("build", "emoji", "--out", "new", "--work", "file"), ("'file' cannot be written", "choose another")),
        (("evaluate", "emoji", "--out", "file/drawing.json"), ("'file/drawing.json' cannot be written",)),
    ],
)
def test_zoo_work_that_cannot_be_written_does_not_begin(spm, tmp_path, arguments, words):
    (tmp_path / "file").write_text("in the way")
    assert_refused(spm("zoo", *arguments), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_erase_writes_a_membrane(spm, tmp_path):
    (tmp_path / "settings.toml").write_text("num_trajectories = 1\nsampling_steps = 2\nbatch_size = 1\n")
    result = spm("erase", "cat", "--steps", 1, "--config", "settings.toml", "--alias", "moggy", "--resume", "--seed", 3)
    assert result.exit_code == 0, result.output
    assert files_in(tmp_path) == ["cat.safetensors", "settings.toml"]
    membrane = load(tmp_path / "cat.safetensors")
    known = zoo.spec("emoji").object("cat")
    assert membrane.concept.names == ("cat", *known.aliases, "moggy")
    assert membrane.concept.surrogate in zoo.spec("emoji").groups[known.group]
    assert f"erases 'cat' (draws {membrane.concept.surrogate!r} instead), " in result.stdout
    assert "cat face" in membrane.concept.keep
    assert (membrane.provenance.seed, membrane.provenance.training["num_steps"]) == (3, 1)
    assert membrane.provenance.training["sampling_steps"] == 2


@pytest.mark.slow
def test_a_training_can_be_followed(spm, tmp_path):
    (tmp_path / "settings.toml").write_text("num_trajectories = 1\nsampling_steps = 2\nbatch_size = 1\n")
    followed = ("--preview", "seen", "--tensorboard", "logs/cat")
    result = spm("erase", "cat", "--steps", 8, "--config", "settings.toml", *followed, "--preview-every", 4)
    assert result.exit_code == 0, result.output
    assert files_in(tmp_path / "seen") == ["step-00004.png", "step-00008.png"]
    first, second = (Image.open(tmp_path / "seen" / name) for name in ("step-00004.png", "step-00008.png"))
    assert first.size == second.size
    assert first.tobytes() != second.tobytes()
    assert [path.name.startswith("events") for path in (tmp_path / "logs" / "cat").iterdir()] == [True]


@pytest.mark.slow
def test_erase_reads_several_concepts(spm, tmp_path):
    save_concepts([Concept("cat"), Concept("neon", surrogate="flat")], tmp_path / "concepts.toml")
    (tmp_path / "settings.toml").write_text("num_trajectories = 1\nsampling_steps = 2\nnum_steps = 0\n")
    result = spm("erase", "--concepts", "concepts.toml", "--out", "made/here", "--config", "settings.toml")
    assert result.exit_code == 0, result.output
    assert files_in(tmp_path / "made") == ["here/cat.safetensors", "here/neon.safetensors"]
    assert load(tmp_path / "made/here/neon.safetensors").concept.surrogate == "flat"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("",), ("the concept is empty", 'spm erase "cat"')),
        (("cat", "--alias", " "), ("--alias is empty", "write a name")),
        (("cat", "--out", "cat.pt"), ("cannot write 'cat.pt'", "ends in .safetensors")),
        (("cat", "--out", "cats"), ("cannot write 'cats'", "ends in .safetensors")),
        (("cat", "--preset", "fats"), ("unknown preset 'fats'", "fast")),
        (("cat", "--config", "nowhere.toml"), ("nowhere.toml", "cannot be read")),
        (("cat", "--config", "bad.toml"), ("unknown training setting 'learning_rat'", "learning_rate")),
        (("cat", "--config", "preset.toml"), ("'preset.toml' sets a preset", "--preset")),
        (("cat", "--config", "cls.toml"), ("'cls.toml': unknown training setting 'cls'",)),
        (("x" * 300,), ("cannot be written: the name is too long",)),
        (("cat \udcff",), ("field 'name' is not valid Unicode", "write it in UTF-8")),
        (("cat", "--steps", "-1"), ("num_steps must be at least 0",)),
        (("cat", "--surrogate", "cat"), ("the surrogate 'cat' is the concept itself",)),
        (("cat", "--model", "emojy"), ("did you mean 'emoji'",)),
        (("cat", "--out", "bad.toml/cat.safetensors"), ("cannot be written",)),
        (("--concepts", "nowhere.toml"), ("nowhere.toml",)),
        (("cat", "--preview", "bad.toml"), ("'bad.toml' cannot be written",)),
        (("cat", "--tensorboard", "bad.toml/logs"), ("'bad.toml/logs' cannot be written",)),
    ],
)
def test_erase_refuses_before_training(spm, tmp_path, arguments, words):
    files = {"bad.toml": "learning_rat = 1.0", "cls.toml": "cls = 1", "preset.toml": 'preset = "instant"'}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert_refused(spm("erase", *arguments), *words)
    assert files_in(tmp_path) == sorted(files)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "say what to erase"),
        (("cat", "--concepts", "c.toml"), "not both"),
        (("--concepts", "c.toml", "--out", "x.safetensors"), "--out must be a folder"),
        (("--concepts", "twice.toml", "--out", "x"), "rename one"),
        (("--concepts", "c.toml", "--preview", "x"), "follow one training"),
        (("cat", "--preview-every", "4"), "say where with --preview"),
        (("cat", "--preset", "instant", "--preview", "x"), "nothing is trained"),
    ],
)
def test_erase_usage(spm, tmp_path, arguments, words):
    save_concepts([Concept("cat")], tmp_path / "c.toml")
    save_concepts([Concept("cat face"), Concept("cat-face")], tmp_path / "twice.toml")
    result = spm("erase", *arguments)
    assert result.exit_code == 2
    assert words in flat(result.stderr)


def test_a_closed_membrane_draws_the_bare_picture(spm, tmp_path, cat_file):
    assert spm("generate", "a cat", "--steps", 1, "--out", "bare").exit_code == 0
    for gamma, folder in (("closed", "closed"), ("open", "opened")):
        assert (
            spm("generate", "a cat", "-m", cat_file, "--permeability", gamma, "--steps", 1, "--out", folder).exit_code
            == 0
        )
    bare, closed, opened = (
        Image.open(tmp_path / f / "a-cat-seed0.png").tobytes() for f in ("bare", "closed", "opened")
    )
    assert closed == bare
    assert opened != bare


def test_erase_replaces_nothing_that_it_reads(spm, tmp_path, cat_file):
    (tmp_path / "settings.safetensors").write_text("rank = 1")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for arguments in (
        ("dog", "--orthogonal-to", cat_file, "--out", "cat.safetensors"),
        ("cat", "--orthogonal-to", "."),
        ("cat", "--config", "settings.safetensors", "--out", "settings.safetensors"),
        ("cat", "--model", "./cat.safetensors"),
    ):
        assert_refused(spm("erase", *arguments), "is read for it and would be lost")
    assert_refused(spm("interference", ".", "--json", "cat.safetensors"), "is read for it and would be lost")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "pytorch_lora_weights.safetensors"])
def test_an_adapters_folder_is_taken_wherever_a_membrane_is(spm, tmp_path, cat_file, weights):
    assert spm("export", cat_file, "--format", "peft", "--out", "lora").exit_code == 0
    (tmp_path / "lora" / "adapter_model.safetensors").rename(tmp_path / "lora" / weights)
    shown = json.loads(spm("inspect", "lora", "--json").output)
    assert shown["concept"]["name"] == "cat"
    digest = hashlib.sha256((tmp_path / "lora" / weights).read_bytes()).hexdigest()
    assert (shown["file"], shown["sha256"]) == ("lora", digest)
    drawn = spm("generate", "a cat", "-m", "lora", "--permeability", "open", "--steps", 1)
    assert drawn.exit_code == 0, drawn.output
    assert read_facts(tmp_path / "pictures" / "a-cat-seed0.png")["membranes"][0]["sha256"] == digest
    assert f"`{digest}`" in spm("card", "lora").output


def test_the_checkpoint_of_an_interrupted_training_is_no_membrane_of_the_folder(spm, tmp_path, cat_file):
    (tmp_path / "dog.checkpoint.safetensors").write_bytes(b"a training's state")
    assert [membrane.name for membrane in load_folder(tmp_path)] == ["cat"]
    (tmp_path / "out").mkdir()
    packed = spm("bank", "pack", ".", "--out", "out/bank.safetensors")
    assert packed.exit_code == 0, packed.output
    assert packed.output.startswith("1 membranes, ")
    cat_file.unlink()
    assert_refused(spm("interference", "."), "holds no membrane")


def test_previews_follow_the_settings_of_the_file_unless_an_option_says_otherwise(spm, tmp_path, monkeypatch):
    (tmp_path / "settings.toml").write_text('preview_every = 3\npreview_prompts = ["a cat", "a dog", "a bus"]\n')
    seen = []

    def erase(pipe, concept, *, config, **_):
        seen.append(config)
        if config.preview_prompts:
            config.preview(3, [Image.new("RGB", (8, 8))] * 3)
        return random_membrane(pipe.unet, "cat", every=6)

    monkeypatch.setattr(training, "erase", erase)
    for options in ((), ("--config", "settings.toml"), ("--config", "settings.toml", "--preview-every", 2)):
        result = spm("erase", "cat", "--preview", "seen", *options)
        assert result.exit_code == 0, result.output
    assert [config.preview_every for config in seen] == [TrainConfig().num_steps // 4, 3, 2]
    assert files_in(tmp_path / "seen") == ["step-00003.png"]


def test_what_the_terminal_cannot_show_does_not_end_a_command():
    program = "from semipermeable.cli.app import main, app; app.command('γ')(lambda: print('γ = 1')); main()"
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    found = subprocess.run([sys.executable, "-c", program, "γ"], capture_output=True, env=environment, check=False)
    assert (found.returncode, found.stdout.strip()) == (0, b"? = 1"), found.stderr


def test_zoo_evaluate_makes_the_folder_of_its_file(spm, tmp_path):
    result = spm("zoo", "evaluate", "emoji", "--count", 2, "--out", "new/drawing.json")
    assert result.exit_code == 0, result.output
    assert files_in(tmp_path) == ["new/drawing.json"]
    assert json.loads((tmp_path / "new" / "drawing.json").read_text())["pictures"] == 2
