"""The closed-form part of MACE: take a concept's traces out of the words around it.

Words after a concept's name, the end and the padding carry it on in their text states. For every cross-attention key
and value projection W the paper (Eq. 2 and 3) sends each such state e_f where W sends the state e_g that stands there
when the concept is replaced by its surrogate, and keeps general states e_p:

    W' = (Σ W e_g e_fᵀ + λ Σ W e_p e_pᵀ) (Σ e_f e_fᵀ + λ Σ e_p e_pᵀ)⁻¹

The states of the concept's own tokens are left to the LoRA modules of MACE's second part, which is not here: what is
measured under this name is the first part alone.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from semipermeable.concept import Concept
from semipermeable.evaluation.erasers.cross_attention import edit_all, joined, kept_moment, remap, state_pairs
from semipermeable.evaluation.erasers.protocol import Card
from semipermeable.evaluation.erasers.subjects import configuration, subjects_of
from semipermeable.evaluation.erasers.weights import WeightErasure
from semipermeable.hosts import host_for

__all__ = ["CARD", "MaceClosedForm", "MaceSettings"]

CARD = Card(
    paper="Lu et al. 2024, MACE: Mass Concept Erasure in Diffusion Models, CVPR, arXiv 2403.06135; closed form only",
    defaults="λ 0.1 on the captions to keep, in the place of the paper's general captions; destination: the surrogate",
    tuned="nothing; without MACE's LoRA modules, which erase the concept's own tokens",
)
_RIDGE = 1e-3
"""So that the inverse exists where kept captions leave a direction out; small beside any state's norm."""


@dataclass(frozen=True, kw_only=True)
class MaceSettings:
    """Weights of the least-squares problem; 1 is the weight of one state around the concept."""

    keep_weight: float = 0.1
    """λ."""


@dataclass(frozen=True)
class MaceClosedForm:
    """See the module.

    Args:
        settings: weights.
    """

    settings: MaceSettings = MaceSettings()
    name = "mace-closed-form"
    gated = False

    def prepare(self, pipe: Any, concepts: Sequence[Concept], *, seed: int, progress: bool = False) -> WeightErasure:  # noqa: ARG002
        """See `Eraser`."""
        subjects = subjects_of(pipe, concepts)
        host = host_for(pipe)
        pairs = joined(state_pairs(host, subjects), lambda own: slice(own, None))
        kept = self.settings.keep_weight * kept_moment(host, subjects)

        def edit(weight: Tensor) -> Tensor:
            goal = pairs.surrogate.double() @ weight.cpu().double().T
            return remap(weight, pairs.target, goal, kept, ridge=_RIDGE)

        config = configuration(self.name, subjects, None, **asdict(self.settings), ridge=_RIDGE)
        return WeightErasure(config, edit_all(pipe, edit))
