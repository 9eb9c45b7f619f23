"""A quick benchmark through the package's runner."""

import pytest

from semipermeable.errors import StudioError
from semipermeable.studio.desk import Desk
from semipermeable.studio.evaluating import REPORT, concepts_tested, figures_in

from helpers import random_membrane


@pytest.fixture
def bundled(work, pipe):
    """A desk on the bundled model with a membrane of "horse"."""
    desk = Desk(work, device="cpu")
    desk.shelf.put(random_membrane(pipe.unet, "horse", scale=0.02))
    yield desk
    desk.close()


def test_only_what_the_shelf_has_membranes_for_is_offered(bundled):
    cases = {(one.benchmark, one.case) for one in bundled.tests()}
    assert ("emoji-objects", "horse") in cases
    assert {case for _, case in cases} == {"horse"}
    assert "horse" in concepts_tested()
    bundled.shelf.remove("horse.safetensors")
    assert bundled.tests() == []
    with pytest.raises(StudioError, match="choose a test from the list"):
        bundled.begin_evaluation("horse", seeds=1)


@pytest.mark.slow
def test_a_test_can_be_stopped_taken_up_and_reported(bundled):
    test = min(bundled.tests(), key=lambda one: one.num_pictures)
    job = bundled.begin_evaluation(test.title, seeds=1)
    while job.note != "drawing and judging":
        pass
    bundled.worker.stop()
    bundled.worker.wait(job, 300)
    assert job.state == "stopped"
    assert bundled.results() is None
    job = bundled.begin_evaluation(test.title, seeds=1)
    bundled.worker.wait(job, 500)
    assert job.state == "done", job.message
    folder = bundled.results()
    assert "<html" in (folder / REPORT).read_text()
    figures = {one.title: one for one in figures_in(folder)}
    assert len(figures) >= 4
    assert all(one.base is not None for one in figures.values())
