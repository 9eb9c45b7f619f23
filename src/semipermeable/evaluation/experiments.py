"""Experiments behind the committed tables: one file says what is run, one result answers it; neither is edited later.

    experiments/TABLE/BENCHMARK@VERSION/ERASER.toml        benchmark, eraser, seeds, cases
    results/TABLE/BENCHMARK@VERSION/ERASER/result.json     figures and verdicts, no pictures; names its experiment
    OUT/TABLE/BENCHMARK@VERSION/…                          shards and pictures, not committed
    OUT/artefacts/…                                        what was trained, shared by all tables

An experiment is finished when a result carries the hash of its configuration and the benchmark's digest. Finished ones
are skipped, so that the whole can be stopped and started at will. Erasers that need no training come first, in one run
per benchmark; the others follow by their number of steps. A table of results is read like any other folder of results:
`spm report results/main`.
"""

import json
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from semipermeable.errors import ConfigError, UnknownNameError, closest
from semipermeable.evaluation.benchmarks import benchmark
from semipermeable.evaluation.benchmarks.plan import Benchmark
from semipermeable.evaluation.erasers import Eraser, eraser, names
from semipermeable.evaluation.erasers.artefacts import cached_eraser
from semipermeable.evaluation.erasers.tuned import tuned_settings
from semipermeable.evaluation.erasers.variants import TUNED
from semipermeable.evaluation.results import Place, read_json, short_hash, write_benchmark
from semipermeable.evaluation.runner import Bar, RunPlan, Tools, run
from semipermeable.files.atomic import write_atomically
from semipermeable.training import TrainConfig

__all__ = [
    "Experiment",
    "Folders",
    "about",
    "finished",
    "read_experiments",
    "run_experiments",
    "unfinished",
    "write_committed",
]

_One = TypeVar("_One")

_REQUIRED = ("benchmark", "eraser", "seeds")
_OPTIONAL = ("cases", "train_seed")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One eraser on one benchmark."""

    table: str
    """Which table it belongs to: the first folder below the experiments."""
    benchmark: str
    """`name@version`."""
    eraser: str
    """Spec string."""
    seeds: int
    """Seed indices 0 to seeds − 1."""
    cases: tuple[str, ...] = ()
    """Names of cases; () is all."""
    train_seed: int = 0
    """Of training or solving."""

    @cached_property
    def configuration(self) -> str:
        """Hash of everything above, and of what the spec string means today: "tuned", and settings of training."""
        name, _, words = self.eraser.partition(":")
        meant: dict[str, Any] = {}
        if TUNED in words.split(","):
            meant["tuned"] = dict(tuned_settings().get(name, {}))
        training = getattr(eraser(self.eraser), "training", None) if name in names() else None
        if isinstance(training, TrainConfig):
            meant["training"] = training.to_json()
        return short_hash(json.loads(json.dumps({**asdict(self), **meant})))

    def to_toml(self) -> str:
        """Return the content of its file; `read_experiments` gives it back."""
        lines = [f'benchmark = "{self.benchmark}"', f'eraser = "{self.eraser}"', f"seeds = {self.seeds}"]
        lines += [f"cases = {json.dumps(list(self.cases))}"] if self.cases else []
        lines += [f"train_seed = {self.train_seed}"] if self.train_seed else []
        return "\n".join(lines) + "\n"

    @property
    def plan(self) -> tuple[str, str, int, tuple[str, ...], int]:
        """What experiments of one run have in common, in the order in which runs are made."""
        return self.table, self.benchmark, self.seeds, self.cases, self.train_seed


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where everything lies."""

    experiments: Path
    """TOML files."""
    results: Path
    """Committed results."""
    out: Path
    """Shards, pictures, artefacts."""

    def place(self, experiment: Experiment, *, committed: bool) -> Place:
        """Return an experiment's place among the committed results, or among those with pictures."""
        root = self.results if committed else self.out
        return Place(root / experiment.table / experiment.benchmark, experiment.eraser)


def read_experiments(folder: Path, tables: Sequence[str] = ()) -> dict[Path, Experiment]:
    """Read all experiments below a folder, sorted by path.

    Args:
        folder: `experiments/`.
        tables: names of tables; () is all.

    Raises:
        ConfigError: if there is none, or a file is no experiment; it names file and key.
    """
    found = {
        path: experiment
        for path in sorted(folder.rglob("*.toml"))
        if (experiment := _read(path, path.relative_to(folder).parts[0])) and (not tables or experiment.table in tables)
    }
    if not found:
        wanted = f" of table {', '.join(tables)}" if tables else ""
        raise ConfigError(f"no experiments{wanted} below {str(folder)!r}; expected TABLE/BENCHMARK@VERSION/ERASER.toml")
    return found


def _read(path: Path, table: str) -> Experiment:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error}") from error
    for key in content:
        if key not in (*_REQUIRED, *_OPTIONAL):
            raise ConfigError(f"{str(path)!r}: {closest(key, (*_REQUIRED, *_OPTIONAL), what='key')}")
    for key in _REQUIRED:
        if key not in content:
            raise ConfigError(f"{str(path)!r} has no {key!r}; an experiment needs {', '.join(_REQUIRED)}")
    if "@" not in content["benchmark"]:
        raise ConfigError(f"{str(path)!r}: benchmark {content['benchmark']!r} names no version; write NAME@VERSION")
    fields: dict[str, Any] = {**content, "cases": tuple(content.get("cases", ()))}
    return Experiment(table=table, **fields)


def finished(experiment: Experiment, folders: Folders, found: Benchmark) -> bool:
    """Tell whether an experiment has its committed result.

    Args:
        experiment: which.
        folders: where results lie.
        found: its benchmark, whose digest the result must carry.
    """
    path = folders.place(experiment, committed=True).result
    if not path.is_file():
        return False
    content = read_json(path)
    return content.get("experiment") == experiment.configuration and content.get("benchmark_digest") == found.digest


def unfinished(
    folders: Folders,
    *,
    tables: Sequence[str] = (),
    benchmarks: Sequence[str] = (),
    erasers: Sequence[str] = (),
    find: Callable[[str], Benchmark] = benchmark,
    tools: Tools | None = None,
) -> list[tuple[Benchmark, list[Experiment]]]:
    """Return what `run_experiments` would run, in its order: what is made in one run together, with its benchmark.

    Args:
        folders: where everything lies.
        tables: names of tables; () is all.
        benchmarks: names of benchmarks, with or without their version; () is all.
        erasers: spec strings; () is all.
        find: `name@version` → benchmark.
        tools: how models, erasers and judges are found; None is this package's way, with what was trained kept.

    Raises:
        ConfigError: if an experiment cannot be read.
        UnknownNameError: if a benchmark, a case or an eraser does not exist, or no experiment is about one asked for.
    """
    there = read_experiments(folders.experiments, tables).values()
    everyone = about(there, benchmarks, erasers, named=lambda one: (one.benchmark, one.eraser))
    used = tools or _own_tools(folders)
    found = {name: find(name) for name in {one.benchmark for one in everyone}}
    # Whatever is misspelt in the last experiment is found before the first picture.
    waiting = [
        (_num_steps(used.eraser(one.eraser)), one)
        for one in everyone
        if not finished(one, folders, found[one.benchmark])
    ]
    untrained = sorted((one for steps, one in waiting if not steps), key=lambda one: (one.plan, one.eraser))
    groups = [list(group) for _, group in groupby(untrained, key=lambda one: one.plan)]
    trained = sorted((pair for pair in waiting if pair[0]), key=lambda pair: (pair[0], pair[1].plan, pair[1].eraser))
    return [(found[group[0].benchmark], group) for group in [*groups, *([one] for _, one in trained)]]


def run_experiments(
    folders: Folders,
    *,
    bar: Bar,
    tables: Sequence[str] = (),
    benchmarks: Sequence[str] = (),
    erasers: Sequence[str] = (),
    workers: int = 1,
    find: Callable[[str], Benchmark] = benchmark,
    tools: Tools | None = None,
) -> Iterator[Path]:
    """Run what is not finished.

    Args:
        folders: see `unfinished`; so are the other arguments but these two.
        bar: gives progress bars.
        workers: processes; they share the machine's cores.

    Yields:
        every committed result, as soon as it is written.

    Raises:
        ConfigError: if an experiment cannot be run.
        UnknownNameError: see `unfinished`.
        OutputError: if something cannot be written.
    """
    used = tools or _own_tools(folders)
    chosen = {"tables": tables, "benchmarks": benchmarks, "erasers": erasers}
    for found, group in unfinished(folders, find=find, tools=used, **chosen):
        yield from _run_group(group, folders, found, bar, workers, used)


def _own_tools(folders: Folders) -> Tools:
    return Tools(eraser=partial(cached_eraser, folders.out / "artefacts"))


def about(
    everyone: Iterable[_One],
    benchmarks: Sequence[str] = (),
    erasers: Sequence[str] = (),
    *,
    named: Callable[[_One], tuple[str, str]],
) -> list[_One]:
    """Return those of some experiments, or of their results, that are about some benchmarks and erasers.

    Args:
        everyone: what to choose from.
        benchmarks: names of benchmarks, with or without their version; () is all.
        erasers: spec strings; () is all.
        named: gives of one its `benchmark@version` and its eraser.

    Raises:
        UnknownNameError: if none is about one asked for.
    """
    told = [(one, *named(one)) for one in everyone]
    called = {whole: {whole, whole.partition("@")[0]} for _, whole, _ in told}
    for what, asked, there in (
        ("benchmark of these experiments", benchmarks, set[str]().union(*called.values())),
        ("eraser of these experiments", erasers, {spec for *_, spec in told}),
    ):
        for name in asked:
            if name not in there:
                raise UnknownNameError(closest(name, sorted(there), what=what))
    return [
        one
        for one, whole, spec in told
        if (not benchmarks or not called[whole].isdisjoint(benchmarks)) and (not erasers or spec in erasers)
    ]


def _num_steps(method: Eraser) -> int:
    """Return the training steps of an eraser; 0 for one that is not trained."""
    recipe: Any = getattr(method, "recipe", None) or {}
    return max((settings["num_steps"] for settings in recipe.values()), default=0)


def _run_group(
    group: Sequence[Experiment], folders: Folders, found: Benchmark, bar: Bar, workers: int, tools: Tools
) -> Iterator[Path]:
    first = group[0]
    plan = RunPlan(
        benchmark=found,
        erasers=tuple(one.eraser for one in group),
        seeds=first.seeds,
        cases=first.cases,
        train_seed=first.train_seed,
        workers=workers,
    )
    run(plan, folders.out / first.table, bar=bar, tools=tools)
    for one in group:
        yield _commit(one, folders, found)


def _commit(experiment: Experiment, folders: Folders, found: Benchmark) -> Path:
    """Copy a result to the committed ones, with the hash of what asked for it."""
    content = read_json(folders.place(experiment, committed=False).result)
    place = folders.place(experiment, committed=True)
    place.folder.mkdir(parents=True, exist_ok=True)
    write_benchmark(place.root / "benchmark.json", found)
    write_committed(place.result, {"experiment": experiment.configuration, **content})
    return place.result


def write_committed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a committed result: one line for each part, so that it is small and a change shows where it is.

    Raises:
        OutputError: if it cannot be written.
    """
    lines = ",\n".join(
        f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}"
        for key, value in content.items()
    )
    write_atomically(path, f"{{\n{lines}\n}}\n".encode())
