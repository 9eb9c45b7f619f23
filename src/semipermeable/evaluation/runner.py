"""Run erasers on a benchmark: in shards that are never repeated, on one or several processes, from the same noise.

A shard is one case and one seed under one eraser. Its pictures are drawn in calls of a fixed shape, so that a picture
on which an eraser did nothing is the base model's own bit for bit; then its record is written. Whatever kills a run,
the next one goes on after the last record. The base model, eraser `noop`, is drawn once and serves all others.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from semipermeable import zoo
from semipermeable.errors import ConfigError
from semipermeable.evaluation.assembly import write_result
from semipermeable.evaluation.benchmarks.plan import Benchmark, Case
from semipermeable.evaluation.erasers.protocol import Eraser
from semipermeable.evaluation.results import Place, read_shard, short_hash, write_benchmark
from semipermeable.evaluation.shards import Unit, draw_shards
from semipermeable.evaluation.verdicts import Panel, open_panel
from semipermeable.generation import load_model

__all__ = ["BASE", "RunPlan", "Tools", "configuration_of", "run"]

BASE = "noop"
"""The eraser that does nothing: the base model."""

Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Gives a progress bar of that title: called with pictures done and in all."""


def _load(model: str, device: str) -> Any:
    return load_model(model, device=device, dtype="fp32")


def _eraser(spec: str) -> Eraser:
    from semipermeable.evaluation.erasers.registry import eraser

    return eraser(spec)


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What a run calls by name; functions of a module, so that worker processes can be told of them."""

    load: Callable[[str, str], Any] = _load
    """Model and device → pipeline."""
    eraser: Callable[[str], Eraser] = _eraser
    """Spec string → eraser."""
    panel: Callable[[str], Panel] = open_panel
    """Model → judges."""


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
    device: str = "cpu"
    """Torch device."""
    workers: int = 1
    """Processes; the machine's cores are shared out among them."""

    @property
    def chosen(self) -> tuple[Case, ...]:
        """The cases to run."""
        names = self.cases or tuple(case.name for case in self.benchmark.cases)
        return tuple(self.benchmark.case(name) for name in names)

    @property
    def everyone(self) -> tuple[str, ...]:
        """The base model, then the erasers, each once."""
        return tuple(dict.fromkeys((BASE, *self.erasers)))


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
        OutputError: if something cannot be written.
    """
    if plan.seeds < 1 or plan.workers < 1:
        raise ConfigError(f"seeds and workers must be at least 1, found {plan.seeds} and {plan.workers}")
    used = tools or Tools()
    root = out / plan.benchmark.key
    # Everything that can be wrong is found before the first picture: names, files, what the folder holds.
    for spec in plan.everyone:
        used.eraser(spec)
    panel = used.panel(plan.benchmark.model)
    units = [unit for spec in plan.everyone for unit in _pending(plan, spec, root)]
    write_benchmark(root / "benchmark.json", plan.benchmark)
    total = sum(unit.num_pictures for unit in units)
    if total:
        with bar(f"drawing {plan.benchmark.key}") as report:
            _draw_all(plan, units, root, used, lambda done: report(done, total))
    return [
        write_result(plan.benchmark, Place(root, spec), BASE, plan.chosen, plan.seeds, panel) for spec in plan.everyone
    ]


def configuration_of(benchmark: Benchmark, spec: str, train_seed: int) -> str:
    """Return the hash under which shards may be joined: benchmark, weights, eraser with its files, training seed."""
    weights = {name: entry["sha256"] for name, entry in zoo.info(benchmark.model)["files"].items() if "/" in name}
    files = [Path(part) for part in spec.partition(":")[2].split(",")]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()]
    return short_hash([benchmark.digest, weights, spec, digests, train_seed if spec != BASE else None])


def _pending(plan: RunPlan, spec: str, root: Path) -> Iterator[Unit]:
    place, wanted = Place(root, spec), configuration_of(plan.benchmark, spec, plan.train_seed)
    for case in plan.chosen:
        missing: list[int] = []
        for seed in range(plan.seeds):
            path = place.shard(case.name, seed)
            if not path.exists():
                missing.append(seed)
            elif (found := read_shard(path).configuration) != wanted:
                raise ConfigError(
                    f"{str(path)!r} was drawn under configuration {found}, and this run is {wanted}: weights, eraser, "
                    f"its files or the training seed changed; choose another --out, or delete {str(place.folder)!r}"
                )
        if missing:
            yield Unit(
                eraser=spec,
                case=case,
                sampler=plan.benchmark.sampler,
                seeds=tuple(missing),
                train_seed=plan.train_seed,
                device=plan.device,
                configuration=wanted,
            )


def _draw_all(plan: RunPlan, units: Sequence[Unit], root: Path, tools: Tools, done: Callable[[int], None]) -> None:
    if plan.workers == 1:
        pipe = tools.load(plan.benchmark.model, plan.device)
        drawn = 0
        for unit in units:
            for pictures in draw_shards(unit, tools.eraser(unit.eraser), pipe, root):
                drawn += pictures
                done(drawn)
        return
    # Spawned, not forked: a fork of a process with torch's threads can hang.
    threads = max(1, (os.cpu_count() or 1) // plan.workers)
    with ProcessPoolExecutor(plan.workers, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(_work, plan.benchmark.model, unit, root, tools, threads) for unit in units}
        try:
            while waiting:
                finished, waiting = wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED)
                done(_count(units, root))
                _check(finished)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


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
        len(unit.case.rows)
        for unit in units
        for seed in unit.seeds
        if Place(root, unit.eraser).shard(unit.case.name, seed).exists()
    )


def _work(model: str, unit: Unit, root: Path, tools: Tools, threads: int) -> None:
    torch.set_num_threads(threads)
    pipe = tools.load(model, unit.device)
    for _ in draw_shards(unit, tools.eraser(unit.eraser), pipe, root):
        pass
