"""Where a result was made: versions, commit, hardware. No host name and no path is recorded."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from semipermeable import __version__
from semipermeable.membrane import Json

__all__ = ["current_commit", "describe_environment"]

_PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "numpy", "pillow")


def describe_environment() -> dict[str, Json]:
    """Return versions, commit (None outside a checkout), and hardware, as JSON data."""
    import torch

    versions: dict[str, Json] = {"semipermeable": __version__, "python": platform.python_version()}
    versions.update({name: importlib.metadata.version(name) for name in _PACKAGES})
    gpus: list[Json] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": versions,
        "commit": current_commit(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def current_commit() -> str | None:
    """Return the commit of the checkout that this file is tracked in, with "+" if files differ; None elsewhere."""
    here = Path(__file__)
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        commit = _git(here.parent, "rev-parse", "--short=12", "HEAD")
        changed = _git(here.parent, "status", "--porcelain", "--untracked-files=no", ":/src")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()  # noqa: S603


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or "unknown"
