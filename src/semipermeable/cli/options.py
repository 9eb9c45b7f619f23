"""Options that several commands share, and what is printed while they work."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from semipermeable.membrane import Membrane

__all__ = [
    "DeviceOption",
    "DtypeOption",
    "ModelOption",
    "SeedOption",
    "attachable",
    "file_facts",
    "loaded",
    "progress_bar",
    "silence_libraries",
]

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
    """See `generation.quiet`, which is imported here and not above: with it come torch and diffusers."""
    from semipermeable.generation.quiet import silence_libraries as silence

    silence()


def loaded(model: str, device: str | None, dtype: str | None, *, shown: bool = True) -> Any:
    """Load a pipeline, with a spinner on stderr meanwhile, unless it is not to be shown."""
    from rich.console import Console

    with Console(stderr=True, quiet=not shown).status(f"loading {model}"):
        silence_libraries()
        from semipermeable.generation import load_model

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


def attachable(place: Path, membrane: "Membrane") -> "Membrane | str":
    """Return a shipped membrane by its name, so that `attach` checks which model it is for; any other as it is.

    Args:
        place: what was given, a path or `zoo:CONCEPT`.
        membrane: what was read from it.
    """
    from semipermeable.zoo.shipped import shipped_name

    return membrane if shipped_name(place) is None else str(place)


def file_facts(place: Path, membrane: "Membrane") -> dict[str, Any]:
    """Return name, size and SHA-256 of the file that a membrane was read from; of a shipped one, of its part.

    Args:
        place: what was given, a path or `zoo:CONCEPT`.
        membrane: what was read from it.
    """
    import hashlib

    from semipermeable.files.loading import weights_file
    from semipermeable.files.native import to_bytes
    from semipermeable.generation.png import file_digest
    from semipermeable.zoo.shipped import shipped_name

    if shipped_name(place) is None:
        file = weights_file(place)
        return {"file": place.name, "bytes": file.stat().st_size, "sha256": file_digest(file)}
    data = to_bytes(membrane)
    return {"file": str(place), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
