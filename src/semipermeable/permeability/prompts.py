"""Prompts to calibrate a gate with: a concept in many wordings, and everything else in the same wordings.

Both sides share their templates, so that a probe fitted on them must look at the subject. Every example says which
subject and which template it came from, so that whole subjects and whole templates can be held out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from semipermeable.concept import Concept
from semipermeable.errors import CalibrationError
from semipermeable.permeability.vocabulary import CAPTIONS, COMPOUNDS, NOUNS, STYLES
from semipermeable.permeability.words import Span, Word, find, forms, split

__all__ = [
    "Example",
    "Kind",
    "covered",
    "kept_spans",
    "kind_of",
    "means",
    "negatives",
    "phrases_around",
    "plural",
    "wordings",
]

Kind = Literal["object", "style"]

_OBJECT = (
    "{x}",
    "{a_x}",
    "an icon of {a_x}",
    "{a_s} icon of {a_x}",
    "{a_s} picture of {a_x}",
    "{a_x}, {s} style",
    "{a_x} in {s} style",
    "a photo of {a_x}",
    "two {xs}",
    "{a_x} and {a_y}",
    "{a_y} next to {a_x}",
    "a small red {x} on a table",
    "{a_x} sitting on a sofa",
    "{a_s} drawing of the {x}, highly detailed",
    "many {xs} in {s} style",
    "{x} {x}",
    "a very detailed {s} illustration on a plain white background that shows {a_x}",
)
_STYLE = (
    "{x}",
    "{a_x} icon",
    "{a_x} icon of {a_y}",
    "{a_x} picture of {a_y}",
    "{a_y}, {x} style",
    "{a_y} in {x} style",
    "in {x} style",
    "an icon of {a_y}, {x}",
    "{a_y} drawn as {x}",
    "{x} {y}",
    "{x} art of {a_y}",
    "two {y} icons in {x} style",
    "{x} style {y} and {z}",
    "a very detailed picture on a plain white background of {a_y}, {x} style",
    "{x} {x} {y}",
)
_COMPANIONS = ("tree", "house", "ball", "chair", "key", "fish", "car", "star")
_PAINTS = ("neon", "3d", "flat", "pencil sketch", "blueprint", "watercolour", "pixel art")
_BARE = ("an icon", "a picture", "{a_s} icon", "{a_s} picture of an animal", "something in {s} style")
_CAPTION_STARTS = ("a", "an", "the", "two", "in")
_PER_SUBJECT = 5
_VARIANTS = 2


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt with its origin.

    Args:
        text: the prompt.
        subject: the phrase it is about, e.g. "cat face".
        template: the template that it was written with; examples of one template are held out together.
    """

    text: str
    subject: str
    template: str


def kind_of(concept: Concept) -> Kind:
    """Return "style" if a name of the concept is a style of the built-in list or ends in "style", else "object"."""
    names = [name.casefold() for name in concept.names]
    return "style" if any(name in STYLES or name.endswith(" style") for name in names) else "object"


def _an(phrase: str) -> str:
    return f"{'an' if phrase[:1].lower() in 'aeiou' else 'a'} {phrase}"


def plural(phrase: str) -> str:
    """Return the regular plural of a phrase; a phrase that already is one stays."""
    if phrase.endswith("s") and phrase[:-1] in forms(phrase):
        return phrase
    if phrase.endswith(("s", "x", "z", "ch", "sh")):
        return phrase + "es"
    if phrase.endswith("y") and phrase[-2:-1] not in "aeiou":
        return phrase[:-1] + "ies"
    return phrase + "s"


def _write(template: str, subject: str, companion: str, paint: str, beside: str) -> str:
    return template.format(
        x=subject,
        a_x=_an(subject),
        xs=plural(subject),
        y=companion,
        a_y=_an(companion),
        z=beside,
        s=paint,
        a_s=_an(paint),
    )


def wordings(concept: Concept, kind: Kind | None = None) -> list[Example]:
    """Return the concept's names in every template, with plurals, and each name misspelt, in capitals and hyphenated.

    Args:
        concept: what the prompts are about.
        kind: "object" or "style"; None asks `kind_of`.

    Raises:
        CalibrationError: if every built-in object or style is one of the names.
    """
    kind = kind or kind_of(concept)
    templates = _OBJECT if kind == "object" else _STYLE
    companions, paints = _unnamed(concept, _COMPANIONS, NOUNS), _unnamed(concept, _PAINTS, STYLES)
    write = partial(_write, beside=companions[0])
    examples: list[Example] = []
    for row, name in enumerate(concept.names):
        for column, template in enumerate(templates):
            for turn in range(_VARIANTS):
                companion, paint = (words[(row + column + 3 * turn) % len(words)] for words in (companions, paints))
                examples.append(Example(write(template, name, companion, paint), name, template))
        plain = templates[3] if kind == "object" else templates[2]
        changed = [name.upper(), name.replace(" ", "-"), _slip(name)]
        for number, form in enumerate(dict.fromkeys(form for form in changed if form != name)):
            companion, paint = (words[number % len(words)] for words in (companions, paints))
            examples.append(Example(write(plain, form, companion, paint), name, f"changed {number}"))
    return list(dict.fromkeys(examples))


def _unnamed(concept: Concept, words: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return the words that do not name the concept; if all of them do, as many of the others.

    Raises:
        CalibrationError: if those name it too.
    """
    for several in (words, others):
        left = [word for word in several if not _mentions(concept, word)]
        if left:
            return left[: len(words)]
    raise CalibrationError(f"{concept.name!r} has every built-in name for an alias; nothing is left to compare it with")


def _slip(name: str) -> str:
    """Double the second letter of the longest word: a slip that makes no other word."""
    longest = max(name.split(), key=len)
    if len(longest) < 3 or not longest.isalpha():
        return name
    return name.replace(longest, longest[:2] + longest[1:], 1)


def _mentions(concept: Concept, text: str) -> bool:
    words = split(text)
    return any(find(name, words, known=None) for name in concept.names)


def phrases_around(concept: Concept, keep: Sequence[str]) -> list[str]:
    """Return the phrases that contain a name among other words: "cat face" around "cat"."""
    return [phrase for phrase in dict.fromkeys(keep) if len(split(phrase)) > 1 and _mentions(concept, phrase)]


def kept_spans(phrases: Sequence[str], words: Sequence[Word]) -> list[Span]:
    """Return where phrases to keep stand among a prompt's words, punctuation never inside them."""
    return [span for phrase in phrases for span in find(phrase, words, known=None, across=False)]


def covered(span: Span, kept: Sequence[Span]) -> bool:
    """Whether a name's place lies inside a phrase to keep."""
    return any(longer.start <= span.start and span.end <= longer.end for longer in kept)


def negatives(concept: Concept, vocabulary: Sequence[str] = (), kind: Kind | None = None) -> list[Example]:
    """Return prompts about anything else: other subjects in the templates of `wordings`, captions as they are.

    A few built-in sentences about nothing in particular are always among them.

    Args:
        concept: what must not be meant; entries of `vocabulary` that mean it go ("cat face" does not mean "cat").
        vocabulary: names of other objects and styles, or whole captions; () takes built-in English nouns and styles.
        kind: "object" or "style" concept; None asks `kind_of`.

    Raises:
        CalibrationError: if nothing is left.
    """
    kind = kind or kind_of(concept)
    entries = (*concept.keep, *(vocabulary or (*NOUNS, *STYLES)))
    given = list(dict.fromkeys(" ".join(entry.split()) for entry in entries))
    phrases = [entry for entry in given if entry and not _is_caption(entry) and not _is_named(concept, entry)]
    keep = phrases_around(concept, [*phrases, *COMPOUNDS])
    told = [entry for entry in given if _is_caption(entry) and not means(concept, entry, keep)]
    captions = told + [entry for entry in CAPTIONS if not means(concept, entry, keep)]
    companions, paints = _unnamed(concept, _COMPANIONS, NOUNS), _unnamed(concept, _PAINTS, STYLES)
    write = partial(_write, beside=companions[0])
    examples = [Example(caption, caption, caption) for caption in captions]
    for row, subject in enumerate(phrases):
        templates = _STYLE if subject.casefold() in STYLES else _OBJECT
        near = subject in concept.keep or _mentions(concept, subject)
        for step in range(len(templates) if near else _PER_SUBJECT):
            template = templates[(row * 3 + step * (1 if near else 7)) % len(templates)]
            companion, paint = companions[(row + step) % len(companions)], paints[(row + step) % len(paints)]
            examples.append(Example(write(template, subject, companion, paint), subject, template))
    for row, template in enumerate(_BARE):
        for paint in (
            paints[: 4 if kind == "object" else None] if "_s}" in template or "{s}" in template else paints[:1]
        ):
            companion = companions[row % len(companions)]
            examples.append(Example(write(template, "", companion, paint), template, template))
    if not (told or phrases):
        raise CalibrationError(
            f"no prompt is left to calibrate {concept.name!r} against: all {len(given)} entries of `vocabulary` mean "
            "it; pass names of other things"
        )
    return list(dict.fromkeys(examples))


def _is_caption(entry: str) -> bool:
    words = entry.casefold().split()
    return len(words) > 3 or (len(words) > 1 and words[0] in _CAPTION_STARTS)


def _is_named(concept: Concept, phrase: str) -> bool:
    size = len(split(phrase))
    return any(span == Span(0, size) for name in concept.names for span in find(name, split(phrase), known=None))


def means(concept: Concept, caption: str, keep: Sequence[str]) -> bool:
    """Whether a name stands in a caption outside every phrase to keep."""
    words = split(caption)
    found = [span for name in concept.names for span in find(name, words, known=None)]
    if not found:
        return False
    kept = kept_spans(phrases_around(concept, keep), words)
    return any(not covered(span, kept) for span in found)
