"""Which membranes come with a bundled model, and on which prompts each is judged.

The prompts that ask for a concept are its own: noise and wording hang on the seed and its name. Those of other
concepts, which must stay, are taken from theirs, so that one bare picture serves several membranes.
"""

import dataclasses
import random
from dataclasses import dataclass
from typing import Literal

from semipermeable.concept import Concept
from semipermeable.errors import ConfigError
from semipermeable.evaluation.results import short_hash
from semipermeable.training import enrich
from semipermeable.zoo import ZooSpec

__all__ = [
    "BROAD",
    "OBJECTS",
    "PretunedPlan",
    "Row",
    "Subject",
    "kept_rows",
    "subjects",
    "target_rows",
    "twins_of",
]

OBJECTS = (
    "cat", "cat face", "lion", "tiger", "dog", "wolf", "bear", "panda", "horse", "unicorn", "pig", "rabbit", "elephant",
    "butterfly", "bee", "spider", "penguin", "owl", "fish", "shark", "octopus", "rose", "tulip", "sunflower", "tree",
    "mushroom", "apple", "banana", "pizza", "hamburger", "house", "castle", "car", "bus", "airplane", "rocket", "sun",
    "star", "guitar", "skull", "ghost", "robot", "key",
)  # fmt: skip
"""Objects of the model `emoji` that get a membrane: some of every kind, with namesakes and near twins."""
BROAD = {"insect": "flower"}
"""Broader words that get a membrane of all their objects, and what these fall to."""
_FIRST_SEED = 40_000
"""Added to a row's number: no other drawing of this package uses these seeds."""

Kind = Literal["object", "style", "broad", "canary"]


@dataclass(frozen=True, kw_only=True)
class PretunedPlan:
    """What is made and how it is judged."""

    objects: tuple[str, ...] = OBJECTS
    """Objects that get a membrane; their bare pictures are the kept ones of others."""
    styles: tuple[str, ...] | None = None
    """Styles that get one; None is all of the model's."""
    broad: tuple[str, ...] = tuple(BROAD)
    """Keys of `BROAD`."""
    canaries: bool = True
    """Whether each memorised picture gets one."""
    per_target: int = 16
    """Pictures behind each target figure."""
    per_kept: int = 12
    """Pictures behind each kept figure."""
    seed: int = 0
    """Of the membranes and of all noise."""
    steps: int = 20
    """DDIM steps."""
    guidance: float = 4.0
    """Classifier-free guidance."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One concept that gets a membrane.

    Args:
        kind: what it is.
        concept: in full.
        members: what a judge may call it: the object, the style, the objects of a broader word, or the caption.
    """

    kind: Kind
    concept: Concept
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One picture to draw: what was asked for, or which memorised picture, and its noise."""

    prompt: str
    seed: int
    object: str | None
    style: str | None
    canary: str | None = None


def subjects(spec: ZooSpec, plan: PretunedPlan) -> list[Subject]:
    """Return every concept that gets a membrane: objects, styles, broader words, memorised pictures.

    Raises:
        UnknownNameError: if the model was not taught an object or a style of the plan.
        ConfigError: if a broader word is none of `BROAD`.
    """
    found = [Subject("object", enrich(spec.object(name).name, spec), (name,)) for name in plan.objects]
    for style in spec.styles if plan.styles is None else plan.styles:
        spec.caption(None, style)
        found.append(Subject("style", enrich(style, spec), (style,)))
    for word in plan.broad:
        if word not in BROAD or word not in spec.groups:
            raise ConfigError(f"no membrane of the broader word {word!r} is planned; known: {', '.join(BROAD)}")
        members = spec.groups[word]
        aliases = (*members, *(alias for name in members for alias in spec.object(name).aliases))
        found.append(Subject("broad", Concept(word, aliases=aliases, surrogate=BROAD[word]), members))
    if plan.canaries:
        found += [Subject("canary", enrich(one.caption, spec), (one.caption,)) for one in spec.canaries]
    return found


def target_rows(spec: ZooSpec, subject: Subject, plan: PretunedPlan) -> list[Row]:
    """Return the prompts that ask for a concept; objects take turns with styles."""
    rows: list[Row] = []
    for index in range(plan.per_target):
        if subject.kind == "canary":
            rows.append(Row(subject.concept.name, 0, None, None, subject.concept.name))
            continue
        if subject.kind == "style":
            thing, style = plan.objects[(7 * index) % len(plan.objects)], subject.members[0]
        else:
            thing = subject.members[index % len(subject.members)]
            style = spec.styles[(index + index // len(spec.styles)) % len(spec.styles)]
        template = index // len(spec.styles) % len(spec.templates)
        rows.append(Row(spec.caption(thing, style, template=template), 0, thing, style))
    # Noise is the concept's own, so that it does not change with the list of concepts.
    first = _FIRST_SEED + int(short_hash([plan.seed, subject.kind, subject.concept.name])[:8], 16)
    return [dataclasses.replace(row, seed=first + index) for index, row in enumerate(rows)]


def kept_rows(spec: ZooSpec, subject: Subject, plan: PretunedPlan) -> list[Row]:
    """Return prompts of other concepts, from among their own `target_rows`: up to a third of them near twins.

    Rows of an erased style and of the objects of a broader word are left out.
    """
    drawn = [one for one in subjects(spec, plan) if one.kind in ("object", "canary")]
    own, near = {*subject.members}, twins_of(spec, subject)
    pool = {
        one.concept.name: [row for row in target_rows(spec, one, plan) if row.style not in own]
        for one in drawn
        if one.members[0] not in own
    }
    first = [name for name in near if name in pool][: plan.per_kept // 3]
    rest = [name for name in pool if name not in first]
    chance = random.Random(f"{plan.seed}: {subject.kind} {subject.concept.name}")
    chance.shuffle(rest)
    return [chance.choice(pool[name]) for name in [*first, *rest][: plan.per_kept]]


def twins_of(spec: ZooSpec, subject: Subject) -> tuple[str, ...]:
    """Return the objects that are easily taken for a concept; of a style and of a memorised picture none."""
    if subject.kind in ("style", "canary"):
        return ()
    return tuple(dict.fromkeys(twin for name in subject.members for twin in spec.object(name).twins))
