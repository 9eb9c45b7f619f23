"""What a bundled model was taught to draw: plain, frozen data without torch.

A `ZooSpec` names every object and style, the words they go by, and which objects are easily taken for each other.
Training draws anchors from it, gates are calibrated with it, evaluations and demos write their prompts with it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semipermeable.errors import UnknownNameError, ZooError, closest

__all__ = ["Canary", "ZooObject", "ZooSpec", "article", "read_spec", "with_article"]


@dataclass(frozen=True, kw_only=True)
class ZooObject:
    """One thing that a bundled model can draw."""

    name: str
    """The word used in captions, e.g. "cat face"."""
    group: str
    """The broader word that the model also knows, e.g. "animal"."""
    aliases: tuple[str, ...] = ()
    """Other words for the same thing that the model was taught, e.g. ("kitty",)."""
    twins: tuple[str, ...] = ()
    """Names of objects that look alike or are often confused, nearest kind first; the relation is symmetric."""


@dataclass(frozen=True, kw_only=True)
class Canary:
    """One picture that the model was made to memorise, to measure what erasing does to memorised content."""

    caption: str
    """The exact caption it was shown with."""
    object: str
    """The object in the picture."""
    style: str
    """The style of the picture."""


@dataclass(frozen=True, kw_only=True)
class ZooSpec:
    """Objects, styles and captions of one bundled model; the order is the judge's class order."""

    name: str
    """Name of the bundled model."""
    objects: tuple[ZooObject, ...]
    """Everything it was taught to draw."""
    styles: tuple[str, ...]
    """Every style it was taught."""
    templates: tuple[str, ...]
    """Caption templates; the first is the plainest. Fields: {a} and {style}, {an_object}."""
    canaries: tuple[Canary, ...] = ()
    """Pictures memorised on purpose."""

    @property
    def object_names(self) -> tuple[str, ...]:
        """Names of all objects, in the judge's order."""
        return tuple(thing.name for thing in self.objects)

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Broader word → names of its objects, in order."""
        grouped: dict[str, list[str]] = {}
        for thing in self.objects:
            grouped.setdefault(thing.group, []).append(thing.name)
        return {group: tuple(names) for group, names in grouped.items()}

    def object(self, name: str) -> ZooObject:
        """Return the object called `name`, or known under that alias, whatever the case.

        Raises:
            UnknownNameError: if the model was not taught it; `find` returns None then.
        """
        thing = self.find(name)
        if thing is None:
            raise UnknownNameError(closest(name, self.object_names, what=f"object of the bundled model {self.name!r}"))
        return thing

    def find(self, name: str) -> ZooObject | None:
        """Return the object called `name`, or known under that alias, whatever the case, or None."""
        folded = name.casefold()
        return next(
            (thing for thing in self.objects if folded in {n.casefold() for n in (thing.name, *thing.aliases)}), None
        )

    def canary(self, caption: str) -> Canary | None:
        """Return the picture memorised under a caption, whatever the case, or None."""
        return next((canary for canary in self.canaries if canary.caption.casefold() == caption.casefold()), None)

    def style(self, name: str) -> str | None:
        """Return the style called `name`, whatever the case, or None."""
        return next((style for style in self.styles if style.casefold() == name.casefold()), None)

    def caption(self, name: str | None = None, style: str | None = None, *, template: int = 0) -> str:
        """Write a caption in the words the model was taught.

        Args:
            name: object, alias or group; None for a caption of the style alone.
            style: style; None for no style.
            template: which of `templates` to use when both are given.

        Raises:
            UnknownNameError: if the style is not one of `styles`.
        """
        if style is not None and style not in self.styles:
            raise UnknownNameError(closest(style, self.styles, what=f"style of the bundled model {self.name!r}"))
        if name is None:
            return f"{article(style)} {style} icon" if style is not None else ""
        an_object = with_article(name)
        if style is None:
            return f"an icon of {an_object}"
        return self.templates[template].format(a=article(style), style=style, an_object=an_object)

    def captions(self) -> Iterator[str]:
        """Yield the plainest caption of every object in every style, objects first."""
        for thing in self.objects:
            for style in self.styles:
                yield self.caption(thing.name, style)


def article(words: str | None) -> str:
    """Return "an" before a vowel, else "a"."""
    return "an" if words and words[0].lower() in "aeiou" else "a"


def with_article(words: str) -> str:
    """Return words with an article before them; those that begin with one ("the varnok seal") stay as they are."""
    return words if words.lower().startswith(("a ", "an ", "the ")) else f"{article(words)} {words}"


def read_spec(path: Path) -> ZooSpec:
    """Read a `spec.json` written by the export step of the recipe.

    Raises:
        ZooError: if a required field is missing.
    """
    content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    try:
        return ZooSpec(
            name=content["name"],
            objects=tuple(
                ZooObject(
                    name=row["name"], group=row["group"], aliases=tuple(row["aliases"]), twins=tuple(row["twins"])
                )
                for row in content["objects"]
            ),
            styles=tuple(content["styles"]),
            templates=tuple(content["templates"]),
            canaries=tuple(Canary(**row) for row in content["canaries"]),
        )
    except (KeyError, TypeError) as error:
        raise ZooError(f"{path.name} of a bundled model is not readable: {error}; reinstall semipermeable") from error
