"""The gate alone: which concepts a prompt asks for, by the calibrated rule, for erasers that are no membranes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from semipermeable.evaluation.erasers.subjects import Subject, bytes_of
from semipermeable.hosts import host_for
from semipermeable.membrane import GateState
from semipermeable.permeability import GatedConcept, Transport
from semipermeable.training import fit_gate
from semipermeable.training.captions import spec_of

__all__ = ["PromptGate", "as_list", "fit_gates"]


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
        host = host_for(pipe)
        encoded, empty, rule = host.encode(prompts), host.encode([""])[0], Transport()
        asked: list[list[Subject]] = [[] for _ in prompts]
        for subject, state in zip(self.subjects, self.states, strict=True):
            names = tuple(host.encode(subject.concept.names))
            decisions = rule.decide(encoded, GatedConcept(subject.concept, names, empty, state))
            for found, decision in zip(asked, decisions, strict=True):
                if decision.gamma > 0:
                    found.append(subject)
        return [tuple(found) for found in asked]

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
