"""Membranes that come with a bundled model, made beforehand: `zoo:cat` wherever a membrane file can be named.

A bundle may hold `membranes.safetensors`, a packed file as `spm bank pack` writes it, and `membranes.json` with what
the judges found of each. Both stand in the bundle's manifest, and neither is read before its digest was compared.
`spm zoo membranes --build` makes them (`semipermeable.evaluation.pretuned`).
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semipermeable.errors import UnknownNameError, ZooError, closest
from semipermeable.zoo.bundle import bundle_folder, read_manifest, verify

if TYPE_CHECKING:
    from semipermeable.membrane import Membrane

__all__ = ["FIGURES", "PACKED", "PREFIX", "load_membrane", "membrane", "membrane_figures", "membranes", "shipped_name"]

PREFIX = "zoo:"
"""How the name of a shipped membrane begins where a file could stand."""
PACKED = "membranes.safetensors"
"""The packed file in a bundle."""
FIGURES = "membranes.json"
"""What the judges found, in a bundle."""
_DEFAULT = "emoji"


def membranes(model: str | Path = _DEFAULT) -> list[str]:
    """Return the names of the membranes that come with a bundled model, sorted; of a bundle without any, none.

    Args:
        model: see `zoo.load`.

    Raises:
        UnknownNameError: if no bundled model has that name.
        ZooError: if a file is missing or damaged.
    """
    return sorted(membrane_figures(model)["membranes"])


def membrane_figures(model: str | Path = _DEFAULT) -> dict[str, Any]:
    """Return what the judges found of a bundled model's membranes, as JSON data.

    Args:
        model: see `zoo.load`.

    Returns:
        How it was measured, and under "membranes" the figures by name (docs/zoo.md): counts with 95 % Wilson intervals.

    Raises:
        UnknownNameError: if no bundled model has that name.
        ZooError: if a file is missing or damaged.
    """
    folder = bundle_folder(model)
    if FIGURES not in read_manifest(folder)["files"]:
        return {"membranes": {}}
    verify(folder, [FIGURES])
    found: dict[str, Any] = json.loads((folder / FIGURES).read_text(encoding="utf-8"))
    return found


def membrane(concept: str, model: str | Path = _DEFAULT) -> "Membrane":
    """Return a membrane that comes with a bundled model.

    Args:
        concept: one of `membranes(model)`.
        model: see `zoo.load`.

    Raises:
        UnknownNameError: if the model comes without one of that name; close names are suggested.
        ZooError: if a file is missing or damaged.
    """
    from semipermeable.files.bank import PackedFile

    known = membranes(model)
    if concept not in known:
        raise UnknownNameError(f"{closest(concept, known, what='zoo membrane')} All: spm zoo membranes")
    folder = bundle_folder(model)
    verify(folder, [PACKED])
    packed = PackedFile(folder / PACKED)
    try:
        found = next((record for record in packed.records if record.name == concept), None)
        if found is None:
            raise ZooError(f"{PACKED} of the bundled model {folder.name!r} lacks {concept!r}; reinstall semipermeable")
        return found.read()
    finally:
        packed.close()


def shipped_name(place: str | os.PathLike[str]) -> str | None:
    """Return the concept that `zoo:CONCEPT` names, or None where `place` is a path."""
    text = os.fspath(place)
    return text.removeprefix(PREFIX) if text.startswith(PREFIX) else None


def load_membrane(place: str | os.PathLike[str]) -> "Membrane":
    """Read a membrane from a file, or one that comes with the package.

    Args:
        place: a path as `files.load` takes it, or `zoo:CONCEPT`; a file of such a name needs its folder before it.

    Raises:
        UnknownNameError: if no membrane of that name comes with the package; close names are suggested.
        MembraneFileError: see `files.load`.
    """
    from semipermeable.files import load

    concept = shipped_name(place)
    return load(place) if concept is None else membrane(concept)
