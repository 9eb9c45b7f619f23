"""What is slow to train is trained once: erasures on disk, shared by all benchmarks.

    FOLDER/esd-x-cat-0f3c….safetensors   the changed weights, or one concept's membrane
    FOLDER/esd-x-cat-0f3c….json          the recipe they were made by, and what that cost

An artefact is found by the hash of its recipe: the eraser's settings, the concepts in full, the seed, the weights of
denoiser and text encoder, the device and this package's version. Erasers by membranes share them concept by concept,
whatever the rule that gates them. What the training cost is written down and reported again when an artefact is used.
Whoever changes the code of an eraser without changing a setting must delete its artefacts.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors

from semipermeable import __version__
from semipermeable.concept import Concept
from semipermeable.errors import ConfigError
from semipermeable.evaluation.costs import Meter, metered
from semipermeable.evaluation.erasers.protocol import Draw, Eraser, Erasure
from semipermeable.evaluation.erasers.registry import eraser
from semipermeable.evaluation.erasers.subjects import Subject, subjects_of
from semipermeable.evaluation.erasers.weights import WeightErasure
from semipermeable.evaluation.results import canonical, file_slug, read_json, short_hash, write_json
from semipermeable.files import load
from semipermeable.files.atomic import write_atomically
from semipermeable.files.native import to_bytes
from semipermeable.hosts import host_for
from semipermeable.membrane import Json, Membrane
from semipermeable.training.workshop import Workshop

__all__ = ["Cached", "Prepared", "cached_eraser", "preparation"]


@runtime_checkable
class _Slow(Protocol):
    """An eraser whose erasures are worth keeping."""

    @property
    def recipe(self) -> Mapping[str, Json] | None:
        """What decides them beside concepts and seed; None if nothing is trained."""
        ...


@runtime_checkable
class _PerConcept(_Slow, Protocol):
    """One that trains a membrane for each concept alone."""

    def subjects(self, workshop: Workshop, concepts: Sequence[Concept]) -> Sequence[Subject]:
        """Return the concepts as they are trained."""
        ...

    def membrane_of(self, workshop: Workshop, subject: Subject, *, seed: int, progress: bool) -> Membrane:
        """Train the membrane of one concept."""
        ...

    def equipped(self, subjects: Sequence[Subject], membranes: Sequence[Membrane], seed: int) -> Erasure:
        """Return the erasure by all membranes."""
        ...


@dataclass(frozen=True, eq=False)
class Prepared:
    """An erasure that knows what it cost to make, which may have been long ago.

    Args:
        erasure: what does the work.
        cost: of training it.
    """

    erasure: Erasure
    cost: Meter

    @property
    def stored_bytes(self) -> int:
        """See `Erasure`."""
        return self.erasure.stored_bytes

    @property
    def config(self) -> Mapping[str, Json]:
        """See `Erasure`."""
        return self.erasure.config

    @property
    def gate(self) -> Any:
        """Of the erasure; None if it has none."""
        return getattr(self.erasure, "gate", None)

    def applied(self, pipe: Any) -> AbstractContextManager[Draw]:
        """See `Erasure`."""
        return self.erasure.applied(pipe)


def preparation(erasure: Erasure, measured: Meter) -> Meter:
    """Return what an erasure cost to prepare: as written down if it came from disk, otherwise as measured."""
    return erasure.cost if isinstance(erasure, Prepared) else measured


@dataclass(frozen=True)
class Cached:
    """An eraser whose trained parts are looked up before they are trained.

    Args:
        inner: the eraser.
        folder: of artefacts; made when the first is written.
    """

    inner: Eraser
    folder: Path

    @property
    def name(self) -> str:
        """See `Eraser`."""
        return self.inner.name

    @property
    def gated(self) -> bool:
        """See `Eraser`."""
        return self.inner.gated

    @property
    def recipe(self) -> Mapping[str, Json] | None:
        """Of the eraser; None if nothing is trained."""
        return self.inner.recipe if isinstance(self.inner, _Slow) else None

    @property
    def settings(self) -> Any:
        """Of the eraser; None if it has none."""
        return getattr(self.inner, "settings", None)

    def prepare(self, pipe: Any, concepts: Sequence[Concept], *, seed: int, progress: bool = False) -> Erasure:
        """See `Eraser`."""
        inner, recipe = self.inner, self.recipe
        if recipe is None:
            return inner.prepare(pipe, concepts, seed=seed, progress=progress)
        if not isinstance(inner, _PerConcept):
            return self._weights(pipe, recipe, subjects_of(pipe, concepts), seed, progress)
        workshop = Workshop(pipe)
        subjects = inner.subjects(workshop, concepts)
        found = [self._membrane(inner, workshop, recipe, one, seed, progress) for one in subjects]
        cost = Meter(
            seconds=sum(cost.seconds for _, cost in found),
            busy_seconds=sum(cost.busy_seconds for _, cost in found),
            peak_bytes=max(cost.peak_bytes for _, cost in found),
        )
        return Prepared(inner.equipped(subjects, [membrane for membrane, _ in found], seed), cost)

    def _membrane(
        self,
        inner: _PerConcept,
        workshop: Workshop,
        recipe: Mapping[str, Json],
        subject: Subject,
        seed: int,
        progress: bool,
    ) -> tuple[Membrane, Meter]:
        made = _Artefact.of(self.folder, workshop.host.pipe, recipe, [subject], seed)
        if not made.exists():
            with metered(str(workshop.host.device)) as cost:
                membrane = inner.membrane_of(workshop, subject, seed=seed, progress=progress)
            made.write(to_bytes(membrane), cost, {})
        return made.read(load), made.cost()

    def _weights(
        self, pipe: Any, recipe: Mapping[str, Json], subjects: Sequence[Subject], seed: int, progress: bool
    ) -> Prepared:
        made = _Artefact.of(self.folder, pipe, recipe, subjects, seed)
        if not made.exists():
            with metered(str(host_for(pipe).device)) as cost:
                concepts = [subject.concept for subject in subjects]
                erasure = self.inner.prepare(pipe, concepts, seed=seed, progress=progress)
            if not isinstance(erasure, WeightErasure):
                raise TypeError(f"{self.name!r} has a recipe for weights and made a {type(erasure).__name__}")
            weights = {name: value.contiguous() for name, value in erasure.weights.items()}
            made.write(to_safetensors(weights), cost, dict(erasure.config))
        # Two spec strings may ask for the same settings; each result says its own.
        config = {**made.config(), "eraser": self.name}
        return Prepared(WeightErasure(config, made.read(load_file)), made.cost())


@dataclass(frozen=True)
class _Artefact:
    """One file of tensors with its recipe beside it, which is written last."""

    folder: Path
    stem: str
    recipe: Mapping[str, Json]

    @classmethod
    def of(
        cls, folder: Path, pipe: Any, recipe: Mapping[str, Json], subjects: Sequence[Subject], seed: int
    ) -> "_Artefact":
        host = host_for(pipe)
        whole: dict[str, Json] = {
            "recipe": dict(recipe),
            "concepts": json.loads(canonical([asdict(subject.concept) for subject in subjects])),
            "seed": seed,
            "base": host.base_hash(),
            "text_encoder": host.text_encoder_hash(),
            "device": host.device.type,
            "semipermeable": __version__,
        }
        names = file_slug("-".join([*recipe, *(subject.concept.name for subject in subjects)]), longest=40)
        return cls(folder, f"{names}-{short_hash(whole)}", whole)

    @property
    def _tensors(self) -> Path:
        return self.folder / f"{self.stem}.safetensors"

    @property
    def _story(self) -> Path:
        return self.folder / f"{self.stem}.json"

    def exists(self) -> bool:
        return self._story.is_file()

    def write(self, data: bytes, cost: Meter, config: Mapping[str, Json]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._tensors, data)
        digest = hashlib.sha256(data).hexdigest()
        story = {**self.recipe, "sha256": digest, "cost": asdict(cost), "config": dict(config)}
        write_json(self._story, story)

    def read(self, reader: Callable[[Path], Any]) -> Any:
        """Return what a reader makes of the tensors.

        Raises:
            ConfigError: if they are gone, or not what was written.
        """
        wanted = read_json(self._story)["sha256"]
        found = hashlib.sha256(self._tensors.read_bytes()).hexdigest() if self._tensors.is_file() else "no file"
        if found != wanted:
            raise ConfigError(
                f"artefact {str(self._tensors)!r} is not what was trained: SHA-256 {wanted} was written, and there is "
                f"{found}; delete {str(self._story)!r} and it is trained again"
            )
        return reader(self._tensors)

    def cost(self) -> Meter:
        return Meter(**read_json(self._story)["cost"])

    def config(self) -> dict[str, Json]:
        found: dict[str, Json] = read_json(self._story)["config"]
        return found


def cached_eraser(folder: Path, spec: str) -> Eraser:
    """Return the eraser of a spec string; what it trains is kept in a folder.

    Args:
        folder: of artefacts.
        spec: see `registry`.
    """
    return Cached(eraser(spec), folder)
