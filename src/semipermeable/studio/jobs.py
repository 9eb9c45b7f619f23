"""Long work: one thread that does it, in order, and that can be stopped everywhere.

One thread, because all work shares one pipeline. Short work (a drawing, an export) need not wait for a training: it is
done between two steps of it, where the training's hooks are inert (γ None) and its random draws cannot be disturbed,
since each is a function of seed and step. `guard_pipe` puts the brake into the model itself, so that also the parts of
a job that report no progress stop within one call of the denoiser.
"""

import itertools
import logging
import threading
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from torch import nn

from semipermeable.errors import SemipermeableError, StudioError
from semipermeable.generation.output import explain

__all__ = ["Job", "JobState", "Stopped", "Worker", "sentence"]

_LOG = logging.getLogger("semipermeable.studio")
_REMEMBERED = 20
"""Ended jobs that are kept for their message."""


class Stopped(Exception):  # noqa: N818 - not an error: somebody asked for it
    """A job was asked to stop."""


class JobState(StrEnum):
    """Where a job is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"


class Job:
    """One piece of work.

    Attributes:
        kind: e.g. "drawing"; two of one kind are never under way at once.
        title: for people, e.g. "erasing 'cat'".
        state: where it is.
        done, total: progress in steps; total 0 while nothing is known.
        note: what it is doing now.
        message: once it has ended, a sentence: what it made, or what went wrong.
    """

    def __init__(self, number: int, kind: str, title: str, short: bool, work: "Callable[[Job], str]") -> None:
        self.number = number
        self.kind = kind
        self.title = title
        self.short = short
        self.work = work
        self.state = JobState.WAITING
        self.done = 0
        self.total = 0
        self.note = ""
        self.message = ""
        self._stop = threading.Event()

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state not in (JobState.WAITING, JobState.RUNNING)

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Ask it to stop; it does so at its next step."""
        self._stop.set()

    def check(self) -> None:
        """Go on, or raise.

        Raises:
            Stopped: if it was asked to stop.
        """
        if self._stop.is_set():
            raise Stopped

    def report(self, done: int, total: int) -> None:
        """Say how far it is.

        Raises:
            Stopped: if it was asked to stop.
        """
        self.done, self.total = done, total
        self.check()


class Worker:
    """The thread that does jobs, first come, first served; short ones also between two steps of a long one."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._waiting: list[Job] = []
        self._stack: list[Job] = []
        self._ended: list[Job] = []
        self._closed = False
        self._thread = threading.Thread(target=self._live, name="studio-worker", daemon=True)
        self._thread.start()

    @property
    def under_way(self) -> list[Job]:
        """Jobs at work (the innermost last), then those that wait."""
        with self._changed:
            return [*self._stack, *self._waiting]

    @property
    def last(self) -> Job | None:
        """The job that ended most recently, if any."""
        with self._changed:
            return self._ended[-1] if self._ended else None

    def submit(self, kind: str, title: str, work: Callable[[Job], str], *, short: bool = False) -> Job:
        """Queue a job.

        Args:
            kind: names its purpose.
            title: for people.
            work: does it, and returns a sentence on what came out.
            short: whether it may run between two steps of a long job.

        Raises:
            StudioError: if one of its kind is under way, or the worker is closed.
        """
        with self._changed:
            if self._closed:
                raise StudioError("the studio is shutting down; start it again with `spm studio`")
            if any(job.kind == kind for job in (*self._stack, *self._waiting)):
                raise StudioError(f"{title} is already under way; wait for it, or stop it first")
            job = Job(next(self._numbers), kind, title, short, work)
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def stop(self, number: int | None = None) -> None:
        """Stop one job, or all of them; one that waits ends at once."""
        with self._changed:
            for job in (*self._stack, *self._waiting):
                if number is None or job.number == number:
                    job.stop()
            for job in [job for job in self._waiting if job.stopping]:
                self._waiting.remove(job)
                self._end(job, JobState.STOPPED, f"{job.title}: stopped before it began")
            self._changed.notify_all()

    def interlude(self) -> None:
        """Do the short jobs that wait; called by a long one between two of its steps."""
        while (job := self._take(short=True)) is not None:
            self._do(job)

    def wait(self, job: Job, seconds: float) -> None:
        """Return when a job has ended.

        Raises:
            StudioError: if it has not within that time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: job.ended, seconds):
                raise StudioError(f"{job.title} has not ended within {seconds:g} seconds; look again later, or stop it")

    def close(self) -> None:
        """Stop everything and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.stop()
        self._thread.join(timeout=60)

    def guard_pipe(self, denoiser: nn.Module) -> None:
        """Let the running job's stop take effect at every call of a denoiser.

        Args:
            denoiser: the network; the hook sits on its first layer, so that views of it which share the layer stop too.
        """
        layer = next(m for m in denoiser.modules() if not any(m.children()) and any(True for _ in m.parameters()))
        layer.register_forward_pre_hook(lambda _layer, _args: self._brake())

    def _brake(self) -> None:
        if threading.current_thread() is self._thread and self._stack:
            self._stack[-1].check()

    def _take(self, *, short: bool) -> Job | None:
        with self._changed:
            for job in self._waiting:
                if job.short or not short:
                    self._waiting.remove(job)
                    job.state = JobState.RUNNING
                    self._stack.append(job)
                    return job
        return None

    def _live(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed and not self._waiting:
                    return
            job = self._take(short=False)
            if job is not None:
                self._do(job)

    def _do(self, job: Job) -> None:
        try:
            job.check()
            message, state = job.work(job), JobState.DONE
        except Stopped:
            message, state = f"{job.title}: stopped", JobState.STOPPED
        except Exception as error:
            message, state = sentence(error), JobState.FAILED
        with self._changed:
            self._stack.remove(job)
            self._end(job, state, message)
            self._changed.notify_all()

    def _end(self, job: Job, state: JobState, message: str) -> None:
        job.state, job.message = state, message
        self._ended = [*self._ended, job][-_REMEMBERED:]


def sentence(error: BaseException) -> str:
    """Say in one sentence what went wrong and what to do next.

    Args:
        error: anything; what is not a user's to mend is logged with its traceback.
    """
    text = str(error)
    if isinstance(error, SemipermeableError):
        return " ".join(text.split())
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return "The machine ran out of memory. Close other programs, or choose a smaller model."
    if isinstance(error, OSError) and error.filename is not None:
        return " ".join(str(explain(error.filename, error)).split())
    _LOG.error("a job failed", exc_info=error)
    known: Any = type(error).__name__
    return (
        f"Something went wrong inside the studio ({known}: {text[:200]}). The terminal shows where; please report it."
    )
