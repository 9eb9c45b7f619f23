import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from semipermeable import zoo
from semipermeable.errors import ConfigError, ZooError
from semipermeable.zoo.judges import FeatureStatistics
from semipermeable.zoo.recipe.autoencoder import encode_pictures, new_autoencoder, normalise_latents, psnr
from semipermeable.zoo.recipe.build import build
from semipermeable.zoo.recipe.captions import CaptionBook
from semipermeable.zoo.recipe.catalogue import read_catalogue
from semipermeable.zoo.recipe.icons import ICON_SETS, SIDE, Drawings
from semipermeable.zoo.recipe.judging import _vary
from semipermeable.zoo.recipe.memorised import nearest
from semipermeable.zoo.recipe.plan import Plan
from semipermeable.zoo.recipe.tokenizer import clean_copy, train_tokenizer

PLAN = replace(Plan(), sampling=2, ordinary=2).scaled(0.0005)
DRAWN = ("cat", "owl", "crab", "castle", "robot")


def some_drawings() -> Drawings:
    """Boxes of random colours for the cat and the canaries' objects, by three designers."""
    names = read_catalogue("emoji").spec.object_names
    generator = np.random.default_rng(0)
    pixels, present = {}, {}
    for icons in ICON_SETS:
        sheet, there = np.zeros((len(names), SIDE, SIDE, 4), np.uint8), np.zeros(len(names), bool)
        if icons.designer in ("twemoji", "noto", "noto-v1"):
            for name in DRAWN:
                top, left = generator.integers(10, 40, 2)
                sheet[names.index(name), top : top + 40, left : left + 40] = (*generator.integers(0, 255, 3), 255)
                there[names.index(name)] = True
        pixels[icons.designer], present[icons.designer] = sheet, there
    return Drawings(pixels, present)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("zoo")
    work = folder / "work"
    work.mkdir()
    some_drawings().save(work / "drawings.npz")
    out = build("emoji", work=work, out=folder / "tiny", plan=PLAN, start="emoji", progress=False)
    return work, out


@pytest.mark.slow
def test_a_bundle_is_built_and_loads_like_a_shipped_one(built: tuple[Path, Path]) -> None:
    work, out = built
    pipeline = zoo.load(out)
    image = pipeline("a pop art icon of a cat", num_inference_steps=2, output_type="pt").images
    assert image.shape == (1, 3, 64, 64)
    verdict = zoo.judge(out)(image)
    assert 0 <= int(verdict.object[0]) < len(zoo.spec(out).objects)
    assert zoo.clip(out).image_features(image).shape == zoo.clip(out).text_features(["a cat"]).shape
    assert zoo.canary_pictures(out).shape == (len(zoo.spec(out).canaries), 3, 64, 64)
    measured = json.loads((out / "evaluation.json").read_text())
    assert measured["drawing"]["pictures"] == 2
    assert str(measured["drawing"]["object"]["right"]) in (out / "README.md").read_text()
    shipped = [path.read_text() for path in out.rglob("*.json")]
    assert not any(str(work.parent) in text for text in shipped)


@pytest.mark.slow
def test_a_second_run_over_the_same_work_folder_trains_nothing_and_writes_the_same_weights(
    built: tuple[Path, Path], tmp_path: Path
) -> None:
    work, out = built
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")}
    again = build("emoji", work=work, out=tmp_path / "again", plan=PLAN, start="emoji", progress=False)
    assert before == {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")}
    for file in ("pipeline/unet/diffusion_pytorch_model.safetensors", "judge.safetensors", "clip.safetensors"):
        assert (out / file).read_bytes() == (again / file).read_bytes()


@pytest.mark.slow
def test_another_plan_over_the_same_work_folder_is_refused(built: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another plan"):
        build("emoji", work=built[0], out=tmp_path / "x", plan=replace(PLAN, seed=1), start="emoji")


def test_a_folder_in_use_and_a_folder_that_is_no_bundle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="not empty"):
        build("emoji", work=tmp_path / "work", out=tmp_path)
    with pytest.raises(ZooError, match="spm zoo build"):
        zoo.spec(tmp_path)
    with pytest.raises(ConfigError, match="positive"):
        Plan().scaled(0)
    with pytest.raises(ConfigError, match="positive and finite, not inf"):
        Plan().scaled(float("inf"))


def test_normalised_latents_have_unit_scale_and_decode_to_the_same_picture() -> None:
    torch.manual_seed(0)
    model = new_autoencoder().eval()
    pixels = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), dtype=np.uint8)
    before = psnr(model, pixels)
    normalise_latents(model, pixels)
    latents = encode_pictures(model, pixels)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(psnr(model, pixels), before, atol=1e-2, rtol=0)


def test_a_tokenizer_learned_from_the_captions_keeps_their_words_and_saves_no_state(tmp_path: Path) -> None:
    book = CaptionBook(read_catalogue("emoji"))
    tokenizer = train_tokenizer(book.texts)
    assert tokenizer.tokenize("A Pineapple") == ["a</w>", "pineapple</w>"]
    assert tokenizer.tokenize("zebra") != ["<|endoftext|>"]
    tokenizer("a cat", padding="max_length", max_length=24, truncation=True)
    clean_copy(tokenizer, tmp_path)
    stored = json.loads((tmp_path / "tokenizer.json").read_text())
    assert stored["padding"] is None
    assert stored["truncation"] is None


def test_variations_are_seeded_and_keep_the_unit_range() -> None:
    images = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    one, two, three = (_vary(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    assert float(one.min()) >= 0
    assert float(one.max()) <= 1


def test_the_frechet_distance_of_gaussians_has_its_closed_form() -> None:
    rows = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, moved = FeatureStatistics.of(rows), FeatureStatistics.of(2 * rows + 3)
    assert one.distance(one) == pytest.approx(0, abs=1e-6)
    expected = float((rows.mean(0) + 3).square().sum() + one.covariance.trace())
    assert one.distance(moved) == pytest.approx(expected, rel=1e-6)


def test_the_nearest_taught_picture_is_found_with_its_distance() -> None:
    taught = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    asked = torch.stack([taught[3], (taught[7] + 0.05).clamp(0, 2)])
    torch.testing.assert_close(nearest(asked, taught), torch.tensor([0.0, 0.1]), atol=2e-3, rtol=0)


def test_the_statistics_that_ship_are_of_the_judges_own_features() -> None:
    statistics = zoo.real_statistics("emoji")
    width = zoo.judge("emoji").features(torch.rand(1, 3, 64, 64)).shape[1]
    assert statistics.covariance.shape == (width, width)
    assert statistics.count > 1000
    assert float(torch.linalg.eigvalsh(statistics.covariance).min()) > -1e-3
    assert statistics.sample.shape == (350, width)
    error = (statistics.covariance.diagonal().clamp(min=1e-6) / len(statistics.sample)).sqrt()
    off = (statistics.sample.mean(0) - statistics.mean) / error
    assert float(off.square().mean().sqrt()) == pytest.approx(1, abs=0.25)  # as far off as that many drawn by lot are


def test_canaries_that_ship_are_pictures() -> None:
    pictures = zoo.canary_pictures("emoji")
    assert pictures.shape == (len(zoo.spec("emoji").canaries), 3, 64, 64)
    assert load_file(zoo.path("emoji").parent / "canaries.safetensors")["pictures"].dtype == torch.uint8
    assert all(float(picture.std()) > 0.05 for picture in pictures)
