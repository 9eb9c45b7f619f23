"""Cluster bootstrap: known answers, and intervals that hold what they promise."""

import math

import pytest
import torch
from torch.testing import assert_close

from semipermeable.evaluation.scores import Resampling, paired_difference


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def test_a_constant_difference_has_no_width():
    after = torch.tensor([0.9, 0.4, 0.7, 0.2])
    found = paired_difference(after, after - 0.1, "aabb", generator=seeded())
    for value in (found.value, found.low, found.high):
        assert value == pytest.approx(0.1, abs=1e-6)
    assert found.n == 4


def test_one_cluster_cannot_vary_and_whole_clusters_are_drawn():
    values = torch.tensor([0.0, 1.0, 0.0, 1.0])
    everything = torch.ones(4, dtype=torch.bool)
    alone = Resampling.draw("aaaa", generator=seeded()).means(values, everything)
    assert_close(alone, torch.full_like(alone, 0.5))
    # Two clusters of like mean: whatever is drawn, the mean stays, although rows differ.
    pairs = Resampling.draw("aabb", generator=seeded()).means(values, everything)
    assert_close(pairs, torch.full_like(pairs, 0.5))
    assert len(Resampling.draw("abcd", generator=seeded()).means(values, everything).unique()) == 5


def test_strata_stay_and_namesakes_in_two_strata_are_two_clusters():
    draws = Resampling.draw("ab" * 3, "xxyyzz", generator=seeded(), replicates=300)
    assert_close(draws.weights[:, 0] + draws.weights[:, 1], torch.full((300,), 2.0, dtype=torch.float64))
    assert not torch.equal(draws.weights[:, 0], draws.weights[:, 2])


def test_the_seed_decides():
    first, second, other = (Resampling.draw("abcde", generator=seeded(n), replicates=50).weights for n in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_rows_of_no_replicate_are_nan_and_ignored():
    draws = Resampling.draw("ab", generator=seeded(), replicates=100)
    means = draws.means(torch.tensor([1.0, 0.0]), torch.tensor([True, False]))
    assert means.isnan().any()
    assert means[~means.isnan()].eq(1).all()


def test_pairing_cancels_what_both_share():
    hard = torch.rand(60, generator=seeded(1))
    after, before = hard + 0.05 * torch.rand(60, generator=seeded(2)), hard
    clusters = list(range(60))
    paired = paired_difference(after, before, clusters, generator=seeded())
    alone = paired_difference(after, torch.zeros(60), clusters, generator=seeded())
    assert 0 < paired.low < paired.value < paired.high
    assert paired.high - paired.low < 0.1 * (alone.high - alone.low)


def coverage(clusters_of):
    """How often a 95 % interval holds the truth, 0, when all noise is common to a cluster of five rows."""
    covered, trials = 0, 200
    generator = seeded(5)
    for trial in range(trials):
        noise = torch.randn(30, generator=generator).repeat_interleave(5)
        found = paired_difference(noise, torch.zeros(150), clusters_of, generator=seeded(trial), replicates=400)
        covered += found.low <= 0 <= found.high
    return covered / trials


def test_clusters_cover_the_truth_and_rows_would_not():
    assert 0.88 <= coverage([i // 5 for i in range(150)]) <= 0.99
    assert coverage(list(range(150))) < 0.75


@pytest.mark.parametrize(("clusters", "strata"), [([], None), (["a", "b"], ["x"])])
def test_refusals(clusters, strata):
    with pytest.raises(ValueError, match="needs rows and one stratum for each"):
        Resampling.draw(clusters, strata, generator=seeded())


def test_percentiles_of_a_known_distribution():
    values = torch.randn(400, generator=seeded(3))
    found = paired_difference(values, torch.zeros(400), list(range(400)), generator=seeded(), replicates=4000)
    error = float(values.double().std(correction=0)) / math.sqrt(400)
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.15 * error)
