"""What a running training shows: a progress bar, and TensorBoard logs."""

import contextlib
from collections.abc import Callable, Generator

from semipermeable.errors import ConfigError
from semipermeable.training.config import TrainConfig
from semipermeable.training.loop import StepStats

__all__ = ["Advance", "bar", "board", "many_bar"]

Show = Callable[[StepStats], None]
Advance = Callable[[str, int, int], None]
"""Called with what is being made, and how many steps of how many membranes are done."""


@contextlib.contextmanager
def bar(num_steps: int, name: str, *, shown: bool) -> Generator[Show, None, None]:
    """Show a progress bar with both losses on standard error.

    Args:
        num_steps: length of the run.
        name: the concept's name.
        shown: False shows nothing.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("erasing {task.fields[name]!r}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[losses]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as progress:
        task = progress.add_task("train", total=num_steps, name=name, losses="preparing")

        def show(stats: StepStats) -> None:
            losses = f"erasing {stats.erasing_loss:.4f}  anchoring {stats.anchoring_loss:.5f}"
            progress.update(task, completed=stats.step, losses=losses)

        yield show


@contextlib.contextmanager
def many_bar(count: int, num_steps: int, *, shown: bool) -> Generator[Advance, None, None]:
    """Show the progress of several membranes on standard error.

    Args:
        count: number of membranes.
        num_steps: length of the run of each; without steps finished membranes are counted.
        shown: False shows nothing.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    far = TaskProgressColumn() if num_steps else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), far, TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not shown) as progress:
        task = progress.add_task(f"erasing {count} concepts", total=count * (num_steps or 1))

        def advance(name: str, steps: int, membranes: int) -> None:
            progress.update(task, advance=steps * membranes, description=f"erasing {name!r}")

        yield advance


@contextlib.contextmanager
def board(config: TrainConfig) -> Generator[Show, None, None]:
    """Write the figures of each step to TensorBoard, if the configuration names a folder.

    Raises:
        ConfigError: if TensorBoard is not installed.
    """
    if config.tensorboard is None:
        yield lambda _: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "tensorboard logs were asked for, but TensorBoard is not installed; "
            'install it with: pip install "semipermeable[tensorboard]"'
        ) from error
    writer = SummaryWriter(config.tensorboard)
    try:

        def log(stats: StepStats) -> None:
            for name in ("erasing_loss", "anchoring_loss", "loss", "learning_rate"):
                writer.add_scalar(f"training/{name}", getattr(stats, name), stats.step)

        yield log
    finally:
        writer.close()
