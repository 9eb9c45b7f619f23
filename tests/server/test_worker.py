"""The thread that draws: what is wrong with one row of a call is answered to that row."""

import dataclasses

import pytest

from semipermeable.files import save
from semipermeable.membrane import GateState
from semipermeable.server.painter import Painter
from semipermeable.server.schemas import ImageRequest
from semipermeable.server.service import Service
from semipermeable.server.state import Keeper


@pytest.mark.parametrize(
    ("scale", "gate", "code", "rows"),
    [(0.06, GateState("other", {}), "gate_failed", 2), (1e30, None, "membrane_unavailable", 4)],
    ids=["a gate that cannot decide", "pixels that are no numbers"],
)
def test_a_row_that_cannot_be_drawn_takes_no_other_of_its_call_with_it(
    config, pipe, folder, membrane_of, scale, gate, code, rows
):
    save(dataclasses.replace(membrane_of("owl", scale=scale), gate=gate), folder / "owl.safetensors")
    service = Service(config, Painter(pipe))
    service.keeper = Keeper(folder, config.policies, lambda membrane: membrane)  # `Painter.fit` refuses such a gate
    asked = ImageRequest(prompt="an icon of an owl", seed=1)
    wants = ["acme", "zoo", "acme", "zoo"]
    jobs = [job for tenant in wants for job in service.jobs_for(asked, tenant)]
    jobs[3].erase = ("owl",)
    try:
        service.worker._serve(jobs)
    finally:
        service.painter.close()
    assert [job.future.exception(0) for job in jobs[:3]] == [None] * 3
    assert (jobs[3].future.exception(0).status, jobs[3].future.exception(0).code) == (503, code)
    assert jobs[0].future.result(0).rows == rows
