"""Rows with different policies in one denoiser call: each as if it were alone."""

import dataclasses

import numpy as np
import pytest
import torch

import semipermeable as spm
from semipermeable.errors import AttachError, CalibrationError, PolicyError
from semipermeable.membrane import GateState, Provenance
from semipermeable.server.jobs import CallShape
from semipermeable.server.library import Shelved
from semipermeable.server.painter import Abandoned, Painter, Row
from semipermeable.server.planning import Acting, Plan

from helpers import transport_gate

SHAPE = CallShape(2, 4.0, 64, 64)
TOLERANCE = 2
"""Of 255: what docs/serve.md promises. Rounding differs with the number of rows in a call."""


@pytest.fixture
def shelved(membrane_of):
    return {
        name: Shelved(f"{name}.safetensors", f"{seed:064x}", membrane_of(name, seed))
        for seed, name in enumerate(("cat", "dog", "owl"), 1)
    }


@pytest.fixture
def painter(pipe, shelved):
    made = Painter(pipe)
    made.hold(shelved.values())
    yield made
    made.close()


def plan(shelved, *acting):
    return Plan(
        "p", "p@0", 1, tuple(Acting(shelved[name], rule, strength, "policy") for name, rule, strength in acting), ()
    )


def rows_of(painter, asked):
    decided = painter.decide([text for text, _, _ in asked], [one for _, _, one in asked])
    return [Row(text, "", seed, one, d) for (text, seed, one), d in zip(asked, decided, strict=True)]


def never():
    return False


def difference(a, b):
    return int(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max())


def test_every_row_is_what_it_is_alone_whatever_else_is_in_the_call(painter, shelved):
    cat, dog = plan(shelved, ("cat", "transport", 1.0)), plan(shelved, ("dog", "open", 1.0))
    both = plan(shelved, ("cat", "transport", 1.0), ("dog", 0.5, 2.0))
    free = plan(shelved)
    asked = [
        (text, seed, one)
        for seed, text in enumerate(("an icon of a cat", "a neon icon of a dog"))
        for one in (cat, dog, both, free)
    ]
    together = painter.paint(rows_of(painter, asked), SHAPE, never)
    for one, picture in zip(asked, together, strict=True):
        (alone,) = painter.paint(rows_of(painter, [one]), SHAPE, never)
        assert difference(alone, picture) <= TOLERANCE


def test_the_same_text_and_seed_differ_by_policy_alone(painter, shelved):
    text = "an icon of a cat"
    asked = [
        (text, 5, plan(shelved)),
        (text, 5, plan(shelved, ("cat", "transport", 1.0))),
        (text, 5, plan(shelved, ("owl", "transport", 1.0))),
    ]
    bare, erased, other = painter.paint(rows_of(painter, asked), SHAPE, never)
    assert difference(bare, erased) > 10 * TOLERANCE
    # Two rows of one call: on two threads the bare model itself rounds them differently.
    assert difference(bare, other) <= TOLERANCE


def test_a_row_is_what_attach_draws(painter, shelved, pipe):
    (ours,) = painter.paint(
        rows_of(painter, [("an icon of a cat", 3, plan(shelved, ("cat", "transport", 1.5)))]), SHAPE, never
    )
    painter.close()
    with spm.attach(pipe, shelved["cat"].membrane, strength=1.5):
        theirs = pipe(
            ["an icon of a cat"],
            num_inference_steps=2,
            guidance_scale=4.0,
            generator=[torch.Generator().manual_seed(3)],
        ).images[0]
    assert difference(ours, theirs) <= TOLERANCE


def test_decisions_say_why_and_are_remembered(painter, shelved):
    one = plan(shelved, ("cat", "transport", 1.0), ("dog", "transport", 1.0))
    ((cat, dog),) = painter.decide(["an icon of a cat"], [one])
    assert (cat.gamma, dog.gamma) == (1.0, 0.0)
    assert "cat" in cat.reason
    calls = []
    painter._host.encode = lambda texts: calls.append(texts) or []
    assert painter.decide(["an icon of a cat"], [one]) == [(cat, dog)]
    assert calls in ([], [[]])


def test_gate_power_and_strength_multiply(painter, shelved, pipe):
    squared = Shelved("s", "f" * 64, dataclasses.replace(shelved["cat"].membrane, gate_power=2))
    painter.hold([squared])
    row = rows_of(painter, [("x", 0, plan({"cat": squared}, ("cat", 0.5, 3.0)))])
    torch.testing.assert_close(painter._strengths(row), torch.tensor([[0.75]]))


def test_a_membrane_that_is_not_held_is_never_left_out_in_silence(painter, shelved):
    row = rows_of(painter, [("an icon of a cat", 0, plan(shelved, ("cat", "open", 1.0)))])
    painter.hold([shelved["dog"]])
    with pytest.raises(AttachError, match="membrane of 'cat' is required and not attached"):
        painter.paint(row, SHAPE, never)


def test_a_call_that_nobody_waits_for_stops_between_two_steps(painter, shelved):
    asked = []

    def unwanted():
        asked.append(1)
        return len(asked) == 2

    row = rows_of(painter, [("an icon of a cat", 0, plan(shelved))])
    with pytest.raises(Abandoned):
        painter.paint(row, CallShape(50, 4.0, 64, 64), unwanted)
    assert len(asked) == 2
    assert len(painter.paint(row, SHAPE, never)) == 1


def test_holding_the_same_membranes_again_does_nothing_and_none_is_bare(painter, shelved, pipe):
    view = pipe.unet
    painter.hold(shelved.values())
    assert pipe.unet is view
    painter.hold([])
    assert pipe.unet is not view
    assert len(painter.paint(rows_of(painter, [("x", 0, plan(shelved))]), SHAPE, never)) == 1


def test_negative_prompts_belong_to_their_rows(painter, shelved):
    free = plan(shelved)
    with_one, without = (Row("an icon of a dog", negative, 1, free, ()) for negative in ("an icon of a cat", ""))
    mixed = painter.paint([with_one, without], SHAPE, never)
    assert difference(mixed[0], painter.paint([with_one], SHAPE, never)[0]) <= TOLERANCE
    assert difference(mixed[1], painter.paint([without], SHAPE, never)[0]) <= TOLERANCE
    assert difference(*mixed) > TOLERANCE


def test_pixels_that_are_no_numbers_are_no_picture_and_leave_the_other_rows_alone(painter, shelved):
    rows = rows_of(
        painter,
        [
            ("an icon of a cat", seed, plan(shelved, ("cat", "open", strength)))
            for seed, strength in ((0, 1e30), (1, 1.0))
        ],
    )
    nothing, picture = painter.paint(rows, SHAPE, never)
    assert nothing is None
    assert difference(picture, painter.paint(rows[1:], SHAPE, never)[0]) <= TOLERANCE


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        (GateState("other", {}), "kind 'other'"),
        (GateState("transport", {}), "version"),
        (transport_gate(torch.zeros(5)), "width 5"),
    ],
    ids=["kind", "settings", "width"],
)
def test_a_gate_that_cannot_decide_is_found_before_the_membrane_is_in_force(painter, membrane_of, gate, words):
    with pytest.raises(CalibrationError, match=f"cannot read its gate.*{words}"):
        painter.fit(dataclasses.replace(membrane_of("owl"), gate=gate))
    whole = dataclasses.replace(
        membrane_of("owl"), gate=transport_gate(torch.zeros(painter._wordless.states.shape[-1]))
    )
    assert painter.fit(whole) is whole
    # Of another text encoder it is not used, whatever it is.
    painter.fit(dataclasses.replace(whole, gate=gate, provenance=Provenance(text_encoder_hash="0" * 64)))


def test_sizes_and_steps_that_the_model_cannot_draw(painter):
    assert painter.native_size == (64, 64)
    painter.facts.check_size(96, 64)
    with pytest.raises(PolicyError, match="multiples of 16"):
        painter.facts.check_size(72, 64)
    with pytest.raises(PolicyError, match="scheduler has 1000"):
        painter.facts.check_steps(1001)
