"""The thread that owns the pipeline: takes rows from the queue, plans them against the state in force, draws them.

Whatever goes wrong with a batch is answered to its rows, and the thread goes on with the next. A batch that does not
fit into memory is drawn again in halves, which changes no picture; a single row that does not fit is refused.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence

from semipermeable.errors import AttachError, RefusedError, SemipermeableError
from semipermeable.server.jobs import Drawn, FairQueue, Job, too_late
from semipermeable.server.monitoring import Figures
from semipermeable.server.painter import Abandoned, Painter, Row
from semipermeable.server.planning import Plan, plan_for
from semipermeable.server.state import State

__all__ = ["Worker"]

_log = logging.getLogger("semipermeable.server")
_POLL_SECONDS = 0.2


class Worker:
    """Draws what is in the queue, in a thread of its own.

    Args:
        painter: the pipeline.
        queue: the rows that wait.
        state: returns what is in force.
        figures: receives sizes and times of calls.
    """

    def __init__(self, painter: Painter, queue: FairQueue, state: Callable[[], State], figures: Figures) -> None:
        self._painter = painter
        self._queue = queue
        self._state = state
        self._figures = figures
        self._most = painter.batch_rows
        self._stop = threading.Event()
        self._abort = threading.Event()
        self._thread = threading.Thread(target=self._run, name="semipermeable-painter", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to draw."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Draw what waits for at most `seconds`, refuse the rest, and end."""
        self._queue.close()
        self._stop.set()
        self._thread.join(seconds)
        self._abort.set()
        self._queue.refuse_all(_stopping())
        self._thread.join()
        self._painter.close()

    def _run(self) -> None:
        while not (self._stop.is_set() and not len(self._queue)):
            jobs = self._queue.take(self._most, _POLL_SECONDS)
            if not jobs:
                continue
            try:
                self._serve(jobs)
            except BaseException:
                _log.exception("a batch of %d pictures failed", len(jobs))
                for job in jobs:
                    job.refuse(_internal())

    def _serve(self, jobs: Sequence[Job]) -> None:
        state = self._state()
        planned: list[tuple[Job, Plan]] = []
        for job in jobs:
            try:
                planned.append((job, plan_for(state, job.tenant, job.erase)))
            except RefusedError as error:
                job.refuse(error)
        if not planned:
            return
        try:
            self._painter.hold(state.shelf.membranes.values())
        except SemipermeableError as error:
            _log.error("membranes of state %d cannot be attached: %s", state.number, error)
            for job, _ in planned:
                job.refuse(_not_applied())
            return
        self._draw(planned)

    def _draw(self, planned: Sequence[tuple[Job, Plan]]) -> None:
        """Draw rows in one call; in two, if memory does not suffice."""
        shape = planned[0][0].shape
        jobs = [job for job, _ in planned]
        rows: list[Row] = []
        start = time.perf_counter()
        try:
            decisions = self._painter.decide([job.prompt for job in jobs], [plan for _, plan in planned])
            rows = [
                Row(job.prompt, job.negative, job.seed, plan, decided)
                for (job, plan), decided in zip(planned, decisions, strict=True)
            ]
            images = self._painter.paint(rows, shape, lambda: self._unwanted(jobs))
        except Abandoned:
            for job in jobs:
                job.refuse(_stopping() if self._abort.is_set() else too_late())
            return
        except SemipermeableError as error:
            _log.error("%d pictures were refused: %s", len(jobs), error)
            for job in jobs:
                job.refuse(_not_applied() if isinstance(error, AttachError) else _not_decided())
            return
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            images = None
        if images is None:
            # Outside the handler: the error's traceback holds the tensors of the failed call.
            self._halve(planned)
            return
        seconds = time.perf_counter() - start
        self._queue.measured(len(jobs), seconds)
        self._figures.batch_rows.observe(len(jobs))
        self._figures.call_seconds.observe(seconds)
        for row, job, image in zip(rows, jobs, images, strict=True):
            job.finish(Drawn(image, row.plan, row.decisions, len(jobs)))

    def _halve(self, planned: Sequence[tuple[Job, Plan]]) -> None:
        _log.warning("out of memory with %d pictures in one call", len(planned))
        if len(planned) == 1:
            planned[0][0].refuse(
                RefusedError("the server is out of memory", status=503, code="out_of_memory", retry_after=10)
            )
            return
        half = len(planned) // 2
        self._draw(planned[:half])
        self._draw(planned[half:])

    def _unwanted(self, jobs: Sequence[Job]) -> bool:
        now = time.monotonic()
        return self._abort.is_set() or all(job.abandoned or now > job.deadline for job in jobs)


def _out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _not_applied() -> RefusedError:
    return RefusedError(
        "a required membrane could not be applied; nothing is drawn without it. Tell the operator of the server.",
        status=503,
        code="membrane_unavailable",
    )


def _not_decided() -> RefusedError:
    return RefusedError(
        "the permeability of a required membrane could not be decided; nothing is drawn without it. Tell the operator "
        "of the server.",
        status=503,
        code="gate_failed",
    )


def _internal() -> RefusedError:
    return RefusedError("the picture could not be drawn; the server's log says why", status=500, code="internal")


def _stopping() -> RefusedError:
    return RefusedError("the server is stopping", status=503, code="stopping", retry_after=5)
