import dataclasses
import shutil

import pytest
import torch

from semipermeable import erase, load, save
from semipermeable.concept import Concept
from semipermeable.errors import ConfigError, OutputError
from semipermeable.files.native import to_bytes
from semipermeable.training import erase_each, erase_many, file_name

from helpers import random_membrane
from training_helpers import quick

INSTANT = {"config": quick("instant", num_steps=0), "progress": False}


def test_file_names():
    assert file_name("Cat Face!") == "cat-face.safetensors"
    assert file_name(Concept("猫")) == "猫.safetensors"
    assert file_name("!?") == "concept.safetensors"


def test_a_killed_run_goes_on_where_it_was(tiny_pipe, tmp_path):
    folder = tmp_path / "made"
    steps = erase_each(tiny_pipe, ["cat", "dog", "rose"], out_dir=folder, **INSTANT)
    first = next(steps)
    assert (first.membrane.name, first.path, first.found) == ("cat", folder / "cat.safetensors", False)
    steps.close()
    assert [path.name for path in folder.iterdir()] == ["cat.safetensors"]
    before = first.path.read_bytes()
    again = list(erase_each(tiny_pipe, ["dog", "cat", "rose"], out_dir=folder, **INSTANT))
    assert [(made.membrane.name, made.found) for made in again] == [("cat", True), ("dog", False), ("rose", False)]
    assert first.path.read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {"cat.safetensors", "dog.safetensors", "rose.safetensors"}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seed": 1}, r"cat\.safetensors holds another membrane \(seed differ\)"),
        ({"config": quick("instant", num_steps=0, rank=2)}, r"\(training differ\)"),
    ],
)
def test_another_membrane_in_the_way_is_refused_before_anything_is_made(tiny_pipe, tmp_path, changed, words):
    erase_many(tiny_pipe, ["cat"], out_dir=tmp_path, **INSTANT)
    with pytest.raises(OutputError, match=words):
        erase_many(tiny_pipe, ["dog", "cat"], out_dir=tmp_path, **{**INSTANT, **changed})
    assert [path.name for path in tmp_path.iterdir()] == ["cat.safetensors"]


def test_other_files_and_other_concepts_in_the_way_are_refused(tiny_pipe, tmp_path):
    (tmp_path / "dog.safetensors").write_bytes(b"no membrane")
    with pytest.raises(OutputError, match="is no membrane"):
        erase_many(tiny_pipe, ["dog"], out_dir=tmp_path, **INSTANT)
    erase_many(tiny_pipe, ["cat"], out_dir=tmp_path, **INSTANT)
    with pytest.raises(OutputError, match=r"\(surrogate, '' there and 'dog' here, differ\)"):
        erase_many(tiny_pipe, [Concept("cat", surrogate="dog")], out_dir=tmp_path, **INSTANT)
    with pytest.raises(OutputError, match=r"\(concept differ\)"):
        erase_many(tiny_pipe, [Concept("cat", aliases=("moggy",))], out_dir=tmp_path, **INSTANT)


def test_unusable_requests_are_refused(tiny_pipe, tmp_path):
    with pytest.raises(ConfigError, match=r"both be written to cat-face\.safetensors"):
        erase_many(tiny_pipe, [Concept("cat face"), Concept("cat-face")], out_dir=tmp_path, **INSTANT)
    with pytest.raises(ConfigError, match="joint needs training steps"):
        erase_many(tiny_pipe, ["cat", "dog"], joint=True, **INSTANT)
    with pytest.raises(ConfigError, match="at_once must be at least 1"):
        erase_many(tiny_pipe, ["cat"], at_once=0, **INSTANT)
    for names in (["cat"], ["cat", "dog"]):
        with pytest.raises(ConfigError, match="tensorboard follows the run of a single membrane"):
            erase_many(tiny_pipe, names, config=quick(num_steps=1, tensorboard="logs"), progress=False)


@pytest.mark.parametrize("at_once", [None, 1])
def test_a_checkpoint_of_several_concepts_is_refused_with_advice_that_works(gateless, tiny_pipe, tmp_path, at_once):
    config = quick(num_steps=1, checkpoint=str(tmp_path / "run.safetensors"))
    with pytest.raises(ConfigError, match=r"leave it out .*, or call erase for each with a checkpoint of its own"):
        erase_many(tiny_pipe, ["cat", "dog"], config=config, at_once=at_once, out_dir=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())
    for name in ("cat", "dog"):
        own = dataclasses.replace(config, checkpoint=str(tmp_path / f"{name}.run.safetensors"))
        assert erase(tiny_pipe, name, config=own, progress=False).name == name


def test_trained_in_groups_each_is_the_one_made_alone(tiny_pipe):
    config = quick(num_steps=2)
    several = erase_many(tiny_pipe, ["cat", "dog", "rose"], config=config, at_once=2, progress=False)
    alone = erase(tiny_pipe, "dog", config=config, progress=False)
    assert [membrane.name for membrane in several] == ["cat", "dog", "rose"]
    assert several[1].provenance.training == alone.provenance.training
    assert several[1].gate is not None
    for name, (u, v) in alone.pairs.items():
        delta, own = u @ v.flatten(1), several[1].pairs[name][0] @ several[1].pairs[name][1].flatten(1)
        assert float((own - delta).norm()) <= 0.02 * float(delta.norm()) + 1e-6


def test_a_run_that_goes_on_after_a_group_gives_the_bytes_of_one_that_never_stopped(gateless, tiny_pipe, tmp_path):
    options = {"config": quick(num_steps=1), "at_once": 2, "progress": False}
    names = ["cat", "dog", "rose", "wolf"]
    whole = erase_many(tiny_pipe, names, **options)
    erase_many(tiny_pipe, names[:2], out_dir=tmp_path, **options)
    erase_many(tiny_pipe, names, out_dir=tmp_path, **options)
    assert [(tmp_path / file_name(name)).read_bytes() for name in names] == [to_bytes(one) for one in whole]


def test_a_joint_run_tells_its_story_and_is_not_mistaken_for_another(tiny_pipe, tmp_path, capsys):
    options = {"config": quick(num_steps=2), "out_dir": tmp_path, "joint": True}
    made = erase_many(tiny_pipe, ["cat", "dog"], **options)
    assert made[0].provenance.training["joint_with"] == ["cat", "dog"]
    assert "erasing" in capsys.readouterr().err
    again = list(erase_each(tiny_pipe, ["cat", "dog"], **options, progress=False))
    assert all(one.found for one in again)
    assert torch.equal(
        again[0].membrane.pairs[next(iter(made[0].pairs))][0], made[0].pairs[next(iter(made[0].pairs))][0]
    )
    with pytest.raises(OutputError, match=r"\(joint training differ\)"):
        erase_many(tiny_pipe, ["cat"], config=options["config"], out_dir=tmp_path, progress=False)
    assert load(tmp_path / "cat.safetensors").name == "cat"
    assert capsys.readouterr().err == ""
    shutil.rmtree(tmp_path)


def test_results_come_in_the_order_of_the_concepts_also_where_some_were_there(gateless, tiny_pipe, tmp_path):
    erase_many(tiny_pipe, ["dog"], out_dir=tmp_path, **INSTANT)
    made = erase_many(tiny_pipe, ["cat", "dog", Concept("Cat  Face")], out_dir=tmp_path, **INSTANT)
    assert [membrane.name for membrane in made] == ["cat", "dog", "Cat Face"]


JOINT = {"config": quick(num_steps=1), "joint": True, "progress": False}


def test_a_joint_group_that_was_half_saved_is_made_again_whole(gateless, tiny_pipe, tmp_path):
    whole = erase_many(tiny_pipe, ["cat", "dog"], **JOINT)
    steps = erase_each(tiny_pipe, ["cat", "dog"], out_dir=tmp_path, **JOINT)
    next(steps)
    steps.close()
    assert [path.name for path in tmp_path.iterdir()] == ["cat.safetensors"]
    again = list(erase_each(tiny_pipe, ["cat", "dog"], out_dir=tmp_path, **JOINT))
    assert [(made.membrane.name, made.found) for made in again] == [("cat", False), ("dog", False)]
    assert [made.path.read_bytes() for made in again] == list(map(to_bytes, whole))


def test_other_joint_groups_are_whole_or_made_each_by_itself(gateless, tiny_pipe, tmp_path):
    names = ["cat", "dog", "rose"]
    whole = erase_many(tiny_pipe, names, at_once=2, out_dir=tmp_path, **JOINT)
    (tmp_path / "rose.safetensors").unlink()
    again = list(erase_each(tiny_pipe, names, at_once=2, out_dir=tmp_path, **JOINT))
    assert [(made.membrane.name, made.found) for made in again] == [("cat", True), ("dog", True), ("rose", False)]
    assert [made.path.read_bytes() for made in again] == list(map(to_bytes, whole))


def test_a_joint_group_of_other_concepts_is_refused(gateless, tiny_pipe, tmp_path):
    erase_many(tiny_pipe, ["cat", "dog"], out_dir=tmp_path, **JOINT)
    for names in (["cat", "dog", "rose"], ["cat"], ["dog", "cat"]):
        with pytest.raises(OutputError, match=r"holds another membrane \(joint training differ\); remove it"):
            erase_many(tiny_pipe, names, out_dir=tmp_path, **JOINT)
    assert len(list(tmp_path.iterdir())) == 2


def test_one_kept_apart_from_another_membrane_of_the_same_name_is_another(gateless, tiny_pipe, tmp_path):
    lion, other = (random_membrane(tiny_pipe.unet, "lion", seed=seed) for seed in (0, 1))
    (cat,) = erase_many(tiny_pipe, ["cat"], out_dir=tmp_path, orthogonal_to=[lion], **INSTANT)
    (found,) = erase_each(tiny_pipe, ["cat"], out_dir=tmp_path, orthogonal_to=[lion], **INSTANT)
    assert found.found
    with pytest.raises(OutputError, match=r"\(orthogonal_to differ\)"):
        erase_many(tiny_pipe, ["cat"], out_dir=tmp_path, orthogonal_to=[other], **INSTANT)
    # a file that was written before the digest was
    told = {key: value for key, value in cat.provenance.training.items() if key != "orthogonal_to_hash"}
    save(dataclasses.replace(cat, provenance=dataclasses.replace(cat.provenance, training=told)), found.path)
    (old,) = erase_each(tiny_pipe, ["cat"], out_dir=tmp_path, orthogonal_to=[lion], **INSTANT)
    assert old.found
