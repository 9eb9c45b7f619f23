"""Unified Concept Editing in closed form, always open or gated.

For every cross-attention key and value projection W, with pairs (c, c*) of concept and destination states and states to
keep, the paper (Eq. 7) takes

    W' = (Σ_E W c* cᵀ + Σ_P W c cᵀ) (Σ_E c cᵀ + Σ_P c cᵀ)⁻¹

with a small multiple of the identity in both sums so that the inverse exists. The kept sum is weighted by κ. The gated
form makes one edit per concept, carries each as a membrane of as many ranks as it has, and lets the calibrated gate
decide which rows it acts on; on other rows, the unconditional ones included, W is untouched.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from semipermeable.concept import Concept
from semipermeable.equip import attach
from semipermeable.evaluation.erasers.cross_attention import Problem, text_sites
from semipermeable.evaluation.erasers.gates import PromptGate, fit_gates
from semipermeable.evaluation.erasers.protocol import Card, Draw
from semipermeable.evaluation.erasers.subjects import Subject, bytes_of, configuration, subjects_of
from semipermeable.evaluation.erasers.weights import WeightErasure
from semipermeable.membrane import Json, Membrane

__all__ = ["CARD", "GATED_CARD", "GatedUce", "Uce", "UceSettings", "uce_weights"]

CARD = Card(
    paper="Gandikota et al. 2024, Unified Concept Editing in Diffusion Models, WACV, arXiv 2308.14761",
    defaults="kept states weighted 0.1, ridge 0.5; destination: the surrogate in the caption",
    tuned="nothing; states come from the captions that every eraser here is given, not from its authors' templates",
    checked="rohitgandikota/unified-concept-editing, train-scripts/train_erase.py; the later trainscripts/"
    "uce_sd_erase.py weighs kept states 1 and takes the last token alone",
)
GATED_CARD = Card(
    paper=CARD.paper,
    defaults="one edit per concept with UCE's settings, on the rows where this package's calibrated gate opens",
    tuned="nothing; the gate is fitted per concept as for a membrane",
    checked="as `uce`",
)
_NEGLIGIBLE = 1e-6
"""Singular values of an edit below this share of the largest are rounding noise of fp32 weights."""


@dataclass(frozen=True, kw_only=True)
class UceSettings:
    """Weights of the least-squares problem; 1 is the weight of one concept state."""

    keep_weight: float = 0.1
    """κ, weight of each state to keep."""
    ridge: float = 0.5
    """λ, weight of ‖W' − W‖²."""


def uce_weights(pipe: Any, subjects: Sequence[Subject], settings: UceSettings) -> dict[str, Tensor]:
    """Return the edited weights by parameter name.

    Args:
        pipe: a bare pipeline; it stays as it is.
        subjects: erased jointly.
        settings: weights.
    """
    problem = Problem(pipe, tuple(subjects))
    return problem.remapped(problem.states(), keep_weight=settings.keep_weight, ridge=settings.ridge)


@dataclass(frozen=True)
class Uce:
    """Edits for all concepts at once; always open.

    Args:
        settings: weights.
        name: see `Eraser`.
    """

    settings: UceSettings = UceSettings()
    name: str = "uce"
    gated = False

    def prepare(self, pipe: Any, concepts: Sequence[Concept], *, seed: int, progress: bool = False) -> WeightErasure:  # noqa: ARG002
        """See `Eraser`."""
        problem = Problem.of(pipe, concepts)
        return problem.erasure(self.name, uce_weights(pipe, problem.subjects, self.settings), asdict(self.settings))


@dataclass(frozen=True, eq=False)
class _GatedEdits:
    """One edit per concept, as a membrane."""

    config: Mapping[str, Json]
    membranes: tuple[Membrane, ...]
    gate: PromptGate

    @property
    def stored_bytes(self) -> int:
        pairs = [pair for membrane in self.membranes for pair in membrane.pairs.values()]
        return bytes_of([tensor for pair in pairs for tensor in pair]) + self.gate.stored_bytes

    @contextmanager
    def applied(self, pipe: Any) -> Generator[Draw, None, None]:
        """See `Erasure`."""
        with attach(pipe, self.membranes):
            yield pipe


@dataclass(frozen=True)
class GatedUce:
    """One edit per concept, on the rows where its gate opens.

    Args:
        settings: weights.
        name: see `Eraser`.
    """

    settings: UceSettings = UceSettings()
    name: str = "gated-uce"
    gated = True

    def prepare(self, pipe: Any, concepts: Sequence[Concept], *, seed: int, progress: bool = False) -> _GatedEdits:  # noqa: ARG002
        """See `Eraser`."""
        subjects = subjects_of(pipe, concepts)
        gate = fit_gates(pipe, subjects, seed)
        membranes: list[Membrane] = []
        for subject, state in zip(subjects, gate.states, strict=True):
            pairs = _as_pairs(pipe, uce_weights(pipe, [subject], self.settings))
            membranes.append(Membrane(pairs, subject.concept, gate=state))
        config = configuration(self.name, subjects, seed, **asdict(self.settings))
        return _GatedEdits(config, tuple(membranes), gate)


def _as_pairs(pipe: Any, weights: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return W' − W of every site as the product of u (out, k) and v (k, dim)."""
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for name, site in text_sites(pipe).items():
        change = weights[f"{name}.weight"].double() - site.weight.detach().cpu().double()
        left, singular, right = torch.linalg.svd(change, full_matrices=False)
        rank = max(int((singular > _NEGLIGIBLE * singular[0]).sum()), 1)
        pairs[name] = ((left[:, :rank] * singular[:rank]).float(), right[:rank].float())
    return pairs
