"""Read a membrane from any file this package knows, telling the formats apart by content."""

import dataclasses
import os
import tempfile
from pathlib import Path

from semipermeable.errors import MembraneError
from semipermeable.files.container import fail, open_container
from semipermeable.files.foreign import is_foreign, read_foreign
from semipermeable.files.metadata import KEY
from semipermeable.files.native import read_native
from semipermeable.membrane import Membrane

__all__ = ["CHECKPOINT", "load", "load_bytes", "membrane_files", "weights_file"]

CHECKPOINT = ".checkpoint.safetensors"
"""How the name of a training's state ends, which `spm erase --resume` keeps beside the membrane to be."""

_WEIGHTS = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""What PEFT and diffusers call the file in an adapter's folder."""


def load(path: str | os.PathLike[str], *, gate_power: int | None = None) -> Membrane:
    """Read a membrane.

    Args:
        path: a membrane file, a checkpoint of SPM's reference implementation, a LoRA of kohya, LECO, diffusers, PEFT or
            ComfyUI, or the folder of one (`weights_file`).
        gate_power: exponent on γ, 1 or 2; None takes what the file says (2 for the reference implementation's).

    Returns:
        The membrane; one of another format keeps its names until `attach` knows the denoiser.

    Raises:
        MembraneFileError: if the file is missing, damaged, hostile or of another kind; `key` names the culprit.
        MembraneError: if `gate_power` is neither 1 nor 2.
    """
    if gate_power is not None and gate_power not in (1, 2):
        raise MembraneError(f"gate_power must be 1 (the paper) or 2 (its reference code), found {gate_power!r}")
    with open_container(weights_file(path)) as container:
        if KEY in container.metadata:
            membrane = read_native(container)
        elif is_foreign(container):
            membrane = read_foreign(container)
        else:
            first = min(container.entries, default=None)
            what = f"first tensor {first!r}" if first else "no tensor"
            fail(
                container.path,
                f"is no membrane ({what}, no metadata key {KEY!r}); expected a file that `spm erase` or "
                "semipermeable.save wrote, or a LoRA of kohya, diffusers, PEFT or ComfyUI",
                first,
            )
    return membrane if gate_power is None else dataclasses.replace(membrane, gate_power=gate_power)


def weights_file(path: str | os.PathLike[str]) -> Path:
    """Return the file that `load` reads: of an adapter's folder, the weights that it always has; else `path` itself."""
    given = Path(path)
    try:
        return next((given / name for name in _WEIGHTS if (given / name).is_file()), given)
    except OSError:
        return given


def membrane_files(folder: Path) -> list[Path]:
    """Return the membrane files of a folder in the order of their names; the checkpoint of a training is none."""
    return [path for path in sorted(folder.glob("*.safetensors")) if not path.name.endswith(CHECKPOINT)]


def load_bytes(data: bytes) -> Membrane:
    """Read the bytes of a membrane's file, as strictly as a file on disk.

    Raises:
        MembraneFileError: if they are not one.
    """
    with tempfile.TemporaryDirectory(prefix="spm-") as folder:
        path = Path(folder) / "membrane.safetensors"
        path.write_bytes(data)
        return load(path)
