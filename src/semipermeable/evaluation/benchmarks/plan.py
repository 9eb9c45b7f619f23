"""What a benchmark is: plain, frozen data whose digest says whether two results may be compared."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from semipermeable.concept import Concept
from semipermeable.errors import ConfigError, UnknownNameError, closest

__all__ = ["Axis", "Benchmark", "Case", "Judges", "Role", "Row", "Sampler", "Target"]

Axis = Literal["object", "style", "picture", "nudity"]
"""Who sees the erased concepts: the classifier of objects or of styles, a judge of copies, or a detector of nudity."""
Judges = Literal["clip", "classifier", "style-classifier", "inception", "real-images", "sscd", "nudenet"]
"""Judges of real models' pictures; each has an option of its name in `spm evaluate`, but for NudeNet."""
Role = Literal["target", "kept"]
"""Whether a row asks for an erased concept, or for something that must stay."""

_SEED_STRIDE = 1_000_000
"""Noise seeds of one seed index lie within one stride; rows are numbered below it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """How every picture is drawn."""

    steps: int = 20
    """Denoising steps."""
    guidance: float = 4.0
    """Classifier-free guidance."""
    batch_size: int = 24
    """Pictures in one call; part of the benchmark, since equality bit for bit holds at one call shape."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One prompt; with a seed index, one picture."""

    number: int
    """Its place in the benchmark; decides its noise."""
    prompt: str
    """What is asked for."""
    negative: str = ""
    """Negative prompt."""
    role: Role
    """Whether it asks for an erased concept."""
    tag: str
    """Part of the benchmark it belongs to, e.g. "twin" or "misspelling"."""
    object: str | None
    """Object asked for; None where the prompt leaves it open."""
    style: str | None
    """Style asked for; None where the prompt leaves it open."""
    picture: str | None = None
    """Memorised picture that the prompt calls up; None where it calls up none."""
    noise_seed: int | None = None
    """Seed of the noise at seed index 0, as a published prompt file gives it; None is `number`."""

    def noise(self, seed: int) -> int:
        """Return the seed of the initial noise for a seed index."""
        return seed * _SEED_STRIDE + (self.number if self.noise_seed is None else self.noise_seed)

    def asked(self, axis: Axis) -> str | None:
        """Return what is asked for in a domain; nudity is an object like others."""
        return {"style": self.style, "picture": self.picture}.get(axis, self.object)


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """An erased concept as CLIP is asked about it."""

    concept: Concept
    """With aliases, surrogate and neighbours to keep."""
    text: str
    """Caption of the concept."""
    surrogate_text: str
    """The same caption with the surrogate in its place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One set of concepts erased at once, and the rows that are drawn then."""

    name: str
    """Unique in the benchmark; names folders."""
    axis: Axis
    """Domain of the concepts."""
    targets: tuple[Target, ...]
    """What is erased."""
    rows: tuple[Row, ...]
    """In the order of drawing: targets and others mixed, so that calls hold both."""

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """What an eraser is given."""
        return tuple(target.concept for target in self.targets)

    @property
    def erased(self) -> frozenset[str]:
        """Names of the erased classes."""
        return frozenset(concept.name for concept in self.concepts)

    def target_of(self, row: Row) -> Target:
        """Return the target that a row asks for; the first one if it asks for none."""
        asked = row.asked(self.axis)
        return next((target for target in self.targets if target.concept.name == asked), self.targets[0])


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A frozen set of cases on one model; `name@version` never changes its meaning on the same model.

    Raises:
        ConfigError: if names or row numbers repeat, or a row's role contradicts what it asks for.
    """

    name: str
    """E.g. "emoji-objects"."""
    version: int
    """Goes up with any change."""
    summary: str
    """One sentence."""
    model: str
    """Model it is drawn with: a bundled one, or a hub id."""
    sampler: Sampler
    """How."""
    cases: tuple[Case, ...]
    """What is erased, one shard per case and seed."""
    judges: tuple[Judges, ...] = ()
    """Judges that it cannot do without, beside those of a bundled model."""
    apart: bool = False
    """Whether sets of kept pictures are also compared tag by tag."""

    def __post_init__(self) -> None:
        _unique([case.name for case in self.cases], f"{self.key}: case names")
        _unique([row.number for case in self.cases for row in case.rows], f"{self.key}: row numbers")
        for case in self.cases:
            for row in case.rows:
                if (row.asked(case.axis) in case.erased) != (row.role == "target") or row.number >= _SEED_STRIDE:
                    raise ConfigError(
                        f"{self.key}, case {case.name!r}: row {row.number} contradicts its role {row.role!r}"
                    )

    @property
    def key(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def digest(self) -> str:
        """SHA-256 of everything above, first 16 hex digits."""
        content = json.dumps(dataclasses.asdict(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Benchmark":
        """Return a benchmark from the data that `dataclasses.asdict` and JSON made of it."""
        cases = tuple(_case(case) for case in content["cases"])
        given: dict[str, Any] = {"sampler": Sampler(**content["sampler"]), "judges": tuple(content.get("judges", ()))}
        fields: dict[str, Any] = {**content, **given, "cases": cases}
        return cls(**fields)

    def case(self, name: str) -> Case:
        """Return a case by name.

        Raises:
            UnknownNameError: if there is none of that name.
        """
        for case in self.cases:
            if case.name == name:
                return case
        raise UnknownNameError(closest(name, [case.name for case in self.cases], what=f"case of {self.key}"))


def _case(content: Mapping[str, Any]) -> Case:
    targets = tuple(
        Target(concept=Concept(**target["concept"]), text=target["text"], surrogate_text=target["surrogate_text"])
        for target in content["targets"]
    )
    fields: dict[str, Any] = {**content, "targets": targets, "rows": tuple(Row(**row) for row in content["rows"])}
    return Case(**fields)


def _unique(names: list[str] | list[int], what: str) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated or not names:
        raise ConfigError(f"{what} must be there and unique; repeated: {repeated}")
