"""The gate alone: which concepts a prompt asks for, by the calibrated rule, for erasers that are no membranes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from semipermeable.concept import Concept
from semipermeable.evaluation.erasers.subjects import Subject, bytes_of
from semipermeable.hosts import host_for
from semipermeable.membrane import GateState
from semipermeable.permeability import GatedConcept, Permeability, Transport
from semipermeable.training import fit_gate
from semipermeable.training.captions import spec_of

__all__ = ["Gate", "Opening", "PromptGate", "as_list", "decided", "fit_gates", "openings_of"]

Opening: TypeAlias = tuple[str, float, str]
"""A concept that opened, γ, and the reason."""


@runtime_checkable
class Gate(Protocol):
    """What an erasure opens on, prompt by prompt."""

    def openings(self, pipe: Any, prompts: Sequence[str]) -> list[list[Opening]]:
        """Return what every prompt opens."""
        ...


def decided(
    pipe: Any,
    concepts: Sequence[tuple[Concept, GateState | None]],
    prompts: Sequence[str],
    rule: Permeability,
) -> list[list[Opening]]:
    """Return for every prompt the concepts that open on it, with γ > 0 and why.

    Args:
        pipe: gives the text encoder.
        concepts: with their fitted gates; None decides by names alone.
        prompts: the texts.
        rule: gives γ.
    """
    host = host_for(pipe)
    encoded, empty = host.encode(prompts), host.encode([""])[0]
    found: list[list[Opening]] = [[] for _ in prompts]
    for concept, state in concepts:
        names = tuple(host.encode(concept.names))
        for opened, decision in zip(
            found, rule.decide(encoded, GatedConcept(concept, names, empty, state)), strict=True
        ):
            if decision.gamma > 0:
                opened.append((concept.name, round(decision.gamma, 4), decision.reason))
    return found


def openings_of(erasure: Any, pipe: Any, prompts: Sequence[str]) -> list[list[Opening]] | None:
    """Return what every prompt opens under an erasure; None for one that has no gate."""
    gate = getattr(erasure, "gate", None)
    return gate.openings(pipe, prompts) if isinstance(gate, Gate) else None


@dataclass(frozen=True, eq=False)
class PromptGate:
    """The calibrated gates of some concepts.

    Args:
        subjects: the concepts.
        states: their fitted gates, in the same order; None decides by names alone.
    """

    subjects: tuple[Subject, ...]
    states: tuple[GateState | None, ...]

    def opened(self, pipe: Any, prompts: Sequence[str]) -> list[tuple[Subject, ...]]:
        """Return for every prompt the concepts that it asks for.

        Args:
            pipe: gives the text encoder.
            prompts: the texts.
        """
        by_name = {subject.concept.name: subject for subject in self.subjects}
        return [tuple(by_name[name] for name, _, _ in found) for found in self.openings(pipe, prompts)]

    def openings(self, pipe: Any, prompts: Sequence[str]) -> list[list[Opening]]:
        """See `Gate`."""
        concepts = [subject.concept for subject in self.subjects]
        return decided(pipe, list(zip(concepts, self.states, strict=True)), prompts, Transport())

    @property
    def stored_bytes(self) -> int:
        """Size of the fitted gates."""
        states = [state for state in self.states if state is not None]
        tensors = [tensor for state in states for tensor in state.tensors.values()]
        return bytes_of(tensors) + sum(len(json.dumps(dict(state.settings))) for state in states)


def fit_gates(pipe: Any, subjects: Sequence[Subject], seed: int) -> PromptGate:
    """Fit the gate of every concept; one that cannot be fitted decides by names alone."""
    host, spec = host_for(pipe), spec_of(pipe)
    states = tuple(fit_gate(host, one.concept, one.captions.kind, spec, seed) for one in subjects)
    return PromptGate(tuple(subjects), states)


def as_list(prompts: str | Sequence[str]) -> list[str]:
    """Return one or several prompts as a list."""
    return [prompts] if isinstance(prompts, str) else list(prompts)
