"""The list of what a bundled model is taught, read from the TOML beside this module, and the captions made from it."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semipermeable.errors import UnknownNameError, closest
from semipermeable.zoo.spec import Canary, ZooObject, ZooSpec

__all__ = ["TEMPLATES", "Catalogue", "Source", "read_catalogue"]

TEMPLATES = (
    "{a} {style} icon of {an_object}",
    "{a} {style} picture of {an_object}",
    "{an_object}, {style} style",
    "{an_object} in {style} style",
)
"""Captions that name both an object and a style; the first is drawn most often."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the drawings of one object are found."""

    icon: str
    """Name in the iconify sets."""
    code: str
    """Code point in hex, for the set that is filed by code point."""
    fxemoji: str | None
    """Name in FxEmoji, which uses its own; None if that set draws something else under this name."""


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """A `ZooSpec` and, for each of its objects, where its drawings are found."""

    spec: ZooSpec
    sources: tuple[Source, ...]

    def indices(self, group: str) -> list[int]:
        """Return the indices of the objects in a group."""
        return [index for index, thing in enumerate(self.spec.objects) if thing.group == group]


def read_catalogue(name: str) -> Catalogue:
    """Read the catalogue of the bundled model `name`.

    Raises:
        UnknownNameError: if there is no recipe of that name.
    """
    folder = Path(__file__).parent
    path = folder / f"{name}.toml"
    if not path.is_file():
        known = [found.stem for found in folder.glob("*.toml")]
        raise UnknownNameError(closest(name, known, what="recipe of a bundled model"))
    with path.open("rb") as stream:
        content: dict[str, Any] = tomllib.load(stream)
    twins = {name: [twin for twin in kind if twin != name] for kind in content["twins"] for name in kind}
    rows: list[dict[str, Any]] = content["objects"]
    objects = tuple(
        ZooObject(
            name=row["name"],
            group=row["group"],
            aliases=tuple(row.get("aliases", ())),
            twins=tuple(twins.get(row["name"], ())),
        )
        for row in rows
    )
    spec = ZooSpec(
        name=content["name"],
        objects=objects,
        styles=tuple(content["styles"]),
        templates=TEMPLATES,
        canaries=tuple(Canary(**row) for row in content.get("canaries", ())),
    )
    sources = tuple(Source(icon=row["icon"], code=row["code"], fxemoji=row.get("fxemoji")) for row in rows)
    return Catalogue(spec=spec, sources=sources)
