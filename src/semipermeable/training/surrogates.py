"""What an erased thing falls to, where the concept's author leaves it open.

A bundled model's spec knows the word for a whole group. It is a poor surrogate: "a flower" is drawn as the very tulip
that is to go, so that η of Eq. 4 has to carry the picture beyond it, and what lies beyond has lost its style. A sibling
(another thing of the group) is related to the concept and no picture of it: the base model's own picture of the sibling
is a goal that needs no η. That a target should be near the concept without being a synonym of it is what Bui et al.
find too (Adaptive Guided Erasure, ICLR 2025, arXiv 2501.18950).

The sibling is the one whose captions the text encoder reads most like the concept's. Near twins come last (a taxi is a
car), and what is itself being erased never. Where a group is used up, anything else that the model was taught serves:
what is drawn is then less like the concept, and as clear a picture.
"""

from collections.abc import Sequence, Set
from dataclasses import replace

from semipermeable.concept import Concept
from semipermeable.training.captions import CaptionSet, enrich
from semipermeable.training.config import TrainConfig
from semipermeable.training.workshop import Workshop
from semipermeable.zoo import ZooSpec

__all__ = ["candidates", "reopened", "resettled", "settled"]


def settled(workshop: Workshop, concepts: Sequence[str | Concept], config: TrainConfig) -> list[Concept]:
    """Return concepts as they are trained: enriched, every surrogate that was left open filled in.

    Args:
        workshop: of the pipeline.
        concepts: all that are erased together, in order. A surrogate that is written stays as it is.
        config: `sibling_surrogate` says whether an object falls to a thing of its own or to the word for its group.
    """
    wanted = [enrich(concept, workshop.spec) for concept in concepts]
    if workshop.spec is None or not config.sibling_surrogate:
        return wanted
    erased = {name.casefold() for concept in wanted for name in concept.names}
    return [
        concept if isinstance(given, Concept) and given.surrogate else _fallen(workshop, workshop.spec, concept, erased)
        for given, concept in zip(concepts, wanted, strict=True)
    ]


def resettled(workshop: Workshop, concepts: Sequence[Concept], config: TrainConfig) -> list[Concept]:
    """Return enriched concepts as they are trained: the word for an object's group counts as a surrogate left open.

    Args:
        workshop: of the pipeline.
        concepts: all that are erased together, in order.
        config: see `settled`.
    """
    return settled(workshop, [reopened(concept, workshop.spec) for concept in concepts], config)


def reopened(concept: Concept, spec: ZooSpec | None) -> Concept:
    """Return a concept whose surrogate is the word for its group, as `enrich` fills it in, with it left open again."""
    thing = None if spec is None else spec.find(concept.name)
    if thing is None or concept.surrogate.casefold() != thing.group.casefold():
        return concept
    return replace(concept, surrogate="")


def candidates(concept: Concept, spec: ZooSpec, erased: Set[str] = frozenset()) -> list[str]:
    """Return the things that an erased object may fall to, in the model's order.

    Those are its siblings, the other objects of its group; near twins among them only if there is no other; objects of
    other groups if there is no sibling at all. The word for a group is none, even where it names an object too.

    Args:
        concept: an object of the model; a style, a memorised picture or anything else has none.
        spec: of the model.
        erased: names, case-folded, that nothing may fall to.
    """
    thing = spec.find(concept.name)
    if thing is None:
        return []
    own = erased | {name.casefold() for name in (thing.name, *concept.names, *spec.groups)}
    near = {name.casefold() for name in (*thing.twins, *concept.keep)}
    left = [one for one in spec.objects if one.name.casefold() not in own]
    siblings = [one.name for one in left if one.group == thing.group]
    apart = [name for name in siblings if name.casefold() not in near]
    return apart or siblings or [one.name for one in left if one.name.casefold() not in near]


def _fallen(workshop: Workshop, spec: ZooSpec, concept: Concept, erased: Set[str]) -> Concept:
    """Return the concept with the nearest candidate as surrogate; as it is if there is none."""
    found = candidates(concept, spec, erased)
    if not found:
        return concept
    distances = [workshop.distance(_short(concept, name, spec)) for name in found]
    return replace(concept, surrogate=found[distances.index(min(distances))])


def _short(concept: Concept, surrogate: str, spec: ZooSpec) -> CaptionSet:
    """One caption of each style: enough to tell which of several surrogates is near."""
    targets, surrogates = (
        tuple(spec.caption(name, style) for style in spec.styles) for name in (concept.name, surrogate)
    )
    return CaptionSet((concept.name,), targets, surrogates, (concept.name,) * len(targets), ())
