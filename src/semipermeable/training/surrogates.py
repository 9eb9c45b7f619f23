"""What an erased thing falls to, where the concept's author leaves it open.

A bundled model's spec knows the word for a whole group. It is a poor surrogate: "a flower" is drawn as the very tulip
that is to go, so that η of Eq. 4 has to carry the picture beyond it, and what lies beyond has lost its style. A sibling
(another thing of the group) is related to the concept and no picture of it: the base model's own picture of the sibling
is a goal that needs no η. That a target should be near the concept without being a synonym of it is what Bui et al.
find too (Adaptive Guided Erasure, ICLR 2025, arXiv 2501.18950).

The sibling is the one whose captions the text encoder reads most like the concept's. Near twins come last (a taxi is a
car), and what is itself being erased never.
"""

from collections.abc import Sequence, Set
from dataclasses import replace

from semipermeable.concept import Concept
from semipermeable.training.captions import CaptionSet, enrich
from semipermeable.training.config import TrainConfig
from semipermeable.training.workshop import Workshop
from semipermeable.zoo import ZooSpec

__all__ = ["reopened", "settled", "siblings"]


def settled(workshop: Workshop, concepts: Sequence[str | Concept], config: TrainConfig) -> list[Concept]:
    """Return concepts as they are trained: enriched, every surrogate that was left open filled in.

    Args:
        workshop: of the pipeline.
        concepts: all that are erased together, in order. A surrogate that is written stays as it is.
        config: `sibling_surrogate` says whether an object falls to a sibling or to the word for its group.
    """
    wanted = [enrich(concept, workshop.spec) for concept in concepts]
    if workshop.spec is None or not config.sibling_surrogate:
        return wanted
    erased = {name.casefold() for concept in wanted for name in concept.names}
    return [
        concept if isinstance(given, Concept) and given.surrogate else _fallen(workshop, workshop.spec, concept, erased)
        for given, concept in zip(concepts, wanted, strict=True)
    ]


def reopened(concept: Concept, spec: ZooSpec | None) -> Concept:
    """Return a concept whose surrogate is the word for its group, as `enrich` fills it in, with it left open again."""
    thing = None if spec is None else spec.find(concept.name)
    if thing is None or concept.surrogate.casefold() != thing.group.casefold():
        return concept
    return replace(concept, surrogate="")


def siblings(concept: Concept, spec: ZooSpec, erased: Set[str] = frozenset()) -> list[str]:
    """Return the things that an erased object may fall to, in the model's order; near twins only if there is no other.

    Args:
        concept: an object of the model; a style, a memorised picture or anything else has none.
        spec: of the model.
        erased: names, case-folded, that nothing may fall to.
    """
    thing = spec.find(concept.name)
    if thing is None:
        return []
    own = erased | {name.casefold() for name in (thing.name, *concept.names)}
    near = {name.casefold() for name in (*thing.twins, *concept.keep)}
    left = [name for name in spec.groups[thing.group] if name.casefold() not in own]
    return [name for name in left if name.casefold() not in near] or left


def _fallen(workshop: Workshop, spec: ZooSpec, concept: Concept, erased: Set[str]) -> Concept:
    """Return the concept with its nearest sibling as surrogate; as it is if there is none."""
    found = siblings(concept, spec, erased)
    if not found:
        return concept
    distances = [workshop.distance(_short(concept, sibling, spec)) for sibling in found]
    return replace(concept, surrogate=found[distances.index(min(distances))])


def _short(concept: Concept, surrogate: str, spec: ZooSpec) -> CaptionSet:
    """One caption of each style: enough to tell which of several surrogates is near."""
    targets, surrogates = (
        tuple(spec.caption(name, style) for style in spec.styles) for name in (concept.name, surrogate)
    )
    return CaptionSet((concept.name,), targets, surrogates, (concept.name,) * len(targets), ())
