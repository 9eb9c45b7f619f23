"""A quick benchmark of membranes on the shelf, through the package's own runner, and its report.

One case of a benchmark, few seeds: enough for a look, not for a claim. The full comparison is `spm evaluate`.
"""

import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semipermeable.errors import StudioError
from semipermeable.evaluation.bench_report import write_bench_report
from semipermeable.evaluation.benchmarks import benchmark, benchmark_names
from semipermeable.evaluation.results import read_json
from semipermeable.evaluation.runner import RunPlan, Tools, run
from semipermeable.evaluation.scores import figure_of
from semipermeable.generation import load_model
from semipermeable.hosts import host_for
from semipermeable.studio.shelf import Shelved
from semipermeable.studio.workfolder import WorkFolder

__all__ = ["Figure", "Test", "cases_for", "concepts_tested", "evaluate", "figures_in", "results_folder"]

_SHOWN = ("ua", "ira", "cra", "harmonic", "identical")
REPORT = "report.html"
"""Name of the report in a results folder."""


@dataclass(frozen=True, slots=True)
class Test:
    """One case of a benchmark that the shelf has every membrane for.

    Args:
        benchmark: name.
        case: name of the case in it.
        files: membranes that it needs, by file name.
        num_pictures: pictures of one seed, of one eraser.
    """

    benchmark: str
    case: str
    files: tuple[str, ...]
    num_pictures: int

    @property
    def title(self) -> str:
        """For people, and unique."""
        return f"{self.case} · {self.benchmark} ({2 * self.num_pictures} pictures a seed)"


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a result, of the base model and of the membranes.

    Args:
        title: short name.
        base: value for the base model, or None.
        value: value with membranes, or None.
        low: lower end of its 95 % interval.
        high: upper end.
    """

    title: str
    base: float | None
    value: float | None
    low: float | None
    high: float | None


def cases_for(shelf: Sequence[Shelved]) -> list[Test]:
    """Return what the membranes on a shelf can be tested on."""
    found: list[Test] = []
    for name in benchmark_names():
        plan = benchmark(name)
        made_for = (f"zoo:{plan.model}", "")
        files = {
            item.name: item.file
            for item in shelf
            if item.membrane is not None and item.membrane.provenance.base_model in made_for
        }
        found += [
            Test(name, case.name, tuple(files[one.name] for one in case.concepts), len(case.rows))
            for case in plan.cases
            if all(one.name in files for one in case.concepts)
        ]
    return found


def concepts_tested() -> list[str]:
    """Return the concepts that have a case of their own in some benchmark."""
    cases = [case for name in benchmark_names() for case in benchmark(name).cases]
    return sorted({case.concepts[0].name for case in cases if len(case.concepts) == 1})


def results_folder(work: WorkFolder, test: Test) -> Path:
    """Return where results of a test belong; a membrane that was trained anew has another folder."""
    digest = hashlib.sha256()
    for file in test.files:
        digest.update(work.place("membranes", file).read_bytes())
    return work.place("results", f"{test.benchmark}-{test.case}-{digest.hexdigest()[:8]}")


def evaluate(
    work: WorkFolder,
    test: Test,
    *,
    seeds: int,
    device: str,
    on_open: Callable[[Any], None],
    progress: Callable[[int, int], None],
) -> Path:
    """Run a test and write its report.

    Args:
        work: where membranes lie and results go.
        test: one of `cases_for`.
        seeds: pictures of each prompt; a later run with more draws only what is missing.
        device: torch device.
        on_open: called with the denoiser of the benchmark's model.
        progress: called with pictures done and in all; may raise to stop.

    Returns:
        The results folder.

    Raises:
        StudioError: if the work folder's path cannot be named in an eraser's spec.
    """
    paths = [str(work.place("membranes", file)) for file in test.files]
    if any("," in path for path in paths):
        raise StudioError(f"the work folder {str(work.root)!r} has a comma in its name; start the studio in another")
    folder = results_folder(work, test)

    def load(model: str, where: str, dtype: str) -> Any:
        pipe = load_model(model, device=where, dtype=dtype)
        on_open(host_for(pipe).denoiser)
        return pipe

    def bar(_title: str) -> AbstractContextManager[Callable[[int, int], None]]:
        @contextmanager
        def shown() -> Generator[Callable[[int, int], None], None, None]:
            yield progress

        return shown()

    plan = RunPlan(
        benchmark=benchmark(test.benchmark),
        erasers=(f"spm:{','.join(paths)}",),
        seeds=seeds,
        cases=(test.case,),
        device=device,
    )
    run(plan, folder, bar=bar, tools=Tools(load=load))
    write_bench_report(folder, folder / REPORT)
    return folder


def figures_in(folder: Path) -> list[Figure]:
    """Return the figures of the results in a folder: for the base model and for the membranes."""
    contents: list[Any] = [read_json(path) for path in sorted(folder.rglob("result.json"))]
    base = next((content for content in contents if content["eraser"] == "noop"), None)
    mine = next((content for content in contents if content["eraser"] != "noop"), None)
    if base is None or mine is None:
        return []
    found: list[Figure] = []
    for name in _SHOWN:
        estimate, bare = mine["figures"].get(name), base["figures"].get(name)
        if estimate is not None:
            low, high = estimate["interval"]
            found.append(Figure(figure_of(name).title, bare and bare["value"], estimate["value"], low, high))
    return found
