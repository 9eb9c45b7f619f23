"""What each optimiser step sees: rows of (x_t, t, condition) with the goal for each, from the base model alone.

`PooledExamples` denoises a few trajectories once and draws rows from all their latents; `FreshExamples` denoises anew
for each step, as the paper does. Every draw is a function of (seed, step): a run may stop after any step and go on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from semipermeable.hosts import Condition, Host
from semipermeable.permeability.decisions import EncodedPrompt
from semipermeable.training.anchoring import choose_captions, gaussian_anchors
from semipermeable.training.captions import CaptionSet
from semipermeable.training.config import TrainConfig
from semipermeable.training.objective import erasing_goal
from semipermeable.training.trajectories import Trajectory, denoise

__all__ = [
    "ANCHOR_RUNS",
    "Batch",
    "Examples",
    "FreshExamples",
    "PooledExamples",
    "generator_for",
    "make_examples",
    "run_all",
]

_ROWS = 16
"""Rows of one frozen call."""
ANCHOR_RUNS = 3
"""Trajectories of anchors for each one of the concept: there is more to keep than to erase."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of one step: the first `num_targets` are about the concept, the others are anchors.

    Args:
        latents: x_t, shape (rows, ...), in the pipeline's own layout.
        timesteps: t, shape (rows,).
        condition: c, one row each.
        goal: what ε_M(x_t, c) should be, in the shape of `latents`.
        num_targets: number of target rows.
    """

    latents: Tensor
    timesteps: Tensor
    condition: Condition
    goal: Tensor
    num_targets: int


class Examples(Protocol):
    """Source of batches."""

    def batch(self, step: int) -> Batch:
        """Return the rows of a step, counted from 1; the same step always gives the same rows."""
        ...


def generator_for(seed: int, *key: int) -> torch.Generator:
    """Return a CPU generator that is a function of the seed and the key alone."""
    state = seed & 0xFFFFFFFFFFFFFFFF
    for part in key:
        state = ((state ^ (part + 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return torch.Generator().manual_seed(state & 0x7FFFFFFFFFFFFFFF)


class _Frozen:
    """Conditions, and predictions of the bare model."""

    def __init__(
        self, host: Host, config: TrainConfig, seed: int, captions: CaptionSet, surrogate: str, eta: float
    ) -> None:
        self.host, self.config, self.seed, self.eta = host, config, seed, eta
        targets, surrogates = list(captions.targets), list(captions.surrogates)
        if not config.target_captions:
            targets, surrogates = list(captions.names), [surrogate] * len(captions.names)
        elif not config.surrogate_in_wording:
            surrogates = [surrogate] * len(targets)
        self.empty = host.unconditional()
        self.targets = host.condition(targets)
        self.surrogates = host.condition(surrogates)

    @torch.no_grad()
    def predict(self, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        alone = self.config.skip_unconditional or self.host.guidance != "classifier-free"
        parts: list[Tensor] = []
        for start in range(0, latents.shape[0], _ROWS):
            rows = slice(start, start + _ROWS)
            x, t, c = latents[rows], timesteps[rows], condition[rows]
            if alone:
                parts.append(self.host.predict(x, t, c))
                continue
            both = Condition.cat([self.empty.repeat(len(x)), c])
            parts.append(self.host.predict(torch.cat([x, x]), torch.cat([t, t]), both)[len(x) :])
        return torch.cat(parts)

    def goal(self, latents: Tensor, timesteps: Tensor, which: Tensor) -> Tensor:
        target = self.predict(latents, timesteps, self.targets[which])
        surrogate = self.predict(latents, timesteps, self.surrogates[which])
        return erasing_goal(target, surrogate, self.eta)


def run_all(
    host: Host, config: TrainConfig, condition: Condition, empty: Condition, generator: torch.Generator
) -> Trajectory:
    """Denoise one trajectory for each row of a condition, a few rows at a time.

    Args:
        host: its denoiser must be bare.
        config: length and guidance of the runs.
        condition: one row each.
        empty: `host.unconditional()`.
        generator: draws the noise, on CPU.
    """
    runs = [
        denoise(
            host,
            condition[start : start + _ROWS],
            empty,
            num_steps=config.sampling_steps,
            guidance=config.sampling_guidance,
            generator=generator,
            skip_unconditional=config.skip_unconditional,
        )
        for start in range(0, len(condition), _ROWS)
    ]
    latents, predictions = (torch.cat([getattr(r, k) for r in runs], 1) for k in ("latents", "predictions"))
    return Trajectory(latents, runs[0].timesteps, predictions)


class FreshExamples:
    """New latents for each step: denoised under the concept's caption to a random step of the grid.

    Anchors are asked at the same latents as the targets.
    """

    def __init__(self, frozen: _Frozen, captions: Condition, order: Sequence[int]) -> None:
        self._frozen, self._captions = frozen, captions
        self._order = torch.tensor(order, dtype=torch.long)

    def batch(self, step: int) -> Batch:
        """See `Examples`."""
        frozen, config = self._frozen, self._frozen.config
        generator = generator_for(frozen.seed, 2, step)
        which = torch.randint(len(frozen.targets), (config.batch_size,), generator=generator)
        steps = int(torch.randint(1, config.sampling_steps + 1, (1,), generator=generator))
        run = denoise(
            frozen.host,
            frozen.targets[which],
            frozen.empty,
            num_steps=config.sampling_steps,
            guidance=config.sampling_guidance,
            generator=generator,
            stop=steps,
            skip_unconditional=config.skip_unconditional,
        )
        latents, timestep = run.latents[-1], run.timesteps[-1]
        timesteps = timestep.expand(len(latents))
        goal = frozen.goal(latents, timesteps, which)
        condition = frozen.targets[which]
        if config.num_anchors:
            anchors = self._anchors(step, condition[:1], generator)
            x = latents[torch.arange(len(anchors)) % len(latents)]
            t = timestep.expand(len(anchors))
            latents, timesteps = torch.cat([latents, x]), torch.cat([timesteps, t])
            goal = torch.cat([goal, frozen.predict(x, t, anchors)])
            condition = Condition.cat([condition, anchors])
        return Batch(latents, timesteps, condition, goal, config.batch_size)

    def _anchors(self, step: int, target: Condition, generator: torch.Generator) -> Condition:
        config = self._frozen.config
        if config.anchors == "gaussian":
            return gaussian_anchors(target, config.num_anchors, config.anchor_power, generator)
        first = (step - 1) * config.num_anchors
        return self._captions[self._order[first : first + config.num_anchors]]


class PooledExamples:
    """Latents of a few whole trajectories, of the concept, of its surrogate and of the anchors, each at its own label.

    Target rows stand on both the concept's and the surrogate's trajectories: the latter are where an erased
    picture passes. Anchor rows stand on the anchors' own trajectories (Gaussian anchors, which have none, on the
    concept's).
    """

    def __init__(self, frozen: _Frozen, anchors: Condition) -> None:
        config = frozen.config
        self._frozen = frozen
        generator = generator_for(frozen.seed, 1)
        runs = min(config.num_trajectories, len(frozen.targets)) if len(frozen.targets) else 0
        order = torch.randperm(len(frozen.targets), generator=generator)[:runs]
        self._which = torch.cat([order, order])
        own = config.num_anchors > 0 and config.anchors == "captions"
        self._anchors = anchors if own else anchors[:0]
        condition = Condition.cat([frozen.targets[order], frozen.surrogates[order], self._anchors])
        run = run_all(frozen.host, config, condition, frozen.empty, generator)
        self._latents, self._predictions, self._timesteps = run.latents, run.predictions, run.timesteps
        self._goals = self._target_goals(runs) if config.cache_frozen else None

    def _target_goals(self, runs: int) -> Tensor:
        """Goals of all target latents; one of the two predictions was made on the way."""
        steps = self._latents.shape[0]
        x = self._latents[:, : 2 * runs]
        order = self._which[:runs]
        other = Condition.cat([self._frozen.surrogates[order], self._frozen.targets[order]])
        missing = self._frozen.predict(
            x.flatten(0, 1),
            self._timesteps.repeat_interleave(2 * runs),
            other.repeat(steps),
        ).reshape(x.shape)
        known = self._predictions[:, : 2 * runs]
        eta = self._frozen.eta
        on_target = erasing_goal(known[:, :runs], missing[:, :runs], eta)
        return torch.cat([on_target, erasing_goal(missing[:, runs:], known[:, runs:], eta)], 1)

    def batch(self, step: int) -> Batch:
        """See `Examples`."""
        frozen, config = self._frozen, self._frozen.config
        generator = generator_for(frozen.seed, 2, step)
        num_steps, num_targets = self._latents.shape[0], len(self._which)
        at = torch.randint(num_steps, (config.batch_size,), generator=generator)
        row = torch.randint(num_targets, (config.batch_size,), generator=generator)
        x, t = self._latents[at, row], self._timesteps[at]
        which = self._which[row]
        goal = frozen.goal(x, t, which) if self._goals is None else self._goals[at, row]
        condition = frozen.targets[which]
        if not config.num_anchors:
            return Batch(x, t, condition, goal, config.batch_size)
        at = torch.randint(num_steps, (config.num_anchors,), generator=generator)
        if len(self._anchors):
            row = torch.randint(len(self._anchors), (config.num_anchors,), generator=generator)
            anchors = self._anchors[row]
            row = row + num_targets
        else:
            row = torch.randint(num_targets, (config.num_anchors,), generator=generator)
            anchors = gaussian_anchors(condition[:1], config.num_anchors, config.anchor_power, generator)
        x_a, t_a = self._latents[at, row], self._timesteps[at]
        cached = self._goals is not None and len(self._anchors) > 0
        goal_a = self._predictions[at, row] if cached else frozen.predict(x_a, t_a, anchors)
        return Batch(
            torch.cat([x, x_a]),
            torch.cat([t, t_a]),
            Condition.cat([condition, anchors]),
            torch.cat([goal, goal_a]),
            config.batch_size,
        )


def make_examples(
    host: Host,
    config: TrainConfig,
    seed: int,
    captions: CaptionSet,
    surrogate: str,
    encoded: list[EncodedPrompt],
    *,
    eta: float,
) -> Examples:
    """Prepare the source of batches that the configuration asks for.

    Args:
        host: of the pipeline; its denoiser must be bare while this runs and while batches are made.
        config: settings.
        seed: of the run.
        captions: what to learn from.
        surrogate: the bare surrogate.
        encoded: `captions.anchors`, encoded.
        eta: η of Eq. 4 (`Workshop.eta`).
    """
    frozen = _Frozen(host, config, seed, captions, surrogate, eta)
    if not config.num_anchors or config.anchors == "gaussian":
        none = frozen.empty[:0]
        return PooledExamples(frozen, none) if config.reuse_trajectories else FreshExamples(frozen, none, ())
    pooled = min(ANCHOR_RUNS * config.num_trajectories, len(encoded))
    generator = generator_for(seed, 3)
    chosen = choose_captions(
        encoded,
        host.encode([captions.names[0]])[0],
        set(captions.twins),
        count=pooled if config.reuse_trajectories else config.num_steps * config.num_anchors,
        power=config.anchor_power,
        twin_share=config.twin_share,
        generator=generator,
    )
    if config.reuse_trajectories:
        return PooledExamples(frozen, host.condition([encoded[index].text for index in chosen]))
    # They are drawn near neighbours first, and taken in order: every part of the run is to see its share of them.
    mixed = [chosen[index] for index in torch.randperm(len(chosen), generator=generator).tolist()]
    return FreshExamples(frozen, host.condition([prompt.text for prompt in encoded]), mixed)
