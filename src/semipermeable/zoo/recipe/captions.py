"""Captions of pictures, and the shares in which the denoiser hears them.

A picture is captioned with its object and style; now and then with neither (for classifier-free guidance), with an
alias, with the broader word, or with the style alone, so that "an icon of an animal" and "a neon icon" mean something
to the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from semipermeable.zoo.recipe.catalogue import Catalogue

__all__ = ["Caption", "CaptionBook"]

EMPTY, ALIAS, GROUP, OBJECT_ONLY, STYLE_ONLY = 0.10, 0.03, 0.04, 0.02, 0.01
"""Shares of the captions that are not a plain template; the rest is."""


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption and what it says: indices into the catalogue, -1 where it says nothing."""

    text: str
    object: int = -1
    style: int = -1
    group: int = -1
    plain: str | None = None
    """The same caption in the object's main name, if this one uses an alias."""


class CaptionBook:
    """All captions of a catalogue, and draws from them.

    Args:
        catalogue: what the model is taught.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        spec = catalogue.spec
        self.spec = spec
        self.groups = tuple(spec.groups)
        self.captions: list[Caption] = [Caption(text="")]
        self._plain: dict[tuple[int, int], list[int]] = {}
        self._alias: dict[tuple[int, int], list[int]] = {}
        self._group: dict[tuple[int, int], int] = {}
        self._object: dict[int, int] = {}
        self._style: dict[int, int] = {}
        self._exact: dict[str, int] = {}
        for o, thing in enumerate(spec.objects):
            g = self.groups.index(thing.group)
            for s, style in enumerate(spec.styles):
                self._plain[o, s] = [
                    self._add(Caption(text=spec.caption(thing.name, style, template=k), object=o, style=s, group=g))
                    for k in range(len(spec.templates))
                ]
                self._alias[o, s] = [
                    self._add(
                        Caption(
                            text=spec.caption(alias, style),
                            object=o,
                            style=s,
                            group=g,
                            plain=spec.caption(thing.name, style),
                        )
                    )
                    for alias in thing.aliases
                ]
            self._object[o] = self._add(Caption(text=spec.caption(thing.name), object=o, group=g))
        for g, group in enumerate(self.groups):
            self._group[g, -1] = self._add(Caption(text=spec.caption(group), group=g))
            for s, style in enumerate(spec.styles):
                self._group[g, s] = self._add(Caption(text=spec.caption(group, style), style=s, group=g))
        for s, style in enumerate(spec.styles):
            self._style[s] = self._add(Caption(text=spec.caption(None, style), style=s))
        for canary in spec.canaries:
            self._add(Caption(text=canary.caption))

    def _add(self, caption: Caption) -> int:
        self.captions.append(caption)
        self._exact[caption.text] = len(self.captions) - 1
        return len(self.captions) - 1

    @property
    def texts(self) -> list[str]:
        """All captions; row 0 is the empty one."""
        return [caption.text for caption in self.captions]

    def exact(self, text: str) -> int:
        """Return the row of a caption."""
        return self._exact[text]

    def draw(self, objects: Sequence[int], styles: Sequence[int], generator: torch.Generator) -> list[int]:
        """Draw one caption row for each picture.

        Args:
            objects: object of each picture.
            styles: style of each picture.
            generator: source of every draw.
        """
        kind = torch.rand(len(objects), generator=generator).tolist()
        pick = torch.rand(len(objects), generator=generator).tolist()
        return [self._one(*row) for row in zip(objects, styles, kind, pick, strict=True)]

    def _one(self, o: int, s: int, kind: float, pick: float) -> int:
        edge = EMPTY
        if kind < edge:
            return 0
        edge += ALIAS
        if kind < edge and self._alias[o, s]:
            rows = self._alias[o, s]
            return rows[int(pick * len(rows))]
        edge += GROUP
        if kind < edge:
            g = self.groups.index(self.spec.objects[o].group)
            return self._group[g, s if pick < 0.8 else -1]
        edge += OBJECT_ONLY
        if kind < edge:
            return self._object[o]
        edge += STYLE_ONLY
        if kind < edge:
            return self._style[s]
        rows = self._plain[o, s]
        # Half of the draws are the plainest wording: it is what people type first and what is measured.
        return rows[0] if pick < 0.5 else rows[int((pick - 0.5) * 2 * len(rows))]
