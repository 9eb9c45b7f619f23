"""The desk: everything that can be done in a studio, and everything there is to see, without a page.

Each `begin_…` queues a job and returns at once; what came of it lies in the work folder, from where it is read.
A page that was reloaded, a second one, and a restarted program see the same.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from semipermeable import zoo
from semipermeable.concept import Concept
from semipermeable.errors import StudioError, closest
from semipermeable.studio.album import Album
from semipermeable.studio.carrying import BAKED, pack
from semipermeable.studio.comparing import compare, elsewhere, neighbours_of
from semipermeable.studio.erasing import Run, Runs
from semipermeable.studio.evaluating import Test, cases_for, evaluate
from semipermeable.studio.jobs import Job, JobState, Stopped, Worker, sentence
from semipermeable.studio.models import ModelRack
from semipermeable.studio.shelf import Shelf
from semipermeable.studio.workfolder import WorkFolder
from semipermeable.training.captions import completed

__all__ = ["Desk"]


class Desk:
    """A studio's work, shelf, runs and jobs.

    Args:
        work: the work folder.
        models: specs of `load_model` that may be chosen besides the bundled models.
        device: torch device; None takes the best there is.
    """

    def __init__(self, work: WorkFolder, models: Sequence[str] = (), device: str | None = None) -> None:
        self.work = work
        self.worker = Worker()
        self.rack = ModelRack(work, tuple(models), device, self.worker.guard_pipe)
        self.shelf = Shelf(work)
        self.album = Album(work)
        self.runs = Runs(work)
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._settings_path = work.root / "desk.json"
        self._lock = threading.RLock()

    def close(self) -> None:
        """Stop all work; a training keeps its checkpoint."""
        self.worker.close()

    # What was last asked for, so that a reload shows it again.

    def setting(self, name: str, default: Any) -> Any:
        """Return what was remembered under a name."""
        found = self.work.read(self._settings_path).get(name, default)
        return found if isinstance(found, type(default)) else default

    def remember(self, **values: Any) -> None:
        """Keep values under their names; JSON data."""
        with self._lock:
            self.work.write(self._settings_path, self.work.read(self._settings_path) | values)

    @property
    def model(self) -> str:
        """The chosen model."""
        name = self.setting("model", self.rack.default)
        return name if name in self.rack.choices() else self.rack.default

    def choose_model(self, name: str) -> None:
        """Choose a model for whatever is begun next.

        Raises:
            StudioError: if there is none of that name.
        """
        if name not in self.rack.choices():
            raise StudioError(closest(name, self.rack.choices(), what="model"))
        self.remember(model=name)

    def concepts(self) -> list[str]:
        """Return the concepts that the chosen model is known to know; empty for a model that is not bundled."""
        spec = self.rack.known(self.model)
        return [] if spec is None else sorted((*spec.object_names, *spec.styles))

    # The shelf.

    def shipped(self) -> list[str]:
        """Return the membranes that come with the chosen model; none for a model that is not bundled."""
        return [] if self.rack.known(self.model) is None else zoo.membranes(self.model)

    def take_shipped(self, name: str) -> None:
        """Put a membrane that comes with the chosen model on the shelf, switched on.

        Raises:
            UnknownNameError: if the model comes without one of that name.
        """
        self.shelf.put(zoo.membrane(name, self.model))

    # Erasing.

    def begin_erasing(
        self,
        name: str,
        *,
        aliases: str = "",
        surrogate: str = "",
        keep: str = "",
        preset: str = "fast",
        num_steps: int | None = None,
        seed: int = 0,
    ) -> Run:
        """Train a membrane; the finished one goes on the shelf, switched on.

        Args:
            name: the concept.
            aliases: other names, separated by commas.
            surrogate: what its prompts draw instead; "" leaves it to what the model is known to know.
            keep: phrases that must stay, separated by commas.
            preset: of `TrainConfig`.
            num_steps: length; None is the preset's.
            seed: of every draw.

        Raises:
            ConceptError: if the concept is not usable.
            ConfigError: if a setting is not.
            StudioError: if this concept is being erased already.
        """
        concept = completed(Concept(name, _split(aliases), surrogate, _split(keep)), self.rack.known(self.model))
        kind = _erasing(concept.name)
        if any(job.kind == kind for job in self.worker.under_way):
            raise StudioError(f"{concept.name!r} is being erased already; wait for it, or stop it first")
        run = self.runs.create(
            concept, model=self.model, preset=preset, num_steps=num_steps, seed=seed, preview_every=None
        )
        self._train(run)
        return run

    def resume_erasing(self, stem: str) -> Run:
        """Go on with a run that was stopped, from its last checkpoint.

        Raises:
            StudioError: if there is no such run, or it is finished or under way.
        """
        run = self.runs.get(stem)
        if run.state == "finished":
            raise StudioError(f"{run.concept.name!r} is erased already; its membrane is on the shelf")
        self._train(run)
        return run

    def _train(self, run: Run) -> None:
        def work(job: Job) -> str:
            now = self.runs.mark(run, "running")

            def between(done: int, total: int) -> None:
                nonlocal now
                now = self.runs.mark(now, "running", step=done)
                job.note = "training"
                job.report(done, total)
                self.worker.interlude()

            try:
                job.note = "preparing pictures to learn from"
                pipe = self.rack.open(run.model)
                now = self.runs.settle(now, pipe)
                membrane = self.runs.train(now, pipe, between)
            except Stopped:
                self.runs.mark(now, "stopped")
                raise
            except Exception as error:
                self.runs.mark(now, "failed", message=sentence(error))
                raise
            self.shelf.put(membrane)
            self.runs.mark(now, "finished")
            return f"{membrane.name!r} is erased; its membrane is on the shelf and switched on"

        self.worker.submit(_erasing(run.concept.name), f"erasing {run.concept.name!r}", work)
        self.remember(run=run.stem)

    @property
    def run(self) -> Run | None:
        """The run that the page shows: the one begun or resumed last."""
        try:
            return self.runs.get(self.setting("run", "-"))
        except StudioError:
            return None

    # Drawing.

    def begin_drawing(self, prompt: str, *, seed: int, steps: int, hold_open: bool = False) -> Job:
        """Draw a prompt before and after, with what is switched on.

        Raises:
            StudioError: if a drawing is under way.
        """
        self.remember(prompt=prompt, seed=seed, steps=steps)

        def work(job: Job) -> str:
            shelved = self.shelf.acting()
            pipe = self._opened(job)
            progress = self._counter(job)
            (one,) = compare(pipe, [prompt], shelved, seed=seed, steps=steps, hold_open=hold_open, progress=progress)
            self.album.keep_drawing(job.number, prompt, seed, one)
            return "drawn twice from the same seed" + ("" if shelved else "; no membrane is switched on")

        return self.worker.submit("drawing", "drawing", work, short=True)

    def begin_elsewhere(self, file: str, *, seed: int, steps: int, hold_open: bool = False) -> Job:
        """Draw the neighbours of a membrane's concept before and after, with that membrane alone.

        Raises:
            StudioError: if the membrane is not there, or such a job is under way.
        """
        item = self.shelf.get(file)
        if item.membrane is None:
            raise StudioError(f"{item.file} cannot be read ({item.problem}); choose another")
        concept = item.membrane.concept

        def work(job: Job) -> str:
            pipe = self._opened(job)
            prompts = neighbours_of(concept, self.rack.known(self.model))
            compared = compare(
                pipe, prompts, [item], seed=seed, steps=steps, hold_open=hold_open, progress=self._counter(job)
            )
            changed = elsewhere(prompts, compared, self.rack.judge(pipe))
            self.album.keep_elsewhere(job.number, item.name, changed)
            same = sum(one.compared.identical for one in changed)
            return f"{same} of {len(changed)} neighbours of {item.name!r} are unchanged, bit for bit"

        return self.worker.submit("elsewhere", f"redrawing neighbours of {item.name!r}", work, short=True)

    # Evaluating.

    def tests(self) -> list[Test]:
        """Return the benchmark cases that the shelf has the membranes for."""
        return cases_for(self.shelf.items())

    def begin_evaluation(self, title: str, *, seeds: int) -> Job:
        """Run one case of a benchmark.

        Raises:
            StudioError: if the test is not one of `tests()`, or an evaluation is under way.
        """
        test = next((one for one in self.tests() if one.title == title), None)
        if test is None:
            raise StudioError("choose a test from the list; it holds those for which the shelf has a membrane")

        def work(job: Job) -> str:
            job.note = "drawing and judging"
            folder = evaluate(
                self.work,
                test,
                seeds=seeds,
                device=self._device,
                on_open=self.worker.guard_pipe,
                progress=self._counter(job),
            )
            self.remember(results=folder.name, test=title)
            return f"the report on {test.case!r} is ready"

        return self.worker.submit("evaluation", f"evaluating {test.case!r}", work)

    def results(self) -> Path | None:
        """Return the folder of the last evaluation, or None."""
        name = self.setting("results", "")
        folder = self.work.place("results", name) if name else None
        return folder if folder is not None and folder.is_dir() else None

    # Carrying away.

    def begin_export(self, file: str, layout: str) -> Job:
        """Write a membrane in a format, to be downloaded; with a baked model, in fp32, it waits for a training.

        Raises:
            StudioError: if the membrane is not there, or an export is under way.
        """
        item = self.shelf.get(file)

        def work(job: Job) -> str:
            if layout in BAKED:
                job.note = f"reading {self.model}"
                pipe = self.rack.apart(self.model)
            else:
                pipe = self._opened(job)
            job.check()
            job.note = "writing"
            target = pack(self.work, item, layout, pipe, self._counter(job))
            self.remember(export=target.name)
            return f"{target.name} is ready to download"

        return self.worker.submit("export", f"exporting {item.name!r}", work, short=layout not in BAKED)

    def exported(self) -> Path | None:
        """Return the file that was exported last, or None."""
        name = self.setting("export", "")
        path = self.work.place("exports", name) if name else None
        return path if path is not None and path.is_file() else None

    def _opened(self, job: Job) -> Any:
        """Return the chosen model's pipeline; between two steps of a training it can only be that training's."""
        outer = next((one for one in self.worker.under_way if one is not job and one.state is JobState.RUNNING), None)
        if outer is not None and self.rack.opened != self.model:
            raise StudioError(
                f"{outer.title} is at work with model {self.rack.opened!r}; choose that model, or stop it first"
            )
        job.note = f"opening {self.model}"
        pipe = self.rack.open(self.model)
        job.note = "drawing"
        return pipe

    @staticmethod
    def _counter(job: Job) -> Callable[[int, int], None]:
        return lambda done, total: job.report(done, total)


def _erasing(name: str) -> str:
    return f"erasing {name}"


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
