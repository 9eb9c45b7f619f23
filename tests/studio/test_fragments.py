"""Our own HTML: what came from elsewhere is escaped, and every state has its words."""

import dataclasses

import pytest

from semipermeable.concept import Concept
from semipermeable.studio import fragments
from semipermeable.studio.album import Neighbour
from semipermeable.studio.comparing import Bar
from semipermeable.studio.erasing import Run
from semipermeable.studio.evaluating import Figure
from semipermeable.studio.jobs import Job, JobState

EVIL = "<img src=x onerror=alert(1)>"


def run(state, **more):
    return Run(
        stem="x", concept=Concept(EVIL, surrogate=EVIL + "2"), model="m", preset="fast", num_steps=9, seed=0,
        preview_every=1, state=state, step=3, **more,
    )  # fmt: skip


def test_nothing_from_elsewhere_becomes_markup(tmp_path):
    job = Job(1, "k", EVIL, False, lambda _: "")
    job.state, job.note = JobState.RUNNING, EVIL
    last = Job(2, "k", EVIL, False, lambda _: "")
    last.state, last.message = JobState.FAILED, EVIL
    row = Neighbour(prompt=EVIL, picture=tmp_path, gamma=1, drift=0.1, identical=False, seen=(EVIL, EVIL))
    pieces = [
        fragments.status([job, Job(3, "k", EVIL, False, lambda _: "")], last),
        fragments.run_line(run("failed", message=EVIL)),
        fragments.bars([Bar(EVIL, 1.0, 2.0, (EVIL,), EVIL), Bar(EVIL, 0.0, 1.0, (), EVIL)], False, 0.1),
        fragments.neighbours(EVIL, [row]),
        fragments.figures([Figure(EVIL, None, 1.0, 0.5, None)]),
    ]
    for piece in pieces:
        assert "<img" not in piece
        assert "&lt;img" in piece


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("ready", "waits for its turn"),
        ("running", "step 3 of 9"),
        ("stopped", "stopped at step 3 of 9; press Resume to go on"),
        ("failed", "failed at step 3 of 9: the reason"),
        ("finished", "finished; the membrane is on the shelf"),
    ],
)
def test_every_state_of_a_run_has_its_words(state, words):
    assert words in fragments.run_line(run(state, message="the reason"))


@pytest.mark.parametrize(
    ("state", "words"), [("ready", "→ chosen when it begins"), ("running", "→ what is left of the prompt")]
)
def test_a_surrogate_that_is_open_is_chosen_when_the_run_begins(state, words):
    assert words in fragments.run_line(dataclasses.replace(run(state), concept=Concept("cat")))
    assert "→ wolf" in fragments.run_line(dataclasses.replace(run(state), concept=Concept("cat", surrogate="wolf")))


def test_a_bar_says_how_far_the_gate_opened_and_by_what():
    html = fragments.bars([Bar("cat", 0.5, 2.0, ("kitty",), "named")], True, 0.0)
    assert "γ = 0.50 × 2" in html
    assert "opened by <mark>kitty</mark>" in html
    assert "width:50%" in html
    assert "equal, bit for bit" in html
