"""Membranes for many concepts: what they share is made once, and a folder of finished ones is gone on with.

for made in erase_each(pipe, concepts, preset="instant", out_dir="membranes"): ...
"""

import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from semipermeable.concept import Concept
from semipermeable.errors import ConfigError, MembraneError, OutputError
from semipermeable.membrane import Membrane, Provenance
from semipermeable.training.api import finished, provenance, settled_steps
from semipermeable.training.captions import captions_for
from semipermeable.training.config import TrainConfig
from semipermeable.training.loop import Trained
from semipermeable.training.progress import Advance, many_bar
from semipermeable.training.share import Share
from semipermeable.training.surrogates import settled
from semipermeable.training.together import Task, check_together, train_together
from semipermeable.training.workshop import Workshop

__all__ = ["Made", "Recipe", "Run", "erase_each", "erase_many", "file_name", "make", "plan"]

AT_ONCE = 4
"""Membranes whose rows share the calls of a trained run, unless the caller says otherwise."""
_HASH = "orthogonal_to_hash"
_ASIDE = ("joint_with", _HASH)
"""What a membrane's story tells besides its settings."""
WHOLE = Share()
"""The share of a process that works alone."""


@dataclass(frozen=True, eq=False, slots=True)
class Made:
    """One of many membranes.

    Args:
        membrane: the membrane.
        path: its file; None where no folder was given.
        found: whether it was there already.
    """

    membrane: Membrane
    path: Path | None
    found: bool


def file_name(concept: str | Concept) -> str:
    """Return the name of a concept's membrane file, e.g. "cat-face.safetensors"."""
    name = concept if isinstance(concept, str) else concept.name
    slug = re.sub(r"[^\w]+", "-", name.lower()).strip("-")
    return f"{slug or 'concept'}.safetensors"


def erase_many(
    pipe: Any,
    concepts: Sequence[str | Concept],
    *,
    preset: str = "fast",
    seed: int = 0,
    config: TrainConfig | None = None,
    out_dir: str | PathLike[str] | None = None,
    at_once: int | None = None,
    joint: bool = False,
    orthogonal_to: Sequence[Membrane] = (),
    progress: bool = True,
) -> list[Membrane]:
    """Make membranes for several concepts, in their order; arguments and errors as in `erase_each`."""
    steps = erase_each(
        pipe,
        concepts,
        preset=preset,
        seed=seed,
        config=config,
        out_dir=out_dir,
        at_once=at_once,
        joint=joint,
        orthogonal_to=orthogonal_to,
        progress=progress,
    )
    membranes = {file_name(made.membrane.concept): made.membrane for made in steps}
    return [membranes[file_name(concept)] for concept in concepts]


def erase_each(
    pipe: Any,
    concepts: Sequence[str | Concept],
    *,
    preset: str = "fast",
    seed: int = 0,
    config: TrainConfig | None = None,
    out_dir: str | PathLike[str] | None = None,
    at_once: int | None = None,
    joint: bool = False,
    orthogonal_to: Sequence[Membrane] = (),
    progress: bool = True,
    share: Share = WHOLE,
) -> Generator[Made, None, None]:
    """Make membranes one after the other or side by side, and give each as soon as it is saved.

    Args:
        pipe: see `erase`.
        concepts: names, or `Concept`s; every one has its own file name. None falls to another of them, unless its
            author wrote so.
        preset: see `erase`.
        seed: of every one of them.
        config: settings instead of a preset.
        out_dir: folder for one file each, made if missing; those that are there already and were made in the same way
            of the same model are not made again. None saves nothing.
        at_once: membranes trained side by side (`train_together`), at least 1; None takes 4, or all under `joint`.
            Those of one group are lost together when a run is killed. Without training steps they are made one by one.
        joint: share anchors, whose rows see all membranes of a group at once: interference is trained away. Needs
            training steps. A group of which a file is missing is made again whole.
        orthogonal_to: see `erase`.
        progress: show a bar.
        share: make only the groups that fall to this process, of several that make the same list into the same folder.

    Yields:
        One entry per concept: first those found, then in the order given. Of a share only its own are given; what was
        found is given by the first.

    Raises:
        ConfigError: if two concepts share a file name, or an option does not fit (see `train_together`; `tensorboard`
            and, with steps and several concepts, `checkpoint` belong to `erase`).
        OutputError: if the folder holds another membrane under a name, found before anything is made.
        SiteError: if one of `orthogonal_to` was made for another model, found before anything is made.
    """
    recipe = Recipe(config or TrainConfig.from_preset(preset), seed, tuple(orthogonal_to), joint)
    workshop = Workshop(pipe)
    run = plan(workshop, recipe, concepts, out_dir, at_once)
    found, groups = run.found() if share.is_main else [], run.left(share)
    num_steps = recipe.config.num_steps
    with many_bar(len(found) + sum(map(len, groups)), num_steps, shown=progress) as advance:
        for made in found:
            advance(made.membrane.name, num_steps or 1, 1)
            yield made
        for group in groups:
            membranes = make(workshop, recipe, [run.wanted[index] for index in group], advance)
            for index, membrane in zip(group, membranes, strict=True):
                yield run.keep(index, membrane)


@dataclass(frozen=True, eq=False, slots=True)
class Recipe:
    """How every membrane of a run is made.

    Args:
        config: settings.
        seed: of every one of them.
        orthogonal_to: see `erase`.
        joint: see `erase_each`.

    Raises:
        ConfigError: if `joint` is asked for without training steps.
    """

    config: TrainConfig
    seed: int
    orthogonal_to: tuple[Membrane, ...] = ()
    joint: bool = False

    def __post_init__(self) -> None:
        if self.joint and not self.config.num_steps:
            raise ConfigError("joint needs training steps; the closed form looks at one membrane at a time")


@dataclass(frozen=True, eq=False, slots=True)
class Run:
    """What is to be made, and what there is already.

    Args:
        wanted: the concepts, enriched.
        places: file of each, or None.
        held: membranes that were found, by the concept's place in the list.
        groups: the others, in the groups that were cut from the whole list; of a finished one nothing is left.
        would: provenance of every membrane of this run.
        joint_with: names of all membranes that share the anchors of each; None where none are shared.
    """

    wanted: Sequence[Concept]
    places: Sequence[Path | None]
    held: dict[int, Membrane]
    groups: Sequence[Sequence[int]]
    would: Provenance
    joint_with: Sequence[list[str] | None]

    def found(self) -> list[Made]:
        """Return what is there already, in order."""
        return [Made(membrane, self.places[index], found=True) for index, membrane in self.held.items()]

    def left(self, share: Share = WHOLE) -> list[Sequence[int]]:
        """Return the groups of a share in which something is left to make."""
        return [group for group in share.of(self.groups) if group]

    def differences(self, index: int, membrane: Membrane) -> list[str]:
        """Return in what a membrane is not the one that this run makes of a concept; [] if it is."""
        return _differences(membrane, self.wanted[index], self.would, self.joint_with[index])

    def keep(self, index: int, membrane: Membrane) -> Made:
        """Write the membrane of a concept to its place, if there is one."""
        _save(membrane, self.places[index])
        return Made(membrane, self.places[index], found=False)


def plan(
    workshop: Workshop,
    recipe: Recipe,
    concepts: Sequence[str | Concept],
    out_dir: str | PathLike[str] | None,
    at_once: int | None,
) -> Run:
    """Look at what is there, and deal out the rest; arguments and errors as in `erase_each`.

    Groups are cut from the whole list, and then lose what was found: a run that goes on trains the groups that it
    would have trained, and processes that share a folder deal alike whenever they look at it. The membranes of a joint
    group depend on each other: of a group that is not whole nothing counts as found.
    """
    if at_once is not None and at_once < 1:
        raise ConfigError(f"at_once must be at least 1, found {at_once}")
    _refuse_single(recipe.config, len(concepts))
    wanted = settled(workshop, concepts, recipe.config)
    places = _places(wanted, out_dir)
    would = provenance(workshop, recipe.config, recipe.seed, None, recipe.orthogonal_to)
    size = at_once or (max(len(wanted), 1) if recipe.joint else AT_ONCE)
    cut = [range(start, min(start + size, len(wanted))) for start in range(0, len(wanted), size)]
    joint_with = [[wanted[i].name for i in group] if recipe.joint else None for group in cut for _ in group]
    held: dict[int, Membrane] = {}
    for index, place in enumerate(places):
        membrane = _held(place, wanted[index], would, joint_with[index])
        if membrane is not None:
            held[index] = membrane
    groups = [[index for index in group if index not in held] for group in cut]
    if recipe.joint:
        groups = [list(group) if left else [] for group, left in zip(cut, groups, strict=True)]
        held = {index: held[index] for group, left in zip(cut, groups, strict=True) for index in group if not left}
    if recipe.config.num_steps and (recipe.joint or any(len(group) > 1 for group in groups)):
        check_together(recipe.config, joint=recipe.joint)
    return Run(wanted, places, held, groups, would, joint_with)


def _refuse_single(config: TrainConfig, count: int) -> None:
    """Refuse settings that follow the run of a single membrane."""
    if config.tensorboard is not None:
        raise ConfigError("tensorboard follows the run of a single membrane; leave it out, or call erase for each")
    if config.num_steps and config.checkpoint is not None and count > 1:
        raise ConfigError(
            f"checkpoint is the file of a single run, and these are {count}; leave it out (a run that is repeated goes "
            "on from the membranes in out_dir), or call erase for each with a checkpoint of its own"
        )


def _places(wanted: Sequence[Concept], out_dir: str | PathLike[str] | None) -> list[Path | None]:
    names = [file_name(concept) for concept in wanted]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two concepts would both be written to {twice}; rename one")
    if out_dir is None:
        return [None] * len(wanted)
    return [Path(out_dir) / name for name in names]


def _held(place: Path | None, concept: Concept, would: Provenance, joint_with: list[str] | None) -> Membrane | None:
    """Return the membrane that is at its place already, if it is the one that would be made."""
    if place is None or not place.exists():
        return None
    from semipermeable.files import load

    try:
        held = load(place)
    except MembraneError as error:
        raise OutputError(f"{place} is in the way and is no membrane ({error}); remove it") from error
    differs = _differences(held, concept, would, joint_with)
    if differs:
        raise OutputError(
            f"{place} holds another membrane ({', '.join(differs)} differ); remove it, or choose another folder"
        )
    return held


def _differences(held: Membrane, concept: Concept, would: Provenance, joint_with: list[str] | None) -> list[str]:
    own, surrogate = held.provenance, held.concept.surrogate
    told = {key: value for key, value in own.training.items() if key not in _ASIDE}
    asked = {key: value for key, value in would.training.items() if key not in _ASIDE}
    beside = would.training.get(_HASH)
    return [
        what
        for what, same in (
            ("concept", (held.concept.names, held.concept.keep) == (concept.names, concept.keep)),
            (f"surrogate, {surrogate!r} there and {concept.surrogate!r} here,", surrogate == concept.surrogate),
            ("training", told == asked),
            ("joint training", own.training.get("joint_with") == joint_with),
            # Files of earlier versions tell the names alone.
            ("orthogonal_to", own.training.get(_HASH, beside) == beside),
            ("seed", own.seed == would.seed),
            ("base model", own.base_hash == would.base_hash),
            ("text encoder", own.text_encoder_hash == would.text_encoder_hash),
        )
        if not same
    ]


def make(workshop: Workshop, recipe: Recipe, concepts: Sequence[Concept], advance: Advance) -> Iterator[Membrane]:
    """Make the membranes of a group, and give each when it is finished; they depend on no group made before.

    Args:
        workshop: of the model.
        recipe: how.
        concepts: the group.
        advance: called with what is being made and how far it has come.
    """
    config = recipe.config
    workshop.restart_moment()
    if not config.num_steps or (len(concepts) == 1 and not recipe.joint):
        for concept in concepts:
            yield _alone(workshop, recipe, concept, advance)
        return
    tasks = [Task(concept, captions_for(concept, workshop.spec)) for concept in concepts]
    steps = train_together(
        workshop, tasks, config, seed=recipe.seed, joint=recipe.joint, orthogonal_to=recipe.orthogonal_to
    )
    names = ", ".join(concept.name for concept in concepts)
    beside = [concept.name for concept in concepts] if recipe.joint else None
    ended: list[Trained] | None = None
    while ended is None:
        try:
            next(steps)
            advance(names, 1, len(concepts))
        except StopIteration as end:
            ended = end.value
    for task, trained in zip(tasks, ended, strict=True):
        yield finished(
            workshop, task.concept, task.captions, config, recipe.seed, trained, recipe.orthogonal_to, joint_with=beside
        )


def _alone(workshop: Workshop, recipe: Recipe, concept: Concept, advance: Advance) -> Membrane:
    steps = settled_steps(workshop, concept, config=recipe.config, seed=recipe.seed, orthogonal_to=recipe.orthogonal_to)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            advance(concept.name, 0 if recipe.config.num_steps else 1, 1)
            return end.value
        advance(concept.name, 1, 1)


def _save(membrane: Membrane, place: Path | None) -> None:
    if place is None:
        return
    from semipermeable.files import save

    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"folder {place.parent} cannot be made: {error}; choose another") from error
    save(membrane, place)
