"""The folder of membranes: what is on disk, read and checked against the denoiser, file by file.

A file that cannot be used does not take its last good content away: the membrane read before stays in force and the
problem is reported. A file that is gone takes its membrane with it. Only `.safetensors` files are opened, and the
reader refuses pickles whatever their name. The state of a training that `spm erase --resume` keeps is no membrane.

A file that the system did not let us read is looked at again every time: what mends it, permissions or room for one
more open file, shows in no signature.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from semipermeable.errors import SemipermeableError
from semipermeable.files import load
from semipermeable.files.loading import CHECKPOINT
from semipermeable.generation.png import file_digest
from semipermeable.membrane import Membrane

__all__ = ["Problem", "Shelf", "Shelved", "folded", "scan", "unseen"]

_SUFFIX = ".safetensors"
_ATTEMPTS = 3
Signature = tuple[int, int, int]
Entry = tuple[Signature | None, "Shelved | None", str]
"""Signature (None: to be looked at again), what the file holds or held last, and what is wrong, or ""."""


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
        seen: what was found in each file; lets the next scan skip files that did not change.
        lost: files that hold no usable membrane and never did, and the folder where nobody knows what it holds: what
            "every membrane" is short of. A second file of one concept is not: the first erases it.
    """

    membranes: Mapping[str, Shelved] = field(default_factory=lambda: dict[str, Shelved]())
    problems: tuple[Problem, ...] = ()
    seen: Mapping[str, Entry] = field(default_factory=lambda: dict[str, Entry]())
    lost: tuple[str, ...] = ()


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
        return unseen(folder, before, message, lost=not before.seen)
    seen: dict[str, Entry] = {}
    for name, signature in signatures.items():
        known = before.seen.get(name)
        if known is not None and known[0] == signature:
            seen[name] = known
        else:
            found, message, again = _read(folder / name, fit)
            seen[name] = (None if again else signature, found or (known[1] if known else None), message)
    if seen == before.seen and not any(problem.file == folder.name for problem in before.problems):
        return before
    return _shelf(seen)


def unseen(folder: Path, before: Shelf, message: str, *, lost: bool) -> Shelf:
    """Return the shelf of a folder that could not be looked at: all of the last scan, and what is wrong.

    Args:
        folder: where the membranes are.
        before: the last scan; it is returned itself if it says the same already.
        message: what is wrong and the next step.
        lost: whether there may be membranes that the last scan does not know.
    """
    gone = Problem(folder.name, message, kept=bool(before.seen))
    problems = [problem for problem in before.problems if problem.file != folder.name]
    names = tuple(dict.fromkeys((*before.lost, *(folder.name,) * lost)))
    same = gone in before.problems and names == before.lost
    return before if same else Shelf(before.membranes, (gone, *problems), before.seen, names)


def _signatures(folder: Path) -> dict[str, Signature]:
    found: dict[str, Signature] = {}
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not entry.name.endswith(_SUFFIX) or entry.name.endswith(CHECKPOINT) or entry.name.startswith("."):
                continue
            if entry.is_file():
                facts = entry.stat()
                found[entry.name] = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
    return found


def _read(path: Path, fit: Callable[[Membrane], Membrane]) -> tuple[Shelved | None, str, bool]:
    """Return the membrane or None, what is wrong or "", and whether to look again though nothing changes."""
    try:
        for _ in range(_ATTEMPTS):
            digest = file_digest(path)
            membrane = fit(load(path))
            # The hash that goes to the records must be of the bytes that were read.
            if file_digest(path) == digest:
                return Shelved(path.name, digest, membrane), "", False
    except SemipermeableError as error:
        return None, str(error).replace(f"{path.parent}{os.sep}", ""), isinstance(error.__cause__, OSError)
    except OSError as error:
        return None, f"cannot be read: {error.strerror}; check its permissions", True
    return None, "changes while it is read; write it beside the folder and rename it into place", False


def _shelf(seen: Mapping[str, Entry]) -> Shelf:
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
    return Shelf(membranes, tuple(problems), seen, tuple(name for name, (_, found, _) in seen.items() if found is None))
