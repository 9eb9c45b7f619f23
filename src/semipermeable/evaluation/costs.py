"""What an erasure costs: wall and processor seconds and peak memory of a block of work."""

import resource
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Meter", "metered"]


@dataclass(slots=True)
class Meter:
    """Filled in when the block ends."""

    seconds: float = 0.0
    """Wall time."""
    busy_seconds: float = 0.0
    """Processor time of all threads, which other programs on the machine do not stretch; wall time on a GPU."""
    peak_bytes: int = 0
    """Highest memory of the process meanwhile, or of the GPU where there is one."""


@contextmanager
def metered(device: str) -> Generator[Meter, None, None]:
    """Measure a block.

    Args:
        device: a torch device; CUDA memory is measured on CUDA, resident memory elsewhere.
    """
    meter = Meter()
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _forget_peak()
    began, worked = time.perf_counter(), time.process_time()
    yield meter
    if on_gpu:
        torch.cuda.synchronize(device)
    meter.seconds = time.perf_counter() - began
    meter.busy_seconds = meter.seconds if on_gpu else time.process_time() - worked
    meter.peak_bytes = torch.cuda.max_memory_allocated(device) if on_gpu else _peak()


def _forget_peak() -> None:
    """Reset Linux's high-water mark of this process; elsewhere the mark is of its whole life."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _peak() -> int:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
