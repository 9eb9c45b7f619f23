"""Membranes as files to carry away: the plain membrane, and every layout that other programs read."""

import shutil
import zipfile
from pathlib import Path
from typing import Any

from semipermeable.errors import StudioError, closest
from semipermeable.files.exporting import LAYOUTS, export
from semipermeable.generation import staged_file
from semipermeable.hosts import host_for
from semipermeable.studio.shelf import Shelved
from semipermeable.studio.workfolder import WorkFolder

__all__ = ["MEMBRANE", "describe", "formats", "pack"]

MEMBRANE = "membrane"
"""The plain membrane file, the one format with a gate."""


def formats() -> list[str]:
    """Return every format, the membrane first."""
    return [MEMBRANE, *LAYOUTS]


def describe(layout: str) -> str:
    """Say who reads a format."""
    return "this package; keeps its gate" if layout == MEMBRANE else LAYOUTS[layout].describes


def pack(work: WorkFolder, item: Shelved, layout: str, pipe: Any) -> Path:
    """Write a membrane in a format and return the file to download; a layout that is a folder becomes a zip file.

    Args:
        work: the file lies in its corner "exports".
        item: which membrane.
        layout: one of `formats()`.
        pipe: the model it is for, where names are looked up.

    Raises:
        StudioError: if the format is not known, or the membrane cannot be read.
        ExportError: if the layout cannot express the membrane.
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
    denoiser = host_for(pipe).denoiser
    if not LAYOUTS[layout].folder:
        target = work.place("exports", f"{stem}-{layout}.safetensors")
        export(item.membrane, target, layout, denoiser=denoiser)
        return target
    target = work.place("exports", f"{stem}-{layout}.zip")
    with staged_file(target) as path:
        inner = path.parent / stem
        export(item.membrane, inner, layout, denoiser=denoiser)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
            for part in sorted(inner.iterdir()):
                bundle.write(part, f"{stem}/{part.name}")
        shutil.rmtree(inner)
    return target
