"""The one training loop of the recipe: seeded, with an exponential average, stopped and resumed without a trace.

Every draw comes from one `torch.Generator` (and dropout from torch's own), whose states are stored in the checkpoint
beside weights, averages and optimizer: a run that was stopped and resumed ends with the same bits as one that never
stopped, on the same machine with the same number of threads.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm import tqdm

from semipermeable.errors import DivergenceError
from semipermeable.files.atomic import write_atomically

__all__ = ["Budget", "train"]

Loss = Callable[[torch.Generator], Tensor]
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long and how fast one part is trained."""

    steps: int
    """Optimizer steps."""
    batch: int
    """Samples a step."""
    rate: float
    """Peak learning rate; warmed up linearly, then half a cosine down to 2 %."""
    warmup: int = 100
    """Steps of warm-up."""
    decay: float = 0.998
    """Decay of the exponential average of the weights; shorter in the first steps."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's averages."""
    save_every: int = 100
    """Steps between checkpoints."""

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, self.steps))))
        return self.rate * min(1.0, (step + 1) / max(1, self.warmup)) * (0.02 + 0.98 * cosine)


def train(
    module: nn.Module,
    loss: Loss,
    budget: Budget,
    *,
    seed: int,
    checkpoint: Path | None = None,
    label: str = "train",
    progress: bool = True,
    stop_at: int | None = None,
) -> int:
    """Train a module and leave the average of its weights in it.

    Args:
        module: what is trained; parameters that need no gradient stay as they are.
        loss: draws a batch with the generator it is given and returns a scalar.
        budget: how long and how fast.
        seed: seed of every draw.
        checkpoint: file to resume from if it exists, and to write; None keeps nothing.
        label: name in the progress bar.
        progress: whether to show one.
        stop_at: stop after this step, checkpoint written, as if interrupted; None trains to the end.

    Returns:
        The number of steps done.

    Raises:
        DivergenceError: if the loss is not finite.
    """
    weights = [p for p in module.parameters() if p.requires_grad]
    fused = all(p.dtype == torch.float32 for p in weights)
    optimizer = torch.optim.AdamW(weights, budget.rate, budget.betas, weight_decay=budget.weight_decay, fused=fused)
    average = [p.detach().clone() for p in weights]
    generator = torch.Generator().manual_seed(seed)
    step, kept = 0, torch.get_rng_state()
    torch.manual_seed(seed)
    if checkpoint is not None and checkpoint.is_file():
        step = _restore(checkpoint, module, optimizer, average, generator)
    module.train()
    last = budget.steps if stop_at is None else min(stop_at, budget.steps)
    running: float | None = None
    bar = tqdm(total=budget.steps, initial=step, desc=label, disable=not progress, mininterval=2.0)
    try:
        while step < last:
            for group in optimizer.param_groups:
                group["lr"] = budget.rate_at(step)
            value = loss(generator)
            number = float(value.detach())
            if not math.isfinite(number):
                raise DivergenceError(
                    f"{label}: the loss of step {step} is {number}; lower the learning rate (now {budget.rate:g})",
                    checkpoint=None if checkpoint is None else str(checkpoint),
                )
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            step += 1
            keep = min(budget.decay, (1 + step) / (10 + step))
            moving = [weight.detach() for weight in weights]
            torch._foreach_lerp_(average, moving, 1 - keep)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            running = number if running is None else 0.98 * running + 0.02 * number
            bar.update()
            if step % 10 == 0:
                bar.set_postfix(loss=f"{running:.4f}", refresh=False)
            if checkpoint is not None and (step % budget.save_every == 0 or step == last):
                _store(checkpoint, module, optimizer, average, generator, step)
    finally:
        bar.close()
        torch.set_rng_state(kept)
    with torch.no_grad():
        for weight, mean in zip(weights, average, strict=True):
            weight.copy_(mean)
    module.eval()
    return step


def _store(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: list[Tensor],
    generator: torch.Generator,
    step: int,
) -> None:
    tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    tensors |= {f"average.{index}": mean for index, mean in enumerate(average)}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": moments[key] for key in _MOMENTS}
    tensors |= {"step": torch.tensor(step), "generator": generator.get_state(), "torch": torch.get_rng_state()}
    # Clones: weights may be tied or lie in another memory format, which the format refuses.
    write_atomically(
        path, save({name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()})
    )


def _restore(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, average: list[Tensor], generator: torch.Generator
) -> int:
    content = load_file(path)
    module.load_state_dict(
        {name.removeprefix("module."): t for name, t in content.items() if name.startswith("module.")}
    )
    weights: list[Tensor] = optimizer.param_groups[0]["params"]
    for index, (weight, mean) in enumerate(zip(weights, average, strict=True)):
        mean.copy_(content[f"average.{index}"])
        moments = {key: content[name] for key in _MOMENTS if (name := f"optimizer.{index}.{key}") in content}
        if moments:  # none where a weight has had no gradient
            # In the weight's own memory format: the fused step rounds otherwise in another one.
            optimizer.state[weight] = {
                key: moment if key == "step" else torch.empty_like(weight).copy_(moment)
                for key, moment in moments.items()
            }
    generator.set_state(content["generator"])
    torch.set_rng_state(content["torch"])
    return int(content["step"])
