"""SPEED: a closed-form edit confined to the null space of what is kept.

For every cross-attention value projection W, with erased states C, destination states C* and kept states C₀, the change
is Δ P, where P projects on the directions in which kept states have next to no part, and

    Δ minimises ‖(W + Δ P) C − W C*‖² + ‖Δ P‖²  ⇒  Δ P = W (C* − C) Cᵀ P (P C Cᵀ P + 1)⁻¹.

Every state is that of one token: the last of the concept's name, or of a caption to keep. Of the kept ones only those
stay, one for each last token, that the same edit without P would move more than the average (influence-based prior
filtering); copies of them, moved at random along the direction to which W answers least and filtered in the same way,
join them (directed prior augmentation). A direction is free where the mean of c₀ c₀ᵀ has a small eigenvalue. The
beginning of the text and the empty prompt always stay (the paper's invariant equality constraints): P excludes all
their directions, which is where a least-squares solution under these constraints lies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from semipermeable.concept import Concept
from semipermeable.errors import ConfigError
from semipermeable.evaluation.erasers.cross_attention import Problem
from semipermeable.evaluation.erasers.protocol import Card
from semipermeable.evaluation.erasers.subjects import kept_captions
from semipermeable.evaluation.erasers.weights import WeightErasure
from semipermeable.hosts import Host
from semipermeable.training.closed_form import StatePairs
from semipermeable.training.examples import generator_for

__all__ = ["CARD", "Speed", "SpeedSettings", "null_projection", "speed_edit"]

CARD = Card(
    paper="Li et al. 2026, SPEED: Scalable, Precise, and Efficient Concept Erasure, ICLR, arXiv 2503.07392",
    defaults="values only; 10 augmented copies of each kept state; free below an eigenvalue of 0.1 of the mean moment",
    tuned="nothing; states come from all captions that erasers here are given, not from bare names",
    checked="Ouxiang-Li/SPEED, scripts/eval_few.sh and eval_multi.sh (there 1e-4 without the filter); "
    "train_erase_null.py in the copy XXXia-art/SPEED, since its authors' own could not be read",
)
_ROUNDING = 1e-14
"""Relative eigenvalue at the rounding of fp32 states."""
_ENDINGS: Mapping[str, tuple[str, ...]] = {"v": (".to_v",), "k": (".to_k",), "kv": (".to_k", ".to_v")}


@dataclass(frozen=True, kw_only=True)
class SpeedSettings:
    """How the null space is found.

    Raises:
        ConfigError: if `edited` is none of "v", "k" and "kv".
    """

    edited: str = "v"
    """Which projections: values ("v"), keys ("k") or both ("kv")."""
    copies: int = 10
    """Augmented copies of each kept state."""
    threshold: float = 0.1
    """Largest eigenvalue of the mean of c₀ c₀ᵀ at which a direction counts as free."""

    def __post_init__(self) -> None:
        if self.edited not in _ENDINGS:
            raise ConfigError(f"speed: edited must be one of {', '.join(map(repr, _ENDINGS))}, found {self.edited!r}")


def null_projection(kept: Tensor, threshold: float, invariant: Tensor | None = None) -> Tensor:
    """Return P, the projection on directions in which kept states have next to no part, shape (dim, dim), float64.

    Args:
        kept: rows of states, shape (n, dim).
        threshold: see `SpeedSettings`.
        invariant: rows of states that have no part in them to rounding, whatever the threshold; None for no such rows.
    """
    rest = torch.eye(kept.shape[1], dtype=torch.float64)
    if invariant is not None:
        values, vectors = _moment(invariant, rest)
        rest = rest @ vectors[:, values <= _ROUNDING * values[-1]]
    values, vectors = _moment(kept, rest)
    free = rest @ vectors[:, values <= threshold]
    return free @ free.T


def _moment(rows: Tensor, within: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, rising, and eigenvectors of the mean of c cᵀ over rows c, inside a span.

    Args:
        rows: states, shape (n, dim).
        within: orthonormal basis of the span, shape (dim, k).
    """
    seen = rows.double() @ within
    return torch.linalg.eigh(seen.T @ seen / len(rows))


def speed_edit(weight: Tensor, pairs: StatePairs, projection: Tensor) -> Tensor:
    """Return W + Δ P, float64 on the CPU.

    Args:
        weight: W, shape (out, dim).
        pairs: rows of C and C*.
        projection: P, shape (dim, dim).
    """
    base, c, goal = weight.detach().cpu().double(), pairs.target.double(), pairs.surrogate.double()
    seen = c @ projection
    inner = seen.T @ seen + torch.eye(c.shape[1], dtype=torch.float64)
    cross = base @ (goal - c).T @ seen
    return base + torch.linalg.solve(inner, cross.T).T @ projection


def _influenced(weight: Tensor, pairs: StatePairs, kept: Tensor) -> Tensor:
    """Return those kept states that an unconfined edit moves more than the average."""
    change = speed_edit(weight, pairs, torch.eye(kept.shape[1], dtype=torch.float64)) - weight.cpu().double()
    shift = (kept.double() @ change.T).norm(dim=1)
    return kept[shift >= shift.mean()]


def _copies(weight: Tensor, kept: Tensor, copies: int, generator: torch.Generator) -> Tensor:
    """Return copies of kept states, moved along the last right singular vector of W."""
    _, _, right = torch.linalg.svd(weight.cpu().double(), full_matrices=True)
    noise = torch.randn((copies * len(kept), kept.shape[1]), generator=generator, dtype=torch.float64)
    return kept.double().repeat(copies, 1) + noise @ torch.outer(right[-1], right[-1])


@dataclass(frozen=True)
class Speed:
    """See the module.

    Args:
        settings: how the null space is found.
        name: see `Eraser`.
    """

    settings: SpeedSettings = SpeedSettings()
    name: str = "speed"
    gated = False

    def prepare(self, pipe: Any, concepts: Sequence[Concept], *, seed: int, progress: bool = False) -> WeightErasure:  # noqa: ARG002
        """See `Eraser`."""
        problem, settings = Problem.of(pipe, concepts), self.settings
        host = problem.host
        pairs = problem.states(lambda own: slice(own - 1, own))
        kept = _last_words(host, kept_captions(problem.subjects))
        invariant = host.text_inputs(host.encode([""])[0].states)
        generator = generator_for(seed, 8)

        def edit(weight: Tensor) -> Tensor:
            chosen = _influenced(weight, pairs, kept)
            copies = _influenced(weight, pairs, _copies(weight, chosen, settings.copies, generator))
            free = null_projection(torch.cat([chosen.double(), copies]), settings.threshold, invariant)
            return speed_edit(weight, pairs, free)

        weights = problem.edited(edit, _ENDINGS[settings.edited])
        return problem.erasure(self.name, weights, asdict(settings), seed)


def _last_words(host: Host, captions: Sequence[str]) -> Tensor:
    """Return the state of the last token of the first caption that ends in it, shape (tokens, dim)."""
    found: dict[int, Tensor] = {}
    for prompt in host.encode(captions):
        if prompt.token_ids:
            found.setdefault(
                prompt.token_ids[-1], host.text_inputs(prompt.states)[prompt.first + len(prompt.token_ids) - 1]
            )
    return torch.stack(list(found.values()))
