"""The threads that draw: take rows from the queue, plan them against the state in force, have them drawn.

There is one thread where the pipeline is in this process, and one per replica, at most, where replicas draw. Whatever
goes wrong with a batch is answered to its rows, and the thread goes on with the next. A batch that cannot be drawn, as
it does not fit into memory or one row's membrane cannot be applied or decided, is drawn again in halves, which changes
no picture; a single row is refused. A batch whose replica died is drawn by another.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence

from semipermeable.errors import AttachError, RefusedError, SemipermeableError
from semipermeable.server.jobs import Drawn, FairQueue, Job, too_late
from semipermeable.server.monitoring import Figures
from semipermeable.server.painting import Abandoned, Asked, Painted, Paints, ReplicaLost, out_of_memory
from semipermeable.server.planning import Plan, plan_for
from semipermeable.server.state import State

__all__ = ["Worker"]

_log = logging.getLogger("semipermeable.server")
_POLL_SECONDS = 0.2
_MOST_LOST = 3


class Worker:
    """Draws what is in the queue: one call at a time, or several where replicas draw.

    Args:
        painter: what draws.
        queue: the rows that wait.
        state: returns what is in force.
        figures: receives sizes and times of calls.
    """

    def __init__(self, painter: Paints, queue: FairQueue, state: Callable[[], State], figures: Figures) -> None:
        self._painter = painter
        self._queue = queue
        self._state = state
        self._figures = figures
        self._most = painter.batch_rows
        self._stop = threading.Event()
        self._abort = threading.Event()
        self._free = threading.Condition()
        self._calls = 0
        names = (f"semipermeable-painter-{number}" for number in range(painter.most_calls))
        self._threads = [threading.Thread(target=self._run, name=name, daemon=True) for name in names]

    @property
    def alive(self) -> bool:
        """Whether every thread runs."""
        return all(thread.is_alive() for thread in self._threads)

    def start(self) -> None:
        """Begin to draw."""
        for thread in self._threads:
            thread.start()

    def stop(self, seconds: float) -> None:
        """Draw what waits for at most `seconds`, refuse the rest, and end."""
        deadline = time.monotonic() + seconds
        self._queue.close()
        self._stop.set()
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._abort.set()
        self._queue.refuse_all(_stopping())
        for thread in self._threads:
            thread.join()
        self._painter.close()

    def _run(self) -> None:
        while not (self._stop.is_set() and not len(self._queue)):
            if not self._enter():
                continue
            try:
                jobs = self._queue.take(self._most, _POLL_SECONDS)
                if jobs:
                    self._serve_or_refuse(jobs)
            finally:
                self._leave()

    def _enter(self) -> bool:
        """Wait a little for leave to make a call; returns whether it was given."""
        allowed = self._painter.calls(len(self._queue))
        with self._free:
            if self._calls >= allowed:
                self._free.wait(_POLL_SECONDS)
                return False
            self._calls += 1
            return True

    def _leave(self) -> None:
        with self._free:
            self._calls -= 1
            self._free.notify()

    def _serve_or_refuse(self, jobs: Sequence[Job]) -> None:
        try:
            self._serve(jobs)
        except BaseException:
            _log.exception("a batch of %d pictures failed", len(jobs))
            for job in jobs:
                job.refuse(_internal())

    def _serve(self, jobs: Sequence[Job], lost: int = 0) -> None:
        """Plan rows against the state in force and draw them.

        Args:
            jobs: rows of one shape.
            lost: how many replicas were lost with them before.
        """
        state = self._state()
        planned: list[tuple[Job, Plan]] = []
        for job in jobs:
            try:
                planned.append((job, plan_for(state, job.tenant, job.erase)))
            except RefusedError as error:
                job.refuse(error)
        if planned:
            self._draw(planned, state, lost)

    def _draw(self, planned: Sequence[tuple[Job, Plan]], state: State, lost: int) -> None:
        """Draw rows in one call; in two, if memory does not suffice or a membrane of one row is at fault."""
        shape = planned[0][0].shape
        jobs = [job for job, _ in planned]
        rows = [Asked(job.prompt, job.negative, job.seed, plan) for job, plan in planned]
        start = time.perf_counter()
        try:
            painted = self._painter.draw(state.shelf.membranes.values(), rows, shape, lambda: self._unwanted(jobs))
        except Abandoned:
            for job in jobs:
                job.refuse(_stopping() if self._abort.is_set() else too_late())
            return
        except ReplicaLost as error:
            self._again(jobs, lost + 1, error)
            return
        except SemipermeableError as error:
            why, refusal = str(error), _not_applied() if isinstance(error, AttachError) else _not_decided()
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            why, refusal = "out of memory", _no_memory()
        else:
            self._finish(planned, state, painted, time.perf_counter() - start)
            return
        # Outside the handlers: the error's traceback holds the tensors of the failed call.
        if len(jobs) == 1:
            _refuse(jobs[0], state, why, refusal)
            return
        _log.warning("%d pictures of state %d are drawn again in halves: %s", len(jobs), state.number, why)
        half = len(jobs) // 2
        self._draw(planned[:half], state, lost)
        self._draw(planned[half:], state, lost)

    def _finish(
        self, planned: Sequence[tuple[Job, Plan]], state: State, painted: Sequence[Painted], seconds: float
    ) -> None:
        self._queue.measured(len(planned) * max(1, self._painter.calls(0)), seconds)
        self._figures.batch_rows.observe(len(planned))
        self._figures.call_seconds.observe(seconds)
        self._figures.calls.labels(painted[0].replica).inc()
        for (job, plan), one in zip(planned, painted, strict=True):
            if one.image is None:
                why = "its pixels are not finite numbers; the strength may be too large"
                _refuse(job, state, why, _not_applied())
            else:
                job.finish(Drawn(one.image, plan, one.decisions, len(planned)))

    def _again(self, jobs: Sequence[Job], lost: int, error: ReplicaLost) -> None:
        """Draw rows whose replica died once more: a row's noise depends on its seed alone, so it is the same picture.

        They are planned anew. After `_MOST_LOST` replicas it may be the rows that kill them.
        """
        self._figures.lost.inc()
        _log.warning("a replica was lost with %d pictures, time %d: %s", len(jobs), lost, error)
        if lost >= _MOST_LOST:
            for job in jobs:
                job.refuse(_lost())
            return
        wanted = [job for job in jobs if job.wanted()]
        if wanted:
            self._serve(wanted, lost)

    def _unwanted(self, jobs: Sequence[Job]) -> bool:
        now = time.monotonic()
        return self._abort.is_set() or all(job.abandoned or now > job.deadline for job in jobs)


def _refuse(job: Job, state: State, why: str, refusal: RefusedError) -> None:
    _log.error("a picture of state %d was refused: %s", state.number, why)
    job.refuse(refusal)


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


def _no_memory() -> RefusedError:
    return RefusedError("the server is out of memory", status=503, code="out_of_memory", retry_after=10)


def _lost() -> RefusedError:
    return RefusedError(
        f"{_MOST_LOST} replicas died while they drew your pictures; nothing was drawn, try again",
        status=503,
        code="replica_lost",
        retry_after=5,
    )


def _internal() -> RefusedError:
    return RefusedError("the picture could not be drawn; the server's log says why", status=500, code="internal")


def _stopping() -> RefusedError:
    return RefusedError("the server is stopping", status=503, code="stopping", retry_after=5)
