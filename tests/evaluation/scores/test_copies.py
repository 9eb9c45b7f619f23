"""Copies: by pixels, by descriptors, and thresholds of each reference."""

import pytest
import torch

from semipermeable.evaluation.scores import (
    canvas_hits,
    copied,
    cosine_similarities,
    kernel_distance,
    pixel_similarities,
)


def test_a_picture_is_its_own_copy_and_black_and_white_are_as_far_as_can_be(generator):
    pictures = torch.rand(3, 3, 4, 4, generator=generator)
    torch.testing.assert_close(pixel_similarities(pictures, pictures).diagonal(), torch.ones(3).double())
    ends = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    torch.testing.assert_close(pixel_similarities(ends, ends), torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double())


def test_similarity_is_one_minus_the_root_mean_square(generator):
    first, second = torch.rand(2, 3, 4, 4, generator=generator), torch.rand(5, 3, 4, 4, generator=generator)
    expected = [[1 - (2 * (a - b)).double().square().mean().sqrt() for b in second] for a in first]
    torch.testing.assert_close(pixel_similarities(first, second), torch.tensor(expected).double(), atol=1e-6, rtol=0)


def test_cosines_do_not_depend_on_length(generator):
    descriptors = torch.randn(4, 7, generator=generator)
    found = cosine_similarities(3 * descriptors, descriptors)
    torch.testing.assert_close(found.diagonal(), torch.ones(4).double(), atol=1e-6, rtol=0)
    assert float(found.abs().max()) <= 1 + 1e-6


def test_each_reference_has_its_threshold():
    similarities = torch.tensor([[0.9, 0.2], [0.5, 0.4], [0.1, 0.6], [0.7, 0.65]])
    assert copied(similarities, torch.tensor([0.8, 0.6])).tolist() == [0, -1, 1, -1]


def test_rows_that_nobody_judges_count_nowhere():
    hits = canvas_hits(
        ["a", None, "b", None], ["a", None, "c", None], [None] * 4, [None] * 4, [True, True, False, False]
    )
    assert (hits.target.value, hits.target.n) == (1.0, 1)
    assert (hits.ira.value, hits.ira.n) == (0.0, 1)


def test_the_kernel_distance_is_the_same_in_strips(generator, monkeypatch):
    x, y = torch.randn(50, 6, generator=generator), torch.randn(50, 6, generator=generator) + 0.1
    whole = [kernel_distance(x, y, paired=paired) for paired in (False, True)]
    monkeypatch.setattr("semipermeable.evaluation.scores.distances._STRIP", 7)
    assert [kernel_distance(x, y, paired=paired) for paired in (False, True)] == pytest.approx(whole, abs=1e-9)
    assert kernel_distance(x, x, paired=True) == pytest.approx(0, abs=1e-12)
