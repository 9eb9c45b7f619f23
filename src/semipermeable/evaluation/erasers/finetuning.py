"""Fine-tuning of some of the denoiser's own weights, for the erasers that train without an adapter.

    tuning = Tuning(host, names)
    for step in range(…): loss = …(with tuning.live(): host.predict(…)); tuning.step(loss)
    erasure = WeightErasure(config, tuning.weights())

The trained weights are copies: outside `live` the denoiser is the base model, so both predictions that a loss compares
are at hand without a second network.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from semipermeable.errors import DivergenceError
from semipermeable.evaluation.erasers.weights import bare_denoiser, frozen, swapped
from semipermeable.hosts import Host, host_for
from semipermeable.training.examples import generator_for

__all__ = ["Tuning", "finetuned"]


class Tuning:
    """Trainable copies of some weights of a bare pipeline's denoiser.

    Args:
        host: of the pipeline.
        denoiser: its denoiser.
        names: dotted parameter names.
        learning_rate: of Adam, constant.
    """

    def __init__(self, host: Host, denoiser: nn.Module, names: Sequence[str], learning_rate: float) -> None:
        self.host = host
        self._denoiser = denoiser
        parameters = dict(denoiser.named_parameters())
        self._trained = {name: nn.Parameter(parameters[name].detach().clone()) for name in names}
        self._optimizer = torch.optim.Adam(list(self._trained.values()), lr=learning_rate)

    @contextmanager
    def live(self) -> Generator[None, None, None]:
        """Let the denoiser read the trained weights."""
        with swapped(self._denoiser, self._trained):
            yield

    def step(self, loss: Tensor) -> None:
        """Move the trained weights once."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()

    def weights(self) -> dict[str, Tensor]:
        """Return copies of the trained weights, on the CPU."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self._trained.items()}


def finetuned(
    pipe: Any,
    chosen: Callable[[str], bool],
    loss_of: Callable[[Tuning, torch.Generator], Tensor],
    *,
    num_steps: int,
    learning_rate: float,
    seed: int,
    title: str,
    progress: bool,
) -> dict[str, Tensor]:
    """Fine-tune weights and return their new values by name; the pipeline stays as it was.

    Args:
        pipe: a bare pipeline.
        chosen: which parameters to train, by dotted name.
        loss_of: makes the loss of one step, given the trained weights and the step's own CPU generator.
        num_steps: optimiser steps.
        learning_rate: of Adam.
        seed: every draw is a function of it and of the step.
        title: of the progress bar.
        progress: show it.

    Raises:
        DivergenceError: if a loss is not finite.
    """
    from rich.console import Console
    from rich.progress import Progress

    denoiser = bare_denoiser(pipe)
    names = [name for name, _ in denoiser.named_parameters() if chosen(name)]
    with frozen(denoiser), Progress(console=Console(stderr=True), disable=not progress) as shown:
        tuning = Tuning(host_for(pipe), denoiser, names, learning_rate)
        for step in shown.track(range(1, num_steps + 1), description=title):
            loss = loss_of(tuning, generator_for(seed, 7, step))
            if not bool(torch.isfinite(loss)):
                raise DivergenceError(
                    f"{title} diverged at step {step}: loss {loss.item()}; lower learning_rate (now {learning_rate:g})"
                )
            tuning.step(loss)
        return tuning.weights()
