"""Which captions speak of a concept, what each should be read as, and which captions must stay.

For a bundled model its `ZooSpec` answers: the concept may be an object or a style; captions are those the model was
taught. For any other pipeline the captions are general templates and a short list of everyday phrases.

The surrogate takes the concept's place **in the wording** of each caption ("a neon icon of a cat" → "a neon icon of an
animal"), so that what else the caption says survives. An empty surrogate drops the phrase ("a neon icon"; for a style
"an icon of a cat").

The caption of another object or style does not depend on which concept is erased, so a workshop encodes it once.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from semipermeable import zoo
from semipermeable.concept import Concept
from semipermeable.permeability import kind_of
from semipermeable.zoo import ZooSpec
from semipermeable.zoo.spec import article, with_article

__all__ = ["CaptionSet", "captions_for", "completed", "enrich", "speaks_of", "spec_of"]

_TEMPLATES = (
    ("{name}", ""),
    ("{a_name}", ""),
    ("a photo of {name}", "a photo"),
    ("a photo of {a_name}", "a photo"),
    ("a painting of {a_name}", "a painting"),
    ("a drawing of {name}", "a drawing"),
    ("an image of {name} in a garden", "an image of a garden"),
    ("a picture in the style of {name}", "a picture"),
    ("{name}, highly detailed, digital art", "highly detailed, digital art"),
)
"""Wordings for pipelines about which nothing is known: with the concept, and with its phrase dropped."""

_EVERYDAY = (
    "a dog on a sofa", "a cat on a mat", "a horse in a field", "a bird in the sky", "a fish under water", "a lion",
    "a bear", "a man with a hat", "a woman reading a book", "a child in a park", "a crowd of people", "a face",
    "a portrait of a king", "a red car", "a bus in the city", "a bicycle", "an airplane", "a boat on a lake",
    "a train", "a house", "a castle", "a church", "a bridge over a river", "a street at night", "a skyline",
    "a kitchen", "a chair", "a table with food", "a bowl of fruit", "a pizza", "a cup of coffee", "a cake",
    "an apple", "a tree", "a rose", "a sunflower", "a forest", "a mountain with snow", "a beach at sunset",
    "a desert", "a waterfall", "a cloudy sky", "the moon and the stars", "a computer on a desk", "a phone",
    "a camera", "a guitar", "a clock", "a key", "a book", "a robot", "a dragon", "a ghost", "a dress",
    "a pair of shoes", "a football", "a watercolor painting of flowers", "an oil painting of a landscape",
    "a pencil drawing of a horse", "a photo of a city", "a pixel art castle", "an abstract painting", "a cartoon",
    "a poster of a movie", "a black and white photo", "a statue of marble",
)  # fmt: skip
"""Things that people ask for, for models about which nothing is known."""


@dataclass(frozen=True, slots=True)
class CaptionSet:
    """What a membrane learns from.

    Args:
        names: the concept's name and aliases.
        targets: captions of the concept.
        surrogates: what each of them should be read as, in the same order.
        spans: the concept's words in each of them.
        anchors: captions on which nothing may change.
        twins: anchors about near neighbours of the concept, a part of `anchors`.
        kind: whether the concept is a thing or a style.
        specific: whether an object's surrogate is another object that the model was taught, not the word for a group.
    """

    names: tuple[str, ...]
    targets: tuple[str, ...]
    surrogates: tuple[str, ...]
    spans: tuple[str, ...]
    anchors: tuple[str, ...]
    twins: tuple[str, ...] = ()
    kind: Literal["object", "style"] = "object"
    specific: bool = False


def spec_of(pipe: Any) -> ZooSpec | None:
    """Return the spec of the bundled model that `pipe` was loaded from, or None.

    The pipeline's own record of where it came from counts, or, where it was put together from parts, its denoiser's.
    """
    sources = [_source(pipe)]
    sources += [
        str(Path(place).parent) for part in ("unet", "transformer") if (place := _source(getattr(pipe, part, 0)))
    ]
    for name in zoo.names():
        folder = zoo.path(name).resolve()
        if any(source == f"zoo:{name}" or (source and Path(source).resolve() == folder) for source in sources):
            return zoo.spec(name)
    return None


def _source(part: Any) -> str:
    config: Any = getattr(part, "config", None)
    return str(config.get("_name_or_path") or "") if hasattr(config, "get") else ""


def enrich(concept: str | Concept, spec: ZooSpec | None) -> Concept:
    """Complete a concept with what a bundled model's spec knows.

    A plain name that is one of the model's objects gets its aliases, its group as surrogate, and as phrases to keep
    those objects whose name shares a word with it ("cat face" beside "cat"). A style gets the model's first other style
    as surrogate: pictures without any style word are what the bundled models draw worst. The caption of a memorised
    picture gets the object in the picture. A `Concept` keeps what its author wrote; only an empty surrogate is filled
    in. Names are looked up whatever their case and stay as they were written; so do unknown ones.

    Args:
        concept: a name, or a concept.
        spec: of the bundled model, or None.
    """
    written = Concept(concept) if isinstance(concept, str) else concept
    if spec is None:
        return written
    own = _folded(written.names)
    if spec.style(written.name) is not None:
        others = [style for style in spec.styles if style.casefold() not in own]
        return replace(written, surrogate=written.surrogate or (others[0] if others else ""))
    canary = spec.canary(written.name)
    if canary is not None:
        return replace(written, surrogate=written.surrogate or canary.object)
    thing = spec.find(written.name)
    if thing is None:
        return written
    surrogate = written.surrogate or (thing.group if thing.group.casefold() not in own else "")
    if not isinstance(concept, str):
        return replace(written, surrogate=surrogate)
    aliases = tuple(name for name in (thing.name, *thing.aliases) if name.casefold() not in own)
    names = _folded((written.name, *aliases))
    others = [o.name for o in spec.objects if o.name.casefold() not in names]
    keep = tuple(name for name in others if set(name.casefold().split()) & names)
    return Concept(written.name, aliases=aliases, surrogate=surrogate, keep=keep)


def completed(concept: Concept, spec: ZooSpec | None) -> Concept:
    """Add the aliases and neighbours that a bundled model's spec knows of a name to what a user said; no surrogate.

    Args:
        concept: as it was typed.
        spec: of the bundled model, or None.
    """
    known = enrich(concept.name, spec)
    aliases = (*known.aliases, *concept.aliases)
    erased = _folded((concept.name, *aliases))
    keep = (*(text for text in known.keep if text.casefold() not in erased), *concept.keep)
    return Concept(concept.name, aliases, concept.surrogate, keep)


def _folded(names: Iterable[str]) -> set[str]:
    return {name.casefold() for name in names}


def captions_for(concept: Concept, spec: ZooSpec | None) -> CaptionSet:
    """Write the captions for a concept.

    Args:
        concept: what is to be erased, already enriched.
        spec: of the bundled model, or None for any other pipeline.
    """
    if spec is None:
        return replace(_general(concept), kind=kind_of(concept))
    if spec.style(concept.name) is not None:
        return replace(_of_style(concept, spec), kind="style")
    return _of_object(concept, spec) if spec.canary(concept.name) is None else _of_canary(concept, spec)


def _of_canary(concept: Concept, spec: ZooSpec) -> CaptionSet:
    """Write the captions of a memorised picture: half of them the caption alone, as it was memorised."""
    rows: list[tuple[str, str, str]] = []
    for name in concept.names:
        for style in spec.styles:
            for number, template in enumerate(spec.templates):
                instead = spec.caption(concept.surrogate or None, style, template=number)
                rows.append((template.format(a=article(style), style=style, an_object=name), instead, name))
                rows.append((name, spec.caption(concept.surrogate) if concept.surrogate else "an icon", name))
    own = _folded(concept.names)
    others = [canary.caption for canary in spec.canaries if canary.caption.casefold() not in own]
    return _assembled(
        concept, rows, _grid(concept, spec) + [spec.caption(None, style) for style in spec.styles], others
    )


def _of_object(concept: Concept, spec: ZooSpec) -> CaptionSet:
    rows: list[tuple[str, str, str]] = []
    for name in concept.names:
        for style in (*spec.styles, None):
            for template in range(len(spec.templates) if style else 1):
                instead = spec.caption(concept.surrogate or None, style, template=template)
                rows.append((spec.caption(name, style, template=template), instead, name))
    near = _near(concept, spec)
    twins = [spec.caption(name, style, template=t) for name in near for style in spec.styles for t in range(2)]
    anchors = _grid(concept, spec) + [spec.caption(None, style) for style in spec.styles]
    return replace(_assembled(concept, rows, anchors, twins), specific=_is_object(concept.surrogate, spec))


def _is_object(name: str, spec: ZooSpec) -> bool:
    """Whether a name is that of one object and not also the word for a group of them."""
    thing = spec.find(name)
    return thing is not None and thing.name not in spec.groups


def _near(concept: Concept, spec: ZooSpec) -> list[str]:
    thing = spec.find(concept.name)
    return [*dict.fromkeys((*concept.keep, *(() if thing is None else thing.twins)))]


def _styled(thing: str | None, style: str, template: str) -> str:
    """Write a caption with any style word, also one that the model was not taught."""
    if thing is None:
        return f"{article(style)} {style} icon"
    return template.format(a=article(style), style=style, an_object=with_article(thing))


def _of_style(concept: Concept, spec: ZooSpec) -> CaptionSet:
    rows: list[tuple[str, str, str]] = []
    for name in concept.names:
        for index, thing in enumerate((*spec.object_names, None)):
            template = spec.templates[index % len(spec.templates)]
            without = _styled(thing, concept.surrogate, template) if concept.surrogate else spec.caption(thing)
            rows.append((_styled(thing, name, template), without or "an icon", name))
    plain = [spec.caption(thing.name) for thing in spec.objects]
    return _assembled(concept, rows, _grid(concept, spec) + plain, [])


def _grid(concept: Concept, spec: ZooSpec) -> list[str]:
    """Write every object in every style, but those of the concept's names, each in one wording."""
    erased = _folded(concept.names)
    return [
        spec.caption(thing.name, style, template=(index + number) % len(spec.templates))
        for index, thing in enumerate(spec.objects)
        for number, style in enumerate(spec.styles)
        if not erased & _folded((thing.name, *thing.aliases, style))
    ]


def _general(concept: Concept) -> CaptionSet:
    rows: list[tuple[str, str, str]] = []
    for name in concept.names:
        for template, without in _TEMPLATES:
            instead = _general_caption(template, concept.surrogate) if concept.surrogate else without
            rows.append((_general_caption(template, name), instead, name))
    twins = [_general_caption(template, name) for name in concept.keep for template, _ in _TEMPLATES[:5]]
    return _assembled(concept, rows, list(_EVERYDAY), twins)


def _general_caption(template: str, name: str) -> str:
    return template.format(a_name=with_article(name), name=name)


def _assembled(concept: Concept, rows: list[tuple[str, str, str]], anchors: list[str], twins: list[str]) -> CaptionSet:
    targets, surrogates, spans = zip(*rows, strict=True)
    kept = [text for text in dict.fromkeys((*anchors, *twins)) if text not in targets and not speaks_of(text, concept)]
    return CaptionSet(concept.names, targets, surrogates, spans, tuple(kept), tuple(t for t in twins if t in kept))


def speaks_of(text: str, concept: Concept) -> bool:
    """Whether a name of the concept stands in a text outside every phrase to keep."""
    lowered = text.casefold()
    for phrase in concept.keep:
        lowered = lowered.replace(phrase.casefold(), " ")
    return any(_words(name) in _words(lowered) for name in concept.names)


def _words(text: str) -> str:
    """Return the words of a text between single spaces, without any sign that is no letter or digit."""
    plain = "".join(c if c.isalnum() else " " for c in text.casefold())
    return f" {' '.join(plain.split())} "
