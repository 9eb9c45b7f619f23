"""What the erasers are told about the concepts: the same words for each of them.

Every eraser reads the concept's names, its surrogate and the captions that `training.captions` writes for it, so that
none knows more than another. An empty surrogate is filled in from a bundled model's spec. The paper's method and its
rivals differ in what they take from this: a name, the captions, the captions to keep.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from semipermeable.concept import Concept
from semipermeable.errors import ConceptError
from semipermeable.membrane import Json
from semipermeable.permeability.prompts import means
from semipermeable.training import CaptionSet, captions_for, enrich
from semipermeable.training.captions import spec_of

__all__ = ["Subject", "bytes_of", "configuration", "kept_captions", "subjects_of"]


@dataclass(frozen=True, eq=False)
class Subject:
    """A concept with everything that is said about it.

    Args:
        concept: with its surrogate filled in.
        captions: of it, with the surrogate in its place, and of what must stay.
    """

    concept: Concept
    captions: CaptionSet


def subjects_of(pipe: Any, concepts: Sequence[Concept]) -> list[Subject]:
    """Return the concepts completed with what is known about the pipeline's model.

    Raises:
        ConceptError: if there is none, or two have the same name.
    """
    names = [concept.name for concept in concepts]
    if not names or len(set(names)) < len(names):
        raise ConceptError(f"an eraser needs one or more concepts of different names, found {names}")
    spec = spec_of(pipe)
    completed = [enrich(concept, spec) for concept in concepts]
    return [Subject(concept, captions_for(concept, spec)) for concept in completed]


def kept_captions(subjects: Sequence[Subject]) -> list[str]:
    """Return the captions to keep: anchors of any subject that speak of no subject."""
    anchors = dict.fromkeys(caption for subject in subjects for caption in subject.captions.anchors)
    return [caption for caption in anchors if not any(means(s.concept, caption, s.concept.keep) for s in subjects)]


def configuration(name: str, subjects: Sequence[Subject], seed: int | None, **settings: Json) -> dict[str, Json]:
    """Return an erasure's configuration as JSON data.

    Args:
        name: of the eraser.
        subjects: what is erased.
        seed: None where nothing is drawn at random.
        settings: of the eraser.
    """
    concepts: list[Json] = [_plain(subject.concept) for subject in subjects]
    return {"eraser": name, "concepts": concepts, "seed": seed, **settings}


def _plain(concept: Concept) -> dict[str, Json]:
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(concept).items()
    }


def bytes_of(tensors: Sequence[Tensor]) -> int:
    """Return the size of some tensors in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
