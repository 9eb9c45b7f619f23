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
from semipermeable.membrane import Membrane, Provenance
from semipermeable.training import TrainConfig, captions_for, train

CONCEPT = Concept(ERASED, surrogate=SURROGATE, keep=(KEPT,))
ROWS = {thing: slice(number * SEEDS, (number + 1) * SEEDS) for number, thing in enumerate(overfit.THINGS)}
"""Rows of what `drawn` returns."""

pytestmark = pytest.mark.slow


def nearness(pipe, latents, thing):
    """Distance to a thing's picture over that to the nearest other thing's, one figure per row: below 1 it is it."""
    far = {
        other: distance(latents, goal[None])
        for other, goal in zip(overfit.THINGS, pictures(host_for(pipe)), strict=True)
    }
    own = far.pop(thing)
    return own / torch.stack(list(far.values())).min(0).values


def erased_from(pipe, name):
    """Train as `spm.erase` does, but fit no gate: that takes longer than the rest here, and words open without one."""
    config = TrainConfig(
        num_steps=100,
        anchor_weight=10.0,
        twin_share=0.5,
        learning_rate=2e-2,
        target_captions=False,
        negative_guidance=0.0,
        num_trajectories=3,
        sampling_steps=overfit.STEPS,
        sampling_guidance=FAMILIES[name].guidance,
    )
    host = host_for(pipe)
    steps = train(host, CONCEPT, captions_for(CONCEPT, None), config, seed=0)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return Membrane(end.value.pairs, CONCEPT, Provenance(family=host.family))


def is_gone(pipe, after, before):
    """Whether no row is the erased thing any more: another is nearer by half, and it has left its own picture."""
    goal = pictures(host_for(pipe))[:1]
    grown = distance(after[ROWS[ERASED]], goal) / distance(before[ROWS[ERASED]], goal)
    return bool((nearness(pipe, after[ROWS[ERASED]], ERASED) > 1.5).all() and (grown > 1.5).all())


def stays(after, before):
    """Whether every row of the kept thing has moved by less than a fifth of the distance between two things, √2."""
    return bool((distance(after[ROWS[KEPT]], before[ROWS[KEPT]]) < 0.28).all())


@pytest.fixture(scope="module", params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def made(name, tokenizer):
    """An overfitted pipeline of the family."""
    pipe = overfit.make(name, tokenizer)
    overfit.overfit(pipe, name)
    return pipe


@pytest.fixture(scope="module")
def before(made, name):
    """What it draws untouched."""
    return drawn(made, name)


@pytest.fixture(scope="module")
def pipe(made, name, tmp_path_factory):
    """The same pipeline, saved and loaded again as a local folder."""
    return overfit.prepared(reloaded(made, tmp_path_factory.mktemp("overfitted") / "tiny"), name)


@pytest.fixture(scope="module")
def membrane(pipe, name):
    return erased_from(pipe, name)


def test_the_untouched_pipeline_draws_every_thing(pipe, name, before):
    assert torch.equal(drawn(pipe, name), before)
    for thing, rows in ROWS.items():
        assert (nearness(pipe, before[rows], thing) < 2 / 3).all(), thing


def test_one_thing_is_gone_and_the_other_stays(pipe, name, before, membrane):
    with spm.attach(pipe, membrane, "open"):
        after = drawn(pipe, name)
    assert is_gone(pipe, after, before)
    assert stays(after, before)


def test_gated_the_other_keeps_its_bits(pipe, name, before, membrane):
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
