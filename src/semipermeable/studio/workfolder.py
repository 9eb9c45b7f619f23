"""The folder in which a studio keeps everything, and the one place where names become paths.

A name that came from a browser is a plain file name or it is refused: no separator, no leading dot, no link that leads
out of the folder.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal, get_args

from semipermeable.errors import StudioError
from semipermeable.files.atomic import write_atomically
from semipermeable.generation.output import check_writable, explain

__all__ = ["Corner", "WorkFolder", "stem_of"]

Corner = Literal["membranes", "models", "erasing", "drawings", "results", "exports"]
"""Folders of a work folder."""

_LONGEST = 60


def stem_of(name: str) -> str:
    """Return the file name, without ending, that stands for a name; different names have different ones.

    Args:
        name: what people call a thing, e.g. "Van Gogh".
    """
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LONGEST]
    if slug.replace("-", " ") == name:
        return slug
    return f"{slug}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".strip("-")


class WorkFolder:
    """A folder on disk with a corner for each kind of thing.

    Args:
        root: the folder; made if missing.

    Raises:
        OutputError: if it cannot be written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        check_writable(self.root, folder=True)
        try:
            for corner in get_args(Corner):
                (self.root / corner).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain(self.root, error) from error

    def corner(self, corner: Corner) -> Path:
        """Return the folder of a kind of thing."""
        return self.root / corner

    def place(self, corner: Corner, name: str) -> Path:
        """Return the path of a name inside a corner.

        Args:
            corner: which.
            name: a plain file or folder name.

        Raises:
            StudioError: if the name would lead out of the corner.
        """
        base = self.corner(corner)
        plain = bool(name) and name == Path(name).name and not name.startswith(".") and name.isprintable()
        if not plain or "\\" in name or not (base / name).resolve().is_relative_to(base.resolve()):
            raise StudioError(
                f"{name!r} is not a plain file name of the studio's folder {corner!r}; choose one from the list"
            )
        return base / name

    def read(self, path: Path) -> dict[str, Any]:
        """Return the JSON object in a file of ours; an empty one if the file is missing or damaged."""
        try:
            found: Any = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write(self, path: Path, content: dict[str, Any]) -> None:
        """Replace a JSON file of ours, whole or not at all.

        Raises:
            OutputError: if it cannot be written.
        """
        write_atomically(path, json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True).encode())
