"""The part of a run that falls to this process, where `accelerate launch` started several.

    accelerate launch -m semipermeable erase --concepts concepts.toml --out-dir membranes/

Process i of n makes every n-th group. Which group is whose depends on the list of concepts alone, not on what the
folder holds already: processes that look at it at different times deal alike, and none of them waits for another.
"""

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from semipermeable.errors import ConfigError

__all__ = ["Share", "launched_share"]

_MARK = "ACCELERATE_MIXED_PRECISION"
"""Set by every launcher of accelerate, whatever it launches."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """One process's part.

    Raises:
        ConfigError: if there is no such part.
    """

    index: int = 0
    """Which process this is, from 0."""
    count: int = 1
    """How many there are."""
    device: str | None = None
    """The device that this process has for itself; None where none was dealt."""

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(f"share {self.index} of {self.count} does not exist; count from 0 to {self.count - 1}")

    @property
    def is_main(self) -> bool:
        """Whether this process speaks for all: it shows the bar and names what was there already."""
        return self.index == 0

    def of(self, groups: Sequence[T]) -> Sequence[T]:
        """Return every `count`-th group."""
        return groups[self.index :: self.count]

    def device_for(self, wanted: str | None) -> str | None:
        """Return this process's own device, unless another kind was asked for.

        Args:
            wanted: what was asked for, e.g. "cuda"; None asks for nothing.
        """
        own = self.device
        return own if own is not None and wanted in (None, own.partition(":")[0]) else wanted


def launched_share() -> Share:
    """Return this process's part as accelerate dealt it; the whole, if accelerate did not launch it."""
    if _MARK not in os.environ:
        return Share()
    from accelerate import PartialState

    # `--cpu` reaches accelerate's Accelerator through the environment, but not its PartialState.
    state = PartialState(cpu=os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "y", "t", "on"))
    if state.num_processes == 1:
        return Share()
    # At the very end: the first process keeps what the others need to find each other.
    atexit.register(state.destroy_process_group)
    device = str(state.device)
    device = "cpu" if device.startswith("cpu") else device
    return Share(index=state.process_index, count=state.num_processes, device=device)
