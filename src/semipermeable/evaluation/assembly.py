"""Put a run's shards together: verdicts, figures, costs, one `result.json` per eraser."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from semipermeable.errors import ConfigError
from semipermeable.evaluation.benchmarks.plan import Benchmark, Case
from semipermeable.evaluation.results import Place, Shard, canonical, read_json, shards_of, short_hash, write_json
from semipermeable.evaluation.scores import Estimate, case_values, differences_of, figures_of, resample
from semipermeable.evaluation.verdicts import Columns, Panel, columns_of, sets_of, sheet_of
from semipermeable.membrane import Json

__all__ = ["Result", "estimates_json", "read_result", "write_result"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One eraser on one benchmark, as read back for a report."""

    eraser: str
    """Spec string."""
    gated: bool
    """Whether it decides prompt by prompt."""
    benchmark_digest: str
    """Of the benchmark."""
    shards: tuple[tuple[str, int], ...]
    """Case and seed, in the order of the columns."""
    columns: Columns
    """What was seen in each picture."""
    sets: Mapping[str, float]
    """Distances between sets of pictures."""
    openings: Mapping[str, list[list[tuple[str, float, str]]]]
    """Case → row → what the gate opened: concept, γ, reason; no case without a gate."""
    notes: tuple[str, ...]
    """What could not be measured, and why."""
    costs: Mapping[str, float]
    """Seconds, bytes and ratios."""
    environment: Mapping[str, Any]
    """Commits, versions, hardware."""


def write_result(
    benchmark: Benchmark, place: Place, base: str, cases: Sequence[Case], seeds: int, panel: Panel
) -> Path:
    """Judge an eraser's pictures and write its `result.json`.

    Args:
        benchmark: what was drawn.
        place: of the eraser.
        base: name of the base model's eraser, drawn on the same cases and seeds.
        cases: which cases.
        seeds: how many seeds.
        panel: who judges.

    Returns:
        The file.

    Raises:
        ConfigError: if a shard is missing, or shards of one case were made with different settings.
    """
    mine = shards_of(place, cases, seeds)
    bare = shards_of(Place(place.root, base), cases, seeds)
    missing = [
        (case.name, seed)
        for case in cases
        for seed in range(seeds)
        if not {(case.name, seed)} <= mine.keys() & bare.keys()
    ]
    if missing:
        raise ConfigError(f"{len(missing)} shards of {place.eraser!r} are missing, e.g. {missing[0]}; run it again")
    shards = list(mine.values())
    _same_settings(shards, place)
    columns = columns_of(benchmark, shards, bare, place, panel)
    base_place = Place(place.root, base)
    base_columns = columns_of(benchmark, list(bare.values()), bare, base_place, panel)
    sheet = sheet_of(benchmark, list(mine), columns, base_columns)
    base_sheet = sheet_of(benchmark, list(mine), base_columns, base_columns)
    draws = resample(sheet)
    content: dict[str, Any] = {
        "benchmark": benchmark.key,
        "benchmark_digest": benchmark.digest,
        "model": benchmark.model,
        "judges": dict(panel.described),
        "eraser": place.eraser,
        "gated": shards[0].gated,
        "configuration": shards[0].configuration,
        "seeds": list(range(seeds)),
        "erasures": {shard.case: shard.erasure for shard in shards},
        "figures": estimates_json(figures_of(sheet, draws)),
        "differences_to_base": estimates_json(differences_of(sheet, base_sheet, draws)),
        "sets": {name: _plain(value) for name, value in sets_of(benchmark, shards, base, place, panel, sheet).items()},
        "by_case": {
            case: {name: _plain(value) for name, value in found.items()} for case, found in case_values(sheet).items()
        },
        "openings": {s.case: s.openings for s in shards if s.openings is not None and s.seed == shards[0].seed},
        "notes": [*panel.missing, *_incomparable(shards, bare)],
        "shards": [list(key) for key in mine],
        "columns": columns.to_json(),
        "costs": _costs(shards, bare),
        "environment": _environments(shards),
    }
    write_json(place.result, content)
    return place.result


def read_result(path: Path) -> Result:
    """Read a `result.json`.

    Raises:
        ConfigError: if it is not one.
    """
    content: Any = read_json(path)
    try:
        return Result(
            eraser=content["eraser"],
            gated=content["gated"],
            benchmark_digest=content["benchmark_digest"],
            shards=tuple((case, seed) for case, seed in content["shards"]),
            columns=Columns(**content["columns"]),
            sets=content["sets"],
            openings=content["openings"],
            notes=tuple(content["notes"]),
            costs=content["costs"],
            environment=content["environment"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{str(path)!r} is no result of this version ({error!r}); run the benchmark again") from error


def estimates_json(found: Mapping[str, Estimate]) -> dict[str, Json]:
    """Return figures as JSON data, rounded to five digits."""
    return {
        name: {"value": _plain(e.value), "interval": [_plain(e.low), _plain(e.high)], "n": e.n}
        for name, e in found.items()
    }


def _plain(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None


def _same_settings(shards: Sequence[Shard], place: Place) -> None:
    for case in {shard.case for shard in shards}:
        settings = {canonical(dict(shard.erasure)) for shard in shards if shard.case == case}
        if len(settings) > 1:
            raise ConfigError(
                f"{place.eraser!r}: shards of case {case!r} were made with different settings of the eraser; delete "
                f"{str(place.folder)!r} and run again"
            )


def _incomparable(shards: Sequence[Shard], base: Mapping[tuple[str, int], Shard]) -> list[str]:
    other = sum(shard.numerics != base[shard.case, shard.seed].numerics for shard in shards)
    if not other:
        return []
    where = "ran on another machine, version or thread count than the base model's"
    return [f"{other} of {len(shards)} shards {where}; there equality bit for bit was not judged"]


def _costs(shards: Sequence[Shard], base: Mapping[tuple[str, int], Shard]) -> dict[str, float]:
    """Return what the eraser costs; the overhead is the median ratio to the base model on the same shard."""
    first = list({shard.case: shard for shard in reversed(shards)}.values())
    ratios = [s.costs.draw_busy_seconds / max(1e-9, base[s.case, s.seed].costs.draw_busy_seconds) for s in shards]
    found: dict[str, float] = {
        "prepare_seconds": mean(shard.costs.prepare_seconds for shard in first),
        "seconds_per_picture": median(s.costs.draw_seconds / s.costs.pictures for s in shards),
        "busy_seconds_per_picture": median(s.costs.draw_busy_seconds / s.costs.pictures for s in shards),
        "overhead": median(ratios),
        "stored_bytes": mean(shard.costs.stored_bytes for shard in first),
        "prepare_peak_bytes": max(shard.costs.prepare_peak_bytes for shard in shards),
        "draw_peak_bytes": max(shard.costs.draw_peak_bytes for shard in shards),
        "pictures": sum(shard.costs.pictures for shard in shards),
    }
    return {name: round(value, 4) for name, value in found.items()}


def _environments(shards: Sequence[Shard]) -> dict[str, Json]:
    """Return the machines a result was made on: one, unless a run went on elsewhere."""
    distinct = {short_hash(dict(shard.environment)): dict(shard.environment) for shard in shards}
    return {"machines": [distinct[key] for key in sorted(distinct)]}
