"""What is to be erased, as plain data.

A concept has a name, other names for the same thing (aliases), a surrogate it should fall to ("" = nothing in
particular), and phrases to keep although they look alike ("cat face" beside "cat"). It is immutable and hashable.
"""

import re
from dataclasses import dataclass

from semipermeable.errors import ConceptError

__all__ = ["Concept"]

_SPACES = re.compile(r"\s+")


def _clean(text: object, field: str) -> str:
    if not isinstance(text, str):
        raise ConceptError(f"concept field {field!r} must be text, found {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConceptError(f"concept field {field!r} is not valid Unicode text: {text!r}; write it in UTF-8") from error
    return _SPACES.sub(" ", text).strip()


def _clean_all(texts: object, field: str) -> tuple[str, ...]:
    if isinstance(texts, str) or not isinstance(texts, tuple | list):
        raise ConceptError(f"concept field {field!r} must be a list of texts, found {texts!r}; write [{texts!r}]")
    seen: dict[str, None] = {}
    for text in texts:
        word = _clean(text, field)
        if not word:
            raise ConceptError(f"concept field {field!r} holds an empty text; remove it")
        seen.setdefault(word, None)
    return tuple(seen)


@dataclass(frozen=True, slots=True)
class Concept:
    """A thing to erase.

    Args:
        name: what people call it in a prompt, e.g. "cat" or "Van Gogh". White space is normalised.
        aliases: other names for the same thing; erased too.
        surrogate: what a prompt about the concept should draw instead; "" draws what is left of the prompt.
        keep: phrases that contain or resemble the concept but must stay, e.g. ("cat face",).

    Raises:
        ConceptError: if a field has the wrong type or is not Unicode, the name is empty, or a phrase is both erased and
            kept.
    """

    name: str
    aliases: tuple[str, ...] = ()
    surrogate: str = ""
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        name = _clean(self.name, "name")
        if not name:
            raise ConceptError("a concept needs a name, e.g. Concept('cat')")
        aliases = tuple(a for a in _clean_all(self.aliases, "aliases") if a.casefold() != name.casefold())
        keep = _clean_all(self.keep, "keep")
        erased = {text.casefold() for text in (name, *aliases)}
        both = [text for text in keep if text.casefold() in erased]
        if both:
            raise ConceptError(f"concept {name!r}: {both[0]!r} is to be erased and to be kept; remove one")
        surrogate = _clean(self.surrogate, "surrogate")
        if surrogate.casefold() in erased:
            raise ConceptError(f"concept {name!r}: the surrogate {surrogate!r} is the concept itself; choose another")
        for field, value in (("name", name), ("aliases", aliases), ("surrogate", surrogate), ("keep", keep)):
            object.__setattr__(self, field, value)

    @property
    def names(self) -> tuple[str, ...]:
        """The name, then the aliases."""
        return (self.name, *self.aliases)
