"""RECE: edit in closed form, find the state that would bring the concept back, edit that away too, and repeat.

After an edit of every key and value projection W to W', the state that best brings a concept's state c back is (Eq. 7
of the paper)

    c' minimises Σ_W ‖W' c' − W c‖² + λ ‖c'‖²  ⇒  c' = (λ 1 + Σ W'ᵀ W')⁻¹ (Σ W'ᵀ W) c.

The next round is UCE's edit of W that sends c and every c' found so far where c should go. (Editing W' for the latest
c' alone lets c itself come back: on the bundled model that erased less than UCE.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from semipermeable.concept import Concept
from semipermeable.evaluation.erasers.cross_attention import joined, kept_moment, remap, state_pairs, text_sites
from semipermeable.evaluation.erasers.protocol import Card
from semipermeable.evaluation.erasers.subjects import configuration, subjects_of
from semipermeable.evaluation.erasers.uce import UceSettings, uce_weights
from semipermeable.evaluation.erasers.weights import WeightErasure
from semipermeable.hosts import host_for

__all__ = ["CARD", "RecallSettings", "Rece", "recalling_states"]

CARD = Card(
    paper="Gong et al. 2024, Reliable and Efficient Concept Erasure (RECE), ECCV, arXiv 2407.12383",
    defaults="UCE's settings, then 3 rounds with λ 0.1",
    tuned="nothing; states come from the given captions as for UCE; every round keeps the earlier rounds' states",
)


@dataclass(frozen=True, kw_only=True)
class RecallSettings:
    """The rounds after the first edit."""

    num_rounds: int = 3
    """Rounds of finding c' and editing it away."""
    recall_ridge: float = 0.1
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
        settings: of the rounds.
        editing: of every edit.
    """

    settings: RecallSettings = field(default_factory=RecallSettings)
    editing: UceSettings = field(default_factory=UceSettings)
    name = "rece"
    gated = False

    def prepare(self, pipe: Any, concepts: Sequence[Concept], *, seed: int, progress: bool = False) -> WeightErasure:  # noqa: ARG002
        """See `Eraser`."""
        subjects = subjects_of(pipe, concepts)
        host = host_for(pipe)
        base = {f"{name}.weight": site.weight.detach().cpu() for name, site in text_sites(pipe).items()}
        pairs = joined(state_pairs(host, subjects))
        kept = self.editing.keep_weight * kept_moment(host, subjects)
        edited = uce_weights(pipe, subjects, self.editing)
        states, goals = pairs.target.double(), pairs.surrogate.double()
        for _ in range(self.settings.num_rounds):
            found = recalling_states(base, edited, pairs.target, self.settings.recall_ridge)
            states, goals = torch.cat([states, found]), torch.cat([goals, pairs.surrogate.double()])
            edited = {
                name: remap(weight, states, goals @ weight.double().T, kept, ridge=self.editing.ridge).to(weight.dtype)
                for name, weight in base.items()
            }
        config = configuration(self.name, subjects, None, **asdict(self.settings), **asdict(self.editing))
        return WeightErasure(config, edited)
