"""Do membranes that were made apart disturb each other when they are open together?

The sum at a site is exact (SPM, Eq. 9), so two membranes disturb each other in two ways only: one answers to what the
other is about, or the network between the sites does not add up. The first can be read from the weights, the second is
measured.

From weights, with ΔW = u v of two membranes a and b at one site, and C = E[x xᵀ] of the text that is kept where the
site reads text alone (elsewhere C = 1, for the site's inputs are not known):

    regulators  ‖V_a C V_bᵀ‖ / (‖V_a C^½‖ ‖V_b C^½‖)      do they answer to the same inputs?
    changes     tr(ΔW_a C ΔW_bᵀ) / (‖ΔW_a C^½‖ ‖ΔW_b C^½‖)  and push the output the same way (1), or against (−1)?

(Frobenius norms; V has unit rows, so that the regulators' share does not depend on how u and v split their norm.)

From predictions, on latents of the base model, with ε_c for membrane c open alone, ε_all for all open, ε for none:

    disturbed   E‖ε_all − ε_c‖² / E‖ε_c − ε‖²   on captions of c: part of the erasure that the others undo or add
    kept        E‖ε_all − ε‖²  beside  max_c E‖ε_c − ε‖²   on captions that all keep

And one can undo another without touching it: prompts about a concept draw its surrogate, which another may erase.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from semipermeable.errors import ConfigError
from semipermeable.hosts import Condition
from semipermeable.membrane import Json, Membrane
from semipermeable.runtime import Binding
from semipermeable.training.captions import captions_for
from semipermeable.training.config import TrainConfig
from semipermeable.training.examples import generator_for, run_all
from semipermeable.training.objective import row_losses
from semipermeable.training.start import prepared, refuse_held
from semipermeable.training.together import Task, shared_captions
from semipermeable.training.workshop import Workshop

__all__ = ["Disturbance", "Interference", "Overlap", "measure_interference", "overlaps"]

_ROWS = 32
"""Rows of one denoiser call."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two membranes at one site, from weights; see the module.

    Args:
        first: name of the one.
        second: name of the other.
        site: the site.
        regulators: how far they answer to the same inputs, in [0, 1].
        changes: cosine of what they do, in [−1, 1].
        weighted: whether the text that is kept weighed the inputs.
    """

    first: str
    second: str
    site: str
    regulators: float
    changes: float
    weighted: bool


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What all membranes together do to one of them, from predictions.

    Args:
        name: its concept.
        alone: E‖ε_c − ε‖² on its captions: what it does when it is open alone.
        disturbed: E‖ε_all − ε_c‖² relative to that.
        kept: E‖ε_c − ε‖² on captions that all keep.
    """

    name: str
    alone: float
    disturbed: float
    kept: float


@dataclass(frozen=True, slots=True)
class Interference:
    """Everything that was measured.

    Args:
        overlaps: every pair of membranes at every site that both have.
        disturbances: one per membrane.
        kept_all: E‖ε_all − ε‖² on captions that all keep.
        undone: (a, b) where a's surrogate is a name of b: prompts about a draw what b erases.
    """

    overlaps: tuple[Overlap, ...]
    disturbances: tuple[Disturbance, ...]
    kept_all: float
    undone: tuple[tuple[str, str], ...] = ()

    def worst(self) -> list[Overlap]:
        """Return the site with the largest `changes` (by size) of each pair, the worst pair first."""
        found: dict[tuple[str, str], Overlap] = {}
        for one in self.overlaps:
            best = found.get((one.first, one.second))
            if best is None or abs(one.changes) > abs(best.changes):
                found[one.first, one.second] = one
        return sorted(found.values(), key=lambda one: -abs(one.changes))

    def to_json(self) -> dict[str, Json]:
        """Return everything as JSON data."""
        return {
            "kept_all": self.kept_all,
            "disturbances": [asdict(one) for one in self.disturbances],
            "overlaps": [asdict(one) for one in self.overlaps],
            "undone": [list(pair) for pair in self.undone],
        }


def measure_interference(
    workshop: Workshop, membranes: Sequence[Membrane], *, seed: int = 0, captions_each: int = 4, sampling_steps: int = 6
) -> Interference:
    """Measure how membranes disturb each other.

    Args:
        workshop: of the pipeline they were made for, without membranes attached.
        membranes: two or more, of different concepts.
        seed: draws captions and noise.
        captions_each: captions about each concept, and kept captions, that predictions are compared on.
        sampling_steps: latents of each caption, from pure noise to the picture.

    Raises:
        ConfigError: if there are fewer than two membranes, two of one name, or no caption that all keep.
        SiteError: if a membrane does not fit the denoiser.
        AttachError: if the denoiser is compiled, fused or already holds membranes.
    """
    names = [membrane.name for membrane in membranes]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ConfigError(f"interference is between two or more membranes of different concepts, found {names}")
    refuse_held(workshop.host)
    binding = Binding(workshop.host.denoiser, membranes)
    tasks = [Task(m.concept, captions_for(m.concept, workshop.spec)) for m in membranes]
    kept = shared_captions(tasks)
    if not kept:
        raise ConfigError("no caption is kept by every one of these membranes; measure fewer of them together")
    try:
        found = overlaps(workshop, membranes, kept)
        with prepared(workshop.host, TrainConfig()):
            lists = [*(list(task.captions.targets) for task in tasks), kept]
            probes = [_drawn(texts, captions_each, seed, number) for number, texts in enumerate(lists)]
            views = [_Probe(workshop, binding, texts, seed, sampling_steps) for texts in probes]
            kept_all = views[-1].change(range(len(names)))
            return Interference(tuple(found), tuple(_disturbances(views, names)), kept_all, _undone(membranes))
    finally:
        binding.remove()


def _undone(membranes: Sequence[Membrane]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (one.name, other.name)
        for one in membranes
        for other in membranes
        if one.concept.surrogate.casefold() in {name.casefold() for name in other.concept.names}
    )


def overlaps(workshop: Workshop, membranes: Sequence[Membrane], kept: Sequence[str]) -> list[Overlap]:
    """Return how each pair of membranes overlaps at each site, from weights alone.

    Args:
        workshop: of the pipeline.
        membranes: of any number.
        kept: captions whose text states weigh the inputs of sites that read text alone.
    """
    text_sites = workshop.text_projections()
    moment = workshop.keep_moment(kept) if text_sites else None
    found: list[Overlap] = []
    for number, first in enumerate(membranes):
        for second in membranes[number + 1 :]:
            for site in sorted(set(first.pairs) & set(second.pairs)):
                weight = moment if site in text_sites else None
                answer, change = _overlap(first.pairs[site], second.pairs[site], weight)
                found.append(Overlap(first.name, second.name, site, answer, change, weight is not None))
    return found


def _overlap(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], moment: Tensor | None) -> tuple[float, float]:
    """Return both shares of the module's docstring; 0 where a membrane does nothing at the site."""
    (u_a, v_a), (u_b, v_b) = ((u.double(), v.double().flatten(1)) for u, v in (first, second))

    def joined(a: Tensor, b: Tensor) -> Tensor:
        return a @ b.T if moment is None else a @ moment @ b.T

    def inner(u: Tensor, v: Tensor, u_2: Tensor, v_2: Tensor) -> float:
        return float(((u.T @ u_2) * joined(v, v_2)).sum())

    n_a, n_b = F.normalize(v_a, dim=1), F.normalize(v_b, dim=1)
    scale = (joined(n_a, n_a).trace() * joined(n_b, n_b).trace()).clamp_min(0).sqrt()
    size = (inner(u_a, v_a, u_a, v_a) * inner(u_b, v_b, u_b, v_b)) ** 0.5
    answer = float(joined(n_a, n_b).norm() / scale) if float(scale) > 0 else 0.0
    return answer, inner(u_a, v_a, u_b, v_b) / size if size > 0 else 0.0


def _drawn(texts: Sequence[str], count: int, seed: int, number: int) -> list[str]:
    order = torch.randperm(len(texts), generator=generator_for(seed, 8, number))[:count]
    return [texts[int(index)] for index in order]


def _disturbances(probes: "Sequence[_Probe]", names: Sequence[str]) -> list[Disturbance]:
    everyone = range(len(names))
    found: list[Disturbance] = []
    for index, name in enumerate(names):
        alone = probes[index].change([index])
        between = probes[index].between(everyone, [index])
        found.append(Disturbance(name, alone, between / alone if alone > 0 else 0.0, probes[-1].change([index])))
    return found


class _Probe:
    """Latents of the base model under a few captions, and predictions on them."""

    def __init__(self, workshop: Workshop, binding: Binding, texts: Sequence[str], seed: int, steps: int) -> None:
        self._host, self._binding = workshop.host, binding
        condition = workshop.host.condition(list(texts))
        config = TrainConfig(sampling_steps=steps)
        run = run_all(workshop.host, config, condition, workshop.host.unconditional(), generator_for(seed, 9))
        self._latents = run.latents.flatten(0, 1)
        self._timesteps = run.timesteps.repeat_interleave(len(texts))
        self._condition: Condition = condition.repeat(len(run.timesteps))
        self._bare = run.predictions.flatten(0, 1)

    @torch.no_grad()
    def _predict(self, opened: Sequence[int]) -> Tensor:
        parts: list[Tensor] = []
        for first in range(0, len(self._latents), _ROWS):
            rows = slice(first, first + _ROWS)
            x, t, c = self._latents[rows], self._timesteps[rows], self._condition[rows]
            gamma = torch.zeros(len(x), len(self._binding.membranes))
            gamma[:, list(opened)] = 1.0
            with self._binding.activate(gamma):
                parts.append(self._host.predict(x, t, c))
        return torch.cat(parts)

    def change(self, opened: Sequence[int]) -> float:
        """Return E‖ε_opened − ε‖²."""
        return float(row_losses(self._predict(opened), self._bare).mean())

    def between(self, some: Sequence[int], others: Sequence[int]) -> float:
        """Return E‖ε_some − ε_others‖²."""
        return float(row_losses(self._predict(some), self._predict(others)).mean())
