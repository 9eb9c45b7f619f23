"""Steer away from the concept's names: they become the negative prompt of classifier-free guidance.

With ε the base model, p the prompt, n the names and g the guidance scale, each step takes ε(n) + g (ε(p) − ε(n)) in the
place of ε(∅) + g (ε(p) − ε(∅)). A negative prompt of the caller comes first, the names after it. Without guidance
(g ≤ 1) there is nothing to steer, and the base model draws. The gated form adds the names only where the prompt asks
for the concept.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from semipermeable.concept import Concept
from semipermeable.evaluation.erasers.gates import PromptGate, as_list, fit_gates
from semipermeable.evaluation.erasers.protocol import Card, Draw
from semipermeable.evaluation.erasers.subjects import Subject, configuration, subjects_of
from semipermeable.membrane import Json

__all__ = ["CARD", "GATED_CARD", "NegativePrompt", "names_text"]

CARD = Card(
    paper="Ho and Salimans 2022, Classifier-Free Diffusion Guidance, arXiv 2207.12598; negative prompts are folklore",
    defaults="all names of all concepts, joined by commas, in every prompt",
    tuned="nothing",
)
GATED_CARD = Card(
    paper=CARD.paper,
    defaults="the names of those concepts for which the calibrated gate of this package opens on the prompt",
    tuned="nothing; the gate is fitted per concept as for a membrane",
)


def names_text(subjects: Sequence[Subject], before: str = "") -> str:
    """Return all names of some concepts joined by commas, after the caller's own text."""
    names = [name for subject in subjects for name in subject.concept.names]
    return ", ".join([before, *names] if before else names)


@dataclass(frozen=True, eq=False)
class _Steered:
    """The names, and the gate if there is one."""

    config: Mapping[str, Json]
    subjects: tuple[Subject, ...]
    gate: PromptGate | None

    @property
    def stored_bytes(self) -> int:
        return len(names_text(self.subjects).encode()) + (self.gate.stored_bytes if self.gate else 0)

    @contextmanager
    def applied(self, pipe: Any) -> Generator[Draw, None, None]:
        """See `Erasure`."""

        def erased(
            prompt: str | Sequence[str], *, negative_prompt: str | Sequence[str] | None = None, **options: Any
        ) -> Any:
            prompts = as_list(prompt)
            own = as_list(negative_prompt or "")
            own = own * len(prompts) if len(own) == 1 else own
            asked = [self.subjects] * len(prompts) if self.gate is None else self.gate.opened(pipe, prompts)
            texts = [names_text(found, before) for found, before in zip(asked, own, strict=True)]
            return pipe(prompts, negative_prompt=texts, **options)

        yield erased


@dataclass(frozen=True)
class NegativePrompt:
    """See the module.

    Args:
        gated: whether the names are added only to prompts that ask for the concept.
    """

    gated: bool = False

    @property
    def name(self) -> str:
        """See `Eraser`."""
        return "gated-negative-prompt" if self.gated else "negative-prompt"

    def prepare(self, pipe: Any, concepts: Sequence[Concept], *, seed: int, progress: bool = False) -> _Steered:  # noqa: ARG002
        """See `Eraser`."""
        subjects = subjects_of(pipe, concepts)
        gate = fit_gates(pipe, subjects, seed) if self.gated else None
        config = configuration(self.name, subjects, seed if self.gated else None)
        return _Steered(config, tuple(subjects), gate)
