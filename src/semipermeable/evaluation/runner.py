"""Run erasers on a benchmark: in shards that are never repeated, on one process, several, or a cluster.

A shard is one case and one seed under one eraser. Its pictures are drawn in calls of a fixed shape, so that a picture
on which an eraser did nothing is the base model's own bit for bit; then its record is written. Whatever kills a run,
the next one goes on after the last record. The base model, eraser `noop`, is drawn once and serves all others.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, is_dataclass
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from semipermeable import zoo
from semipermeable.errors import ConfigError
from semipermeable.evaluation.assembly import write_result
from semipermeable.evaluation.benchmarks.plan import Benchmark, Case
from semipermeable.evaluation.cluster import draw_on_cluster
from semipermeable.evaluation.erasers.protocol import Eraser
from semipermeable.evaluation.judges import JudgeSources, Panel, open_panel
from semipermeable.evaluation.results import Place, read_shard, short_hash, write_benchmark
from semipermeable.evaluation.shards import Unit, draw_shards
from semipermeable.evaluation.weights import identity_of
from semipermeable.files.native import digest
from semipermeable.generation import load_model
from semipermeable.generation.quiet import silence_libraries
from semipermeable.membrane import Json
from semipermeable.zoo.shipped import shipped_name

__all__ = ["BASE", "RunPlan", "Tools", "configuration_of", "files_of", "run"]

BASE = "noop"
"""The eraser that does nothing: the base model."""

Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Gives a progress bar of that title: called with pictures done and in all."""


def _load(model: str, device: str, dtype: str) -> Any:
    pipe = load_model(model, device=device, dtype=dtype)
    if getattr(pipe, "safety_checker", None) is not None:
        # It blackens pictures, and what is to be measured is what the model draws.
        pipe.safety_checker = None
    return pipe


def _eraser(spec: str) -> Eraser:
    from semipermeable.evaluation.erasers.registry import eraser

    return eraser(spec)


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What a run calls by name; functions of a module, so that worker processes can be told of them."""

    load: Callable[[str, str, str], Any] = _load
    """Model, device and dtype → pipeline."""
    eraser: Callable[[str], Eraser] = _eraser
    """Spec string → eraser."""
    panel: Callable[[Benchmark, JudgeSources], Panel] = open_panel
    """Benchmark and where judges lie → judges."""


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What to run."""

    benchmark: Benchmark
    """Which pictures."""
    erasers: tuple[str, ...]
    """Spec strings; the base model is always run as well."""
    seeds: int = 3
    """Seed indices 0 to seeds − 1."""
    cases: tuple[str, ...] = ()
    """Names of cases; () is all."""
    train_seed: int = 0
    """Of training or solving."""
    model: str = ""
    """A copy of the benchmark's model: folder, checkpoint or hub id; "" takes it by its own name."""
    judges: JudgeSources = field(default_factory=JudgeSources)
    """Where the judges of real models lie."""
    device: str = "cpu"
    """Torch device."""
    dtype: str = "fp32"
    """Of the model: fp32, fp16 or bf16."""
    workers: int = 1
    """Processes; the machine's cores are shared out among them. On a cluster: into how many parts work is cut."""
    cluster: str = ""
    """Address of a Ray cluster; "" draws on this machine."""

    @property
    def chosen(self) -> tuple[Case, ...]:
        """The cases to run."""
        names = self.cases or tuple(case.name for case in self.benchmark.cases)
        return tuple(self.benchmark.case(name) for name in names)

    @property
    def everyone(self) -> tuple[str, ...]:
        """The base model, then the erasers, each once."""
        return tuple(dict.fromkeys((BASE, *self.erasers)))

    @property
    def source(self) -> str:
        """What the model is loaded from."""
        return self.model or self.benchmark.model


def run(plan: RunPlan, out: Path, *, bar: Bar, tools: Tools | None = None) -> list[Path]:
    """Draw what is missing, judge everything, and write one `result.json` per eraser.

    Args:
        plan: what to run.
        out: folder of results; what an earlier run of the same configuration left there is used.
        bar: gives progress bars.
        tools: how models, erasers and judges are found; None is this package's way.

    Returns:
        The result files, the base model's first.

    Raises:
        ConfigError: if the plan cannot be run, or `out` holds shards of another configuration.
        UnknownNameError: if a case or an eraser does not exist.
        ModelError: if the model cannot be found.
        OutputError: if something cannot be written.
    """
    if plan.seeds < 1 or plan.workers < 1:
        raise ConfigError(f"seeds and workers must be at least 1, found {plan.seeds} and {plan.workers}")
    used = tools or Tools()
    root = out / plan.benchmark.key
    # Everything that can be wrong is found before the first picture: names, files, what the folder holds.
    decided = {spec: _decided(used.eraser(spec)) for spec in plan.everyone}
    panel = used.panel(plan.benchmark, plan.judges)
    weights = identity_of(plan.source)
    wanted = {spec: configuration_of(plan, spec, settings, weights) for spec, settings in decided.items()}
    units = [unit for spec in plan.everyone for unit in _pending(plan, Place(root, spec), wanted[spec])]
    write_benchmark(root / "benchmark.json", plan.benchmark)
    total = sum(unit.num_pictures for unit in units)
    if total:
        with bar(f"drawing {plan.benchmark.key}") as report:
            _draw_all(plan, units, root, used, lambda done: report(done, total))
    return [
        write_result(plan.benchmark, Place(root, spec), BASE, plan.chosen, plan.seeds, panel) for spec in plan.everyone
    ]


def files_of(spec: str) -> list[Path]:
    """Return the files that an eraser's spec string names."""
    return [path for part in _named(spec) if (path := Path(part)).is_file()]


def _named(spec: str) -> list[str]:
    return [part.strip() for part in spec.partition(":")[2].split(",")]


def _decided(method: Eraser) -> Mapping[str, Json] | None:
    """Return the recipe of an eraser's training, or the settings of one that solves; None for one without either."""
    settings: Any = getattr(method, "settings", None)
    return getattr(method, "recipe", None) or (
        asdict(settings) if is_dataclass(settings) and not isinstance(settings, type) else None
    )


def configuration_of(plan: RunPlan, spec: str, decided: Mapping[str, Json] | None, weights: str) -> str:
    """Return the hash under which shards may be joined.

    Args:
        plan: names benchmark, dtype and training seed.
        spec: of the eraser; files and shipped membranes that it names count by content.
        decided: its recipe (`artefacts`) or settings, which may change under the same spec; None if it has neither.
        weights: identity of the model, see `weights.identity_of`.
    """
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files_of(spec)]
    digests += [digest(zoo.membrane(concept)) for part in _named(spec) if (concept := shipped_name(part))]
    seed = plan.train_seed if spec != BASE else None
    settings = [] if decided is None else [dict(decided)]
    return short_hash([plan.benchmark.digest, weights, plan.dtype, spec, digests, seed, *settings])


def _pending(plan: RunPlan, place: Place, wanted: str) -> Iterator[Unit]:
    for _, cases in groupby(plan.chosen, key=lambda case: case.concepts):
        missing: list[tuple[Case, int]] = []
        for case in cases:
            for seed in range(plan.seeds):
                path = place.shard(case.name, seed)
                if not path.exists():
                    missing.append((case, seed))
                elif (found := read_shard(path).configuration) != wanted:
                    raise ConfigError(
                        f"{str(path)!r} was drawn under configuration {found}, and this run is {wanted}: weights, "
                        "eraser, its files, dtype or the training seed changed; choose another --out, or delete "
                        f"{str(place.folder)!r}"
                    )
        if missing:
            yield Unit(
                eraser=place.eraser,
                shards=tuple(missing),
                sampler=plan.benchmark.sampler,
                train_seed=plan.train_seed,
                device=plan.device,
                dtype=plan.dtype,
                configuration=wanted,
            )


def _draw_all(plan: RunPlan, units: Sequence[Unit], root: Path, tools: Tools, done: Callable[[int], None]) -> None:
    if plan.cluster:
        draw_on_cluster(plan.cluster, _parts(units, plan.workers), plan.source, root, tools, done)
        return
    if plan.workers == 1:
        pipe = tools.load(plan.source, plan.device, plan.dtype)
        drawn = 0
        for unit in units:
            for pictures in draw_shards(unit, tools.eraser(unit.eraser), pipe, root):
                drawn += pictures
                done(drawn)
        return
    parts = _parts(units, plan.workers)
    # Spawned, not forked: a fork of a process with torch's threads can hang.
    threads = max(1, (os.cpu_count() or 1) // plan.workers)
    with ProcessPoolExecutor(plan.workers, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(_work, plan.source, unit, root, tools, threads) for unit in parts}
        try:
            while waiting:
                finished, waiting = wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED)
                done(_count(parts, root))
                _check(finished)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _parts(units: Sequence[Unit], workers: int) -> list[Unit]:
    """Cut units until there is one for each worker; an erasure is prepared anew for every part."""
    return [part for unit in units for part in unit.split(max(1, workers // len(units)))]


def _check(finished: set[Future[None]]) -> None:
    try:
        for future in finished:
            future.result()
    except BrokenProcessPool as error:
        raise ConfigError(
            "a worker process died, perhaps for want of memory; finished shards are kept: run the same command again, "
            "with fewer --workers"
        ) from error


def _count(units: Sequence[Unit], root: Path) -> int:
    return sum(
        len(case.rows)
        for unit in units
        for case, seed in unit.shards
        if Place(root, unit.eraser).shard(case.name, seed).exists()
    )


def _work(model: str, unit: Unit, root: Path, tools: Tools, threads: int) -> None:
    silence_libraries()  # the streams are those of the process that shows the bar
    torch.set_num_threads(threads)
    pipe = tools.load(model, unit.device, unit.dtype)
    for _ in draw_shards(unit, tools.eraser(unit.eraser), pipe, root):
        pass
