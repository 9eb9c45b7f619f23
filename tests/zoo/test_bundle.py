import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from semipermeable import zoo
from semipermeable.errors import UnknownNameError, ZooError
from semipermeable.zoo import bundle
from semipermeable.zoo.recipe.export import write_manifest


def test_importing_the_zoo_loads_neither_torch_nor_diffusers() -> None:
    code = (
        "import sys, semipermeable.zoo; print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_file_of_every_bundle_is_what_was_shipped() -> None:
    for name in zoo.names():
        bundle.verify(bundle.bundle_folder(name))
        listed = set(zoo.info(name)["files"])
        folder = bundle.bundle_folder(name)
        there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        assert there == listed | {bundle.MANIFEST}


def test_an_unknown_name_suggests_a_close_one() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'emoji'"):
        zoo.load("emojis")


def test_a_damaged_file_is_named_with_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(bundle.bundle_folder("emoji"), tmp_path / "emoji")
    monkeypatch.setattr(bundle, "ASSETS", tmp_path)
    weights = tmp_path / "emoji" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(
        ZooError, match=r"unet/diffusion_pytorch_model.safetensors has SHA-256 .* and 1000 bytes.*reinstall"
    ):
        zoo.load("emoji")
    weights.unlink()
    with pytest.raises(ZooError, match="is missing; reinstall"):
        zoo.load("emoji")


def test_manifest_lists_every_file_but_itself(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.txt").write_bytes(b"membrane")
    manifest = write_manifest(tmp_path, {"name": "tiny"})
    assert manifest == json.loads((tmp_path / bundle.MANIFEST).read_text())
    assert list(manifest["files"]) == ["a/b.txt"]
    assert manifest["files"]["a/b.txt"]["bytes"] == 8
    bundle.verify(tmp_path)


def test_the_spec_writes_captions_and_its_twins_are_symmetric() -> None:
    spec = zoo.spec("emoji")
    assert spec.caption("apple", "3d") == "a 3d icon of an apple"
    assert spec.caption("cat", "neon", template=2) == "a cat, neon style"
    assert spec.caption("animal") == "an icon of an animal"
    assert spec.caption() == ""
    assert {"neon", "3d"} <= set(spec.styles)
    assert len(zoo.captions("emoji")) == len(spec.objects) * len(spec.styles)
    for thing in spec.objects:
        assert all(thing.name in spec.object(twin).twins for twin in thing.twins)
    with pytest.raises(UnknownNameError, match="'neon'"):
        spec.caption("cat", "neno")
    with pytest.raises(UnknownNameError, match="'cat'"):
        spec.object("catt")


def test_a_judge_refuses_pictures_of_another_shape() -> None:
    with pytest.raises(ZooError, match=r"\(B, 3, 64, 64\)"):
        zoo.judge("emoji")(torch.zeros(1, 3, 32, 32))


def test_the_model_draws_what_it_is_asked_for() -> None:
    pipeline, judge, spec = zoo.load("emoji"), zoo.judge("emoji"), zoo.spec("emoji")
    assert pipeline.unet.dtype == pipeline.text_encoder.dtype == pipeline.vae.dtype == torch.float32
    asked = [
        ("apple", "neon"),
        ("apple", "3d"),
        ("pizza", "flat"),
        ("panda", "neon"),
        ("guitar", "pixel art"),
        ("castle", "3d"),
    ]
    drawn = pipeline(
        [spec.caption(*pair) for pair in asked],
        num_inference_steps=20,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(i) for i in range(len(asked))],
        output_type="pt",
    ).images
    seen = judge(drawn)
    objects = sum(judge.objects[i] == name for i, (name, _) in zip(seen.object.tolist(), asked, strict=True))
    styles = sum(judge.styles[i] == style for i, (_, style) in zip(seen.style.tolist(), asked, strict=True))
    # One miss of six is allowed: sampling differs in the last bits between processors.
    assert objects >= 5
    assert styles >= 5
    assert judge.features(drawn).shape == (len(asked), 384)


def test_a_bundle_of_an_earlier_version_is_named(tmp_path: Path) -> None:
    save_file({"mean": torch.zeros(4), "covariance": torch.eye(4)}, tmp_path / "statistics.safetensors")
    write_manifest(tmp_path, {"name": "tiny"})
    with pytest.raises(ZooError, match="was built before statistics held a sample; run `spm zoo build` again"):
        zoo.real_statistics(tmp_path)
