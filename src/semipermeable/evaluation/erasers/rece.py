"""RECE: edit in closed form, find the state that would bring the concept back, edit that away too, and repeat.

After an edit of every key and value projection W to W', the state that best brings a concept's state c back is (Eq. 7
of the paper)

    c' minimises Σ_W ‖W' c' − W c‖² + λ ‖c'‖²  ⇒  c' = (λ 1 + Σ W'ᵀ W')⁻¹ (Σ W'ᵀ W) c.

The next round is UCE's edit of W that sends c and every c' found so far where c should go. (The authors' code edits W'
for the latest c' alone, and keeps the round that a detector likes best. Without that choice c itself comes back: on the
bundled model that erased less than UCE.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from semipermeable.concept import Concept
from semipermeable.evaluation.erasers.cross_attention import Problem
from semipermeable.evaluation.erasers.protocol import Card
from semipermeable.evaluation.erasers.weights import WeightErasure
from semipermeable.training.closed_form import StatePairs

__all__ = ["CARD", "Rece", "ReceSettings", "recalling_states"]

CARD = Card(
    paper="Gong et al. 2024, Reliable and Efficient Concept Erasure (RECE), ECCV, arXiv 2407.12383",
    defaults="kept states weighted 0.1, ridge 0.1, then 5 rounds with λ 1e-3: its authors' settings for objects",
    tuned="nothing; states come from the given captions as for UCE; every round keeps the earlier rounds' states",
    checked="CharlesGong12/RECE, train_object.py, erase_methods/uce.py and utils/embedding_calculation/"
    "close_form_emb.py; for nudity train.py has 10 rounds and λ 0.1",
)


@dataclass(frozen=True, kw_only=True)
class ReceSettings:
    """Of the first edit, and of the rounds after it; 1 is the weight of one concept state."""

    keep_weight: float = 0.1
    """κ, weight of each state to keep."""
    ridge: float = 0.1
    """Weight of ‖W' − W‖²."""
    num_rounds: int = 5
    """Rounds of finding c' and editing it away."""
    recall_ridge: float = 1e-3
    """λ, weight of ‖c'‖²."""


def recalling_states(base: Mapping[str, Tensor], edited: Mapping[str, Tensor], states: Tensor, ridge: float) -> Tensor:
    """Return c' for every state, shape (n, dim), float64.

    Args:
        base: W of every projection, shape (out, dim).
        edited: W' of the same.
        states: rows c, shape (n, dim).
        ridge: λ.
    """
    dim = states.shape[1]
    inner = ridge * torch.eye(dim, dtype=torch.float64)
    cross = torch.zeros(dim, dim, dtype=torch.float64)
    for name, weight in edited.items():
        new = weight.double()
        inner += new.T @ new
        cross += new.T @ base[name].double()
    return torch.linalg.solve(inner, cross @ states.double().T).T


@dataclass(frozen=True)
class Rece:
    """See the module.

    Args:
        settings: of edits and rounds.
        name: see `Eraser`.
    """

    settings: ReceSettings = ReceSettings()
    name: str = "rece"
    gated = False

    def prepare(self, pipe: Any, concepts: Sequence[Concept], *, seed: int, progress: bool = False) -> WeightErasure:  # noqa: ARG002
        """See `Eraser`."""
        problem, settings = Problem.of(pipe, concepts), self.settings
        weights = {"keep_weight": settings.keep_weight, "ridge": settings.ridge}
        first = states = problem.states()
        edited = problem.remapped(states, **weights)
        for _ in range(settings.num_rounds):
            found = recalling_states(problem.base, edited, first.target, settings.recall_ridge)
            recalled = torch.cat([states.target.double(), found])
            states = StatePairs(recalled, torch.cat([states.surrogate, first.surrogate]))
            edited = problem.remapped(states, **weights)
        return problem.erasure(self.name, edited, asdict(settings))
