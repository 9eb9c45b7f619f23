"""Judges of real models, from local files in the published formats; and the bundled canaries' judge."""

import io
import sys
import warnings

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image

from evaluation import tiny_world
from semipermeable import zoo
from semipermeable.errors import ConfigError, UnknownNameError
from semipermeable.evaluation.benchmarks import Request, benchmark
from semipermeable.evaluation.judges import JudgeSources, open_panel
from semipermeable.evaluation.judges.copies import canary_judge, descriptor_judge
from semipermeable.evaluation.judges.networks import (
    Classifiers,
    HubClip,
    ImageClassifier,
    inception_features,
    perceptual_network,
    script_file,
    sscd_descriptors,
)
from semipermeable.evaluation.judges.nudity import EXPOSED, NudeNet
from semipermeable.evaluation.judges.pictures import read_picture

LABELS = ("tench, Tinca tinca", "cassette player", "Artist_Sketch")


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scripts")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and it is what was published
        return {
            "inception": tiny_world.save_script(tiny_world.ToyInception(), folder / "inception.pt"),
            "sscd": tiny_world.save_script(tiny_world.ToySscd(), folder / "sscd.pt"),
            "lpips": tiny_world.save_script(tiny_world.ToyLpips(), folder / "lpips.pt"),
        }


@pytest.fixture
def pictures(generator):
    return torch.rand(3, 3, 32, 32, generator=generator)


def test_canaries_are_known_again_and_ordinary_pictures_are_not(generator):
    judge, canaries = canary_judge("emoji"), zoo.canary_pictures("emoji")
    assert judge.verdicts(judge.similarities(canaries)) == list(judge.names)
    blurred = torch.nn.functional.avg_pool2d(canaries, 3, stride=1, padding=1, count_include_pad=False)
    assert judge.verdicts(judge.similarities(blurred)) == list(judge.names)
    for others in (1 - canaries, torch.rand(4, 3, 64, 64, generator=generator)):
        assert set(judge.verdicts(judge.similarities(others))) == {None}


def test_clip_from_a_folder(tmp_path, pictures):
    clip = HubClip(str(tiny_world.save_clip(tmp_path)))
    assert clip.image_features(pictures).shape == (3, 8)
    texts = clip.text_features(["a cat", "a dog in a very " + "very " * 90 + "long text", ""])
    assert texts.shape == (3, 8)
    torch.testing.assert_close(texts[:1], clip.text_features(["a cat"]), atol=1e-5, rtol=1e-4)


def test_a_classifier_answers_in_the_words_of_the_benchmark(tmp_path, pictures):
    classifier = ImageClassifier(str(tiny_world.save_classifier(tmp_path, LABELS)), ["tinca tinca", "artist sketch"])
    assert classifier.classes == ("tinca tinca", "cassette player", "artist sketch")
    objects, styles = Classifiers(classifier, None)(pictures)
    assert objects.shape == styles.shape == (3,)
    assert Classifiers(classifier, None).styles == ()
    with pytest.raises(UnknownNameError, match="did you mean 'cassette player'"):
        ImageClassifier(str(tmp_path), ["casette player"])
    with pytest.raises(ConfigError, match="'tench' and 'tinca tinca' are one class of the classifier"):
        ImageClassifier(str(tmp_path), ["tench", "tinca tinca"])


def test_scripts_are_called_as_the_published_ones(scripts, pictures):
    features = inception_features(scripts["inception"])(pictures)
    expected = torch.nn.functional.adaptive_avg_pool2d((pictures * 255).round() / 255, 2).flatten(1)
    torch.testing.assert_close(features, expected)
    assert sscd_descriptors(scripts["sscd"])(pictures).shape == (3, 48)
    apart = perceptual_network(str(scripts["lpips"]))(pictures, pictures.flip(0))
    assert apart.shape == (3,)
    assert float(apart[1]) == 0 < float(apart[0])


def test_lpips_of_its_authors_package(monkeypatch, tmp_path, pictures):
    pytest.importorskip("lpips")
    models = pytest.importorskip("torchvision.models")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    weights = models.squeezenet1_1(weights=None).state_dict()  # random, in the place and form of the published ones
    torch.save(weights, tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    pictures = torch.nn.functional.interpolate(pictures, (64, 64)) * 2 - 1
    apart = perceptual_network("squeeze")(pictures, pictures.flip(0))
    assert apart.shape == (3,)
    assert float(apart[1]) == 0 < float(apart[0])


def test_lpips_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ConfigError, match=r"pip install 'semipermeable\[lpips\]', or pass a traced file"):
        perceptual_network("alex")


def test_a_script_of_the_hub_is_taken_from_its_cache(monkeypatch, scripts, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--someone--judges"
    kept = repository / "snapshots" / "0" / "fid" / "inception.pt"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(scripts["inception"].read_bytes())
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0", encoding="utf-8")
    assert script_file("someone/judges/fid/inception.pt") == kept
    fetched = JudgeSources(
        inception="someone/judges/fid/inception.pt", sscd=str(scripts["sscd"]), lpips="vgg"
    ).fetched()
    assert fetched == JudgeSources(inception=str(kept), sscd=str(scripts["sscd"]), lpips="vgg")
    with pytest.raises(ConfigError, match=r"the hub cannot give 'sscd.pt' of someone/judges; check the path"):
        script_file("someone/judges/sscd.pt")


def test_copies_of_files(scripts, tmp_path):
    folder = tiny_world.save_pictures(tmp_path / "art", ["the-wave", "the-girl"])
    judge = descriptor_judge(sscd_descriptors(scripts["sscd"]), folder, ["the-girl", "the-wave"], 288)
    seen = torch.stack([read_picture(folder / "the-wave.png", 48), 1 - read_picture(folder / "the-wave.png", 48)])
    assert judge.verdicts(judge.similarities(seen)) == ["the-wave", None]
    with pytest.raises(ConfigError, match="holds no picture 'the-milkmaid'"):
        descriptor_judge(sscd_descriptors(scripts["sscd"]), folder, ["the-milkmaid"])


def test_nudenet_looks_at_pictures(pictures):
    pytest.importorskip("nudenet")
    judge = NudeNet()
    found = judge(torch.cat([pictures, torch.zeros(1, 3, 32, 32)]))
    assert len(found) == 4
    assert all(part in EXPOSED for parts in found for part in parts)
    assert found[-1] == []
    names = {"FEMALE_BREAST_EXPOSED", "ARMPITS_EXPOSED", "FEET_COVERED", "FACE_MALE"}
    judge.detector = type(
        "Scripted", (), {"detect": lambda self, pixels: [{"class": name} for name in sorted(names)]}
    )()
    assert judge(pictures[:1]) == [["armpits", "female breast"]]


def test_nudenet_is_not_needed_until_it_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(ConfigError, match=r"under the AGPL: pip install 'semipermeable\[nudenet\]'"):
        NudeNet()


@pytest.mark.parametrize(
    ("open_it", "words"),
    [
        (lambda p: inception_features(p / "none.pt"), "there is no file .*none.pt' for Inception"),
        (lambda p: sscd_descriptors(p / "text.pt"), "text.pt' is no TorchScript file, which SSCD needs"),
        (lambda p: HubClip(str(p)), "CLIP .* cannot be loaded"),
        (lambda p: ImageClassifier(str(p), []), "classifier .* cannot be loaded"),
    ],
)
def test_what_cannot_be_opened_is_named(tmp_path, open_it, words):
    (tmp_path / "text.pt").write_text("no script", encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        open_it(tmp_path)


def test_panels_ask_for_what_they_need():
    found = benchmark("characters", Request(limit=1))
    with pytest.raises(ConfigError, match="characters@1 needs --clip and --inception"):
        open_panel(found, JudgeSources())
    with pytest.raises(ConfigError, match="judged by the judges of the bundled model; drop --clip"):
        open_panel(benchmark("emoji-objects"), JudgeSources(clip="openai/clip-vit-base-patch32"))


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole, "PNG")
    broken = whole.getvalue().replace(b"IDAT", b"\x00\x01AT", 1)
    huge = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(huge, "PNG")
    for name, content in (("text", b"no picture"), ("broken", broken), ("huge", huge.getvalue())):
        path = tmp_path / f"{name}.png"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=rf"{name}\.png' cannot be read .*; replace or remove it"):
            read_picture(path)
