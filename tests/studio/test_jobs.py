"""One thread, in order; everything can be stopped; whatever goes wrong becomes a sentence."""

import threading

import pytest
import torch

from semipermeable.errors import ConceptError, StudioError
from semipermeable.studio.jobs import JobState, Worker, sentence

SOON = 20


@pytest.fixture
def worker():
    made = Worker()
    yield made
    made.close()
    assert made.under_way == []


def gate():
    """A job that waits to be let through, and the event that lets it."""
    entered, let = threading.Event(), threading.Event()

    def work(job):
        entered.set()
        while not let.wait(0.01):
            job.check()
        return "let through"

    return work, entered, let


def test_jobs_run_in_order_and_say_what_came_out(worker):
    order = []
    jobs = [worker.submit(f"k{i}", f"job {i}", lambda job: order.append(job.number) or "well") for i in range(5)]
    for job in jobs:
        worker.wait(job, SOON)
    assert order == sorted(order)
    assert {job.state for job in jobs} == {JobState.DONE}
    assert worker.last is jobs[-1]
    assert worker.last.message == "well"


def test_a_second_job_of_a_kind_is_refused_while_one_is_under_way(worker):
    work, entered, let = gate()
    first = worker.submit("drawing", "drawing", work)
    entered.wait(SOON)
    with pytest.raises(StudioError, match="drawing is already under way; wait for it, or stop it first"):
        worker.submit("drawing", "drawing", work)
    let.set()
    worker.wait(first, SOON)
    worker.wait(worker.submit("drawing", "drawing", work), SOON)


def test_stop_ends_what_runs_and_what_waits(worker):
    work, entered, _ = gate()
    running = worker.submit("a", "the first", work)
    entered.wait(SOON)
    waiting = worker.submit("b", "the second", work)
    worker.stop()
    worker.wait(running, SOON)
    assert (running.state, waiting.state) == (JobState.STOPPED, JobState.STOPPED)
    assert running.message == "the first: stopped"
    assert waiting.message == "the second: stopped before it began"


def test_short_work_is_done_between_two_steps_of_long_work(worker):
    order = []
    asked = threading.Event()

    def long(job):
        for step in range(3):
            order.append(step)
            if step == 0:
                asked.wait(SOON)
            worker.interlude()
            job.report(step + 1, 3)
        return "long"

    first = worker.submit("long", "long", long)
    later = worker.submit("other", "other long one", lambda _: order.append("other") or "")
    short = worker.submit("short", "short", lambda _: order.append("short") or "", short=True)
    asked.set()
    for job in (first, later, short):
        worker.wait(job, SOON)
    assert order == [0, "short", 1, 2, "other"]


def test_stopping_short_work_leaves_the_long_work_going(worker):
    work, entered, _ = gate()
    asked = threading.Event()

    def long(_):
        asked.wait(SOON)
        worker.interlude()
        return "went on"

    first = worker.submit("long", "long", long)
    short = worker.submit("short", "short", work, short=True)
    asked.set()
    entered.wait(SOON)
    worker.stop(short.number)
    worker.wait(first, SOON)
    assert (short.state, first.state) == (JobState.STOPPED, JobState.DONE)


def test_a_failure_is_a_sentence_and_the_thread_lives_on(worker):
    def fail(_):
        raise ConceptError("a concept\n  needs a name")

    job = worker.submit("a", "a", fail)
    worker.wait(job, SOON)
    assert (job.state, job.message) == (JobState.FAILED, "a concept needs a name")
    worker.wait(worker.submit("a", "a", lambda _: ""), SOON)


def test_the_brake_in_a_model_stops_work_that_reports_nothing(worker):
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    worker.guard_pipe(network)
    entered = threading.Event()

    def work(_):
        while True:
            network(torch.zeros(1, 2))
            entered.set()

    job = worker.submit("a", "a", work)
    entered.wait(SOON)
    worker.stop()
    network(torch.zeros(1, 2))  # another thread's call goes through
    worker.wait(job, SOON)
    assert job.state == JobState.STOPPED


def test_waiting_has_an_end_and_a_closed_worker_takes_nothing(worker):
    work, entered, let = gate()
    job = worker.submit("a", "a slow one", work)
    entered.wait(SOON)
    with pytest.raises(StudioError, match=r"a slow one has not ended within 0\.01 seconds"):
        worker.wait(job, 0.01)
    let.set()
    worker.close()
    with pytest.raises(StudioError, match="shutting down"):
        worker.submit("b", "b", work)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "ran out of memory"),
        (RuntimeError("CUDA out of memory. Tried"), "ran out of memory"),
        (OSError(28, "No space left on device", "x.png"), "the disk is full"),
    ],
)
def test_what_a_person_can_mend_is_said(error, words, caplog):
    assert words in sentence(error)
    assert not caplog.records


def test_a_bug_is_told_apart_and_logged(caplog):
    assert "went wrong inside the studio (KeyError: 'x')" in sentence(KeyError("x"))
    assert caplog.records[0].exc_info[0] is KeyError
