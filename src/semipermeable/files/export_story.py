"""What an exported adapter says about itself: one metadata key with the membrane's story, its names and its scale.

Other programs ignore the key; `semipermeable.load` reads the exact membrane back from it, all but the gate.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from semipermeable.errors import MembraneFileError
from semipermeable.files.container import Container, fail, strict_json
from semipermeable.files.metadata import Story, decode, encode
from semipermeable.membrane import Membrane

__all__ = ["EXPORT_KEY", "NOTICE", "SCALE", "ExportStory", "read_story", "write_story"]

EXPORT_KEY = "spm_export"
"""The metadata key; it does not begin with "semipermeable", which would mark a membrane file."""
NOTICE = (
    "It has no gate: it acts on every prompt, and on the unconditional rows too. To act only where the concept is "
    "asked for, equip the membrane itself with semipermeable."
)
SCALE = "u = (alpha / k) * up, v = down; alpha = k where it is given, and 1 is the scale where it is not"
"""What the tensors are to the membrane's (u, v): u = up and v = down, to the bit."""
_VERSION = 1
_FIELDS = {"layout", "membrane", "names", "notice", "scale", "version"}


@dataclass(frozen=True, slots=True)
class ExportStory:
    """The story in an exported file.

    Args:
        layout: the layout it was written in.
        story: concept, provenance, gate power.
        names: name in the file to site, where they differ.
    """

    layout: str
    story: Story
    names: Mapping[str, str]


def write_story(membrane: Membrane, layout: str, names: Mapping[str, str]) -> str:
    """Return the metadata text.

    Args:
        membrane: what was exported.
        layout: the layout.
        names: name in the file to site of the membrane, where they differ.

    Raises:
        MembraneError: if a setting cannot be stored as JSON, naming it.
    """
    plain = json.loads(encode(dataclasses.replace(membrane, gate=None)))
    content = {"layout": layout, "membrane": plain, "names": dict(names), "notice": NOTICE, "scale": SCALE}
    return json.dumps(content | {"version": _VERSION}, sort_keys=True, separators=(",", ":"))


def read_story(container: Container) -> ExportStory | None:
    """Return the story of a file that this package exported, or None.

    Raises:
        MembraneFileError: if there is one and it is not usable.
    """
    text = container.metadata.get(EXPORT_KEY)
    if text is None:
        return None
    step = "remove that metadata key to read the file as any other LoRA"
    try:
        found: Any = strict_json(text)
    except ValueError as error:
        fail(container.path, f"metadata key {EXPORT_KEY!r} is not JSON ({error}); {step}", EXPORT_KEY, error)
    content = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    if set(content) != _FIELDS or content["version"] != _VERSION or not isinstance(content["layout"], str):
        fail(container.path, f"metadata key {EXPORT_KEY!r} is not of version {_VERSION}; {step}", EXPORT_KEY)
    names = content["names"]
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in cast("dict[str, object]", names).values()):
        fail(container.path, f"'names' in metadata key {EXPORT_KEY!r} must be texts; {step}", EXPORT_KEY)
    try:
        story = decode(json.dumps(content["membrane"]))
    except MembraneFileError as error:
        fail(container.path, f"metadata key {EXPORT_KEY!r}: {error}", error.key, error)
    return ExportStory(content["layout"], story, cast("dict[str, str]", names))
