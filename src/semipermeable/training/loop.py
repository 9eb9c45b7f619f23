"""The training loop: a generator that yields the figures of each step and returns the finished membrane.

    membrane = yield from train(workshop, concept, captions, config, seed=0)

The denoiser's own weights never move: hooks add the pair of each site, gradients reach the pairs alone. Whatever ends
the generator (its end, an exception, `close()`), the hooks come off and the denoiser gets its flags back.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semipermeable.concept import Concept
from semipermeable.errors import ConfigError, DivergenceError
from semipermeable.hosts import Host, viewed
from semipermeable.membrane import Membrane
from semipermeable.runtime import TrainableBinding
from semipermeable.training.captions import CaptionSet
from semipermeable.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from semipermeable.training.config import TrainConfig
from semipermeable.training.examples import Batch, Examples, generator_for, make_examples
from semipermeable.training.objective import row_losses, total_loss
from semipermeable.training.start import avoidable, prepared, refuse_held, regulators, start
from semipermeable.training.workshop import Pairs, Workshop

__all__ = ["DTYPES", "StepStats", "Trained", "fingerprint", "learning_rate", "refuse_divergence", "train"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class StepStats:
    """Figures of one optimiser step.

    Args:
        step: number of the step, from 1.
        num_steps: length of the run.
        erasing_loss: L_era (Eq. 4).
        anchoring_loss: L_anc (Eq. 5), without λ; 0 without anchors.
        loss: L_era + λ L_anc.
        learning_rate: of this step.
        seconds: since the run began, over all its sessions.
    """

    step: int
    num_steps: int
    erasing_loss: float
    anchoring_loss: float
    loss: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Trained:
    """What a finished run leaves.

    Args:
        pairs: site name to (u, v), fp32 on CPU.
        last: figures of the last step, or None if there was none.
        seconds: training time over all sessions.
    """

    pairs: Pairs
    last: StepStats | None
    seconds: float


def train(
    source: Host | Workshop,
    concept: Concept,
    captions: CaptionSet,
    config: TrainConfig,
    *,
    seed: int,
    orthogonal_to: Sequence[Membrane] = (),
) -> Generator[StepStats, None, Trained]:
    """Train the pairs of one concept.

    Args:
        source: the pipeline's host, or a workshop that shares what several membranes have in common.
        concept: what to erase.
        captions: what to learn from (`captions_for`).
        config: settings.
        seed: every random draw is a function of it and of the step.
        orthogonal_to: membranes to whose regulators every v stays orthogonal, site by site.

    Yields:
        The figures of each step, after the weights moved.

    Returns:
        The trained pairs.

    Raises:
        DivergenceError: if the loss is not finite or explodes, or the last step leaves weights that are not finite.
        ConfigError: if the checkpoint belongs to another run, or nothing is to be done (no step, and no site for the
            closed form).
        AttachError: if the denoiser is compiled, fused or already holds membranes.
        SiteError: if a membrane to stay orthogonal to was made for another model.
    """
    workshop = source if isinstance(source, Workshop) else Workshop(source)
    host = workshop.host
    refuse_held(host)
    orthogonal_to = avoidable(host, orthogonal_to)
    if config.closed_form and not config.num_steps:
        return _instant(workshop, captions, config, orthogonal_to)
    path = None if config.checkpoint is None else Path(config.checkpoint)
    print_ = fingerprint(host, concept, captions, config, seed, orthogonal_to)
    resumed = None if path is None else read_checkpoint(path, print_)
    with prepared(host, config), start(workshop, captions, config, seed, orthogonal_to) as binding:
        began = time.monotonic() - (resumed.seconds if resumed else 0.0)
        run = _Run(workshop, binding, config, captions, concept, seed)
        if resumed is not None:
            run.restore(resumed)
        begun, last = run.step, _figures(resumed)
        try:
            for step in range(run.step + 1, config.num_steps + 1):
                losses = run.measure(step)
                if path is not None and last and run.step > begun and run.step % config.checkpoint_every == 0:
                    # Written here and not after the step: that its loss is fine says nothing about the weights it left,
                    # the next loss does. So what is on disk is good whenever a run diverges.
                    write_checkpoint(path, run.state(last), print_)
                last = dataclasses.replace(run.move(losses), seconds=time.monotonic() - began)
                _show(host, binding, captions, config, seed, step)
                yield last
            run.refuse_broken()
        except DivergenceError as error:
            kept = _existing(path)
            where = f"; the last good state is {kept}" if kept else ""
            raise DivergenceError(f"{error}{where}", checkpoint=kept) from error
        if path is not None and last and run.step > begun:
            write_checkpoint(path, run.state(last), print_)
        return Trained(binding.freeze(), last, time.monotonic() - began)


def _instant(
    workshop: Workshop, captions: CaptionSet, config: TrainConfig, orthogonal_to: Sequence[Membrane]
) -> Trained:
    """The closed form alone: only the sites where text enters have a pair."""
    began = time.monotonic()
    pairs = workshop.closed_form(captions, config, orthogonal_to)
    if not pairs:
        raise ConfigError(
            f"the denoiser of this {workshop.host.family!r} pipeline has no site that reads text alone, so there is no "
            'closed form; train with num_steps above 0, e.g. preset "fast"'
        )
    return Trained(pairs, None, time.monotonic() - began)


def _figures(resumed: Checkpoint | None) -> StepStats | None:
    """Figures of the step after which a checkpoint was written."""
    if resumed is None or resumed.figures is None:
        return None
    return StepStats(**resumed.figures)


def _existing(path: Path | None) -> str | None:
    return str(path) if path is not None and path.exists() else None


def fingerprint(
    host: Host,
    concept: Concept,
    captions: CaptionSet,
    config: TrainConfig,
    seed: int,
    orthogonal_to: Sequence[Membrane] = (),
) -> str:
    """Return a digest of everything that decides a run: only the same run may resume from a checkpoint."""
    story = [
        dataclasses.asdict(concept),
        dataclasses.asdict(captions),
        config.to_json(),
        seed,
        host.base_hash(),
        host.text_encoder_hash(),
    ]
    digest = hashlib.sha256(json.dumps(story, sort_keys=True).encode())
    for part in regulators(orthogonal_to):
        digest.update(part)
    return digest.hexdigest()


@dataclass(frozen=True, eq=False, slots=True)
class _Losses:
    """Losses of one step, with their graph: per row L_era and L_anc, and their weighted sum."""

    step: int
    erasing: Tensor
    anchoring: Tensor
    total: Tensor


class _Run:
    """The moving parts of one run."""

    def __init__(
        self,
        workshop: Workshop,
        binding: TrainableBinding,
        config: TrainConfig,
        captions: CaptionSet,
        concept: Concept,
        seed: int,
    ) -> None:
        host = workshop.host
        self._host, self._binding, self._config = host, binding, config
        self.step = 0
        self._first_loss: float | None = None
        anchors = workshop.encode(captions.anchors) if config.anchors == "captions" else []
        self._optimizer = torch.optim.AdamW(list(binding.parameters()), lr=config.learning_rate, weight_decay=0.0)
        self._scaler = torch.amp.GradScaler(host.device.type, enabled=config.dtype == "fp16")
        eta = workshop.eta(captions, config)
        self._prepare = lambda: make_examples(host, config, seed, captions, concept.surrogate, anchors, eta=eta)
        self._examples: Examples | None = None

    def _prepared_examples(self) -> Examples:
        """The source of batches, made when the first step needs it."""
        if self._examples is None:
            self._examples = self._prepare()
        return self._examples

    def measure(self, step: int) -> _Losses:
        """Return the losses of a step, under the weights that the one before it left.

        Raises:
            DivergenceError: if the total is not finite or explodes.
        """
        self._binding.gamma = None
        batch = self._prepared_examples().batch(step)
        erasing, anchoring = self._losses(batch)
        total = total_loss(erasing, anchoring, self._config.anchor_weight)
        self._check(float(total.detach()), step)
        return _Losses(step, erasing, anchoring, total)

    def move(self, losses: _Losses) -> StepStats:
        """Move the pairs once, down the gradient of `measure`'s losses."""
        config, binding = self._config, self._binding
        rate = learning_rate(config, losses.step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(losses.total).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        binding.project_()
        binding.gamma = None
        self.step = losses.step
        erased = float(losses.erasing.detach().mean())
        anchored = float(losses.anchoring.detach().mean()) if losses.anchoring.numel() else 0.0
        total = float(losses.total.detach())
        return StepStats(losses.step, config.num_steps, erased, anchored, total, rate, 0.0)

    def refuse_broken(self) -> None:
        """Refuse weights that no loss has been measured under yet, those of the last step, if they are not finite.

        Raises:
            DivergenceError: if one is not.
        """
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self._binding.parameters()):
            raise DivergenceError(
                f"training diverged at step {self.step}: it left weights that are not finite; lower learning_rate (now "
                f"{self._config.learning_rate:g}), or lengthen warmup_steps"
            )

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        self._binding.gamma = 1.0
        dtype = self._config.dtype
        device = self._host.device.type
        with torch.autocast(device, DTYPES[dtype]) if dtype else contextlib.nullcontext():
            prediction = self._host.predict(batch.latents, batch.timesteps, batch.condition)
        losses = row_losses(prediction, batch.goal)
        return losses[: batch.num_targets], losses[batch.num_targets :]

    def _check(self, loss: float, step: int) -> None:
        if self._first_loss is None and math.isfinite(loss):
            self._first_loss = loss
        refuse_divergence(loss, self._first_loss, self._config, step)

    def state(self, last: StepStats) -> Checkpoint:
        """Everything that a resumed run needs besides the configuration."""
        tensors: dict[str, Tensor] = {}
        for name, pair in self._binding.pairs().items():
            for label, parameter in zip("uv", pair, strict=True):
                tensors[f"{name}/{label}"] = parameter.detach().cpu().contiguous()
                for key, value in self._optimizer.state[parameter].items():
                    tensors[f"{name}/{label}/{key}"] = value.detach().cpu().contiguous()
        if self._scaler.is_enabled():
            scaler = self._scaler.state_dict()
            tensors["scaler"] = torch.tensor([scaler["scale"], scaler["_growth_tracker"]], dtype=torch.float64)
        return Checkpoint(self.step, self._first_loss, last.seconds, tensors, dataclasses.asdict(last))

    def restore(self, state: Checkpoint) -> None:
        """Go back to a checkpoint, bit for bit."""
        tensors = state.tensors
        for name, pair in self._binding.pairs().items():
            for label, parameter in zip("uv", pair, strict=True):
                with torch.no_grad():
                    parameter.copy_(tensors[f"{name}/{label}"])
                prefix = f"{name}/{label}/"
                keys = [key for key in _MOMENTS if prefix + key in tensors]  # none while the scaler skipped every step
                moments = {key: tensors[prefix + key].clone() for key in keys}
                if moments:
                    self._optimizer.state[parameter] = {
                        key: value if key == "step" else value.to(parameter) for key, value in moments.items()
                    }
        if "scaler" in tensors:
            scale, tracker = tensors["scaler"].tolist()
            self._scaler.load_state_dict({**self._scaler.state_dict(), "scale": scale, "_growth_tracker": int(tracker)})
        self.step, self._first_loss = state.step, state.first_loss


def refuse_divergence(loss: float, first_loss: float | None, config: TrainConfig, step: int, what: str = "") -> None:
    """Stop a run that diverges.

    Args:
        loss: total loss of a step.
        first_loss: that of the first step; None if it was not finite.
        config: gives the limit.
        step: number of the step.
        what: which membrane, for the message; "" where there is one only.

    Raises:
        DivergenceError: if the loss is not finite or beyond the limit.
    """
    ceiling = config.divergence_factor * max(first_loss or 0.0, 0.01)
    if not math.isfinite(loss) or loss > ceiling:
        raise DivergenceError(
            f"training{what} diverged at step {step}: loss {loss:.3g}, first loss {first_loss}, limit {ceiling:.3g}; "
            f"lower learning_rate (now {config.learning_rate:g}) or anchor_weight, or lengthen warmup_steps"
        )


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rate of a step, counted from 1: linear rise, then the schedule."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - 1 - config.warmup_steps) / max(config.num_steps - config.warmup_steps, 1)
    if config.schedule == "cosine_restarts":
        progress = (progress * config.num_restarts) % 1.0
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def _show(
    host: Host, binding: TrainableBinding, captions: CaptionSet, config: TrainConfig, seed: int, step: int
) -> None:
    """Draw preview pictures with the membrane open on the prompts and closed on unconditional rows."""
    if config.preview is None or step % config.preview_every:
        return
    prompts = list(config.preview_prompts or (captions.targets[0], captions.anchors[0]))

    @contextlib.contextmanager
    def opened(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Generator[None, None, None]:
        binding.gamma = torch.tensor(host.call_rows(args, kwargs).conditional, dtype=torch.float32)
        try:
            yield
        finally:
            binding.gamma = None

    with viewed(host, "a preview of training", opened):
        images = host.draw(prompts, steps=20, guidance=4.0, generator=generator_for(seed, 4))
    config.preview(step, images)
