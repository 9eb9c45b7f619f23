"""The folder of membranes: what is on disk, read and checked against the denoiser, file by file.

A file that cannot be used does not take its last good content away: the membrane read before stays in force and the
problem is reported. A file that is gone takes its membrane with it. Only `.safetensors` files are opened, and the
reader refuses pickles whatever their name.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from semipermeable.errors import SemipermeableError
from semipermeable.files import load
from semipermeable.generation.png import file_digest
from semipermeable.membrane import Membrane

__all__ = ["Problem", "Shelf", "Shelved", "folded", "scan"]

_SUFFIX = ".safetensors"
_ATTEMPTS = 3
Signature = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Shelved:
    """A membrane ready to act.

    Args:
        file: name of its file, without folder.
        sha256: of the file.
        membrane: with the site names of the server's own denoiser.
    """

    file: str
    sha256: str
    membrane: Membrane

    @property
    def concept(self) -> str:
        """The concept's name."""
        return self.membrane.name


@dataclass(frozen=True, slots=True)
class Problem:
    """Something on disk that is not as it should be.

    Args:
        file: name of the file, without folder.
        message: what is wrong and the next step, without machine paths.
        kept: whether the content read before is still in force.
    """

    file: str
    message: str
    kept: bool


@dataclass(frozen=True, eq=False)
class Shelf:
    """All membranes of the folder at one time.

    Args:
        membranes: concept (folded) to membrane.
        problems: files that could not be used.
        seen: file to (signature, what was found); lets the next scan skip files that did not change.
    """

    membranes: Mapping[str, Shelved] = field(default_factory=lambda: dict[str, Shelved]())
    problems: tuple[Problem, ...] = ()
    seen: Mapping[str, tuple[Signature, Shelved | None, str]] = field(
        default_factory=lambda: dict[str, tuple[Signature, Shelved | None, str]]()
    )

    @property
    def lost(self) -> tuple[str, ...]:
        """Files that hold no usable membrane and never did: what "every membrane" is short of."""
        return tuple(problem.file for problem in self.problems if not problem.kept)


def folded(concept: str) -> str:
    """Return a concept's name as it is compared: case and white space do not count."""
    return " ".join(concept.split()).casefold()


def scan(folder: Path, before: Shelf, fit: Callable[[Membrane], Membrane]) -> Shelf:
    """Look at the folder.

    Args:
        folder: where the membranes are; may be missing, which is a problem and no error.
        before: the last scan.
        fit: returns a membrane with the denoiser's site names, or raises if it does not belong to it.

    Returns:
        The new shelf; `before` itself if nothing changed.
    """
    try:
        signatures = _signatures(folder)
    except OSError as error:
        message = f"the folder of membranes cannot be read: {error.strerror}; check the path"
        gone = Problem(folder.name, message, kept=bool(before.seen))
        return before if gone in before.problems else Shelf(before.membranes, (gone,), before.seen)
    unchanged = {name: before.seen[name][0] for name in before.seen} == signatures
    if unchanged and not any(problem.file == folder.name for problem in before.problems):
        return before
    seen: dict[str, tuple[Signature, Shelved | None, str]] = {}
    for name, signature in signatures.items():
        known = before.seen.get(name)
        if known is not None and known[0] == signature:
            seen[name] = known
        else:
            found, message = _read(folder / name, fit)
            seen[name] = (signature, found or (known[1] if known else None), message)
    return _shelf(seen)


def _signatures(folder: Path) -> dict[str, Signature]:
    found: dict[str, Signature] = {}
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.endswith(_SUFFIX) and not entry.name.startswith(".") and entry.is_file():
                facts = entry.stat()
                found[entry.name] = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
    return found


def _read(path: Path, fit: Callable[[Membrane], Membrane]) -> tuple[Shelved | None, str]:
    """Return (membrane, "") or (None, what is wrong)."""
    try:
        for _ in range(_ATTEMPTS):
            digest = file_digest(path)
            membrane = fit(load(path))
            # The hash that goes to the records must be of the bytes that were read.
            if file_digest(path) == digest:
                return Shelved(path.name, digest, membrane), ""
    except SemipermeableError as error:
        return None, str(error).replace(f"{path.parent}{os.sep}", "")
    except OSError as error:
        return None, f"cannot be read: {error.strerror}; check its permissions"
    return None, "changes while it is read; write it beside the folder and rename it into place"


def _shelf(seen: Mapping[str, tuple[Signature, Shelved | None, str]]) -> Shelf:
    membranes: dict[str, Shelved] = {}
    problems: list[Problem] = []
    for name, (_, found, message) in seen.items():
        if message:
            problems.append(Problem(name, message, kept=found is not None))
        if found is None:
            continue
        other = membranes.get(folded(found.concept))
        if other is not None:
            twice = f"erases {found.concept!r}, as {other.file!r} does; that one is in force, remove one of them"
            problems.append(Problem(name, twice, kept=False))
        else:
            membranes[folded(found.concept)] = found
    return Shelf(membranes, tuple(problems), seen)
