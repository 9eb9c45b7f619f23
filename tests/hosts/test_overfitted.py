"""Erasing from models that draw: in every family one thing goes and the other stays.

Every pipeline is tiny and was overfitted to three things (`overfit`): one is erased, one kept, one is the surrogate.
"""

import pytest
import torch

import semipermeable as spm
from hosts import overfit
from hosts.family_laws import reloaded
from hosts.overfit import ERASED, FAMILIES, KEPT, SEEDS, SURROGATE, distance, drawn, pictures
from semipermeable.concept import Concept
from semipermeable.hosts import host_for
from semipermeable.training import TrainConfig

CONCEPT = Concept(ERASED, surrogate=SURROGATE, keep=(KEPT,))
ROWS = {thing: slice(number * SEEDS, (number + 1) * SEEDS) for number, thing in enumerate(overfit.THINGS)}
"""Rows of what `drawn` returns."""

pytestmark = pytest.mark.slow


def nearness(pipe, latents, thing):
    """Distance to a thing's picture over that to the nearest other thing's, one figure per row: below 1 it is it."""
    far = {other: distance(latents, goal[None]) for other, goal in zip(overfit.THINGS, pictures(host_for(pipe)))}
    own = far.pop(thing)
    return own / torch.stack(list(far.values())).min(0).values


def erased_from(pipe, name):
    config = TrainConfig(
        num_steps=80,
        batch_size=8,
        num_anchors=8,
        twin_share=0.5,
        learning_rate=1e-2,
        target_captions=False,
        negative_guidance=0.0,
        sampling_steps=overfit.STEPS,
        sampling_guidance=FAMILIES[name].guidance,
    )
    return spm.erase(pipe, CONCEPT, config=config, progress=False)


def is_gone(pipe, after, before):
    """Whether no row is the erased thing any more: each is nearer to another, and has left its own picture."""
    left = distance(after[ROWS[ERASED]], before[ROWS[ERASED]])
    return bool((nearness(pipe, after[ROWS[ERASED]], ERASED) > 1).all() and (left > 0.7).all())


def stays(pipe, after, before):
    """Whether every row of the kept thing is nearly where it was, and still that thing."""
    moved = distance(after[ROWS[KEPT]], before[ROWS[KEPT]])
    return bool((nearness(pipe, after[ROWS[KEPT]], KEPT) < 0.7).all() and (moved < 0.2).all())


@pytest.fixture(scope="module", params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def pipe(name, tokenizer):
    """An overfitted pipeline of the family."""
    made = overfit.make(name, tokenizer)
    overfit.overfit(made, name)
    return made


@pytest.fixture(scope="module")
def before(pipe, name):
    """What it draws untouched."""
    return drawn(pipe, name)


@pytest.fixture(scope="module")
def membrane(pipe, name):
    return erased_from(pipe, name)


def test_the_untouched_pipeline_draws_every_thing(pipe, before):
    for thing, rows in ROWS.items():
        assert (nearness(pipe, before[rows], thing) < 0.7).all(), thing


def test_one_thing_is_gone_and_the_other_stays(pipe, name, before, membrane):
    with spm.attach(pipe, membrane, "open"):
        after = drawn(pipe, name)
    assert is_gone(pipe, after, before)
    assert stays(pipe, after, before)


def test_gated_the_other_keeps_its_bits(pipe, name, before, membrane):
    assert membrane.gate is not None
    with spm.attach(pipe, membrane) as guard:
        after = drawn(pipe, name)
        assert {row.prompt: row.gamma for row in guard.trace} == {ERASED: 1.0, KEPT: 0.0, SURROGATE: 0.0}
    assert is_gone(pipe, after, before)
    assert torch.equal(after[ROWS[KEPT]], before[ROWS[KEPT]])
    assert torch.equal(drawn(pipe, name), before)


def test_a_closed_membrane_erases_nothing(pipe, name, before, membrane):
    with spm.attach(pipe, membrane, "closed"):
        after = drawn(pipe, name)
    assert not is_gone(pipe, after, before)
    assert torch.equal(after, before)


@pytest.mark.parametrize("name", ["unet, epsilon", "flux"], scope="module")
def test_so_it_is_from_a_saved_folder(pipe, name, before, tmp_path):
    again = overfit.prepared(reloaded(pipe, tmp_path / "overfitted"), name)
    assert torch.equal(drawn(again, name), before)
    membrane = erased_from(again, name)
    with spm.attach(again, membrane):
        after = drawn(again, name)
    assert is_gone(again, after, before)
    assert torch.equal(after[ROWS[KEPT]], before[ROWS[KEPT]])
