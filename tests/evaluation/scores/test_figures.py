"""Sheets to figures: which rows count, how intervals widen, what may be compared."""

import dataclasses

import pytest
import torch

from semipermeable.evaluation.scores import (
    FIGURES,
    Sheet,
    canvas_hits,
    case_values,
    differences_of,
    figure_of,
    harmonic_mean,
    resample,
)
from semipermeable.evaluation.scores import figures_of as measured
from semipermeable.rates import wilson_interval

NAN = float("nan")


def sheet(seen="cat dog dog cat dog cat", **changes):
    """Plain cat, alias of cat, misspelt cat, two neighbours and a far one; all asked in neon."""
    asked = ["cat", "cat", "cat", "lion", "tiger", "bus"]
    right = {"cat": "cat", "dog": "dog"}
    verdicts = [right[word] for word in seen.split()]
    verdicts[3:] = [name if word == "cat" else "dog" for name, word in zip(asked[3:], verdicts[3:], strict=True)]
    hits = canvas_hits(asked, verdicts, ["neon"] * 6, ["neon"] * 5 + ["flat"], [True] * 3 + [False] * 3)
    values = {
        "concepts": ("cat",) * 6,
        "prompts": tuple("abcdef"),
        "seeds": (0,) * 6,
        "tags": ("plain", "alias", "misspelling", "twin", "twin", "far"),
        "hits": hits,
        "base_right": torch.tensor([True, True, False, True, True, True]),
        "drift": torch.tensor([0.5, 0.5, 0.5, 0.2, 0.1, 0.0]),
        "identical": torch.tensor([0.0, 0.0, 0.0, NAN, 0.0, 1.0]),
    }
    return Sheet(**{**values, **changes})


def figures(of):
    return measured(of, resample(of, replicates=200))


def test_which_rows_count():
    found = figures(sheet())
    assert (found["target"].value, found["target"].n) == (pytest.approx(1 / 3), 3)
    assert found["ua"].value == pytest.approx(2 / 3)
    assert (found["ira"].value, found["ira"].n) == (pytest.approx(2 / 3), 3)
    assert (found["cra"].value, found["cra"].n) == (pytest.approx(5 / 6), 6)
    # Of alias and misspelling, the base model draws the concept from the alias only.
    assert (found["opened"].value, found["opened"].n) == (1.0, 1)
    assert (found["identical"].value, found["identical"].n) == (0.5, 2)
    assert (found["drift"].value, found["drift"].n) == (pytest.approx(0.1), 3)
    assert found["ira:twin"].value == 0.5
    assert found["ira:far"].value == 1
    assert found["ua:plain"].value == 0
    assert found["harmonic"].value == pytest.approx(float(harmonic_mean(2 / 3, 2 / 3, 5 / 6)))
    assert found["h_o"].value == 0
    assert list(found) == sorted(found, key=lambda name: list(FIGURES).index(name.partition(":")[0]))


def test_without_clip_its_figures_are_left_out_and_with_it_they_are_there():
    assert not any(name.startswith("clip") for name in figures(sheet()))
    scores = torch.tensor([0.1, 0.2, 0.3, 0.6, 0.7, 0.8])
    found = figures(sheet(clip_prompt=scores, clip_target=scores, clip_error=scores < 0.25))
    assert found["clip_target"].value == pytest.approx(0.2)
    assert found["clip_kept"].value == pytest.approx(0.7)
    assert found["clip_error"].value == pytest.approx(2 / 3)


def test_a_share_is_never_more_certain_than_wilson_says():
    found = figures(sheet("dog dog dog cat cat cat"))
    assert found["ua"].value == found["ira"].value == 1
    for name in ("ua", "ira"):
        low, high = wilson_interval(3, 3)
        assert found[name].low <= low
        assert found[name].high >= high
    ends = [low, found["cra"].low]
    assert found["keep"].low <= (1 + low) / 2 < found["keep"].value
    assert found["harmonic"].low <= float(harmonic_mean(low, 1.0, found["cra"].value)) < found["harmonic"].value
    assert all(found["harmonic"].low > end for end in ends)  # one part at a time, not all at once


def test_differences_are_paired_and_of_the_same_rows():
    worse, better = sheet(), sheet("dog dog dog cat cat cat")
    found = differences_of(better, worse, resample(worse, replicates=200))
    assert found["ua"].value == pytest.approx(1 / 3)
    assert found["ira"].value == pytest.approx(1 / 3)
    assert found["ua"].low <= found["ua"].value <= found["ua"].high
    assert found["harmonic"].value == pytest.approx(
        figures(better)["harmonic"].value - figures(worse)["harmonic"].value
    )
    other = dataclasses.replace(worse, seeds=(1,) * 6)
    with pytest.raises(ValueError, match="same rows"):
        differences_of(better, other, resample(worse, replicates=10))


def test_the_level_decides_what_is_drawn_again():
    prompts, seeds, concepts = (resample(sheet(), level, replicates=50) for level in ("prompt", "seed", "concept"))
    assert prompts.weights.unique().numel() > 1
    assert seeds.weights.eq(1).all()  # one seed, one concept: nothing else can be drawn
    assert concepts.weights.eq(1).all()


def test_by_case_and_titles():
    found = case_values(sheet())["cat"]
    assert found["ira:twin"] == 0.5
    assert figure_of("ira:twin").title == "IRA, twin"
    assert figure_of("ua").better == "high"
    with pytest.raises(KeyError):
        figure_of("nothing")


def two_concepts():
    """Two concepts, each with two captions of its own and two of others; the first is erased, the second is not."""
    asked = ["cat", "cat", "bus", "bus", "dog", "dog", "bus", "bus"]
    seen = ["bus", "bus", "bus", "bus", "dog", "dog", "bus", "bus"]
    hits = canvas_hits(asked, seen, ["flat"] * 8, ["flat"] * 8, [True, True, False, False] * 2)
    zeros = torch.zeros(8)
    return sheet(
        concepts=("cat",) * 4 + ("dog",) * 4,
        prompts=tuple("abcdefgh"),
        seeds=(0,) * 8,
        tags=("plain",) * 8,
        hits=hits,
        base_right=torch.ones(8, dtype=torch.bool),
        drift=zeros,
        identical=zeros,
    )


def test_every_concept_keeps_its_weight_in_every_draw():
    """Captions of a concept are drawn among themselves: UA of two concepts that agree inside does not vary."""
    both = two_concepts()
    draws = resample(both, replicates=200)
    ua = draws.means(~both.hits.right, both.hits.targets)
    assert ua.eq(0.5).all()
    own = torch.tensor([True, True, False, False, False, False, False, False])
    assert draws.weights[:, own].sum(1).eq(2).all()
    assert draws.weights[:, own].unique().tolist() == [0, 1, 2]


def test_pictures_of_the_only_caption_are_drawn_one_by_one():
    both = dataclasses.replace(two_concepts(), prompts=("a", "a", *"cdefgh"))
    weights = resample(both, replicates=200).weights
    assert weights[:, :2].sum(1).eq(2).all()
    assert weights[:, 0].unique().tolist() == [0, 1, 2]


def test_a_difference_says_how_many_rows_are_behind_it():
    both = two_concepts()
    found = differences_of(both, both, resample(both, replicates=10))
    assert (found["ua"].n, found["ira"].n, found["harmonic"].n) == (4, 4, 8)
