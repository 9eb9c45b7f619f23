"""`spm card`: a membrane's card, in Markdown for the Hugging Face hub."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from semipermeable.cli.options import DeviceOption, loaded, progress_bar
from semipermeable.cli.problems import guarded

if TYPE_CHECKING:
    from semipermeable.membrane import Membrane

__all__ = ["EXAMPLE", "card_command"]

EXAMPLE = "Example:  spm card cat.safetensors --out card.md --pictures"


@guarded
def card_command(
    file: Annotated[Path, typer.Argument(help="A membrane, a file or e.g. zoo:cat.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The Markdown file; printed, if not given.")] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Draw prompts without and with it, into a PNG beside --out.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", help="What to draw the pictures on; the base model, if not given and known here."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of every pair of pictures.", min=0, max=2**63 - 1)] = 0,
    steps: Annotated[int, typer.Option("--steps", help="Denoising steps of a picture.", min=1)] = 25,
    guidance: Annotated[float, typer.Option("--guidance", help="Classifier-free guidance; 1 is without.")] = 4.0,
    device: DeviceOption = None,
) -> None:
    """Write a membrane's card: concept, base model, training, metrics, how to use it."""
    from semipermeable.files.atomic import check_apart
    from semipermeable.files.loading import weights_file
    from semipermeable.generation.card import Pictures, draw_pictures, membrane_card
    from semipermeable.generation.output import check_writable, staged_folder
    from semipermeable.zoo import load_membrane

    if pictures and out is None:
        raise typer.BadParameter("--pictures writes a PNG beside the card; say where with --out card.md")
    if model is not None and not pictures:
        raise typer.BadParameter("--model is what the pictures are drawn on; add --pictures")
    membrane = load_membrane(file)
    with _as_file(file, membrane) as source:
        if out is None:
            typer.echo(membrane_card(membrane, source), nl=False)
            return
        grid_file = out.parent / f"{out.stem}.png"
        for target in (out, grid_file) if pictures else (out,):
            check_writable(target)
            check_apart(target, weights_file(file), *([] if model is None else [Path(model)]))
        if pictures and out.suffix.lower() == ".png":
            raise typer.BadParameter(f"the card and its pictures would both be {str(out)!r}; call the card card.md")
        drawn = None
        with staged_folder(out.parent) as stage:
            if pictures:
                chosen = model or _base_model(membrane)
                pipe = loaded(chosen, device, None)
                with progress_bar("drawing, with and without") as report:
                    grid, same = draw_pictures(
                        pipe, membrane, seed=seed, steps=steps, guidance=guidance, progress=report
                    )
                drawn = Pictures(grid_file.name, chosen, same, seed, steps, guidance)
                grid.save(stage / drawn.file)
            (stage / out.name).write_text(membrane_card(membrane, source, drawn), encoding="utf-8")
        typer.echo(str(out))
        if drawn is not None:
            typer.echo(str(grid_file))


@contextmanager
def _as_file(place: Path, membrane: "Membrane") -> Generator[Path, None, None]:
    """Give the membrane's file; one that comes with the package has one meanwhile, as `spm.save` would write it."""
    from semipermeable.files import save
    from semipermeable.files.loading import weights_file
    from semipermeable.training import file_name
    from semipermeable.zoo.shipped import shipped_name

    if shipped_name(place) is None:
        yield weights_file(place)
        return
    with TemporaryDirectory() as folder:
        written = Path(folder) / file_name(membrane.concept)
        save(membrane, written)
        yield written


def _base_model(membrane: "Membrane") -> str:
    """Return the base model where it can be named without a guess: a bundled one, or a hub id."""
    from semipermeable import zoo
    from semipermeable.errors import ModelError

    base = membrane.provenance.base_model
    name = base.removeprefix("zoo:")
    if base.startswith("zoo:") and name in zoo.names():
        return name
    if base.count("/") == 1:
        return base
    told = f"says {base!r}, which is no name to load it by" if base else "does not say what it was made on"
    raise ModelError(f"the membrane of {membrane.name!r} {told}; name the model to draw on with --model")
