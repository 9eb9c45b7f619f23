"""`spm erase`: train membranes."""

import tomllib
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semipermeable.cli.options import DeviceOption, ModelOption, SeedOption, loaded, silence_libraries
from semipermeable.cli.problems import guarded

if TYPE_CHECKING:
    from semipermeable.concept import Concept
    from semipermeable.membrane import Membrane
    from semipermeable.training import Made, Share, TrainConfig

__all__ = ["EXAMPLE", "erase_command", "folder_files", "load_folder"]

EXAMPLE = (
    'Example:  spm erase "cat" --alias kitty --surrogate dog --out cat.safetensors      '
    "Many, on a cluster:  spm erase --concepts concepts.toml --out-dir membranes/ --cluster auto"
)


@guarded
def erase_command(
    concept: Annotated[str | None, typer.Argument(help='What to erase, e.g. "cat". Omit it with --concepts.')] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "--out-dir", "-o", help="Membrane file; a folder with --concepts. Default: CONCEPT.safetensors."
        ),
    ] = None,
    alias: Annotated[list[str] | None, typer.Option("--alias", help="Another name for it; repeatable.")] = None,
    surrogate: Annotated[
        str | None, typer.Option("--surrogate", help="What its prompts draw instead: something like it.")
    ] = None,
    keep: Annotated[list[str] | None, typer.Option("--keep", help="A phrase that must stay; repeatable.")] = None,
    concepts: Annotated[Path | None, typer.Option("--concepts", help="TOML file with several concepts.")] = None,
    preset: Annotated[str, typer.Option("--preset", help='"fast", "instant" (closed form), or "paper".')] = "fast",
    rank: Annotated[int | None, typer.Option("--rank", help="k of each pair; the preset's, if not given.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Optimiser steps; the preset's, if not given.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file with training settings, e.g. learning_rate = 4e-3.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep a checkpoint beside --out, and go on from it after an interruption.")
    ] = False,
    at_once: Annotated[
        int | None, typer.Option("--at-once", min=1, help="With --concepts: membranes trained side by side.")
    ] = None,
    joint: Annotated[
        bool, typer.Option("--joint", help="With --concepts: share anchors, so that membranes do not interfere.")
    ] = False,
    cluster: Annotated[
        str,
        typer.Option(
            "--cluster",
            help="With --concepts: address of a Ray cluster to train on, a group per task; `auto` is that of this "
            "machine.",
        ),
    ] = "",
    orthogonal_to: Annotated[
        Path | None,
        typer.Option(
            "--orthogonal-to", help="Folder of membranes (or one, a file or e.g. zoo:cat) to stay orthogonal to."
        ),
    ] = None,
    preview: Annotated[
        Path | None, typer.Option("--preview", help="Folder for pictures of the concept and of something kept.")
    ] = None,
    preview_every: Annotated[
        int | None, typer.Option("--preview-every", min=1, help="Steps between two; four in all, or one in 100 steps.")
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option("--tensorboard", help="Folder for TensorBoard logs of both losses.")
    ] = None,
    seed: SeedOption = 0,
    model: ModelOption = "emoji",
    device: DeviceOption = None,
) -> None:
    """Make membranes that erase concepts, and save them.

    With --concepts, finished membranes of the folder are not made again: a run that was killed goes on. Processes that
    `accelerate launch` starts share out the concepts of a file.
    """
    if concepts is None and (joint or at_once is not None or cluster):
        raise typer.BadParameter(
            "--joint, --at-once and --cluster are about several concepts; give a file with --concepts"
        )
    if concepts is not None and resume:
        raise typer.BadParameter("--concepts goes on by itself from the membranes that are finished; omit --resume")
    if concepts is not None and (preview or tensorboard):
        raise typer.BadParameter("--preview and --tensorboard follow one training; omit --concepts")
    if preview_every is not None and preview is None:
        raise typer.BadParameter("--preview-every is about pictures; say where with --preview")
    wanted = _wanted(concept, concepts, alias or [], surrogate, keep or [])
    targets = _targets(wanted, out, several=concepts is not None)
    told = _read_settings(config)
    settings = _settings(preset, steps, rank, told)
    share = _share(cluster, several=concepts is not None)
    for target in targets:
        _check_target(target, share)
    settings = _followed(settings, preview, preview_every or told.get("preview_every"), tensorboard)
    if concepts is None:
        _check_apart(targets[0], orthogonal_to, config, model)
    beside = [] if orthogonal_to is None else load_folder(orthogonal_to)
    if concepts is not None:
        many = _Many(wanted, targets[0].parent, settings, seed, at_once, joint, beside)
        if share.is_main and (cluster or share.count > 1) and joint and at_once is None:
            typer.echo("spm: all concepts are one --joint group, the work of one; --at-once makes several", err=True)
        _tell(_on_cluster(many, cluster, model, device) if cluster else _here(many, share, model, device))
        return
    pipe = loaded(model, device, "fp32")
    from semipermeable.training.captions import completed, spec_of

    _erase_one(pipe, completed(wanted[0], spec_of(pipe)), targets[0], settings, seed, resume, beside)


def load_folder(place: Path) -> "list[Membrane]":
    """Load one membrane, a file or `zoo:CONCEPT`, or all membranes of a folder in order of their names.

    Raises:
        MembraneFileError: if there is none, or one cannot be read.
    """
    from semipermeable.errors import MembraneFileError
    from semipermeable.zoo import load_membrane

    files = folder_files(place)
    if not files:
        raise MembraneFileError(f"folder {str(place)!r} holds no membrane; make some with spm erase --concepts")
    return [load_membrane(file) for file in files]


def folder_files(place: Path) -> list[Path]:
    """Return what `load_folder` reads."""
    from semipermeable.files.loading import membrane_files

    return membrane_files(place) if place.is_dir() else [place]


@dataclass(frozen=True)
class _Many:
    """What is made of a file of concepts, wherever that is done."""

    concepts: "list[Concept]"
    folder: Path
    settings: "TrainConfig"
    seed: int
    at_once: int | None
    joint: bool
    beside: "list[Membrane]"


def _share(cluster: str, *, several: bool) -> "Share":
    """Return this process's part of the work, as `accelerate launch` dealt it."""
    from semipermeable.training import launched_share

    share = launched_share()
    if share.count > 1 and not several:
        raise typer.BadParameter(
            "one concept is the work of one process; give several with --concepts, or run without accelerate launch"
        )
    if share.count > 1 and cluster:
        raise typer.BadParameter("--cluster shares out the work itself; run it without accelerate launch")
    return share


def _check_apart(target: Path, orthogonal_to: Path | None, config: Path | None, model: str) -> None:
    from semipermeable.files.atomic import check_apart

    beside = [] if orthogonal_to is None else folder_files(orthogonal_to)
    check_apart(target, *beside, *([] if config is None else [config]), Path(model))


def _check_target(target: Path, share: "Share") -> None:
    from semipermeable.files.native import check_name
    from semipermeable.generation.output import check_writable, explain

    if share.count == 1:
        check_writable(target)
    else:
        # The check makes a missing folder and takes it away again, perhaps while another process looks at it.
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain(target, error) from error
    check_name(target)


def _here(many: _Many, share: "Share", model: str, device: str | None) -> "Generator[Made, None, None]":
    from semipermeable.training import erase_each

    return erase_each(
        loaded(model, share.device_for(device), "fp32", shown=share.is_main),
        many.concepts,
        config=many.settings,
        seed=many.seed,
        out_dir=many.folder,
        at_once=many.at_once,
        joint=many.joint,
        orthogonal_to=many.beside,
        progress=share.is_main,
        share=share,
    )


def _on_cluster(many: _Many, address: str, model: str, device: str | None) -> "Generator[Made, None, None]":
    from semipermeable.generation import load_for_training
    from semipermeable.training import erase_on_cluster

    silence_libraries()
    return erase_on_cluster(
        address,
        model,
        many.concepts,
        load=load_for_training,
        device=device,
        config=many.settings,
        seed=many.seed,
        out_dir=many.folder,
        at_once=many.at_once,
        joint=many.joint,
        orthogonal_to=many.beside,
    )


def _tell(steps: "Generator[Made, None, None]") -> None:
    with closing(steps):
        for made in steps:
            assert made.path is not None  # noqa: S101 - a folder was given
            typer.echo(_told(made.path, made.membrane, "is there already" if made.found else ""))


def _told(place: Path, membrane: "Membrane", how: str = "") -> str:
    falls = f" (draws {membrane.concept.surrogate!r} instead)" if membrane.concept.surrogate else ""
    size = f"{place.stat().st_size:,} bytes"
    return f"{place}: erases {membrane.name!r}{falls}, {how or f'{len(membrane.pairs)} sites'}, {size}"


def _erase_one(
    pipe: Any,
    concept: "Concept",
    target: Path,
    settings: "TrainConfig",
    seed: int,
    resume: bool,
    beside: "list[Membrane]",
) -> None:
    import dataclasses

    from semipermeable.files import save
    from semipermeable.files.loading import CHECKPOINT
    from semipermeable.generation.output import staged_file
    from semipermeable.training import erase

    checkpoint = target.with_name(target.stem + CHECKPOINT)
    chosen = dataclasses.replace(settings, checkpoint=str(checkpoint)) if resume else settings
    membrane = erase(pipe, concept, seed=seed, config=chosen, orthogonal_to=beside)
    with staged_file(target) as path:
        save(membrane, path)
    if resume:
        checkpoint.unlink(missing_ok=True)
    typer.echo(_told(target, membrane))


def _followed(
    settings: "TrainConfig", preview: Path | None, every: int | None, tensorboard: Path | None
) -> "TrainConfig":
    """Have a training draw previews and write logs."""
    import dataclasses

    from semipermeable.generation.grid import Row, comparison_grid
    from semipermeable.generation.output import check_writable, staged_file

    for place in (preview, tensorboard):
        if place is not None:
            if settings.num_steps == 0:
                raise typer.BadParameter(
                    "there are no steps to follow with --preview or --tensorboard: nothing is trained"
                )
            check_writable(place, folder=True)
    if tensorboard is not None:
        settings = dataclasses.replace(settings, tensorboard=str(tensorboard))
    if preview is None:
        return settings

    titles = tuple(settings.preview_prompts) or ("the concept", "kept")

    def keep(step: int, pictures: Sequence[Any]) -> None:
        with staged_file(preview / f"step-{step:05d}.png") as path:
            row = Row(f"step {step}", tuple(pictures))
            comparison_grid([row], titles).save(path, format="png")

    steps = every or min(100, max(1, settings.num_steps // 4))
    return dataclasses.replace(settings, preview=keep, preview_every=steps)


def _wanted(
    name: str | None, file: Path | None, aliases: list[str], surrogate: str | None, keep: list[str]
) -> "list[Concept]":
    from semipermeable.concept import Concept
    from semipermeable.errors import ConceptError

    if file is not None:
        if name is not None or aliases or surrogate is not None or keep:
            raise typer.BadParameter("give a concept on the command line or a file with --concepts, not both")
        from semipermeable.files import load_concepts

        return list(load_concepts(file))
    if name is None:
        raise typer.BadParameter('say what to erase, e.g. spm erase "cat", or give a file with --concepts')
    for option, texts in (("the concept", [name]), ("--alias", aliases), ("--keep", keep)):
        if not all(text.strip() for text in texts):
            raise ConceptError(f'{option} is empty; write a name, e.g. spm erase "cat" --alias "kitty"')
    return [Concept(name, tuple(aliases), surrogate or "", tuple(keep))]


def _targets(wanted: "list[Concept]", out: Path | None, *, several: bool) -> list[Path]:
    from semipermeable.training import file_name

    names = [file_name(one) for one in wanted]
    if not several:
        return [out or Path(names[0])]
    if out is not None and out.suffix == ".safetensors":
        raise typer.BadParameter(f"--concepts makes one file per concept: --out must be a folder, found {str(out)!r}")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise typer.BadParameter(f"two concepts of the file would both be written to {twice}; rename one")
    return [(out or Path()) / name for name in names]


def _read_settings(file: Path | None) -> dict[str, Any]:
    """Return the fields of `TrainConfig` that a file sets."""
    import dataclasses

    from semipermeable.errors import ConfigError, closest
    from semipermeable.training import TrainConfig

    if file is None:
        return {}
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"training settings {str(file)!r} cannot be read ({error}); see --help") from error
    known = [field.name for field in dataclasses.fields(TrainConfig)]
    for name in found:
        if name == "preset":
            raise ConfigError(f"{str(file)!r} sets a preset, which is no training setting; give it with --preset")
        if name not in known:
            raise ConfigError(f"{str(file)!r}: {closest(name, known, what='training setting')}")
    return found


def _settings(preset: str, steps: int | None, rank: int | None, told: dict[str, Any]) -> "TrainConfig":
    from semipermeable.training import TrainConfig

    overrides = dict(told)
    if steps is not None:
        overrides["num_steps"] = steps
    if rank is not None:
        overrides["rank"] = rank
    return TrainConfig.from_preset(preset, **overrides)
