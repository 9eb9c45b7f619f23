"""Options that several commands share, and what is printed while they work."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

__all__ = ["DeviceOption", "DtypeOption", "ModelOption", "SeedOption", "loaded", "progress_bar", "silence_libraries"]

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        help="A bundled model (see `spm zoo list`), a hub id, a diffusers folder, or one .safetensors checkpoint.",
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps; the best there is, if not given.")
]
DtypeOption = Annotated[
    str | None, typer.Option("--dtype", help="fp32, fp16 or bf16; chosen by model and device, if not given.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Same seed, same result.", min=0, max=2**63 - 1)]


def silence_libraries() -> None:
    """Keep the progress bars and notices of diffusers and transformers off our terminal."""
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def loaded(model: str, device: str | None, dtype: str | None) -> Any:
    """Load a pipeline, with a spinner on stderr meanwhile."""
    from rich.console import Console

    with Console(stderr=True).status(f"loading {model}"):
        from semipermeable.generation import load_model

        silence_libraries()
        return load_model(model, device=device, dtype=dtype)


@contextmanager
def progress_bar(what: str) -> Generator[Any, None, None]:
    """Show a bar on stderr; gives a function of (steps done, steps in all)."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=None)

        def report(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        yield report
