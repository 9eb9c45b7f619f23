"""What draws rows for the worker: the `Painter` of this process, or a `Fleet` of replicas on other machines.

Both answer the same questions with the same plain values, so that queue, policies, records and HTTP do not know which
of them draws.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from semipermeable.errors import PolicyError
from semipermeable.membrane import Membrane
from semipermeable.permeability import Decision
from semipermeable.server.jobs import CallShape
from semipermeable.server.library import Shelved
from semipermeable.server.planning import Plan

__all__ = ["Abandoned", "Asked", "Facts", "Painted", "Paints", "ReplicaLost", "Standing", "out_of_memory"]


class Abandoned(Exception):  # noqa: N818 - not an error: everybody who waited for the call has left
    """A call was stopped between two steps because nobody waits for it."""


class ReplicaLost(Exception):  # noqa: N818 - an event: the same call can be made again
    """What drew a call died or cannot be reached; nothing of the call is known, and it may be drawn again."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A row to draw: prompt, negative prompt, seed of its noise, and what must be in force."""

    prompt: str
    negative: str
    seed: int
    plan: Plan


@dataclass(frozen=True, slots=True)
class Painted:
    """A row that was drawn.

    Args:
        image: the picture; None if its pixels are not finite numbers.
        decisions: γ and its reason, one per membrane of the row's plan.
        replica: rank of the replica that drew it; "-" is this process.
    """

    image: Image.Image | None
    decisions: tuple[Decision, ...]
    replica: str = "-"


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether pictures can be drawn at present.

    Args:
        ready: whether they can.
        message: what is not as it should be, or "".
    """

    ready: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the server must know of the model.

    Args:
        model_hash: SHA-256 of the denoiser's weights.
        native_size: width and height of the model's own pictures, in pixels.
        unit: both sides of a picture are multiples of it, in pixels.
        most_steps: steps of the scheduler.
        batch_rows: most rows of one call.
    """

    model_hash: str
    native_size: tuple[int, int]
    unit: int
    most_steps: int
    batch_rows: int

    def check_size(self, width: int, height: int) -> None:
        """Refuse a size the model cannot draw.

        Raises:
            PolicyError: if the latent's sides cannot be halved as often as the denoiser halves them.
        """
        if width % self.unit or height % self.unit:
            raise PolicyError(f"drawing.sizes holds {width}x{height}; both sides must be multiples of {self.unit} here")

    def check_steps(self, steps: int) -> None:
        """Refuse more steps than the model's scheduler has.

        Raises:
            PolicyError: if the scheduler cannot take that many.
        """
        if steps > self.most_steps:
            raise PolicyError(f"drawing.max_steps is {steps}; this model's scheduler has {self.most_steps}")


class Paints(Protocol):
    """Draws rows. `draw` may be called by as many threads as `most_calls`."""

    @property
    def most_calls(self) -> int:
        """How many calls may ever run side by side."""
        ...

    def calls(self, waiting: int) -> int:
        """Return how many calls may run side by side at present.

        Args:
            waiting: rows in the queue.
        """
        ...

    @property
    def batch_rows(self) -> int:
        """Most rows of one call."""
        ...

    @property
    def facts(self) -> Facts:
        """What the server must know of the model."""
        ...

    def standing(self) -> Standing:
        """Return whether pictures can be drawn at present."""
        ...

    def fit(self, membrane: Membrane) -> Membrane:
        """Return a membrane with the denoiser's site names.

        Raises:
            SiteError: if it does not belong to this denoiser.
            CalibrationError: if its gate cannot decide.
        """
        ...

    def draw(
        self, shelf: Iterable[Shelved], rows: Sequence[Asked], shape: CallShape, unwanted: Callable[[], bool]
    ) -> list[Painted]:
        """Draw rows in one pipeline call, under the membranes of their plans.

        Args:
            shelf: every membrane in force; those of the plans are among them.
            rows: what to draw.
            shape: steps, guidance and size of all.
            unwanted: asked again and again; the call stops when it says yes.

        Raises:
            AttachError: if a membrane of a plan cannot be applied, or did not act.
            CalibrationError, PermeabilityError: if a rule cannot decide.
            MemoryError, RuntimeError: if memory does not suffice.
            Abandoned: if the call was stopped.
            ReplicaLost: if the call may be made again.
        """
        ...

    def close(self) -> None:
        """End."""
        ...


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory did not suffice, of whatever device."""
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text
