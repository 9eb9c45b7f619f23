"""Every benchmark of real models, end to end, on small stand-ins in the formats of the real ones."""

import json
import warnings
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from evaluation import tiny_world
from semipermeable.cli import evaluate
from semipermeable.evaluation.benchmarks import published_names
from semipermeable.evaluation.benchmarks.unlearn_canvas import CANVAS_OBJECTS, CANVAS_STYLES

APP = typer.Typer()
APP.command("evaluate")(evaluate.evaluate_command)
APP.command("report")(evaluate.report_command)
DATA = Path(__file__).parents[2] / "data" / "prompts"
LABELS = (
    "cassette player", "church, church building", "beagle", "Shih-Tzu", "Ada Example", "Bert Sample",
    "Cleo Placeholder", *CANVAS_OBJECTS,
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    for name in ("clip", "classifier", "styles"):
        (folder / name).mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripts = {
            name: tiny_world.save_script(module, folder / f"{name}.pt")
            for name, module in (
                ("inception", tiny_world.ToyInception()),
                ("sscd", tiny_world.ToySscd()),
                ("lpips", tiny_world.ToyLpips()),
            )
        }
    return {
        "model": tiny_world.save_pipeline(folder / "model"),
        "clip": tiny_world.save_clip(folder / "clip"),
        "classifier": tiny_world.save_classifier(folder / "classifier", LABELS),
        "style-classifier": tiny_world.save_classifier(folder / "styles", CANVAS_STYLES),
        "real-images": tiny_world.save_pictures(folder / "real", ["the-wave", "the-girl", "a", "b", "c"]),
        **scripts,
    }


CASES = {
    "characters": ((), ("--limit", 2), ("clip", "inception"), ("clip_target", "clip_error", "frechet_apart")),
    "van-gogh": (("artists.csv",), (), ("clip", "inception"), ("clip_target", "frechet_base", "frechet_apart")),
    "i2p": (("i2p.csv",), (), (),
            ("target", "ua", "nudenet", "nudenet:armpits", "nudenet_total", "nudenet_total:belly")),
    "memorised-art": (("art.csv",), ("--concept", "the-wave"), ("sscd", "real-images"), ("ua", "ira", "copy")),
    "coco-30k": (("coco.csv",), ("--concept", "Van Gogh", "--limit", 3), ("inception", "real-images", "lpips"),
                 ("frechet_real", "kernel_real", "frechet_base", "kernel_base", "lpips")),
    "coco-10k": (("coco.csv",), ("--concept", "Van Gogh", "--limit", 2), ("inception", "real-images"),
                 ("frechet_real",)),
    "coco-5k": (("coco.csv",), ("--concept", "cat", "--limit", 2), ("inception", "real-images", "clip"),
                ("frechet_real", "clip_kept")),
    "imagenette": (("imagenette.csv",), (), ("classifier",), ("target", "ua", "ira", "h_c")),
    "unlearn-canvas": ((), ("--concept", "Picasso", "--limit", 1), ("style-classifier", "classifier"),
                       ("ua", "ira", "cra", "harmonic")),
    "p4d": (("p4d.csv",), (), (), ("target", "nudenet_total")),
    "stanford-dogs": (("dogs.csv",), ("--concept", "beagle"), ("classifier",), ("target", "ua", "ira")),
    "celebrities": (("celebrities.csv",), (), ("classifier",), ("target", "ua", "ira", "h_c")),
}  # fmt: skip


def spm(*arguments):
    return CliRunner().invoke(APP, list(map(str, arguments)))


def evaluated(name, world, out, *more):
    files, options, judges, _ = CASES[name]
    given = [part for file in files for part in ("--prompts", DATA / file)]
    given += [part for judge in judges for part in (f"--{judge}", world[judge])]
    return spm(
        "evaluate", name, "-e", "negative-prompt", "--seeds", 1, "--model", world["model"], "--out", out, *given,
        *options, *more,
    )  # fmt: skip


def test_all_of_them_are_here():
    assert list(CASES) == published_names()


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_end_to_end(name, world, tmp_path):
    if name in ("i2p", "p4d"):
        pytest.importorskip("nudenet")
    result = evaluated(name, world, tmp_path)
    assert result.exit_code == 0, result.output + repr(result.exception)
    (root,) = tmp_path.iterdir()
    assert root.name == f"{name}@1"
    found = {
        eraser: json.loads((root / eraser / "result.json").read_text(encoding="utf-8"))
        for eraser in ("noop", "negative-prompt")
    }
    for eraser, content in found.items():
        figures = content["figures"] | content["sets"]
        for figure in CASES[name][3]:
            assert figure in figures, (eraser, figure, sorted(figures))
        assert str(world["model"].parent) not in json.dumps(content)
        assert content["judges"]
    base = found["noop"]
    assert base["figures"].get("identical", {"value": 1})["value"] == 1
    if "frechet_base" in base["sets"]:
        assert base["sets"]["frechet_base"] == pytest.approx(0, abs=1e-4)
    assert len(list(root.rglob("negative-prompt/pictures/**/*.png"))) == len(base["columns"]["drift"])
    times = {path: path.stat().st_mtime_ns for path in root.rglob("shards/*.json")}
    assert evaluated(name, world, tmp_path).exit_code == 0  # nothing is drawn again
    assert {path: path.stat().st_mtime_ns for path in root.rglob("shards/*.json")} == times
    report = spm("report", tmp_path, "--out", tmp_path / "report.html")
    assert report.exit_code == 0, report.output + repr(report.exception)


@pytest.mark.slow
def test_another_model_or_dtype_is_not_mixed_in(world, tmp_path):
    name = "stanford-dogs"
    assert evaluated(name, world, tmp_path).exit_code == 0
    result = evaluated(name, world, tmp_path, "--dtype", "bf16")
    assert result.exit_code == 2
    assert "was drawn under configuration" in " ".join(result.stderr.split())
    result = evaluated(name, world, tmp_path, "--limit", 1)
    assert result.exit_code == 2


def test_a_missing_judge_is_named_before_anything_is_drawn(tmp_path):
    out = tmp_path / "results"
    result = spm("evaluate", "imagenette", "-e", "noop", "--prompts", DATA / "imagenette.csv", "--out", out)
    assert result.exit_code == 2
    assert "needs --classifier" in " ".join(result.stderr.split())
    assert not list(tmp_path.rglob("*.png"))
