"""`spm generate`: draw pictures with membranes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semipermeable.cli.options import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    SeedOption,
    attachable,
    file_facts,
    loaded,
    progress_bar,
)
from semipermeable.cli.problems import guarded

if TYPE_CHECKING:
    from semipermeable.generation import Drawing
    from semipermeable.membrane import Membrane

__all__ = ["EXAMPLE", "generate_command"]

EXAMPLE = 'Example:  spm generate "a neon icon of a cat" --membrane cat.safetensors --seed 0 --out pictures/ --compare'


@guarded
def generate_command(
    prompts: Annotated[list[str] | None, typer.Argument(help="What to draw; one or several.")] = None,
    prompts_file: Annotated[
        Path | None, typer.Option("--prompts-file", help="Text file with one prompt per line.")
    ] = None,
    membrane: Annotated[
        list[Path] | None,
        typer.Option("--membrane", "-m", help="Membrane to draw with, a file or e.g. zoo:cat; repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures.")] = Path("pictures"),
    compare: Annotated[
        bool, typer.Option("--compare", help="Also draw without membranes, and write before_after.png.")
    ] = False,
    permeability: Annotated[
        str,
        typer.Option("--permeability", help="Rule for γ: transport, paper, open, closed, or a number in [0, 1]."),
    ] = "transport",
    strength: Annotated[float, typer.Option("--strength", help="Factor on γ; may exceed 1.")] = 1.0,
    negative: Annotated[str, typer.Option("--negative", help="What to stay away from.")] = "",
    steps: Annotated[int, typer.Option("--steps", help="Denoising steps.", min=1)] = 25,
    guidance: Annotated[float, typer.Option("--guidance", help="Classifier-free guidance; 1 is without.")] = 4.0,
    images_per_prompt: Annotated[
        int, typer.Option("--images-per-prompt", "-n", help="Pictures of each prompt: seeds SEED, SEED+1, …", min=1)
    ] = 1,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Pictures at once; chosen by the model's size.", min=1)
    ] = None,
    seed: SeedOption = 0,
    model: ModelOption = "emoji",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Draw pictures; each PNG says how it was made (prompt, seed, membranes, γ)."""
    from semipermeable.generation import jobs_for
    from semipermeable.generation.output import check_writable, staged_folder
    from semipermeable.zoo import load_membrane

    texts = [*(prompts or []), *_read_prompts(prompts_file)]
    jobs_for(texts, seed, images_per_prompt)
    if compare and not membrane:
        raise typer.BadParameter("--compare shows pictures with and without membranes; give at least one --membrane")
    rule = _rule(permeability)
    check_writable(out, folder=True)
    places = membrane or []
    membranes = [load_membrane(place) for place in places]
    pipe = loaded(model, device, dtype)
    how: dict[str, Any] = {
        "seed": seed,
        "images_per_prompt": images_per_prompt,
        "negative": negative,
        "steps": steps,
        "guidance": guidance,
        "batch_size": batch_size,
    }
    after = _draw(
        pipe,
        texts,
        [attachable(*one) for one in zip(places, membranes, strict=True)],
        how,
        {"permeability": rule, "strength": strength},
    )
    before = _draw(pipe, texts, (), how, {}) if compare else None
    common: dict[str, Any] = {
        "model": model,
        "strength": strength,
        "negative": negative,
        "steps": steps,
        "guidance": guidance,
    }
    common["membranes"] = [_story(one, place) for one, place in zip(membranes, places, strict=True)]
    with staged_folder(out) as stage:
        _write(stage, after, before, common)
    _tell(out, after, compare)


def _read_prompts(file: Path | None) -> list[str]:
    from semipermeable.errors import PromptError

    if file is None:
        return []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"prompts file {str(file)!r} cannot be read ({error}); give a UTF-8 text file") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise PromptError(f"prompts file {str(file)!r} holds no prompt; write one per line")
    return found


def _rule(text: str) -> Any:
    """Return a permeability as `attach` takes it, checked before a model is loaded."""
    from semipermeable.permeability import resolve

    try:
        rule: str | float = float(text)
    except ValueError:
        rule = text
    return resolve(rule)


def _draw(
    pipe: Any, prompts: list[str], membranes: "Sequence[Membrane | str]", how: dict[str, Any], extra: dict[str, Any]
) -> "list[Drawing]":
    from semipermeable.generation import generate

    with progress_bar("drawing" if membranes else "drawing bare") as report:
        return generate(pipe, prompts, membranes, **how, **extra, progress=report)


def _story(membrane: "Membrane", place: Path) -> dict[str, str]:
    facts = file_facts(place, membrane)
    return {"concept": membrane.name, "file": facts["file"], "sha256": facts["sha256"]}


def _write(stage: Path, after: "Sequence[Drawing]", before: "Sequence[Drawing] | None", common: dict[str, Any]) -> None:
    from semipermeable.generation import Row, comparison_grid, picture_facts, picture_name, write_png

    for drawing in after:
        write_png(drawing.image, picture_facts(drawing, **common), stage / picture_name(drawing))
    if before is not None:
        rows = [
            Row(new.job.prompt, (old.image, new.image), ", ".join(f"γ {name} = {g:g}" for name, g in new.gamma.items()))
            for old, new in zip(before, after, strict=True)
        ]
        comparison_grid(rows, ("before", "after"), across=1 if len(rows) < 4 else 2).save(stage / "before_after.png")


def _tell(out: Path, after: "Sequence[Drawing]", compare: bool) -> None:
    from semipermeable.generation import picture_name

    for drawing in after:
        gammas = ", ".join(f"γ {row.concept} = {row.gamma:g} ({row.reason})" for row in drawing.decisions)
        typer.echo(f"{out / picture_name(drawing)}  {gammas}".rstrip())
    if compare:
        typer.echo(str(out / "before_after.png"))
