"""`spm zoo`: the bundled models."""

import json
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
    name: Annotated[str, typer.Argument(help="A name from `spm zoo list`.")] = "emoji",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON, file digests included.")] = False,
) -> None:
    """Show what a bundled model draws, and its card."""
    from semipermeable import zoo

    card, taught = zoo.info(name), zoo.spec(name)
    if as_json:
        content = {**card, "objects": list(taught.object_names), "styles": list(taught.styles)}
        typer.echo(json.dumps(content, indent=1, ensure_ascii=False))
        return
    typer.echo(f"{name}: a text-to-image model that comes with semipermeable\n")
    typer.echo(f"styles: {', '.join(taught.styles)}")
    for group, names in taught.groups.items():
        typer.echo(f"{group}: {', '.join(names)}")
    typer.echo(f"captions: {'; '.join(repr(text) for text in _examples(taught))}")
    typer.echo(f"folder: {zoo.path(name)}")
    for key, value in card.items():
        if key not in ("name", "files"):
            typer.echo(f"{key}: {_text(value)}")


def _examples(taught: Any) -> list[str]:
    thing, style = taught.object_names[0], taught.styles[0]
    return [taught.caption(thing, style, template=number) for number in range(len(taught.templates))]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
