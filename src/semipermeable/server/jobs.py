"""Rows that wait to be drawn, and the queue that hands them out.

The queue is fair between tenants: a batch takes one row of each tenant in turn, and the next batch begins with the
tenant after the one that began this. Rows that cannot share a denoiser call (another size, number of steps or guidance)
wait for their own batch.
"""

import itertools
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

from PIL import Image

from semipermeable.errors import RefusedError
from semipermeable.permeability import Decision
from semipermeable.server.planning import Plan

__all__ = ["CallShape", "Drawn", "FairQueue", "Job", "too_late"]


@dataclass(frozen=True, slots=True)
class CallShape:
    """What all rows of one pipeline call have in common: sizes in pixels."""

    steps: int
    guidance: float
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """A finished row.

    Args:
        image: the picture.
        plan: what was in force when it was drawn.
        decisions: γ and its reason, one per membrane of the plan.
        rows: how many rows were drawn in the same call.
    """

    image: Image.Image
    plan: Plan
    decisions: tuple[Decision, ...]
    rows: int


@dataclass(eq=False, slots=True)
class Job:
    """One picture to draw.

    Args:
        tenant: whose it is.
        prompt: the text.
        negative: what to stay away from.
        seed: of its noise, in [0, 2**63).
        erase: concepts that the request adds.
        shape: see `CallShape`.
        deadline: `time.monotonic` after which it is refused.
        future: receives the picture or a RefusedError; cancel it, and it is not drawn.
        abandoned: set when nobody waits any more; a call of which all rows are abandoned stops between two steps.
    """

    tenant: str
    prompt: str
    negative: str
    seed: int
    erase: tuple[str, ...]
    shape: CallShape
    deadline: float
    future: "Future[Drawn]" = field(default_factory=lambda: Future[Drawn]())
    abandoned: bool = False

    def abandon(self) -> None:
        """Say that nobody waits for this row any more."""
        self.abandoned = True
        self.future.cancel()

    def wanted(self) -> bool:
        """Whether somebody still waits for it; refuses it if its deadline has passed."""
        if self.abandoned or self.future.cancelled():
            return False
        if time.monotonic() <= self.deadline:
            return True
        self.refuse(too_late())
        return False

    def refuse(self, error: RefusedError) -> None:
        """Give the waiting request an error instead of a picture."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)

    def finish(self, drawn: "Drawn") -> None:
        """Give the waiting request its picture."""
        with suppress(InvalidStateError):
            self.future.set_result(drawn)


def too_late() -> RefusedError:
    """The refusal of a row whose deadline has passed."""
    return RefusedError(
        "the picture was not finished in time; ask for fewer steps or pictures, or try again later",
        status=504,
        code="deadline_exceeded",
    )


class FairQueue:
    """Rows waiting, per tenant; safe for several threads.

    Args:
        most: rows of all tenants.
        most_of_tenant: rows of one tenant.
    """

    def __init__(self, most: int, most_of_tenant: int) -> None:
        self._most = most
        self._most_of_tenant = most_of_tenant
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._seconds_per_row = 0.0

    def __len__(self) -> int:
        with self._changed:
            return self._length()

    def put(self, jobs: Sequence[Job]) -> None:
        """Add the rows of one request: all of them, or none.

        Raises:
            RefusedError: 429 with the seconds to wait if there is no room, 503 if the server stops.
        """
        tenant = jobs[0].tenant
        with self._changed:
            if self._closed:
                raise RefusedError("the server is stopping", status=503, code="stopping", retry_after=5)
            self._sweep()
            own = len(self._waiting.get(tenant, ()))
            if self._length() + len(jobs) > self._most or own + len(jobs) > self._most_of_tenant:
                whose = "the server has" if own + len(jobs) <= self._most_of_tenant else "you have"
                raise RefusedError(
                    f"{whose} too many pictures waiting; try again in {self._wait()} seconds",
                    status=429,
                    code="queue_full",
                    retry_after=self._wait(),
                )
            self._waiting.setdefault(tenant, deque()).extend(jobs)
            self._changed.notify()

    def take(self, most: int, timeout: float) -> list[Job]:
        """Take the rows of the next batch; they share a shape, and none is cancelled or too late.

        Args:
            most: rows at most.
            timeout: seconds to wait for a first row; an empty list is returned after them.
        """
        with self._changed:
            if not self._waiting:
                self._changed.wait(timeout)
            self._sweep()
            if not self._waiting:
                return []
            tenants = list(self._waiting)
            shape = self._waiting[tenants[0]][0].shape
            fitting = {tenant: deque(job for job in self._waiting[tenant] if job.shape == shape) for tenant in tenants}
            taken: list[Job] = []
            for tenant in itertools.cycle(tenants):
                if len(taken) == most or not any(fitting.values()):
                    break
                if fitting[tenant]:
                    taken.append(fitting[tenant].popleft())
            chosen = {id(job) for job in taken}
            for tenant in tenants:
                self._waiting[tenant] = deque(job for job in self._waiting[tenant] if id(job) not in chosen)
            self._waiting.move_to_end(tenants[0])
            self._drop_empty()
            return [job for job in taken if job.future.set_running_or_notify_cancel()]

    def measured(self, rows: int, seconds: float) -> None:
        """Learn how long rows take, for the Retry-After of refusals."""
        with self._changed:
            new = seconds / max(rows, 1)
            self._seconds_per_row = new if not self._seconds_per_row else 0.8 * self._seconds_per_row + 0.2 * new

    def close(self) -> None:
        """Take no more rows."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def refuse_all(self, error: RefusedError) -> None:
        """Refuse every row that waits."""
        with self._changed:
            for job in itertools.chain.from_iterable(self._waiting.values()):
                job.refuse(error)
            self._waiting.clear()

    def _wait(self) -> int:
        return min(600, max(1, math.ceil(self._length() * self._seconds_per_row)))

    def _length(self) -> int:
        return sum(len(rows) for rows in self._waiting.values())

    def _sweep(self) -> None:
        for tenant, rows in self._waiting.items():
            self._waiting[tenant] = deque(job for job in rows if job.wanted())
        self._drop_empty()

    def _drop_empty(self) -> None:
        for tenant in [tenant for tenant, rows in self._waiting.items() if not rows]:
            del self._waiting[tenant]
