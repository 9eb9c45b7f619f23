"""Edits of the weights that turn text into keys and values: where the closed-form erasers act.

A projection W, shape (out, dim), reads text states c, (dim,). All of these erasers choose ΔW by least squares over
pairs (c, c*): c a state of a caption of the concept, c* the state that should be read in its place, the one at the
same spot of the caption with the surrogate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from semipermeable.evaluation.erasers.subjects import Subject, kept_captions
from semipermeable.evaluation.erasers.weights import bare_denoiser
from semipermeable.hosts import Host, host_for
from semipermeable.sites import Site, find_sites
from semipermeable.training.closed_form import StatePairs, cross_attention_sites, pair_states

__all__ = ["CaptionPairs", "edit_all", "joined", "kept_moment", "remap", "state_pairs", "text_sites"]


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
    denoiser = bare_denoiser(pipe)
    return cross_attention_sites(find_sites(denoiser, host_for(pipe).site_classes))


def state_pairs(host: Host, subjects: Sequence[Subject]) -> list[CaptionPairs]:
    """Return the paired states of every caption of any subject."""
    found: list[CaptionPairs] = []
    for subject in subjects:
        captions = subject.captions
        targets, surrogates = host.encode(captions.targets), host.encode(captions.surrogates)
        spans = {text: host.encode([text])[0].token_ids for text in dict.fromkeys(captions.spans)}
        found += [
            CaptionPairs(pair_states(target, surrogate, spans[span]), max(len(spans[span]), 1))
            for target, surrogate, span in zip(targets, surrogates, captions.spans, strict=True)
        ]
    return found


def joined(pairs: Sequence[CaptionPairs], rows: Callable[[int], slice] = lambda _: slice(None)) -> StatePairs:
    """Return the paired states of all captions as one set.

    Args:
        pairs: by caption.
        rows: which rows to take, given how many are the concept's own.
    """
    target = torch.cat([p.pairs.target[rows(p.num_own)] for p in pairs])
    return StatePairs(target, torch.cat([p.pairs.surrogate[rows(p.num_own)] for p in pairs]))


def kept_moment(host: Host, subjects: Sequence[Subject]) -> Tensor:
    """Return Σ c cᵀ over all states of the captions to keep, shape (dim, dim), float64."""
    states = torch.cat([prompt.states for prompt in host.encode(kept_captions(subjects))]).double()
    return states.T @ states


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


def edit_all(pipe: Any, edit: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Return the edited weight of every key and value projection, by parameter name, on the CPU.

    Args:
        pipe: the pipeline; it stays as it is.
        edit: W, shape (out, dim), to W'.
    """
    return {
        f"{name}.weight": edit(site.weight.detach()).to("cpu", site.weight.dtype)
        for name, site in text_sites(pipe).items()
    }
