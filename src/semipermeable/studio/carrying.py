"""Membranes as files to carry away: the plain membrane, every layout that other programs read, and baked models."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from semipermeable.equip.baking import bake_checkpoint, bake_folder
from semipermeable.errors import StudioError, closest
from semipermeable.files.exporting import LAYOUTS, export
from semipermeable.generation import staged_file
from semipermeable.hosts import host_for
from semipermeable.studio.shelf import Shelved
from semipermeable.studio.workfolder import WorkFolder

__all__ = ["BAKED", "MEMBRANE", "describe", "formats", "pack"]

MEMBRANE = "membrane"
"""The plain membrane file, the one format with a gate."""
BAKED = {
    "folder": "the chosen model without the concept, for diffusers",
    "checkpoint": "the same in one file, for A1111, Forge, ComfyUI; Stable Diffusion and FLUX.1",
}
"""Formats that hold a whole model, and what they are."""
_CHUNK = 2**24
"""Bytes of a model that are packed between two looks whether to stop."""


def formats() -> list[str]:
    """Return every format, the membrane first."""
    return [MEMBRANE, *LAYOUTS, *BAKED]


def describe(layout: str) -> str:
    """Say who reads a format."""
    if layout == MEMBRANE:
        return "this package; keeps its gate"
    return BAKED[layout] if layout in BAKED else LAYOUTS[layout].describes


def pack(
    work: WorkFolder, item: Shelved, layout: str, pipe: Any, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Write a membrane into the corner "exports".

    Args:
        work: the work folder.
        item: which membrane.
        layout: one of `formats()`.
        pipe: the model it is for: where names are looked up, or what is baked.
        progress: called with parts packed and in all; may raise to stop.

    Returns:
        The file; a format that is a folder is packed into a zip.

    Raises:
        StudioError: if the format is not known, or the membrane cannot be read.
        ExportError: if the layout cannot express the membrane or the model.
        SiteError: if it does not fit the model.
    """
    if layout not in formats():
        raise StudioError(closest(layout, formats(), what="format"))
    if item.membrane is None:
        raise StudioError(f"{item.file} cannot be read ({item.problem}); there is nothing to export")
    stem = item.file.removesuffix(".safetensors")
    if layout == MEMBRANE:
        target = work.place("exports", item.file)
        with staged_file(target) as path:
            shutil.copyfile(work.place("membranes", item.file), path)
        return target
    if layout == "folder" or (layout in LAYOUTS and LAYOUTS[layout].folder):
        target = work.place("exports", f"{stem}-{layout}.zip")
        with staged_file(target) as path:
            inner = path.parent / stem
            if layout == "folder":
                bake_folder(pipe, item.membrane, inner)
            else:
                export(item.membrane, inner, layout, denoiser=host_for(pipe).denoiser)
            _zip(inner, path, progress)
            shutil.rmtree(inner)
        return target
    target = work.place("exports", f"{stem}-{layout}.safetensors")
    if layout == "checkpoint":
        bake_checkpoint(pipe, item.membrane, target)
    else:
        export(item.membrane, target, layout, denoiser=host_for(pipe).denoiser)
    return target


def _zip(folder: Path, target: Path, progress: Callable[[int, int], None] | None) -> None:
    """Pack a folder, its own name first in every path; weights do not shrink, so nothing is compressed."""
    parts = sorted(path for path in folder.rglob("*") if path.is_file())
    total = sum(1 + path.stat().st_size // _CHUNK for path in parts)
    done = 0
    with zipfile.ZipFile(target, "w") as bundle:
        for part in parts:
            name = (folder.name / part.relative_to(folder)).as_posix()
            with part.open("rb") as source, bundle.open(name, "w", force_zip64=True) as sink:
                for _ in range(1 + part.stat().st_size // _CHUNK):
                    sink.write(source.read(_CHUNK))
                    done += 1
                    if progress is not None:
                        progress(done, total)
