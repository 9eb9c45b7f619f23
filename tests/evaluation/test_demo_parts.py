"""The demo's prompts, bars, table and gate check."""

import dataclasses
import json
from collections import Counter

import pytest

from evaluation.samples import good_figures, good_result
from semipermeable import zoo
from semipermeable.concept import Concept
from semipermeable.evaluation.demo import DemoPlan
from semipermeable.evaluation.demo_bars import LEAST_N, verdicts_of
from semipermeable.evaluation.demo_prompts import mixed, plan_cells
from semipermeable.evaluation.environment import current_commit, describe_environment
from semipermeable.evaluation.gate_check import check_gate, fresh_wordings, other_captions
from semipermeable.evaluation.records import BeforeAfter
from semipermeable.evaluation.summary import summary_table
from semipermeable.permeability import wordings
from semipermeable.rates import Rate

from helpers import random_membrane


@pytest.fixture(scope="module")
def spec():
    return zoo.spec("emoji")


@pytest.fixture(scope="module")
def cells(spec):
    return plan_cells(spec, "cat", "neon", per_target=96, both=24, kept=None, seed=2)


def test_every_set_has_its_size(spec, cells):
    assert Counter(cell.role for cell in cells) == {
        "object": 96,
        "style": 96,
        "both": 24,
        "kept": len(spec.objects) - 1,
    }


def test_kept_prompts_cover_every_other_object_and_style_and_name_nothing_erased(spec, cells):
    kept = [cell for cell in cells if cell.role == "kept"]
    assert {cell.object for cell in kept} == set(spec.object_names) - {"cat"}
    assert {cell.style for cell in kept} == set(spec.styles) - {"neon"}
    assert set(spec.object("cat").twins) <= {cell.object for cell in kept}
    assert all("neon" not in cell.job.prompt for cell in kept)


def test_target_prompts_name_the_target(spec, cells):
    for cell in cells:
        assert ("cat" in cell.job.prompt.replace(",", "").split()) == (cell.object in ("cat", "cat face"))
        assert ("neon" in cell.job.prompt) == (cell.role in ("style", "both"))
        assert cell.style in cell.job.prompt
        assert cell.object in cell.job.prompt
    templates = {cell.job.prompt.replace(cell.style, "S") for cell in cells if cell.role == "object"}
    assert len(templates) >= len(spec.templates)


def test_every_picture_has_its_own_seed(spec, cells):
    seeds = [cell.job.seed for cell in cells]
    assert len(set(seeds)) == len(seeds)
    other = plan_cells(spec, "cat", "neon", per_target=96, both=24, kept=None, seed=3)
    assert not set(seeds) & {cell.job.seed for cell in other}


def test_batches_mix_the_sets(cells):
    order = mixed(cells, 0)
    assert sorted(map(id, order)) == sorted(map(id, cells))
    assert order == mixed(cells, 0) != cells
    for start in range(0, len(order) - 31, 32):
        assert len({cell.role for cell in order[start : start + 32]}) >= 3


def test_the_plan_draws_what_the_bars_ask_for():
    assert DemoPlan().per_target >= LEAST_N
    assert not DemoPlan().is_quick
    assert DemoPlan.quick(seed=4).is_quick
    assert DemoPlan.quick(seed=4).seed == 4


def test_good_figures_reach_every_bar():
    verdicts = verdicts_of(good_result())
    assert all(verdict.passed for verdict in verdicts)
    assert {verdict.concept for verdict in verdicts} == {"cat", "neon", "both"}


@pytest.mark.parametrize(
    ("changes", "figure"),
    [
        ({"target": BeforeAfter(Rate(76, 96), Rate(0, 96))}, "target before"),
        ({"target": BeforeAfter(Rate(95, 96), Rate(5, 96))}, "target after"),
        ({"target": BeforeAfter(Rate(95, 95), Rate(0, 95))}, "pictures judged"),
        ({"target_or_namesake": BeforeAfter(Rate(95, 96), Rate(5, 96))}, "target or namesake after"),
        ({"other_axis": BeforeAfter(Rate(96, 96), Rate(86, 96))}, "other axis after"),
        ({"kept": BeforeAfter(Rate(99, 106), Rate(100, 106))}, "kept after"),
        ({"kept_open": BeforeAfter(Rate(100, 106), Rate(96, 106))}, "kept, open everywhere"),
    ],
)
def test_each_bar_can_be_missed(changes, figure):
    result = good_result(concepts=(good_figures(**changes), good_figures("neon", "style")))
    missed = [(verdict.concept, verdict.figure) for verdict in verdicts_of(result) if not verdict.passed]
    assert missed == [("cat", figure)]
    table = summary_table(dataclasses.replace(result, verdicts=verdicts_of(result)))
    assert f"MISSED  cat: {figure}" in table


def test_one_changed_unrelated_picture_misses():
    result = good_result(unrelated_equal=105)
    assert [v.figure for v in verdicts_of(result) if not v.passed] == ["unrelated pictures"]
    assert not result.unrelated_bit_identical


def test_slack_is_inclusive():
    exactly = BeforeAfter(Rate(100, 100), Rate(90, 100))
    result = good_result(concepts=(good_figures(other_axis=exactly),))
    assert all(verdict.passed for verdict in verdicts_of(result))


def test_table_holds_n_intervals_and_verdicts():
    result = good_result()
    table = summary_table(dataclasses.replace(result, verdicts=verdicts_of(result)))
    assert "0.979 [0.927, 0.994]" in table
    assert "106 of 106" in table
    assert "MISSED" not in table
    assert "look, not a proof" in summary_table(dataclasses.replace(result, quick=True, verdicts=verdicts_of(result)))


def test_result_json_has_the_promised_names():
    result = good_result()
    content = json.loads(json.dumps(dataclasses.replace(result, verdicts=verdicts_of(result)).to_json()))
    assert {"model", "device", "seed", "concepts", "combined", "unrelated_bit_identical"} <= set(content)
    for concept in content["concepts"]:
        assert {"name", "kind", "train_seconds", "steps", "membrane_bytes"} <= set(concept)
        for figure in ("target", "target_or_twin", "other_axis", "kept"):
            assert {"before", "after", "n"} <= set(concept[f"{figure}_accuracy"])
        assert concept["kept_accuracy_open"]["after"] == pytest.approx(99 / 106)
        assert concept["wordings_opened"]["n"] == 12
        assert concept["neighbours_closed"]["value"] == 1.0
    assert content["passed"] is True


def test_the_environment_names_no_path(tmp_path):
    found = json.dumps(describe_environment())
    assert "torch" in found
    assert "/home" not in found
    assert "/work" not in found
    commit = current_commit()
    assert commit is None or len(commit.rstrip("+")) == 12


def test_wordings_are_not_those_the_gate_was_fitted_on():
    for name, kind in (("cat", "object"), ("neon", "style")):
        fitted = {example.text for example in wordings(Concept(name), kind)}
        fresh = fresh_wordings([name], kind)
        assert len(set(fresh)) == len(fresh) >= 12
        assert not fitted & set(fresh)
        assert all(name in text.lower() for text in fresh)


def test_other_captions_leave_the_concept_out(spec):
    captions = other_captions(spec, ["cat"])
    assert len(captions) == (len(spec.objects) - 1) * len(spec.styles) * len(spec.templates)
    assert not any(text.endswith(" cat") for text in captions)
    assert any(text.endswith(" cat face") for text in captions)


def test_gate_check_counts_and_names(pipe):
    """Without a fitted gate the rule goes by names alone: a synonym stays closed, and that is counted."""
    membrane = random_membrane(pipe.unet, "cat")
    found = check_gate(pipe, membrane, ["a cat", "a feline"], ["a dog", "a cat statue"])
    assert (found.opened, found.missed) == (Rate(1, 2), ("a feline",))
    assert (found.closed, found.wrongly_opened) == (Rate(1, 2), ("a cat statue",))
