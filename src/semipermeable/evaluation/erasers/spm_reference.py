"""SPM as its released reference code behaves, where that differs from the paper (see DESIGN.md, section 3).

Drawing: of a batch only the first prompt is looked at, and its γ holds for all rows, the unconditional ones included.
Both factors are scaled by it, and several membranes are summed factor by factor, so that a site adds

    (Σ_c γ_c u_c) (Σ_c γ_c v_c)ᵀ        in the place of Σ_c γ_c u_c v_cᵀ :

one membrane acts with γ², several have cross terms. γ is that of the paper's Eq. 10 and 11 over whole encodings.

How it trains: `reference_training`. Membranes from files act here as they would there, whatever trained them.
"""

import dataclasses
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from semipermeable.concept import Concept
from semipermeable.equip import fold
from semipermeable.errors import ConfigError
from semipermeable.evaluation.erasers.gates import as_list
from semipermeable.evaluation.erasers.protocol import Card, Draw
from semipermeable.evaluation.erasers.reference_training import ReferenceSettings, train_as_reference
from semipermeable.evaluation.erasers.spm import membranes_for
from semipermeable.evaluation.erasers.subjects import Subject, configuration, subjects_of
from semipermeable.evaluation.erasers.weights import bare_denoiser
from semipermeable.files.foreign import resolve_foreign
from semipermeable.files.native import digest, to_bytes
from semipermeable.hosts import host_for
from semipermeable.membrane import Json, Membrane
from semipermeable.permeability import GatedConcept, PaperTransport
from semipermeable.training.workshop import Workshop

__all__ = ["CARD", "Folded", "SpmReference", "cross_summed"]

CARD = Card(
    paper="Lyu et al. 2024 (SPM), CVPR, arXiv 2312.16145; as its released code behaves",
    defaults="the paper's settings; γ of the first prompt for all rows, squared, summed with cross terms",
    tuned="nothing; resolution is not drawn at random and the optimiser is not of 8 bits",
    checked="Con6924/SPM, train_spm.py, src/configs/config.py, src/engine/train_util.py",
)


def cross_summed(membranes: Sequence[Membrane], gamma: Sequence[float]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return Σ_c γ_c u_c and Σ_c γ_c v_c of every site.

    Args:
        membranes: of one rank.
        gamma: γ of each.

    Raises:
        ConfigError: if two membranes have different ranks at a site; the released code cannot sum them either.
    """
    summed: dict[str, tuple[Tensor, Tensor]] = {}
    for membrane, g in zip(membranes, gamma, strict=True):
        for name, (u, v) in membrane.pairs.items():
            before = summed.get(name, (torch.zeros_like(u), torch.zeros_like(v)))
            if before[0].shape != u.shape:
                raise ConfigError(
                    f"spm-reference adds membranes factor by factor, so all need one rank; at {name!r} that of "
                    f"{membrane.name!r} has {u.shape[1]}, others have {before[0].shape[1]}"
                )
            summed[name] = (before[0] + g * u, before[1] + g * v)
    return summed


@dataclass(frozen=True, eq=False)
class Folded:
    """Membranes that are folded into the weights for each call.

    Args:
        config: see `Erasure`.
        membranes: one per concept.
    """

    config: Mapping[str, Json]
    membranes: tuple[Membrane, ...]

    @property
    def stored_bytes(self) -> int:
        """Size of the membranes' files."""
        return sum(len(to_bytes(membrane)) for membrane in self.membranes)

    @contextmanager
    def applied(self, pipe: Any) -> Generator[Draw, None, None]:
        """See `Erasure`."""
        bare_denoiser(pipe)

        def erased(prompt: str | Sequence[str], **options: Any) -> Any:
            prompts = as_list(prompt)
            whole = Membrane(cross_summed(self.membranes, self._gamma(pipe, prompts[0])), self.membranes[0].concept)
            with fold(pipe, whole):
                return pipe(prompts, **options)

        yield erased

    def _gamma(self, pipe: Any, prompt: str) -> list[float]:
        host, rule = host_for(pipe), PaperTransport()
        encoded, empty = host.encode([prompt]), host.encode([""])[0]
        concepts = [GatedConcept(m.concept, tuple(host.encode(m.concept.names)), empty) for m in self.membranes]
        return [rule.decide(encoded, concept)[0].gamma for concept in concepts]


@dataclass(frozen=True)
class SpmReference:
    """See the module.

    Args:
        training: how membranes are trained where no file is given.
        files: membrane files, one per concept; () trains.
        name: see `Eraser`.
    """

    training: ReferenceSettings = field(default_factory=ReferenceSettings)
    files: tuple[str, ...] = ()
    name: str = "spm-reference"
    gated = True

    @property
    def recipe(self) -> dict[str, Json] | None:
        """What decides a membrane beside concept and seed; None where files hold them (see `artefacts`)."""
        return None if self.files else {"spm-reference": dataclasses.asdict(self.training)}

    def subjects(self, workshop: Workshop, concepts: Sequence[Concept]) -> list[Subject]:
        """Return the concepts as they are trained."""
        return subjects_of(workshop.host.pipe, concepts)

    def membrane_of(self, workshop: Workshop, subject: Subject, *, seed: int, progress: bool) -> Membrane:
        """Train the membrane of one concept."""
        return train_as_reference(workshop.host.pipe, subject.concept, self.training, seed=seed, progress=progress)

    def equipped(self, subjects: Sequence[Subject], membranes: Sequence[Membrane], seed: int) -> Folded:
        """Return the erasure by some membranes, one per subject."""
        source: dict[str, Json] = {"training": dataclasses.asdict(self.training)}
        if self.files:
            source = {"membranes": [digest(membrane) for membrane in membranes]}
        return Folded(configuration(self.name, subjects, None if self.files else seed, **source), tuple(membranes))

    def prepare(self, pipe: Any, concepts: Sequence[Concept], *, seed: int, progress: bool = False) -> Folded:
        """See `Eraser`."""
        workshop = Workshop(pipe)
        subjects = self.subjects(workshop, concepts)
        if self.files:
            denoiser = workshop.host.denoiser
            loaded = membranes_for([subject.concept for subject in subjects], self.files)
            membranes = tuple(resolve_foreign(membrane, denoiser) for membrane in loaded)
        else:
            membranes = tuple(self.membrane_of(workshop, one, seed=seed, progress=progress) for one in subjects)
        return self.equipped(subjects, membranes, seed)
