"""`spm export`, `spm import`, `spm merge`: membranes for other programs, and theirs for this one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semipermeable.cli.options import attachable, loaded
from semipermeable.cli.problems import guarded

if TYPE_CHECKING:
    from semipermeable.membrane import Membrane

__all__ = [
    "ADAPTERS",
    "BAKED",
    "EXPORT_EXAMPLE",
    "IMPORT_EXAMPLE",
    "MERGE_EXAMPLE",
    "export_command",
    "import_command",
    "merge_command",
]

EXPORT_EXAMPLE = "Example:  spm export cat.safetensors --format kohya --out cat_lora.safetensors"
IMPORT_EXAMPLE = 'Example:  spm import leco.safetensors --name "Van Gogh" --out van-gogh.safetensors'
MERGE_EXAMPLE = "Example:  spm merge cat.safetensors neon.safetensors --gamma 1,0.5 --out both_lora.safetensors"

ADAPTERS = ("kohya", "diffusers", "peft", "comfyui", "reference")
BAKED = ("folder", "checkpoint")
"""What `--format` takes; written out, so that `--help` need not import torch."""

OutOption = Annotated[Path, typer.Option("--out", "-o", help="What to write: a .safetensors file; peft: a new folder.")]
ModelForNames = Annotated[
    str | None,
    typer.Option("--model", help="The model it is for, where its layer names are needed; a message says so."),
]


@guarded
def export_command(
    files: Annotated[
        list[Path], typer.Argument(help="A membrane, a file or e.g. zoo:cat; several only for folder and checkpoint.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="A .safetensors file; for peft and folder, a new folder.")],
    layout: Annotated[
        str,
        typer.Option(
            "--format",
            help="kohya (A1111, Forge, ComfyUI), diffusers, peft, comfyui, reference; or membranes baked into --model: "
            "folder (diffusers), checkpoint (one file in the original layout: Stable Diffusion, SDXL, FLUX.1).",
        ),
    ] = "kohya",
    model: Annotated[
        str | None,
        typer.Option("--model", help="The model to bake into; for adapters only where a message asks for it."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Weights of a baked model: fp32, fp16 or bf16; fp32, if not given.")
    ] = None,
) -> None:
    """Write a membrane as another program's adapter, or bake it into a model. Neither has a gate."""
    from semipermeable.errors import ExportError, closest
    from semipermeable.zoo import load_membrane

    if layout not in (*ADAPTERS, *BAKED):
        raise ExportError(closest(layout, (*ADAPTERS, *BAKED), what="format"))
    _check_out(out, files, model)
    if layout in BAKED:
        _bake(files, out, layout, model, dtype)
        return
    if dtype is not None:
        raise ExportError(f"--dtype is for baked models; a {layout} adapter keeps the numbers of its membrane")
    if len(files) > 1:
        raise ExportError(f"a {layout} adapter is made of one membrane, found {len(files)}; add them up with spm merge")
    _write(load_membrane(files[0]), out, layout, model)


@guarded
def import_command(
    file: Annotated[Path, typer.Argument(help="An adapter (kohya, LECO, diffusers, PEFT, ComfyUI, reference).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The membrane file.")],
    name: Annotated[
        str | None, typer.Option("--name", help="What it erases, by which the gate opens; else what the file says.")
    ] = None,
    alias: Annotated[list[str] | None, typer.Option("--alias", help="Another name for it; repeatable.")] = None,
    gate_power: Annotated[
        int | None, typer.Option("--gate-power", help="Exponent on γ, 1 or 2; else what the file says.")
    ] = None,
    model: ModelForNames = None,
) -> None:
    """Read another program's adapter into a membrane, to be gated like any other."""
    import dataclasses

    from semipermeable.files import save
    from semipermeable.files.foreign import resolve_foreign
    from semipermeable.zoo import load_membrane

    _check_out(out, [file], model)
    membrane = load_membrane(file)
    if gate_power is not None:
        membrane = dataclasses.replace(membrane, gate_power=gate_power)
    if name is not None or alias:
        told = membrane.concept
        aliases = (*(alias or ()), *(told.aliases if name is None else ()))
        concept = dataclasses.replace(told, name=told.name if name is None else name, aliases=aliases)
        membrane = dataclasses.replace(membrane, concept=concept, gate=None)
    if model is not None:
        membrane = resolve_foreign(membrane, _denoiser(model))
    save(membrane, out)
    names = ", ".join(membrane.concept.names)
    typer.echo(f"{out}: erases {names}; {len(membrane.pairs)} sites, rank {membrane.rank}")
    if name is None:
        typer.echo("spm: note: the gate opens by these names; give others with --name and --alias", err=True)


@guarded
def merge_command(
    files: Annotated[
        list[Path], typer.Argument(help="Membranes (files or e.g. zoo:cat), or adapters of other programs.")
    ],
    out: OutOption,
    gamma: Annotated[
        str | None,
        typer.Option("--gamma", help="How strongly each acts, e.g. 1,0.5,1; may exceed 1. All 1, if not given."),
    ] = None,
    layout: Annotated[str, typer.Option("--format", help="kohya, diffusers, peft, comfyui or reference.")] = "kohya",
    model: ModelForNames = None,
) -> None:
    """Add membranes up, exactly, into one adapter of higher rank. It has no gate."""
    from semipermeable.errors import ExportError, closest
    from semipermeable.files.exporting import merge
    from semipermeable.files.foreign import resolve_foreign
    from semipermeable.zoo import load_membrane

    if layout not in ADAPTERS:
        raise ExportError(closest(layout, ADAPTERS, what="format"))
    _check_out(out, files, model)
    gammas = _numbers(gamma)
    membranes = [load_membrane(file) for file in files]
    denoiser = None if model is None else _denoiser(model)
    if denoiser is not None:
        membranes = [resolve_foreign(membrane, denoiser) for membrane in membranes]
    _write(merge(membranes, gammas), out, layout, model, denoiser)


def _numbers(text: str | None) -> list[float] | None:
    from semipermeable.errors import ExportError

    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ExportError(f"--gamma must be numbers joined by commas, e.g. 1,0.5,1, found {text!r}") from error


def _check_out(out: Path, files: list[Path], model: str | None) -> None:
    """Refuse to write over a membrane or a model that is read."""
    from semipermeable.files.atomic import check_apart
    from semipermeable.files.loading import weights_file

    check_apart(out, *map(weights_file, files), *([] if model is None else [Path(model)]))


def _denoiser(model: str) -> Any:
    from semipermeable.hosts import host_for

    return host_for(loaded(model, "cpu", "fp32")).denoiser


def _write(membrane: "Membrane", out: Path, layout: str, model: str | None, denoiser: Any = None) -> None:
    from semipermeable.files.export_story import NOTICE
    from semipermeable.files.exporting import LAYOUTS, export

    if denoiser is None and model is not None:
        denoiser = _denoiser(model)
    export(membrane, out, layout, denoiser=denoiser)
    sites = f"{len(membrane.pairs)} sites, rank {membrane.rank}"
    typer.echo(f"{out}: erases {membrane.name!r} in {LAYOUTS[layout].describes}; {sites}")
    typer.echo(f"spm: note: {NOTICE}", err=True)


def _bake(files: list[Path], out: Path, layout: str, model: str | None, dtype: str | None) -> None:
    from semipermeable.equip.baking import bake_checkpoint, bake_folder
    from semipermeable.errors import ExportError
    from semipermeable.files.export_story import NOTICE
    from semipermeable.zoo import load_membrane

    if model is None:
        raise ExportError(f"--format {layout} bakes membranes into a model; say which, e.g. --model emoji")
    membranes = [load_membrane(file) for file in files]
    pipe = loaded(model, "cpu", dtype or "fp32")
    given = [attachable(*one) for one in zip(files, membranes, strict=True)]
    (bake_folder if layout == "folder" else bake_checkpoint)(pipe, given, out)
    typer.echo(f"{out}: {model} without {', '.join(membrane.name for membrane in membranes)}")
    typer.echo(f"spm: note: {NOTICE}", err=True)
