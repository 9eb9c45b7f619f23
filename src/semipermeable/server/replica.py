"""A replica: the model on a machine of a Ray cluster, drawing the calls that a server sends it.

A replica knows no policy, no key and no queue. An `Order` holds everything a call needs: the rows, for each row the
membranes that act, by rule, strength and hash, and the hash of the model it must be drawn with. What is not exactly
there is a `Refusal`; nothing is drawn without it. Membranes come as the bytes of `.safetensors` files, which are read
by the same strict reader as files on disk.

Orders and answers are pickled by Ray, between processes of ours; nothing that a client sent is ever unpickled, a
client's text is a `str` in them.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from semipermeable import __version__
from semipermeable.errors import AttachError, SemipermeableError
from semipermeable.files.loading import load_bytes
from semipermeable.files.native import to_bytes
from semipermeable.generation import load_model
from semipermeable.server.jobs import CallShape
from semipermeable.server.library import Shelved
from semipermeable.server.painter import Painter
from semipermeable.server.painting import Abandoned, Asked, Facts, Painted, out_of_memory
from semipermeable.server.planning import Acting, Plan
from semipermeable.server.policies import Rule

__all__ = ["ActingOrder", "Drawing", "Order", "Parcel", "Refusal", "Replica", "RowOrder"]

_log = logging.getLogger("semipermeable.server")


@dataclass(frozen=True, slots=True)
class ActingOrder:
    """One membrane that acts on a row, by the hash of its file; see `Acting`."""

    sha256: str
    rule: Rule
    strength: float
    source: Literal["policy", "request"]


@dataclass(frozen=True, slots=True)
class RowOrder:
    """One row of a call."""

    prompt: str
    negative: str
    seed: int
    acting: tuple[ActingOrder, ...]


@dataclass(frozen=True, slots=True)
class Parcel:
    """The membranes in force.

    Args:
        digest: of all that is in it.
        members: file name, SHA-256 of that file, and a reference to the membrane's bytes in the object store.
    """

    digest: str
    members: tuple[tuple[str, str, Any], ...]


@dataclass(frozen=True, slots=True)
class Order:
    """A call to draw.

    Args:
        model_hash: SHA-256 of the denoiser that must draw it.
        shape: steps, guidance and size.
        rows: what to draw.
        digest: of the parcel of membranes in force.
        parcel: a reference to the `Parcel`.
    """

    model_hash: str
    shape: CallShape
    rows: tuple[RowOrder, ...]
    digest: str
    parcel: Any


@dataclass(frozen=True, slots=True)
class Drawing:
    """The answer to an order."""

    painted: tuple[Painted, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing was drawn.

    Args:
        kind: "apply" if a membrane or the model is not what the order says, "decide" if a rule cannot decide,
            "memory" if memory does not suffice.
        message: for the log.
    """

    kind: Literal["apply", "decide", "memory"]
    message: str


class Replica:
    """The model and one thread that draws with it; Ray Serve makes as many as it is told.

    Args:
        model: what `load_model` takes.
        device: a torch device; None is the best of this replica.
        dtype: see `load_model`.
        batch_rows: most rows of a call; None chooses by the model's size.

    Raises:
        ModelError: if the model cannot be loaded here.
    """

    def __init__(self, model: str, device: str | None, dtype: str | None, batch_rows: int | None) -> None:
        self._painter = Painter(load_model(model, device=device, dtype=dtype), batch_rows)
        self._facts = self._painter.facts
        self._thread = ThreadPoolExecutor(1, "semipermeable-painter")
        self._digest = ""
        self._held: dict[str, Shelved] = {}

    async def facts(self) -> tuple[str, Facts]:
        """Return this package's version and the model's facts."""
        return __version__, self._facts

    async def fit(self, membrane: bytes) -> bytes | str:
        """Return the file of a membrane with this denoiser's site names, or why it does not belong to it."""
        return await self._off_loop(lambda: self._fit(membrane))

    async def draw(self, order: Order) -> Drawing | Refusal:
        """Draw a call; cancelling it stops it between two steps."""
        left = threading.Event()
        try:
            return await self._off_loop(lambda: self._draw(order, left.is_set))
        finally:
            left.set()

    async def _off_loop(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _fit(self, membrane: bytes) -> bytes | str:
        try:
            return to_bytes(self._painter.fit(load_bytes(membrane)))
        except SemipermeableError as error:
            return str(error)

    def _draw(self, order: Order, unwanted: Callable[[], bool]) -> Drawing | Refusal:
        if unwanted():
            raise Abandoned
        if order.model_hash != self._facts.model_hash:
            return Refusal("apply", f"the model here is {self._facts.model_hash}, ordered is {order.model_hash}")
        try:
            self._hold(order)
            rows = [self._asked(row) for row in order.rows]
            painted = self._painter.draw(self._held.values(), rows, order.shape, unwanted)
        except SemipermeableError as error:
            return Refusal("apply" if isinstance(error, AttachError) else "decide", str(error))
        except (MemoryError, RuntimeError) as error:
            if out_of_memory(error):
                return Refusal("memory", "out of memory")
            if "CUDA error" in str(error):
                # The context is lost for good: every later call in this process would fail as well.
                _log.critical("the replica ends, its CUDA context is broken: %s", error)
                os._exit(1)
            raise
        return Drawing(tuple(Painted(one.image, one.decisions, _rank()) for one in painted))

    def _hold(self, order: Order) -> None:
        """Fetch the membranes in force, those that are new.

        Raises:
            AttachError: if one cannot be had.
        """
        if order.digest == self._digest:
            return
        import ray
        from ray.exceptions import RayError

        try:
            parcel: Parcel = ray.get(order.parcel)
            held: dict[str, Shelved] = {}
            for file, sha256, reference in parcel.members:
                known = self._held.get(sha256)
                held[sha256] = known or Shelved(file, sha256, load_bytes(ray.get(reference)))
        except (RayError, SemipermeableError, OSError) as error:
            raise AttachError(f"membranes in force did not arrive: {error}") from error
        self._digest, self._held = parcel.digest, held

    def _asked(self, row: RowOrder) -> Asked:
        acting: list[Acting] = []
        for one in row.acting:
            shelved = self._held.get(one.sha256)
            if shelved is None:
                raise AttachError(f"the order needs membrane {one.sha256}, which is not among those in force")
            acting.append(Acting(shelved, one.rule, one.strength, one.source))
        return Asked(row.prompt, row.negative, row.seed, Plan("", "", 0, tuple(acting), ()))


def _rank() -> str:
    """Return this replica's number among its like, which a successor takes over."""
    from ray import serve

    context: Any = serve.get_replica_context()
    return str(context.rank.rank)
