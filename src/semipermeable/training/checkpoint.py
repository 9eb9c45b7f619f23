"""The state of an interrupted training run: one `.safetensors` file, written atomically.

It holds the pairs, AdamW's moments, and as JSON in the file's metadata the step, its figures and a fingerprint of
everything that decides the run. All random draws are functions of (seed, step), so the step is the whole state of the
generators. A new file replaces the old one by rename after it was synced: whatever kills the process, a whole
checkpoint is on disk.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from semipermeable.errors import ConfigError, OutputError
from semipermeable.files.atomic import write_atomically

__all__ = ["Checkpoint", "read_checkpoint", "write_checkpoint"]

_VERSION = 1


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """State after a step.

    Args:
        step: number of finished steps.
        first_loss: total loss of the first step, against which divergence is judged; None before it.
        seconds: training time so far.
        tensors: pairs and optimiser moments, under names the loop chooses.
        figures: of the step, which a run that has no step left to make tells; None in files of earlier versions.
    """

    step: int
    first_loss: float | None
    seconds: float
    tensors: Mapping[str, Tensor]
    figures: Mapping[str, Any] | None = None


def write_checkpoint(path: Path, state: Checkpoint, fingerprint: str) -> None:
    """Replace the checkpoint at `path`.

    Args:
        path: the file; its folder is made if missing.
        state: what to keep.
        fingerprint: of the run that may resume from it.

    Raises:
        OutputError: if it cannot be written; an older checkpoint is still there then.
    """
    story = {
        "version": _VERSION,
        "step": state.step,
        "first_loss": state.first_loss,
        "seconds": state.seconds,
        "figures": state.figures,
        "fingerprint": fingerprint,
    }
    content = save(dict(state.tensors), {"semipermeable.training": json.dumps(story, sort_keys=True)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"checkpoint {path} cannot be written: {error.strerror}; choose another place") from error
    write_atomically(path, content)


def read_checkpoint(path: Path, fingerprint: str) -> Checkpoint | None:
    """Return the checkpoint at `path`, or None if there is no such file.

    Raises:
        ConfigError: if it is not a checkpoint, or belongs to another run.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as stream:
            metadata = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        story = json.loads(metadata["semipermeable.training"])
        version, own = story["version"], story["fingerprint"]
        state = Checkpoint(story["step"], story["first_loss"], story["seconds"], tensors, story.get("figures"))
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} is not a training checkpoint ({error!r}); delete it or name another file") from error
    if version != _VERSION:
        raise ConfigError(f"checkpoint {path} has version {version!r}, this package reads {_VERSION}; delete it")
    if own != fingerprint:
        raise ConfigError(
            f"checkpoint {path} belongs to another run (concept, settings, seed or base model differ); "
            "repeat the run with what it was started with, delete the file, or name another"
        )
    return state
