"""`spm card`: what it says, that it is valid for the hub, and that a stranger's file cannot write markup into it."""

import dataclasses

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from typer.testing import CliRunner

from semipermeable.cli import app
from semipermeable.concept import Concept
from semipermeable.files import load, save
from semipermeable.generation.card import card_prompts, draw_pictures, membrane_card
from semipermeable.generation.png import file_digest
from semipermeable.hosts import host_for
from semipermeable.membrane import GateState, Provenance

from helpers import random_membrane


@pytest.fixture
def spm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def membrane(pipe):
    origin = Provenance(
        base_model="zoo:emoji",
        base_hash=host_for(pipe).base_hash(),
        family="unet",
        training={"num_steps": 60, "learning_rate": 0.004, "blocks": list(range(40))},
        seed=7,
        package_version="0.1.0",
        metrics={"erasing_loss": 0.00123456789},
    )
    concept = Concept("cat", aliases=("kitty",), surrogate="animal", keep=("cat face",))
    return dataclasses.replace(random_membrane(pipe.unet, "cat", every=6), concept=concept, provenance=origin)


@pytest.fixture
def cat_file(tmp_path, membrane):
    save(membrane, tmp_path / "cat.safetensors")
    return tmp_path / "cat.safetensors"


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_it_says_what_the_file_says(spm, cat_file):
    result = spm("card", cat_file)
    assert result.exit_code == 0, result.output
    rows = dict(
        line.strip("| ").split(" | ", 1)
        for line in result.output.splitlines()
        if line.startswith("| ") and line != "| | |"
    )
    assert rows["erases"] == "cat, kitty"
    assert rows["draws instead"] == "animal"
    assert rows["keeps"] == "cat face"
    assert rows["model"] == "zoo:emoji"
    assert (rows["seed"], rows["num\\_steps"], rows["learning\\_rate"]) == ("7", "60", "0.004")
    assert rows["blocks"] == "40 entries"
    assert rows["erasing\\_loss"] == "0.00123457"
    assert rows["SHA-256"] == f"`{file_digest(cat_file)}`"
    assert rows["bytes"] == f"{cat_file.stat().st_size:,}"
    assert 'spm generate "a picture of a cat" --membrane cat.safetensors --model emoji' in result.output
    assert "None is stored" in result.output
    assert "image" not in front_matter(result.output)


def test_the_hub_reads_its_front_matter(cat_file, membrane):
    text = membrane_card(membrane, cat_file)
    card = ModelCard(text)
    assert card.data.library_name == "semipermeable"
    assert card.data.pipeline_tag == "text-to-image"
    assert "concept-erasure" in card.data.tags
    assert card.data.license is None
    assert card.data.base_model is None, "zoo:emoji is no id of the hub"


def test_a_base_model_on_the_hub_is_named_to_the_hub(cat_file, membrane):
    origin = dataclasses.replace(membrane.provenance, base_model="owner/stable-diffusion")
    text = membrane_card(dataclasses.replace(membrane, provenance=origin), cat_file)
    assert front_matter(text)["base_model"] == "owner/stable-diffusion"
    assert front_matter(text)["base_model_relation"] == "adapter"
    assert 'DiffusionPipeline.from_pretrained("owner/stable-diffusion")' in text


def test_the_gate_is_shown(cat_file, membrane):
    gate = GateState("transport", {"threshold": 2.5, "keep": ["cat face", "hot dog"]})
    text = membrane_card(dataclasses.replace(membrane, gate=gate), cat_file)
    assert "| rule | transport |" in text
    assert "| threshold | 2.5 |" in text
    assert "| keep | cat face, hot dog |" in text


def test_a_file_that_tells_nothing_gives_a_card_that_says_so(tmp_path, pipe):
    save(random_membrane(pipe.unet, "cat", every=6), tmp_path / "bare.safetensors")
    text = membrane_card(load(tmp_path / "bare.safetensors"), tmp_path / "bare.safetensors")
    assert "| model | not recorded |" in text
    assert "| seed | not recorded |" in text
    assert "None recorded." in text
    assert "path/to/the/base/model" in text


def test_a_name_cannot_write_markup_or_commands(cat_file, membrane):
    nasty = '![x](http://evil) <script> | a"`rm -rf`$(x)'
    text = membrane_card(dataclasses.replace(membrane, concept=Concept(nasty)), cat_file)
    outside = "".join(text.split("```")[::2])
    assert "<script>" not in outside
    assert "![x](" not in outside
    assert r"\`rm -rf\`\$(x)" in text.split("```sh")[1]
    compile(text.split("```python\n")[1].split("```")[0], "card", "exec")


def test_a_name_cannot_end_a_code_block(cat_file, membrane):
    text = membrane_card(dataclasses.replace(membrane, concept=Concept("cat ``` <script>")), cat_file)
    assert text.count("```") == 4
    assert "<script>" not in "".join(text.split("```")[::2])
    program = compile(text.split("```python\n")[1].split("```")[0], "card", "exec")
    assert "a picture of a cat ``` <script>" in constants_of(program)


def constants_of(program):
    return [value for value in program.co_consts if isinstance(value, str)]


def test_pictures_show_the_concept_and_what_must_stay(spm, tmp_path, cat_file):
    result = spm("card", cat_file, "--out", "cards/cat.md", "--pictures", "--steps", 1, "--seed", 3)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "cards" / "cat.md").read_text(encoding="utf-8")
    assert "![Without and with the membrane](<cat.png>)" in text
    assert "Drawn on\nemoji (the weights it was trained on); seed 3, 1 steps, guidance 4." in text
    with Image.open(tmp_path / "cards" / "cat.png") as picture:
        assert picture.width > 2 * 192
    first = (tmp_path / "cards" / "cat.png").read_bytes(), text
    assert spm("card", cat_file, "--out", "cards/cat.md", "--pictures", "--steps", 1, "--seed", 3).exit_code == 0
    again = (tmp_path / "cards" / "cat.png").read_bytes(), (tmp_path / "cards" / "cat.md").read_text(encoding="utf-8")
    assert again == first


def test_prompts_are_opened_and_closed_as_they_should_be(pipe, membrane):
    targets, kept = card_prompts(pipe, membrane)
    assert len(targets) == len(kept) == 3
    assert all("cat" in text or "kitty" in text for text in targets)
    assert "cat face" in kept[0]
    assert not any("kitty" in text for text in kept)
    with_membrane, same = draw_pictures(pipe, membrane, seed=0, steps=1, guidance=1.0)
    without, _ = draw_pictures(
        pipe, dataclasses.replace(membrane, concept=Concept("zebra crossing")), seed=0, steps=1, guidance=1.0
    )
    assert same is True
    assert with_membrane.size == without.size


def test_other_weights_are_called_by_their_name(pipe, membrane):
    origin = dataclasses.replace(membrane.provenance, base_hash="0" * 64)
    _, same = draw_pictures(pipe, dataclasses.replace(membrane, provenance=origin), seed=0, steps=1, guidance=1.0)
    assert same is False
    silent = dataclasses.replace(membrane.provenance, base_hash="")
    _, same = draw_pictures(pipe, dataclasses.replace(membrane, provenance=silent), seed=0, steps=1, guidance=1.0)
    assert same is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--pictures",), "--out card.md"),
        (("--model", "emoji"), "add --pictures"),
        (("--out", ".", "--pictures"), "cannot be written"),
        (("--out", "card.md", "--pictures", "--model", "emojy"), "did you mean 'emoji'?"),
    ],
)
def test_refusals(spm, cat_file, arguments, words):
    result = spm("card", cat_file, *arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())


def test_a_base_model_that_cannot_be_named_is_asked_for_and_nothing_is_left(spm, tmp_path, pipe):
    save(random_membrane(pipe.unet, "cat", every=6), tmp_path / "bare.safetensors")
    result = spm("card", "bare.safetensors", "--out", "card.md", "--pictures")
    assert result.exit_code == 2
    assert "does not say what it was made on; name the model to draw on with --model" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bare.safetensors"]


def test_a_card_replaces_neither_the_membrane_nor_its_own_pictures(spm, tmp_path, cat_file):
    named_like_a_picture = tmp_path / "card.png"
    named_like_a_picture.write_bytes(cat_file.read_bytes())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for arguments, words in (
        (("cat.safetensors", "--out", "cat.safetensors"), "is read for it"),
        (("card.png", "--out", "card.md", "--pictures"), "is read for it"),
        (("cat.safetensors", "--out", "card.png", "--pictures"), "call the card card.md"),
    ):
        result = spm("card", *arguments)
        assert result.exit_code == 2, result.output
        assert words in " ".join(result.stderr.replace("│", " ").split())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
