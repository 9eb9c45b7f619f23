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

from semipermeable.concept import Concept
from semipermeable.evaluation.erasers.cross_attention import Problem
from semipermeable.evaluation.erasers.protocol import Card
from semipermeable.evaluation.erasers.weights import WeightErasure

__all__ = ["CARD", "MaceClosedForm", "MaceSettings"]

CARD = Card(
    paper="Lu et al. 2024, MACE: Mass Concept Erasure in Diffusion Models, CVPR, arXiv 2403.06135; closed form only",
    defaults="ridge 10 and no states to keep, its authors' settings for objects; destination: the surrogate",
    tuned="nothing; without MACE's LoRA modules, which erase the concept's own tokens",
    checked="Shilin-LU/MACE, src/cfr_utils.py and configs/object/erase_bird.yaml; configs/celebrity keep COCO captions "
    "and names instead, at weights of their own",
)


@dataclass(frozen=True, kw_only=True)
class MaceSettings:
    """Weights of the least-squares problem; 1 is the weight of one state around the concept."""

    keep_weight: float = 0.0
    """λ, weight of each state of the captions to keep, in the place of the paper's general captions."""
    ridge: float = 10.0
    """Weight of ‖W' − W‖², which the authors' code adds."""


@dataclass(frozen=True)
class MaceClosedForm:
    """See the module.

    Args:
        settings: weights.
        name: see `Eraser`.
    """

    settings: MaceSettings = MaceSettings()
    name: str = "mace-closed-form"
    gated = False

    def prepare(self, pipe: Any, concepts: Sequence[Concept], *, seed: int, progress: bool = False) -> WeightErasure:  # noqa: ARG002
        """See `Eraser`."""
        problem = Problem.of(pipe, concepts)
        around = problem.states(lambda own: slice(own, None))
        weights = problem.remapped(around, **asdict(self.settings))
        return problem.erasure(self.name, weights, asdict(self.settings))
