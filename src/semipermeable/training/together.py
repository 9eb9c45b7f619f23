"""Several membranes in one run: the rows of a denoiser call belong to different membranes.

Apart (the default): each row sees its own membrane alone, with the same draws as if it were trained by itself, and
AdamW works element by element, so every membrane is the one that `train` makes, up to rounding: the rows of a product
are summed in another order.

Jointly: the anchors are shared. Their rows see the sum of all membranes, so what they hold still is what the
membranes do together (interference included):

    L = Σ_c L_era,c (rows of c under membrane c alone) + λ L_anc (shared rows under Σ_c)

and a step of K membranes costs K · batch_size + num_anchors rows instead of K · (batch_size + num_anchors).
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from semipermeable.concept import Concept
from semipermeable.errors import ConfigError
from semipermeable.hosts import Condition
from semipermeable.membrane import Membrane
from semipermeable.runtime import SHARED, SideBySide
from semipermeable.training.anchoring import choose_captions
from semipermeable.training.captions import CaptionSet, speaks_of
from semipermeable.training.config import TrainConfig
from semipermeable.training.examples import ANCHOR_RUNS, Batch, Examples, generator_for, make_examples, run_all
from semipermeable.training.loop import DTYPES, StepStats, Trained, learning_rate, refuse_divergence
from semipermeable.training.objective import row_losses, total_loss
from semipermeable.training.start import avoidable, avoided, prepared, refuse_held, start, trained_sites
from semipermeable.training.workshop import Pairs, Workshop

__all__ = ["SharedAnchors", "Task", "check_together", "shared_captions", "train_together"]


@dataclass(frozen=True, slots=True)
class Task:
    """One membrane of several.

    Args:
        concept: what it erases.
        captions: what it learns from.
    """

    concept: Concept
    captions: CaptionSet


def train_together(
    workshop: Workshop,
    tasks: Sequence[Task],
    config: TrainConfig,
    *,
    seed: int,
    joint: bool = False,
    orthogonal_to: Sequence[Membrane] = (),
) -> Generator[tuple[StepStats, ...], None, list[Trained]]:
    """Train the pairs of several concepts side by side.

    Args:
        workshop: of the pipeline.
        tasks: what to erase, at least one.
        config: settings, the same for all.
        seed: every random draw is a function of it and of the step, as in `train`.
        joint: share the anchors, see the module.
        orthogonal_to: see `train`.

    Yields:
        The figures of each step, one per task. Under `joint` the anchoring loss is the shared one.

    Returns:
        The trained pairs, one per task.

    Raises:
        ConfigError: if the settings ask for what belongs to a single run (checkpoint, preview, no step), or `joint` for
            anchors that are not captions on kept trajectories.
        DivergenceError: if the loss of a membrane is not finite or explodes, naming it.
        AttachError: if the denoiser is compiled, fused or already holds membranes.
        SiteError: if a membrane to stay orthogonal to was made for another model.
    """
    check_together(config, joint=joint)
    refuse_held(workshop.host)
    orthogonal_to = avoidable(workshop.host, orthogonal_to)
    began = time.monotonic()
    with prepared(workshop.host, config):
        starts: list[Pairs] = []
        for task in tasks:
            with start(workshop, task.captions, config, seed, orthogonal_to) as binding:
                starts.append(binding.freeze())
        sites = trained_sites(workshop, config)
        stack = SideBySide(sites, starts, workshop.host.device, avoided(sites, orthogonal_to))
        try:
            run = _Group(workshop, stack, tasks, config, seed, joint=joint)
            last: tuple[StepStats, ...] = ()
            for step in range(1, config.num_steps + 1):
                figures = run.advance(step)
                last = tuple(dataclasses.replace(one, seconds=time.monotonic() - began) for one in figures)
                yield last
            spent = time.monotonic() - began
            return [Trained(pairs, one, spent) for pairs, one in zip(stack.freeze(), last, strict=True)]
        finally:
            stack.remove()


def check_together(config: TrainConfig, *, joint: bool) -> None:
    """Refuse settings that no common run can have; errors as in `train_together`."""
    if not config.num_steps:
        raise ConfigError("membranes without training steps need no common run; make them one by one")
    for name in ("checkpoint", "preview"):
        if getattr(config, name) is not None:
            raise ConfigError(
                f"{name} belongs to the run of a single membrane; leave it out, or make each by itself with erase"
            )
    if joint and (config.anchors != "captions" or not config.num_anchors or not config.reuse_trajectories):
        raise ConfigError(
            "joint training needs anchors that are captions on kept trajectories: anchors='captions', num_anchors "
            "above 0, reuse_trajectories=True"
        )


class _Group:
    """The moving parts of a common run."""

    def __init__(
        self,
        workshop: Workshop,
        stack: SideBySide,
        tasks: Sequence[Task],
        config: TrainConfig,
        seed: int,
        *,
        joint: bool,
    ) -> None:
        self._host, self._stack, self._tasks, self._config = workshop.host, stack, tasks, config
        self._first: list[float | None] = [None] * len(tasks)
        own = dataclasses.replace(config, num_anchors=0) if joint else config
        self._examples: list[Examples] = [
            make_examples(
                workshop.host,
                own,
                seed,
                task.captions,
                task.concept.surrogate,
                workshop.encode(task.captions.anchors) if own.num_anchors and own.anchors == "captions" else [],
                eta=workshop.eta(task.captions, config),
            )
            for task in tasks
        ]
        self._anchors = SharedAnchors(workshop, tasks, config, seed) if joint else None
        self._optimizer = torch.optim.AdamW(list(stack.parameters()), lr=config.learning_rate, weight_decay=0.0)
        self._scaler = torch.amp.GradScaler(workshop.host.device.type, enabled=config.dtype == "fp16")

    def advance(self, step: int) -> list[StepStats]:
        """Move all pairs once."""
        self._stack.owners = None
        batches = [examples.batch(step) for examples in self._examples]
        owners = [torch.full((len(batch.latents),), i) for i, batch in enumerate(batches)]
        if self._anchors is not None:
            batches.append(self._anchors.batch(step))
            owners.append(torch.full((len(batches[-1].latents),), SHARED))
        rate = learning_rate(self._config, step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        losses = self._row_losses(batches, torch.cat(owners))
        shared = losses.pop() if self._anchors is not None else None
        figures: list[StepStats] = []
        total = losses[0].new_zeros(())
        for index, (batch, rows) in enumerate(zip(batches, losses, strict=False)):
            erasing, anchoring = rows[: batch.num_targets], rows[batch.num_targets :]
            loss = total_loss(erasing, anchoring, self._config.anchor_weight)
            total = total + loss
            kept = anchoring if shared is None else shared
            self._refuse_divergence(index, float(loss.detach()), step)
            held = float(kept.detach().mean()) if kept.numel() else 0.0
            value = float(loss.detach()) + (0.0 if shared is None else self._config.anchor_weight * held)
            erased = float(erasing.detach().mean())
            figures.append(StepStats(step, self._config.num_steps, erased, held, value, rate, 0.0))
        if shared is not None:
            total = total + self._config.anchor_weight * shared.mean()
        self._move(total)
        return figures

    def _row_losses(self, batches: Sequence[Batch], owners: Tensor) -> list[Tensor]:
        self._stack.owners = owners
        device, dtype = self._host.device.type, self._config.dtype
        with torch.autocast(device, DTYPES[dtype]) if dtype else contextlib.nullcontext():
            prediction = self._host.predict(
                torch.cat([batch.latents for batch in batches]),
                torch.cat([batch.timesteps for batch in batches]),
                Condition.cat([batch.condition for batch in batches]),
            )
        losses = row_losses(prediction, torch.cat([batch.goal for batch in batches]))
        return list(losses.split([len(batch.latents) for batch in batches]))

    def _move(self, loss: Tensor) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._stack.project_()
        self._stack.owners = None

    def _refuse_divergence(self, index: int, loss: float, step: int) -> None:
        if self._first[index] is None and math.isfinite(loss):
            self._first[index] = loss
        name = self._tasks[index].concept.name
        refuse_divergence(loss, self._first[index], self._config, step, f" of {name!r}")


def shared_captions(tasks: Sequence[Task]) -> list[str]:
    """Return the captions that every one of several membranes keeps, in order of first mention."""
    targets = {text for task in tasks for text in task.captions.targets}
    texts = dict.fromkeys(text for task in tasks for text in task.captions.anchors)
    return [t for t in texts if t not in targets and not any(speaks_of(t, task.concept) for task in tasks)]


class SharedAnchors:
    """Anchors of several membranes on trajectories of their own, drawn by Eq. 6 for each concept in equal parts.

    Args:
        workshop: of the pipeline; its denoiser must be bare.
        tasks: what is erased.
        config: settings.
        seed: of the run.

    Raises:
        ConfigError: if no caption is kept by all.
    """

    def __init__(self, workshop: Workshop, tasks: Sequence[Task], config: TrainConfig, seed: int) -> None:
        host, self._count, self._seed = workshop.host, config.num_anchors, seed
        texts = shared_captions(tasks)
        if not texts:
            raise ConfigError("no caption is kept by every concept of the joint run; train them apart")
        encoded = workshop.encode(texts)
        each = min(math.ceil(ANCHOR_RUNS * config.num_trajectories / len(tasks)), len(texts))
        chosen = dict.fromkeys(
            index
            for number, task in enumerate(tasks)
            for index in choose_captions(
                encoded,
                workshop.encode(task.captions.names[:1])[0],
                set(task.captions.twins),
                count=each,
                power=config.anchor_power,
                twin_share=config.twin_share,
                generator=generator_for(seed, 3, number),
            )
        )
        self._condition = host.condition([texts[index] for index in chosen])
        self._run = run_all(host, config, self._condition, host.unconditional(), generator_for(seed, 6))

    def batch(self, step: int) -> Batch:
        """Return the anchor rows of a step, counted from 1; no row is about a concept."""
        generator, run = generator_for(self._seed, 7, step), self._run
        at = torch.randint(len(run.timesteps), (self._count,), generator=generator)
        row = torch.randint(len(self._condition), (self._count,), generator=generator)
        return Batch(run.latents[at, row], run.timesteps[at], self._condition[row], run.predictions[at, row], 0)
