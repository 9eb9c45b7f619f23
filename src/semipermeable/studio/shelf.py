"""The shelf: membranes as files in the work folder, each with a switch and a strength."""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semipermeable.errors import MembraneError, StudioError
from semipermeable.files import load, save
from semipermeable.files.loading import membrane_files
from semipermeable.membrane import Membrane
from semipermeable.studio.workfolder import WorkFolder, stem_of

__all__ = ["STRONGEST", "Shelf", "Shelved"]

STRONGEST = 3.0
"""Largest strength that the page offers."""


@dataclass(frozen=True, slots=True)
class Shelved:
    """One membrane on the shelf.

    Args:
        file: name of its file.
        on: whether it acts.
        strength: factor on γ.
        membrane: the membrane; None if the file cannot be read.
        problem: why it cannot be read; "" if it can.
    """

    file: str
    on: bool
    strength: float
    membrane: Membrane | None
    problem: str = ""

    @property
    def name(self) -> str:
        """What it erases, or its file's name."""
        return self.file if self.membrane is None else self.membrane.name


class Shelf:
    """The membranes of a work folder; the folder is read anew whenever it is looked at.

    Args:
        work: its corner "membranes" holds the files, `shelf.json` the switches.
    """

    def __init__(self, work: WorkFolder) -> None:
        self._work = work
        self._path = work.root / "shelf.json"
        self._lock = threading.RLock()
        self._read: dict[str, tuple[tuple[int, int], Membrane | None, str]] = {}

    def items(self) -> list[Shelved]:
        """Return everything on the shelf, sorted by file name."""
        with self._lock:
            switches = self._work.read(self._path)
            files = membrane_files(self._work.corner("membranes"))
            return [self._item(path, switches.get(path.name)) for path in files if not path.name.startswith(".")]

    def acting(self) -> list[Shelved]:
        """Return what is switched on.

        Raises:
            StudioError: if one of them cannot be read: never draw bare by accident.
        """
        found = [item for item in self.items() if item.on]
        for item in found:
            if item.membrane is None:
                raise StudioError(f"{item.file} is switched on but cannot be read ({item.problem}); switch it off")
        return found

    def get(self, file: str) -> Shelved:
        """Return one.

        Raises:
            StudioError: if it is not there.
        """
        for item in self.items():
            if item.file == file:
                return item
        raise StudioError(f"there is no membrane {file!r} on the shelf; erase a concept first, or add its file")

    def switch(self, file: str, *, on: bool | None = None, strength: float | None = None) -> None:
        """Set a switch or a strength; what is None stays.

        Raises:
            StudioError: if there is no such membrane, or the strength is not in [0, STRONGEST].
        """
        if strength is not None and not 0 <= strength <= STRONGEST:
            raise StudioError(f"a strength lies between 0 and {STRONGEST:g}, found {strength!r}")
        with self._lock:
            item = self.get(file)
            switches = self._work.read(self._path)
            switches[file] = {
                "on": item.on if on is None else on,
                "strength": item.strength if strength is None else float(strength),
            }
            self._work.write(self._path, switches)

    def put(self, membrane: Membrane) -> str:
        """Save a membrane, switch it on, and return its file's name; one of the same name is replaced."""
        with self._lock:
            file = f"{stem_of(membrane.name)}.safetensors"
            save(membrane, self._work.place("membranes", file))
            self.switch(file, on=True)
            return file

    def add_file(self, path: Path) -> str:
        """Read a membrane or another program's adapter, and put it on the shelf.

        Raises:
            MembraneFileError: if it is neither.
        """
        return self.put(load(path))

    def remove(self, file: str) -> None:
        """Take a membrane off the shelf and delete its file.

        Raises:
            StudioError: if it is not there.
        """
        with self._lock:
            item = self.get(file)
            self._work.place("membranes", item.file).unlink(missing_ok=True)
            switches = self._work.read(self._path)
            switches.pop(file, None)
            self._work.write(self._path, switches)

    def _item(self, path: Path, switch: Any) -> Shelved:
        membrane, problem = self._load(path)
        told: dict[str, Any] = switch if isinstance(switch, dict) else {}
        strength: Any = told.get("strength", 1.0)
        usable = isinstance(strength, int | float) and 0 <= strength <= STRONGEST
        return Shelved(path.name, told.get("on") is True, float(strength) if usable else 1.0, membrane, problem)

    def _load(self, path: Path) -> tuple[Membrane | None, str]:
        try:
            facts = path.stat()
        except OSError as error:
            return None, str(error)
        stamp = (facts.st_mtime_ns, facts.st_size)
        known = self._read.get(path.name)
        if known is None or known[0] != stamp:
            try:
                known = (stamp, load(path), "")
            except MembraneError as error:
                known = (stamp, None, " ".join(str(error).split()))
            self._read[path.name] = known
        return known[1], known[2]
