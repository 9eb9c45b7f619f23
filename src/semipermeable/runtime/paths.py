"""Which way a denoiser call takes, and how often each was taken.

idle: every strength is zero; the base model's own code runs and nothing else.
folded: all rows that act have one vector of strengths; their sites read effective weights kept beside the base ones.
mixed: rows differ; each site's output gets the sums of the rows that act, each row its own membranes only.
"""

import enum
import threading
from typing import NamedTuple

__all__ = ["Path", "PathCounter", "PathCounts"]


class Path(enum.Enum):
    """How a call runs."""

    IDLE = "idle"
    FOLDED = "folded"
    MIXED = "mixed"


class PathCounts(NamedTuple):
    """Number of denoiser calls that took each path."""

    idle: int = 0
    folded: int = 0
    mixed: int = 0


class PathCounter:
    """Counts calls, from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(Path, 0)

    def add(self, path: Path) -> None:
        """Count one call."""
        with self._lock:
            self._counts[path] += 1

    @property
    def counts(self) -> PathCounts:
        """The counts so far."""
        with self._lock:
            return PathCounts(*(self._counts[path] for path in Path))
