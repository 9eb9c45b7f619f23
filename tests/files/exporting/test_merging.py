"""Merging: the exact sum of what its parts do, never the product of summed factors."""

import dataclasses

import pytest
import torch

import semipermeable as spm
from semipermeable.errors import ExportError
from semipermeable.files.exporting import export, merge
from semipermeable.files.native import to_bytes
from semipermeable.membrane import Membrane

from helpers import random_membrane


def delta(u, v):
    return u.double() @ v.double().flatten(1)


@pytest.fixture
def three(tiny_unet):
    """Three membranes of different ranks; the third sits on half of the sites."""
    return [
        random_membrane(tiny_unet, "cat", seed=1, aliases=("kitty",)),
        random_membrane(tiny_unet, "dog", seed=2, rank=2),
        random_membrane(tiny_unet, "fox", seed=3, every=2),
    ]


@pytest.mark.parametrize("gammas", [None, (1.0, 0.5, 1.0), (2.0, -1.0, 0.25)])
def test_the_sum_is_exact(three, gammas):
    merged = merge(three, gammas)
    for site, (u, v) in merged.pairs.items():
        parts = [
            gamma * delta(*membrane.pairs[site])
            for membrane, gamma in zip(three, gammas or (1.0, 1.0, 1.0), strict=True)
            if site in membrane.pairs
        ]
        expected = torch.stack(parts).sum(0)
        assert u.shape[1] == (4 if len(parts) == 3 else 3)
        torch.testing.assert_close(delta(u, v), expected, rtol=1e-12, atol=1e-16)
        assert torch.linalg.matrix_rank(delta(u, v)) == min(u.shape[1], *expected.shape)


def test_the_factor_wise_sum_is_another_matrix(three):
    """What the reference implementation does, and this does not: (Σu)(Σv)ᵀ."""
    pair = [three[0], three[2]]
    site, (u, v) = next(iter(three[2].pairs.items()))
    factor_wise = delta(three[0].pairs[site][0] + u, three[0].pairs[site][1] + v)
    exact = delta(*merge(pair).pairs[site])
    assert (factor_wise - exact).norm() > 0.5 * exact.norm()


def test_signs_and_order_do_not_matter(three):
    flipped = dataclasses.replace(three[0], pairs={site: (-u, -v) for site, (u, v) in three[0].pairs.items()})
    one, two = merge(three), merge([three[2], flipped, three[1]])
    for site in one.pairs:
        torch.testing.assert_close(delta(*one.pairs[site]), delta(*two.pairs[site]), rtol=1e-12, atol=1e-16)


def test_a_factor_of_one_keeps_the_numbers_and_zero_leaves_no_pair(three):
    merged = merge(three, [0.0, 1.0, 0.0])
    assert merged.rank == 2
    for site, pair in three[1].pairs.items():
        torch.testing.assert_close(merged.pairs[site], pair, rtol=0, atol=0)


def test_gamma_has_the_power_of_each_membrane(three):
    """A checkpoint of the reference implementation acts with γ²."""
    reference = dataclasses.replace(three[0], gate_power=2)
    merged = merge([reference, three[1]], [0.5, 1.0])
    assert merged.gate_power == 1
    for site, (u, v) in merged.pairs.items():
        expected = 0.25 * delta(*three[0].pairs[site]) + delta(*three[1].pairs[site])
        torch.testing.assert_close(delta(u, v), expected, rtol=1e-12, atol=1e-16)


def test_dtypes_meet_without_rounding(tiny_unet):
    half = random_membrane(tiny_unet, "cat", seed=1)
    half = dataclasses.replace(half, pairs={s: (u.half(), v.half()) for s, (u, v) in half.pairs.items()})
    merged = merge([half, random_membrane(tiny_unet, "dog", seed=2)], [0.5, 1.0])
    for site, (u, _) in merged.pairs.items():
        assert u.dtype == torch.float32
        torch.testing.assert_close(u[:, :1], half.pairs[site][0].float() * 0.5, rtol=0, atol=0)


def test_the_story_names_all_and_keeps_what_they_share(three):
    told = [
        dataclasses.replace(m, provenance=dataclasses.replace(m.provenance, base_model="b", text_encoder_hash=m.name))
        for m in three
    ]
    merged = merge(told, [1, 0.5, 1])
    assert merged.name == "cat + dog + fox"
    assert merged.concept.names[1:] == ("cat", "kitty", "dog", "fox")
    assert (merged.provenance.base_model, merged.provenance.text_encoder_hash) == ("b", "")
    assert merged.provenance.training["merged"][1] == {"concept": "dog", "gamma": 0.5}
    assert merged.gate is None


def test_a_merged_membrane_exports_and_reads_back(three, tmp_path):
    merged = merge(three, [1, 0.5, 1])
    export(merged, tmp_path / "all.safetensors", "kohya")
    assert to_bytes(spm.load(tmp_path / "all.safetensors")) == to_bytes(merged)


def trained_on(membrane, base):
    return dataclasses.replace(membrane, provenance=dataclasses.replace(membrane.provenance, base_hash=base))


@pytest.mark.parametrize(
    ("change", "gammas", "message"),
    [
        (lambda ms: [], None, "no membrane to merge"),
        (lambda ms: ms, [1.0], "3 membranes need as many γ, found 1"),
        (lambda ms: ms, [1.0, float("nan"), 1.0], "γ must be finite"),
        (lambda ms: ms, [0, 0, 0], "every γ is 0"),
        (lambda ms: [trained_on(ms[0], "aa" * 32), trained_on(ms[1], "bb" * 32)], None, "different models"),
        (lambda ms: [ms[0], dataclasses.replace(ms[1], foreign_names=True)], None, "names of another program.*--model"),
        (lambda ms: [ms[0], resized(ms[0])], None, "the membranes were made for different models"),
    ],
)
def test_what_is_refused(three, change, gammas, message):
    with pytest.raises(ExportError, match=message):
        merge(change(three), gammas)


def resized(membrane):
    return Membrane({site: (torch.ones(3, 1), torch.ones(1, 3)) for site in membrane.pairs}, membrane.concept)
