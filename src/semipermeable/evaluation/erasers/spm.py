"""Membranes under the permeability rules: this package's method, and the paper's.

Each concept has a membrane of its own, trained by `semipermeable.erase` or read from a file; `attach` adds them up and
gates them prompt by prompt.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from semipermeable.concept import Concept
from semipermeable.equip import attach
from semipermeable.errors import UnknownNameError, closest
from semipermeable.evaluation.erasers.gates import Opening, decided
from semipermeable.evaluation.erasers.protocol import Card, Draw
from semipermeable.evaluation.erasers.subjects import Subject, configuration, subjects_of
from semipermeable.files.native import digest, to_bytes
from semipermeable.membrane import Json, Membrane
from semipermeable.permeability import resolve
from semipermeable.training import TrainConfig, erase
from semipermeable.training.surrogates import resettled
from semipermeable.training.workshop import Workshop
from semipermeable.zoo import load_membrane

__all__ = ["CARD", "OPEN_CARD", "PAPER_CARD", "Equipped", "Rule", "Spm", "membranes_for"]

Rule = Literal["transport", "paper", "open"]

_PAPER = "Lyu et al. 2024, One-Dimensional Adapter to Rule Them All (SPM), CVPR, arXiv 2312.16145; "
CARD = Card(
    paper=_PAPER + "with this package's training and gate",
    defaults='preset "fast" of TrainConfig, calibrated gate ("transport"), unless a membrane file is given',
    tuned="the preset was tuned on objects and styles of the bundled model; see docs/training.md",
    checked="this package's own",
)
OPEN_CARD = Card(
    paper=CARD.paper,
    defaults='preset "fast" of TrainConfig, held open on every conditional row, unless a membrane file is given',
    tuned=CARD.tuned,
    checked=CARD.checked,
)
PAPER_CARD = Card(
    paper=_PAPER + "as published",
    defaults='preset "paper" of TrainConfig (3,000 steps, λ 1e3, η 1), gate of Eq. 10 and 11, unless a file is given',
    tuned="nothing; one cosine, where the released configuration restarts it three times",
    checked="Con6924/SPM, src/configs/config.py, configs/pikachu/config.yaml and prompt.yaml, train_spm.py",
)


def membranes_for(concepts: Sequence[Concept], files: Sequence[str]) -> tuple[Membrane, ...]:
    """Read the membranes of some concepts.

    Args:
        concepts: what is to be erased.
        files: paths, or names `zoo:CONCEPT`; each must erase one of the concepts, and every concept must have one.

    Raises:
        UnknownNameError: if a concept has no membrane or a membrane no concept.
        MembraneFileError: if a file cannot be read.
    """
    found = {membrane.name: membrane for membrane in map(load_membrane, files)}
    wanted = [concept.name for concept in concepts]
    for name in wanted:
        if name not in found:
            raise UnknownNameError(closest(name, found, what="concept (no membrane file given erases it)"))
    for name in found:
        if name not in wanted:
            raise UnknownNameError(closest(name, wanted, what="concept (a membrane file erases it, nobody asked)"))
    return tuple(found[name] for name in wanted)


@dataclass(frozen=True, eq=False)
class _RuleGate:
    """Membranes' own gates under a rule."""

    membranes: tuple[Membrane, ...]
    rule: Rule

    def openings(self, pipe: Any, prompts: Sequence[str]) -> list[list[Opening]]:
        """See `Gate`."""
        concepts = [(membrane.concept, membrane.gate) for membrane in self.membranes]
        return decided(pipe, concepts, prompts, resolve(self.rule))


@dataclass(frozen=True, eq=False)
class Equipped:
    """An erasure by membranes.

    Args:
        config: see `Erasure`.
        membranes: one per concept.
        rule: permeability.
    """

    config: Mapping[str, Json]
    membranes: tuple[Membrane, ...]
    rule: Rule

    @property
    def stored_bytes(self) -> int:
        """Size of the membranes' files."""
        return sum(len(to_bytes(membrane)) for membrane in self.membranes)

    @property
    def gate(self) -> _RuleGate | None:
        """What its prompts open; None if it is held open."""
        return None if self.rule == "open" else _RuleGate(self.membranes, self.rule)

    @contextmanager
    def applied(self, pipe: Any) -> Generator[Draw, None, None]:
        """See `Erasure`."""
        with attach(pipe, self.membranes, self.rule):
            yield pipe


@dataclass(frozen=True)
class Spm:
    """See the module.

    Args:
        name: see `Eraser`.
        rule: permeability.
        training: how membranes are trained where no file is given.
        files: membrane files or names `zoo:CONCEPT`, one per concept; () trains.
    """

    name: str
    rule: Rule
    training: TrainConfig
    files: tuple[str, ...] = ()

    @property
    def gated(self) -> bool:
        """See `Eraser`."""
        return self.rule != "open"

    @property
    def recipe(self) -> dict[str, Json] | None:
        """What decides a membrane beside concept and seed; None where files hold them (see `artefacts`)."""
        return None if self.files else {"membrane": self.training.to_json()}

    def subjects(self, workshop: Workshop, concepts: Sequence[Concept]) -> list[Subject]:
        """Return the concepts as they are trained; the word for an object's group counts as a surrogate left open."""
        pipe = workshop.host.pipe
        if self.files:
            return subjects_of(pipe, concepts)
        return subjects_of(pipe, resettled(workshop, concepts, self.training))

    def membrane_of(self, workshop: Workshop, subject: Subject, *, seed: int, progress: bool) -> Membrane:
        """Train the membrane of one concept."""
        return erase(
            workshop.host.pipe, subject.concept, config=self.training, seed=seed, progress=progress, workshop=workshop
        )

    def equipped(self, subjects: Sequence[Subject], membranes: Sequence[Membrane], seed: int) -> Equipped:
        """Return the erasure by some membranes, one per subject."""
        source: dict[str, Json] = {"training": self.training.to_json()}
        if self.files:
            source = {"membranes": [digest(membrane) for membrane in membranes]}
        config = configuration(self.name, subjects, None if self.files else seed, rule=self.rule, **source)
        return Equipped(config, tuple(membranes), self.rule)

    def prepare(self, pipe: Any, concepts: Sequence[Concept], *, seed: int, progress: bool = False) -> Equipped:
        """See `Eraser`."""
        workshop = Workshop(pipe)
        subjects = self.subjects(workshop, concepts)
        if self.files:
            membranes = membranes_for([subject.concept for subject in subjects], self.files)
        else:
            membranes = tuple(self.membrane_of(workshop, one, seed=seed, progress=progress) for one in subjects)
        return self.equipped(subjects, membranes, seed)
