"""Accuracies, CLIP, distances and pixels: known answers, and agreement with a public library on the same features."""

import math
import sys

import pytest
import torch
from torch.testing import assert_close

from semipermeable.errors import ConfigError
from semipermeable.evaluation.scores import (
    Moments,
    canvas_hits,
    clip_error_rate,
    clip_errors,
    clip_scores,
    erasing_harmonic,
    frechet_distance,
    harmonic_mean,
    identical_pixels,
    kernel_distance,
    moments_of,
    perceptual_distances,
    pixel_drift,
)


def features(rows, width, seed=0, shift=0.0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) + shift


def test_unlearn_canvas_accuracies():
    hits = canvas_hits(
        asked=("cat", "cat", "dog", "dog", "owl"),
        seen=("cat", "dog", "dog", "owl", "owl"),
        asked_other=("neon", "neon", "flat", None, "flat"),
        seen_other=("neon", "flat", "flat", "flat", "neon"),
        asks=(True, True, False, False, False),
    )
    assert (hits.target.successes, hits.target.n) == (1, 2)
    assert hits.ua.value == 1 - hits.target.value
    assert (hits.ira.successes, hits.ira.n) == (2, 3)
    assert (hits.cra.successes, hits.cra.n) == (2, 4)  # the prompt without a style counts for nothing
    with pytest.raises(ValueError, match=r"columns of \[1, 2\] rows"):
        canvas_hits(("cat", "cat"), ("cat", "dog"), (None, None), ("a", "b"), (True,))


def test_harmonic_means():
    assert float(harmonic_mean(1.0, 1.0, 1.0)) == 1
    assert float(harmonic_mean(0.5, 1.0)) == pytest.approx(2 / 3)
    assert float(harmonic_mean(1.0, 0.0, 1.0)) == 0
    assert_close(harmonic_mean(torch.tensor([1.0, 0.5]), torch.tensor([1.0, 1.0])), torch.tensor([1.0, 2 / 3]).double())
    # MACE's formula, written out.
    assert erasing_harmonic(0.1, 0.9, 0.2) == pytest.approx(3 / (1 / 0.9 + 1 / 0.9 + 1 / 0.8))


def test_clip_scores_and_error_rate():
    images = torch.tensor([[2.0, 0.0], [1.0, 1.0], [-1.0, 0.0], [0.0, 3.0]])
    concept, surrogate = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert_close(clip_scores(images, concept), 2.5 * torch.tensor([1.0, math.sqrt(0.5), 0.0, 0.0]))
    # A tie is an error: the concept must fit strictly better.
    assert clip_errors(images, concept, surrogate).tolist() == [False, True, True, True]
    assert clip_error_rate(images, concept, surrogate) == 0.75


def test_frechet_of_known_gaussians():
    mean = torch.zeros(3, dtype=torch.float64)
    one = Moments(mean, torch.eye(3, dtype=torch.float64))
    other = Moments(mean + 2, 4 * torch.eye(3, dtype=torch.float64))
    assert frechet_distance(one, other) == pytest.approx(3 * 4 + 3 * (2 - 1) ** 2)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one))


def test_frechet_of_fewer_rows_than_dimensions():
    few = moments_of(features(10, 40))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_is_unbiased():
    same = [kernel_distance(features(20, 4, 2 * s), features(20, 4, 2 * s + 1)) for s in range(200)]
    assert abs(sum(same) / 200) < 3 * torch.tensor(same).std() / math.sqrt(200)
    assert min(same) < 0 < max(same)
    assert kernel_distance(features(50, 4), features(50, 4, 1, shift=1.0)) > 5 * max(same)


def test_pairs_that_are_equal_have_no_kernel_distance():
    rows = features(20, 4)
    assert kernel_distance(rows, rows, paired=True) == pytest.approx(0, abs=1e-12)
    assert kernel_distance(rows, rows) < 0  # the unpaired estimate takes a sample for an independent one
    assert kernel_distance(rows, rows + 1, paired=True) > 0
    with pytest.raises(ValueError, match="two sets of features"):
        kernel_distance(rows, rows[:5], paired=True)


class _Identity(torch.nn.Module):
    num_features = 6

    def forward(self, rows):
        return rows


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_torchmetrics_agrees_on_the_same_features():
    # The package lists them under `image` only beside torch-fidelity, which needs torchvision; they do not need it.
    kid_module = pytest.importorskip("torchmetrics.image.kid", reason="torchmetrics is a development dependency")
    fid_module = pytest.importorskip("torchmetrics.image.fid")
    real, fake = features(80, 6).double(), features(60, 6, 1, shift=0.5).double()
    fid = fid_module.FrechetInceptionDistance(feature=_Identity(), input_img_size=(6,)).set_dtype(torch.float64)
    kid = kid_module.KernelInceptionDistance(feature=_Identity(), subsets=1, subset_size=60)
    for metric in (fid, kid):
        metric.update(real[:60] if metric is kid else real, real=True)
        metric.update(fake, real=False)
    assert frechet_distance(moments_of(real), moments_of(fake)) == pytest.approx(float(fid.compute()), rel=1e-6)
    assert kernel_distance(real[:60], fake) == pytest.approx(float(kid.compute()[0]), rel=1e-4)


def test_moments_and_distances_refuse_single_rows():
    with pytest.raises(ValueError, match="n ≥ 2"):
        moments_of(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="two sets of features"):
        kernel_distance(torch.zeros(4, 3), torch.zeros(4, 2))


def test_pixels():
    before = torch.zeros(3, 3, 2, 2)
    after = before.clone()
    after[1], after[2, 0, 0, 0] = 1.0, 0.6
    assert_close(pixel_drift(before, after), torch.tensor([0.0, 1.0, 0.05]).double())
    assert identical_pixels(before, after).tolist() == [True, False, False]
    for measure in (pixel_drift, identical_pixels):
        with pytest.raises(ValueError, match="pairs of pictures"):
            measure(before, after[:2])


def test_perceptual_distances_take_a_network_or_name_the_package(monkeypatch):
    before, after = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    apart = perceptual_distances(before, after, lambda x, y: (x - y).abs().mean((1, 2, 3), keepdim=True))
    assert_close(apart, torch.tensor([2.0, 2.0]))  # pictures arrive in [−1, 1]
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ConfigError, match="pip install lpips"):
        perceptual_distances(before, after)
