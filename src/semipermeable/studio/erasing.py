"""Training runs: each a folder with its settings, figures, previews and checkpoint, so that it survives everything.

    run.json                what is erased, how, and how far it came
    losses.jsonl            one line per step
    preview-00020-0.png     what the model draws after 20 steps: the concept (0) and a neighbour (1)
    checkpoint.safetensors  the state to go on from

A resumed run repeats the steps after its last checkpoint; since every draw is a function of seed and step, they come
out the same, and their lines simply stand twice in the file.
"""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from semipermeable.concept import Concept
from semipermeable.errors import StudioError
from semipermeable.generation.output import explain
from semipermeable.hosts import host_for
from semipermeable.membrane import Membrane
from semipermeable.studio.workfolder import WorkFolder, stem_of
from semipermeable.training import TrainConfig, Workshop, captions_for, erase_steps
from semipermeable.training.captions import spec_of
from semipermeable.training.examples import generator_for
from semipermeable.training.surrogates import settled

__all__ = ["Loss", "Run", "Runs"]

RunState = Literal["ready", "running", "stopped", "failed", "finished"]
_CHECKPOINT_EVERY = 5
_PREVIEWS = 12
"""Previews of a short run, about."""
_MOST_BETWEEN = 25
"""Steps between two previews of a long run: seconds, at the bundled model's speed."""
_SHOWN = 4
"""Most steps whose previews are shown: the first and the newest."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Figures of one step: L_era (Eq. 4) and L_anc (Eq. 5)."""

    step: int
    erasing: float
    anchoring: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run as it stands on disk."""

    stem: str
    """Name of its folder."""
    concept: Concept
    """What is erased; its surrogate may be open until training begins."""
    model: str
    """Name in the rack."""
    preset: str
    """Of `TrainConfig`."""
    num_steps: int
    """Length."""
    seed: int
    """Of every draw."""
    preview_every: int
    """Steps between two previews."""
    state: RunState = "ready"
    """Where it is."""
    step: int = 0
    """Steps done."""
    message: str = ""
    """What went wrong, if it failed."""


class Runs:
    """All training runs of a work folder.

    Args:
        work: its corner "erasing" holds a folder for each.
    """

    def __init__(self, work: WorkFolder) -> None:
        self._work = work
        for run in self.all():
            if run.state == "running":
                # The program ended in the middle of it.
                self._save(dataclasses.replace(run, state="stopped"))

    def all(self) -> list[Run]:
        """Return every run, the one touched last first."""
        files = sorted(
            self._work.corner("erasing").glob("*/run.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True
        )
        return [run for path in files if (run := _read(self._work.read(path))) is not None]

    def get(self, stem: str) -> Run:
        """Return one.

        Raises:
            StudioError: if there is none of that name.
        """
        run = _read(self._work.read(self._work.place("erasing", stem) / "run.json"))
        if run is None:
            raise StudioError(f"there is no training run {stem!r}; begin one: type a concept and press Erase")
        return run

    def create(
        self, concept: Concept, *, model: str, preset: str, num_steps: int | None, seed: int, preview_every: int | None
    ) -> Run:
        """Begin a run anew; an earlier one of the same concept is forgotten.

        Args:
            concept: what to erase.
            model: name in the rack.
            preset: of `TrainConfig`.
            num_steps: length; None is the preset's.
            seed: of every draw.
            preview_every: steps between two previews; None makes about a dozen in all, more in a long run.

        Raises:
            ConfigError: if a setting is not usable.
        """
        config = TrainConfig.from_preset(preset, **({} if num_steps is None else {"num_steps": num_steps}))
        every = preview_every or min(_MOST_BETWEEN, max(1, round(config.num_steps / _PREVIEWS)))
        run = Run(
            stem=stem_of(concept.name),
            concept=concept,
            model=model,
            preset=preset,
            num_steps=config.num_steps,
            seed=seed,
            preview_every=every,
        )
        folder = self._folder(run)
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        except OSError as error:
            raise explain(folder, error) from error
        self._save(run)
        return run

    def mark(self, run: Run, state: RunState, *, step: int | None = None, message: str = "") -> Run:
        """Set where a run is."""
        run = dataclasses.replace(run, state=state, step=run.step if step is None else step, message=message)
        self._save(run)
        return run

    def settle(self, run: Run, pipe: Any) -> Run:
        """Fill in what the concept falls to, if that was left open.

        Args:
            run: which.
            pipe: the model.
        """
        (concept,) = settled(Workshop(pipe), [run.concept], TrainConfig.from_preset(run.preset))
        run = dataclasses.replace(run, concept=concept)
        self._save(run)
        return run

    def losses(self, run: Run) -> list[Loss]:
        """Return the figures of every step so far."""
        found: dict[int, Loss] = {}
        try:
            lines = (self._folder(run) / "losses.jsonl").read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        for line in lines:
            try:
                step, erasing, anchoring = json.loads(line)
            except ValueError:
                continue
            found[step] = Loss(step, erasing, anchoring)
        return [found[step] for step in sorted(found)]

    def previews(self, run: Run) -> list[tuple[Path, str]]:
        """Return preview pictures with short captions: of step 0, and of the newest steps; the neighbour is "kept"."""
        files = sorted(self._folder(run).glob("preview-*-?.png"))
        steps = sorted({_step_of(path) for path in files})
        shown = {*steps[:1], *steps[-(_SHOWN - 1) :]}
        return [(path, _caption(path)) for path in files if _step_of(path) in shown]

    def train(self, run: Run, pipe: Any, between: Callable[[int, int], None]) -> Membrane:
        """Train, or go on where a checkpoint lies.

        Args:
            run: which, settled.
            pipe: the model, without membranes.
            between: called after every step with steps done and in all; may raise to stop.

        Returns:
            The membrane.

        Raises:
            SemipermeableError: see `training.erase`.
        """
        folder = self._folder(run)
        captions = captions_for(run.concept, spec_of(pipe))
        prompts = (captions.targets[0], (captions.twins or captions.anchors)[0])
        if not (folder / "preview-00000-0.png").exists():
            # The noise that the previews of training have, so that only the membrane makes a difference.
            noise = generator_for(run.seed, 4)
            _keep_pictures(folder, 0, host_for(pipe).draw(prompts, steps=20, guidance=4.0, generator=noise))
        config = TrainConfig.from_preset(
            run.preset,
            num_steps=run.num_steps,
            checkpoint=str(folder / "checkpoint.safetensors"),
            checkpoint_every=_CHECKPOINT_EVERY,
            preview=functools.partial(_keep_pictures, folder),
            preview_every=run.preview_every,
            preview_prompts=prompts,
        )
        steps = erase_steps(pipe, run.concept, config=config, seed=run.seed)
        try:
            while True:
                stats = next(steps)
                with (folder / "losses.jsonl").open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps([stats.step, stats.erasing_loss, stats.anchoring_loss]) + "\n")
                between(stats.step, stats.num_steps)
        except StopIteration as end:
            return end.value
        finally:
            steps.close()

    def _folder(self, run: Run) -> Path:
        return self._work.place("erasing", run.stem)

    def _save(self, run: Run) -> None:
        self._work.write(self._folder(run) / "run.json", dataclasses.asdict(run))


def _read(content: dict[str, Any]) -> Run | None:
    try:
        told: dict[str, Any] = content["concept"]
        concept = Concept(told["name"], tuple(told["aliases"]), told["surrogate"], tuple(told["keep"]))
        fields: dict[str, Any] = {**content, "concept": concept}
        return Run(**fields)
    except (KeyError, TypeError, ValueError):
        return None


def _step_of(path: Path) -> int:
    return int(path.stem.split("-")[1])


def _caption(path: Path) -> str:
    step = _step_of(path)
    when = f"step {step}" if step else "before"
    return when if path.stem.endswith("-0") else f"kept · {when}"


def _keep_pictures(folder: Path, step: int, pictures: Sequence[Any]) -> None:
    for index, picture in enumerate(pictures):
        picture.save(folder / f"preview-{step:05d}-{index}.png")
