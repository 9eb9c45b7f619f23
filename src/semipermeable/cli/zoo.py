"""`spm zoo`: the bundled models."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from semipermeable.cli.problems import guarded

__all__ = ["app"]

app = typer.Typer(
    help="The models that come with the package.",
    epilog="Example:  spm zoo info emoji",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command("list", epilog="Example:  spm zoo list")
@guarded
def list_command() -> None:
    """List the bundled models."""
    from semipermeable import zoo

    for name in zoo.names():
        taught = zoo.spec(name)
        size = sum(int(entry["bytes"]) for entry in zoo.info(name)["files"].values())
        typer.echo(f"{name}: {len(taught.objects)} objects in {len(taught.styles)} styles, {size / 1e6:.1f} MB")


@app.command("info", epilog="Example:  spm zoo info emoji --json")
@guarded
def info_command(
    model: Annotated[str, typer.Argument(help="A name from `spm zoo list`, or a bundle's folder.")] = "emoji",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON, file digests included.")] = False,
) -> None:
    """Show what a bundled model draws, and its card."""
    from semipermeable import zoo

    name = _bundle(model)
    card, taught = zoo.info(name), zoo.spec(name)
    if as_json:
        content = {**card, "objects": list(taught.object_names), "styles": list(taught.styles)}
        typer.echo(json.dumps(content, indent=1, ensure_ascii=False))
        return
    typer.echo(f"{taught.name}: {card.get('summary', 'no summary')}\n")
    typer.echo(f"styles: {', '.join(taught.styles)}")
    for group, names in taught.groups.items():
        typer.echo(f"{group}: {', '.join(names)}")
    typer.echo(f"captions: {'; '.join(repr(text) for text in _examples(taught))}")
    typer.echo(f"folder: {zoo.path(name)}")
    for key, value in card.items():
        if key not in ("name", "summary", "files"):
            typer.echo(f"{key}: {_text(value)}")


@app.command("build", epilog="Example:  spm zoo build emoji --out my-emoji --effort 0.01   (a few minutes, to try it)")
@guarded
def build_command(
    out: Annotated[Path, typer.Option(help="Folder of the bundle; must not exist or be empty.")],
    recipe: Annotated[str, typer.Argument(help="Name of a recipe.")] = "emoji",
    work: Annotated[
        Path | None, typer.Option(help="Folder of intermediate results; a killed build goes on. [default: OUT.work]")
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="Bundle to go on from: a name or a folder. Without it, from nothing.")
    ] = None,
    effort: Annotated[float, typer.Option(help="Factor on every number of training steps and pictures.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
) -> None:
    """Build a bundled model from public icon sets: fetch, draw, train each part, judge, write the model card.

    Needs `npm` to fetch the sets, and `pip install 'semipermeable[zoo]'`. The whole takes some hours on two cores.
    """
    from dataclasses import replace

    from semipermeable.cli.options import silence_libraries
    from semipermeable.generation.output import check_writable

    place = work if work is not None else out.with_name(out.name + ".work")
    for folder in (out, place):
        check_writable(folder, folder=True)
    silence_libraries()
    from semipermeable.zoo.recipe.build import build
    from semipermeable.zoo.recipe.plan import Plan

    plan = replace(Plan() if start is not None else Plan.afresh(), seed=seed).scaled(effort)
    made = build(
        recipe,
        work=place,
        out=out,
        plan=plan,
        start=None if start is None else _bundle(start),
    )
    typer.echo(f"{made}: load it with zoo.load(Path({str(made)!r})); its card is {made / 'README.md'}")


@app.command("evaluate", epilog="Example:  spm zoo evaluate emoji --count 64 --out drawing.json")
@guarded
def evaluate_command(
    model: Annotated[str, typer.Argument(help="A name from `spm zoo list`, or a bundle's folder.")] = "emoji",
    count: Annotated[int, typer.Option(help="Pictures; 500 take about 8 minutes on two cores.")] = 500,
    out: Annotated[Path | None, typer.Option(help="JSON file with everything.")] = None,
) -> None:
    """Draw a model's fixed prompts and let its judges say how many are right."""
    from semipermeable.cli.options import silence_libraries
    from semipermeable.generation.output import check_writable

    if out is not None:
        check_writable(out)
    silence_libraries()
    from semipermeable.zoo.recipe.evaluate import evaluate

    result = evaluate(_bundle(model), out, count=count)
    for key in ("object", "style", "both"):
        row = result[key]
        low, high = row["wilson95"]
        typer.echo(f"{key}: {row['right']} of {row['total']} right, {row['share']:.3f} [{low:.3f}, {high:.3f}]")
    typer.echo(f"CLIP score: {result['clip_score']:.3f}, with another's caption {result['clip_score_shuffled']:.3f}")
    typer.echo(f"Fréchet distance of {result['pictures']} pictures to real icons: {result['frechet']:.2f}")


@app.command("membranes", epilog="Example:  spm zoo membranes emoji --json")
@guarded
def membranes_command(
    model: Annotated[str, typer.Argument(help="A name from `spm zoo list`, or a bundle's folder.")] = "emoji",
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures, with intervals, as JSON.")] = False,
    build: Annotated[
        bool, typer.Option("--build", help="Make and judge all of them first: about 15 minutes on one idle core.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="With --build: folder for the two files. [default: the bundle itself]")
    ] = None,
    work: Annotated[
        Path, typer.Option(help="With --build: folder of intermediate results; a killed build goes on.")
    ] = Path("zoo-membranes.work"),
    seed: Annotated[int, typer.Option(help="With --build: of the membranes and of all noise.", min=0)] = 0,
) -> None:
    """List the membranes that come with a bundled model, and what its judges found of each."""
    from semipermeable import zoo

    name = _bundle(model)
    if build:
        figures = _build_membranes(name, out, work, seed)
    else:
        if out is not None:
            raise typer.BadParameter("--out is where --build writes; add --build")
        figures = zoo.membrane_figures(name)
    if as_json:
        typer.echo(json.dumps(figures, indent=1, ensure_ascii=False))
    elif not figures["membranes"]:
        typer.echo(f"{model} comes without membranes; make some with spm zoo membranes {model} --build")
    else:
        _print_membranes(figures)


def _build_membranes(model: str | Path, out: Path | None, work: Path, seed: int) -> dict[str, Any]:
    from semipermeable.cli.options import progress_bar, silence_libraries
    from semipermeable.generation.output import check_writable
    from semipermeable.zoo.bundle import bundle_folder

    check_writable(bundle_folder(model) if out is None else out, folder=True)
    silence_libraries()
    from semipermeable.evaluation.pretuned import build_pretuned
    from semipermeable.evaluation.pretuned_plan import PretunedPlan

    with progress_bar("making and judging") as report:
        packed = build_pretuned(model, work=work, plan=PretunedPlan(seed=seed), out=out, progress=report)
    figures: dict[str, Any] = json.loads(packed.with_suffix(".json").read_text(encoding="utf-8"))
    return figures


_WIDTH = 124
_COLUMNS = {
    "target": "target",
    "twins": "near twins",
    "other_axis": "other axis",
    "kept_open": "kept, open",
}


def _print_membranes(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("zoo:", "kind", *_COLUMNS.values(), "kept, gated", "opened"):
        table.add_column(title, no_wrap=True)
    for name, row in figures["membranes"].items():
        pairs = [_pair(row.get(key)) for key in _COLUMNS]
        table.add_row(name, row["kind"], *pairs, _rate(row["kept_gated_identical"]), _rate(row["opened"]))
    # A pipe has no width: rather long lines there than cut figures.
    Console(width=max(Console().width, _WIDTH)).print(table)
    environment = figures["environment"]
    typer.echo(
        f"{len(figures['membranes'])} membranes; pictures judged right, before → after, with the membrane held open on "
        f"every prompt; kept, gated: equal to the bare picture bit for bit. Seed {figures['seed']}, {figures['steps']} "
        f"steps, guidance {figures['guidance']:g}, commit {environment['commit'] or 'unknown'}. 95 % intervals: --json"
    )


def _pair(figure: dict[str, Any] | None) -> str:
    return "–" if figure is None else f"{_rate(figure['before'])} → {_rate(figure['after'])}"


def _rate(figure: dict[str, Any]) -> str:
    return f"{figure['successes']}/{figure['n']}"


def _bundle(name: str) -> str | Path:
    """Take what contains a separator for a folder, and anything else for a name."""
    return Path(name) if os.sep in name else name


def _examples(taught: Any) -> list[str]:
    thing, style = taught.object_names[0], taught.styles[0]
    return [taught.caption(thing, style, template=number) for number in range(len(taught.templates))]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
