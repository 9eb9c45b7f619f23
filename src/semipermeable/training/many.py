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
from semipermeable.membrane import Membrane
from semipermeable.training.api import erase_steps, finished, provenance
from semipermeable.training.captions import captions_for, enrich
from semipermeable.training.config import TrainConfig
from semipermeable.training.loop import Trained
from semipermeable.training.progress import Advance, many_bar
from semipermeable.training.together import Task, train_together
from semipermeable.training.workshop import Workshop

__all__ = ["Made", "erase_each", "erase_many", "file_name"]

AT_ONCE = 4
"""Membranes whose rows share the calls of a trained run, unless the caller says otherwise."""


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
    """Make membranes for several concepts; arguments and errors as in `erase_each`, results in the same order."""
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
    return [made.membrane for made in steps]


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
) -> Generator[Made, None, None]:
    """Make membranes one after the other or side by side, and give each as soon as it is saved.

    Args:
        pipe: see `erase`.
        concepts: names, or `Concept`s; every one has its own file name.
        preset: see `erase`.
        seed: of every one of them.
        config: settings instead of a preset.
        out_dir: folder for one file each, made if missing; those that are there already and were made in the same way
            of the same model are not made again. None saves nothing.
        at_once: membranes trained side by side (`train_together`), at least 1; None takes 4, or all under `joint`.
            Those of one group are lost together when a run is killed. No effect without training steps.
        joint: share anchors, whose rows see all membranes of a group at once: interference is trained away. Needs
            training steps.
        orthogonal_to: see `erase`.
        progress: show a bar.

    Yields:
        One entry per concept: first those found, then in the order given.

    Raises:
        ConfigError: if two concepts share a file name, or an option does not fit (see `train_together`).
        OutputError: if the folder holds another membrane under a name, found before anything is made.
    """
    chosen = config or TrainConfig.from_preset(preset)
    if at_once is not None and at_once < 1:
        raise ConfigError(f"at_once must be at least 1, found {at_once}")
    if joint and not chosen.num_steps:
        raise ConfigError("joint needs training steps; the closed form looks at one membrane at a time")
    workshop = Workshop(pipe)
    wanted = [enrich(concept, workshop.spec) for concept in concepts]
    places = _places(wanted, out_dir)
    story = _Story(workshop, chosen, seed, tuple(orthogonal_to), joint=joint)
    found = {i: held for i, place in enumerate(places) if (held := _held(place, wanted[i], story)) is not None}
    missing = [i for i in range(len(wanted)) if i not in found]
    size = 1 if not chosen.num_steps else (at_once or (max(len(missing), 1) if joint else AT_ONCE))
    with many_bar(len(wanted), chosen.num_steps, shown=progress) as advance:
        for index, membrane in found.items():
            advance(wanted[index].name, chosen.num_steps or 1, 1)
            yield Made(membrane, places[index], found=True)
        for start in range(0, len(missing), size):
            group = missing[start : start + size]
            tasks = [wanted[index] for index in group]
            for index, membrane in zip(group, _make(story, tasks, advance), strict=True):
                _save(membrane, places[index])
                yield Made(membrane, places[index], found=False)


@dataclass(frozen=True, eq=False)
class _Story:
    """How every membrane of a run is made."""

    workshop: Workshop
    config: TrainConfig
    seed: int
    orthogonal_to: tuple[Membrane, ...]
    joint: bool


def _places(wanted: Sequence[Concept], out_dir: str | PathLike[str] | None) -> list[Path | None]:
    names = [file_name(concept) for concept in wanted]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two concepts would both be written to {twice}; rename one")
    if out_dir is None:
        return [None] * len(wanted)
    return [Path(out_dir) / name for name in names]


def _held(place: Path | None, concept: Concept, story: _Story) -> Membrane | None:
    """Return the membrane that is at its place already, if it is the one that would be made."""
    if place is None or not place.exists():
        return None
    from semipermeable.files import load

    try:
        held = load(place)
    except MembraneError as error:
        raise OutputError(f"{place} is in the way and is no membrane ({error}); remove it") from error
    own, would = held.provenance, provenance(story.workshop, story.config, story.seed, None, story.orthogonal_to)
    told = {key: value for key, value in own.training.items() if key != "joint_with"}
    differs = [
        what
        for what, same in (
            ("concept", held.concept == concept),
            ("training", told == dict(would.training) and ("joint_with" in own.training) == story.joint),
            ("seed", own.seed == would.seed),
            ("base model", own.base_hash == would.base_hash),
            ("text encoder", own.text_encoder_hash == would.text_encoder_hash),
        )
        if not same
    ]
    if differs:
        raise OutputError(
            f"{place} holds another membrane ({', '.join(differs)} differ); remove it, or choose another folder"
        )
    return held


def _make(story: _Story, concepts: Sequence[Concept], advance: Advance) -> Iterator[Membrane]:
    workshop, config = story.workshop, story.config
    if len(concepts) == 1 and not story.joint:
        yield _alone(story, concepts[0], advance)
        return
    tasks = [Task(concept, captions_for(concept, workshop.spec)) for concept in concepts]
    steps = train_together(
        workshop, tasks, config, seed=story.seed, joint=story.joint, orthogonal_to=story.orthogonal_to
    )
    names = ", ".join(concept.name for concept in concepts)
    beside = [concept.name for concept in concepts] if story.joint else None
    ended: list[Trained] | None = None
    while ended is None:
        try:
            next(steps)
            advance(names, 1, len(concepts))
        except StopIteration as end:
            ended = end.value
    for task, trained in zip(tasks, ended, strict=True):
        yield finished(
            workshop, task.concept, task.captions, config, story.seed, trained, story.orthogonal_to, joint_with=beside
        )


def _alone(story: _Story, concept: Concept, advance: Advance) -> Membrane:
    workshop = story.workshop
    steps = erase_steps(
        workshop.host.pipe,
        concept,
        config=story.config,
        seed=story.seed,
        orthogonal_to=story.orthogonal_to,
        workshop=workshop,
    )
    while True:
        try:
            next(steps)
        except StopIteration as end:
            advance(concept.name, 0 if story.config.num_steps else 1, 1)
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
