"""`spm bank`: many membranes in one file."""

from pathlib import Path
from typing import Annotated

import typer

from semipermeable.cli.problems import guarded

__all__ = ["app"]

app = typer.Typer(
    help="Many membranes in one file, of which only those that a prompt opens are read.",
    no_args_is_help=True,
    epilog="Example:  spm bank pack membranes/ --out bank.safetensors",
)


@app.command("pack", epilog="Example:  spm bank pack membranes/ --out bank.safetensors")
@guarded
def pack_command(
    folder: Annotated[Path, typer.Argument(help="A folder of membrane files, in any format that is read.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors file to write; not in that folder.")],
) -> None:
    """Check every membrane of a folder and write all of them into one file."""
    from semipermeable.files.bank import pack

    number = pack(folder, out)
    typer.echo(f"{number} membranes, {out.stat().st_size:,} bytes: {out}")


@app.command("list", epilog="Example:  spm bank list bank.safetensors --json")
@guarded
def list_command(
    bank: Annotated[Path, typer.Argument(help="A folder of membranes, or a packed file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """List the membranes of a bank without reading them."""
    import json

    from semipermeable.equip import Bank

    opened = Bank(bank)
    stories = [opened.record(name).story for name in opened.names]
    rows = [
        {
            "name": story.concept.name,
            "aliases": list(story.concept.aliases),
            "surrogate": story.concept.surrogate,
            "gate": None if story.gate is None else story.gate[0],
            "base_model": story.provenance.base_model,
        }
        for story in stories
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    for row in rows:
        aliases = f" ({', '.join(map(str, row['aliases'] or ()))})" if row["aliases"] else ""
        falls = f" → {row['surrogate']}" if row["surrogate"] else ""
        typer.echo(
            f"{row['name']}{aliases}{falls}   gate {row['gate'] or 'none'}, base {row['base_model'] or 'unknown'}"
        )
    typer.echo(f"{len(rows)} membranes")
