"""`spm erase`: train membranes."""

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semipermeable.cli.options import DeviceOption, ModelOption, SeedOption, loaded
from semipermeable.cli.problems import guarded

if TYPE_CHECKING:
    from semipermeable.concept import Concept
    from semipermeable.training import TrainConfig

__all__ = ["EXAMPLE", "erase_command"]

EXAMPLE = 'Example:  spm erase "cat" --alias kitty --surrogate animal --out cat.safetensors'


@guarded
def erase_command(
    concept: Annotated[str | None, typer.Argument(help='What to erase, e.g. "cat". Omit it with --concepts.')] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Membrane file; a folder with --concepts. Default: CONCEPT.safetensors."),
    ] = None,
    alias: Annotated[list[str] | None, typer.Option("--alias", help="Another name for it; repeatable.")] = None,
    surrogate: Annotated[str | None, typer.Option("--surrogate", help="What its prompts draw instead.")] = None,
    keep: Annotated[list[str] | None, typer.Option("--keep", help="A phrase that must stay; repeatable.")] = None,
    concepts: Annotated[Path | None, typer.Option("--concepts", help="TOML file with several concepts.")] = None,
    preset: Annotated[str, typer.Option("--preset", help='"fast", or "paper" for SPM as published.')] = "fast",
    steps: Annotated[int | None, typer.Option("--steps", help="Optimiser steps; the preset's, if not given.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file with training settings, e.g. learning_rate = 4e-3.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep a checkpoint beside --out, and go on from it after an interruption.")
    ] = False,
    seed: SeedOption = 0,
    model: ModelOption = "emoji",
    device: DeviceOption = None,
) -> None:
    """Train a membrane that erases a concept, and save it."""
    wanted = _wanted(concept, concepts, alias or [], surrogate, keep or [])
    targets = _targets(wanted, out, several=concepts is not None)
    settings = _settings(preset, steps, config)
    from semipermeable.generation.output import check_writable

    for target in targets:
        check_writable(target)
    pipe = loaded(model, device, "fp32")
    for one, target in zip(wanted, targets, strict=True):
        _erase_one(pipe, one if concepts else _completed(pipe, one), target, settings, seed, resume)


def _erase_one(pipe: Any, concept: "Concept", target: Path, settings: "TrainConfig", seed: int, resume: bool) -> None:
    import dataclasses

    from semipermeable.files import save
    from semipermeable.generation.output import staged_file
    from semipermeable.training import erase

    checkpoint = target.with_name(f"{target.stem}.checkpoint.safetensors")
    chosen = dataclasses.replace(settings, checkpoint=str(checkpoint)) if resume else settings
    membrane = erase(pipe, concept, seed=seed, config=chosen)
    with staged_file(target) as path:
        save(membrane, path)
    if resume:
        checkpoint.unlink(missing_ok=True)
    typer.echo(f"{target}: erases {membrane.name!r}, {len(membrane.pairs)} sites, {target.stat().st_size:,} bytes")


def _wanted(
    name: str | None, file: Path | None, aliases: list[str], surrogate: str | None, keep: list[str]
) -> "list[Concept]":
    from semipermeable.concept import Concept

    if file is not None:
        if name is not None or aliases or surrogate is not None or keep:
            raise typer.BadParameter("give a concept on the command line or a file with --concepts, not both")
        from semipermeable.files import load_concepts

        return list(load_concepts(file))
    if name is None:
        raise typer.BadParameter('say what to erase, e.g. spm erase "cat", or give a file with --concepts')
    return [Concept(name, tuple(aliases), surrogate or "", tuple(keep))]


def _completed(pipe: Any, concept: "Concept") -> "Concept":
    """Add what a bundled model's spec knows of a name (aliases, neighbours, surrogate) to what the user said."""
    from semipermeable.concept import Concept
    from semipermeable.training import enrich
    from semipermeable.training.captions import spec_of

    known = enrich(concept.name, spec_of(pipe))
    aliases = (*known.aliases, *concept.aliases)
    erased = {name.casefold() for name in (concept.name, *aliases)}
    keep = (*(text for text in known.keep if text.casefold() not in erased), *concept.keep)
    return Concept(concept.name, aliases, concept.surrogate or known.surrogate, keep)


def _targets(wanted: "list[Concept]", out: Path | None, *, several: bool) -> list[Path]:
    slugs = [_slug(one.name) for one in wanted]
    if not several:
        return [out or Path(f"{slugs[0]}.safetensors")]
    if out is not None and out.suffix == ".safetensors":
        raise typer.BadParameter(f"--concepts makes one file per concept: --out must be a folder, found {str(out)!r}")
    if len(set(slugs)) < len(slugs):
        twice = next(slug for slug in slugs if slugs.count(slug) > 1)
        raise typer.BadParameter(f"two concepts of the file would both be written to {twice}.safetensors; rename one")
    return [(out or Path()) / f"{slug}.safetensors" for slug in slugs]


def _slug(name: str) -> str:
    return re.sub(r"[^\w]+", "-", name.lower()).strip("-") or "concept"


def _settings(preset: str, steps: int | None, file: Path | None) -> "TrainConfig":
    from semipermeable.errors import ConfigError
    from semipermeable.training import TrainConfig

    overrides: dict[str, Any] = {}
    if file is not None:
        try:
            overrides = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"training settings {str(file)!r} cannot be read ({error}); see --help") from error
    if steps is not None:
        overrides["num_steps"] = steps
    return TrainConfig.from_preset(preset, **overrides)
