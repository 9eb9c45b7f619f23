"""`spm inspect`: what a membrane file holds."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semipermeable.cli.options import file_facts
from semipermeable.cli.problems import guarded

if TYPE_CHECKING:
    from semipermeable.membrane import Membrane

__all__ = ["EXAMPLE", "inspect_command"]

EXAMPLE = "Example:  spm inspect cat.safetensors --json"


@guarded
def inspect_command(
    file: Annotated[
        Path, typer.Argument(help="A membrane: ours, the reference implementation's, LECO/kohya's, or e.g. zoo:cat.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show a membrane's concept, sites, provenance, gate, size and SHA-256."""
    from semipermeable.zoo import load_membrane

    membrane = load_membrane(file)
    facts = membrane_facts(membrane) | file_facts(file, membrane)
    if as_json:
        typer.echo(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        _print(facts)


def membrane_facts(membrane: "Membrane") -> dict[str, Any]:
    """Return what a membrane says about itself, as JSON data."""
    gate = membrane.gate
    provenance = {
        field.name: _plain(getattr(membrane.provenance, field.name))
        for field in dataclasses.fields(membrane.provenance)
    }
    return {
        "concept": {
            "name": membrane.concept.name,
            "aliases": list(membrane.concept.aliases),
            "surrogate": membrane.concept.surrogate,
            "keep": list(membrane.concept.keep),
        },
        "rank": membrane.rank,
        "parameters": membrane.num_parameters,
        "gate_power": membrane.gate_power,
        "foreign_names": membrane.foreign_names,
        "gate": None if gate is None else {"kind": gate.kind, "settings": _plain(gate.settings)},
        "provenance": provenance,
        "sites": {
            name: {"u": list(u.shape), "v": list(v.shape), "dtype": str(u.dtype).removeprefix("torch.")}
            for name, (u, v) in membrane.pairs.items()
        },
    }


def _plain(value: Any) -> Any:
    return dict(value) if hasattr(value, "items") else value


def _print(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    concept, origin, gate = facts["concept"], facts["provenance"], facts["gate"]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = [
        ("file", f"{facts['file']}, {facts['bytes']:,} bytes"),
        ("SHA-256", facts["sha256"]),
        ("erases", ", ".join([concept["name"], *concept["aliases"]])),
        ("falls to", concept["surrogate"] or "(what is left of the prompt)"),
        ("keeps", ", ".join(concept["keep"]) or "(no phrase named)"),
        ("sites", f"{len(facts['sites'])}, rank {facts['rank']}, {facts['parameters']:,} parameters"),
        ("gate", "none: always open, unless a rule is given" if gate is None else gate["kind"]),
        ("base model", origin["base_model"] or "unknown"),
        ("base hash", origin["base_hash"] or "unknown"),
        ("text encoder", origin["text_encoder_hash"] or "unknown"),
        ("prediction", origin["prediction_type"] or "unknown"),
        ("training", _pairs(origin["training"])),
        ("seed", "unknown" if origin["seed"] is None else str(origin["seed"])),
        ("metrics", _pairs(origin["metrics"])),
        ("made with", f"semipermeable {origin['package_version']}" if origin["package_version"] else "unknown"),
    ]
    if gate is not None:
        rows.insert(7, ("gate settings", _pairs(gate["settings"])))
    if facts["foreign_names"]:
        rows.append(("format", "another tool's; site names are resolved when it is attached"))
    for label, value in rows:
        table.add_row(Text(label, style="dim"), Text(value))
    Console().print(table)


def _pairs(values: dict[str, Any]) -> str:
    shown = {key: value for key, value in values.items() if not isinstance(value, list | dict)}
    texts = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items()]
    return ", ".join(texts) or "none recorded"
