"""Edits of the weights that turn text into keys and values: where the closed-form erasers act.

A projection W, shape (out, dim), reads text states c, (dim,). All of these erasers choose ΔW by least squares over
pairs (c, c*): c a state of a caption of the concept, c* the state that should be read in its place, the one at the
same spot of the caption with the surrogate. `Problem` holds what each of them is given.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from semipermeable.concept import Concept
from semipermeable.evaluation.erasers.subjects import Subject, configuration, kept_captions, subjects_of
from semipermeable.evaluation.erasers.weights import WeightErasure, bare_denoiser
from semipermeable.hosts import Host, host_for
from semipermeable.membrane import Json
from semipermeable.sites import Site, find_sites
from semipermeable.training.closed_form import StatePairs, cross_attention_sites, pair_states

__all__ = ["CaptionPairs", "Problem", "remap", "text_sites"]


@dataclass(frozen=True, eq=False)
class CaptionPairs:
    """The paired states of one caption.

    Args:
        pairs: rows of the concept's own tokens, then of the words after it, of the end and of the padding.
        num_own: how many rows are the concept's own.
    """

    pairs: StatePairs
    num_own: int


def text_sites(pipe: Any) -> dict[str, Site]:
    """Return all cross-attention keys and values of a bare pipeline, by site name.

    Raises:
        AttachError: see `weights.bare_denoiser`.
    """
    denoiser, host = bare_denoiser(pipe), host_for(pipe)
    return cross_attention_sites(find_sites(denoiser, host.site_classes), host.text_sites)


@dataclass(frozen=True, eq=False)
class Problem:
    """What an eraser in closed form is given.

    Args:
        pipe: a bare pipeline; it stays as it is.
        subjects: what is erased, jointly.
    """

    pipe: Any
    subjects: tuple[Subject, ...]

    @classmethod
    def of(cls, pipe: Any, concepts: Sequence[Concept]) -> "Problem":
        """Return the problem of erasing some concepts."""
        return cls(pipe, tuple(subjects_of(pipe, concepts)))

    @property
    def host(self) -> Host:
        """Of the pipeline."""
        return host_for(self.pipe)

    @cached_property
    def pairs(self) -> list[CaptionPairs]:
        """The paired states of every caption of any subject."""
        return [pair for subject in self.subjects for pair in _caption_pairs(self.host, subject)]

    @cached_property
    def kept(self) -> Tensor:
        """Σ c cᵀ over all states of the captions to keep, shape (dim, dim), float64."""
        prompts = self.host.encode(kept_captions(self.subjects))
        states = torch.cat([self.host.text_inputs(prompt.states) for prompt in prompts]).double()
        return states.T @ states

    @cached_property
    def base(self) -> dict[str, Tensor]:
        """W of every key and value projection, by parameter name, on the CPU."""
        return {f"{name}.weight": site.weight.detach().cpu() for name, site in text_sites(self.pipe).items()}

    def states(self, rows: Callable[[int], slice] = lambda _: slice(None)) -> StatePairs:
        """Return the paired states of all captions as one set.

        Args:
            rows: which rows of a caption to take, given how many are the concept's own.
        """
        target = torch.cat([p.pairs.target[rows(p.num_own)] for p in self.pairs])
        return StatePairs(target, torch.cat([p.pairs.surrogate[rows(p.num_own)] for p in self.pairs]))

    def remapped(self, states: StatePairs, *, keep_weight: float, ridge: float) -> dict[str, Tensor]:
        """Return every W' that reads each state as W read its surrogate (see `remap`), by parameter name.

        Args:
            states: pairs (c, c*).
            keep_weight: κ, weight of each state to keep.
            ridge: λ, weight of ‖W' − W‖².
        """
        kept, goals = keep_weight * self.kept, states.surrogate.double()
        return self.edited(lambda weight: remap(weight, states.target, goals @ weight.double().T, kept, ridge=ridge))

    def edited(self, edit: Callable[[Tensor], Tensor], endings: tuple[str, ...] = ()) -> dict[str, Tensor]:
        """Return edited weights by parameter name, in their own dtype.

        Args:
            edit: W, shape (out, dim), to W'.
            endings: of the sites to edit; () edits all, and so do endings that no site has.
        """
        wanted = tuple(f"{ending}.weight" for ending in endings)
        chosen = {name: weight for name, weight in self.base.items() if name.endswith(wanted)} if wanted else {}
        return {name: edit(weight).to(weight.dtype) for name, weight in (chosen or self.base).items()}

    def erasure(
        self, name: str, weights: Mapping[str, Tensor], settings: Mapping[str, Json], seed: int | None = None
    ) -> WeightErasure:
        """Return edited weights as an erasure.

        Args:
            name: of the eraser.
            weights: by parameter name.
            settings: of the eraser.
            seed: None where nothing was drawn at random.
        """
        return WeightErasure(configuration(name, self.subjects, seed, **settings), weights)


def _caption_pairs(host: Host, subject: Subject) -> list[CaptionPairs]:
    captions = subject.captions
    targets, surrogates = host.encode(captions.targets), host.encode(captions.surrogates)
    spans = {text: host.encode([text])[0].token_ids for text in dict.fromkeys(captions.spans)}
    return [
        CaptionPairs(pair_states(target, surrogate, spans[span]).mapped(host.text_inputs), max(len(spans[span]), 1))
        for target, surrogate, span in zip(targets, surrogates, captions.spans, strict=True)
    ]


def remap(weight: Tensor, states: Tensor, outputs: Tensor, kept: Tensor, *, ridge: float) -> Tensor:
    """Return W' that sends states to given outputs and moves as little else as possible.

    W' minimises Σ_i ‖W' c_i − v_i‖² + tr((W' − W) K (W' − W)ᵀ) + λ ‖W' − W‖², that is
    W' = W + (V − W C) Cᵀ (C Cᵀ + K + λ 1)⁻¹.

    Args:
        weight: W, shape (out, dim).
        states: rows c_i, shape (n, dim).
        outputs: rows v_i, shape (n, out).
        kept: K = Σ c cᵀ over states to keep, weighted, shape (dim, dim).
        ridge: λ > 0.

    Returns:
        W', float64 on the CPU.
    """
    base, c = weight.detach().cpu().double(), states.double()
    moment = c.T @ c + kept + ridge * torch.eye(c.shape[1], dtype=torch.float64)
    residual = (outputs.double() - c @ base.T).T @ c
    return base + torch.linalg.solve(moment, residual.T).T
