"""The comparison's report: one HTML file that opens without network, made from the results of any number of runs.

Gated erasers, which read the prompt, and always-open ones are ranked apart, by the harmonic mean of UA, IRA and CRA.
All figures are computed anew from the verdicts in `result.json`, so that the level of the bootstrap can be chosen here.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from semipermeable.errors import ConfigError
from semipermeable.evaluation.assembly import Result, read_result
from semipermeable.evaluation.bench_plane import histogram, plane
from semipermeable.evaluation.benchmarks.plan import Benchmark, Case, Row
from semipermeable.evaluation.results import Place, canonical, read_benchmark
from semipermeable.evaluation.scores import (
    FIGURES,
    Estimate,
    Sheet,
    case_values,
    differences_of,
    figure_of,
    figures_of,
    resample,
)
from semipermeable.evaluation.scores.figures import ClusterLevel
from semipermeable.evaluation.verdicts import sheet_of

__all__ = ["Entry", "Section", "read_sections", "render", "write_bench_report"]

_BASE = "noop"
_OPEN = 0.5
"""γ above which a gate counts as open in the text; the means beside it take γ as it is."""
_NAMED = 6
"""Prompts that are named where a gate did not do what was asked for; the rest is counted."""
_SHOWN_PER_ROLE = 2
"""Rows of each role and concept whose pictures are shown: the first by number, whatever came of them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """One eraser in one benchmark."""

    number: int
    """Its mark in the plane; 0 is the base model."""
    result: Result
    """As written."""
    place: Place
    """Where its pictures lie."""
    sheet: Sheet
    """Its rows."""
    figures: Mapping[str, Estimate]
    """With intervals; distances of sets have none."""
    differences: Mapping[str, Estimate]
    """To the base model, paired."""
    by_case: Mapping[str, Mapping[str, float]]
    """Concept → figure → value."""

    @property
    def rank(self) -> float:
        """What entries are ranked by."""
        found = self.figures.get("harmonic")
        return -1.0 if found is None or math.isnan(found.value) else found.value


@dataclass(frozen=True, kw_only=True, eq=False)
class Section:
    """One benchmark and all who ran it on the same shards."""

    benchmark: Benchmark
    """What was asked for."""
    base: Entry
    """The base model."""
    gated: tuple[Entry, ...]
    """Erasers that decide prompt by prompt, best first."""
    open: tuple[Entry, ...]
    """Erasers that always act, best first."""

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Everyone, the base model first."""
        return (self.base, *self.gated, *self.open)


def write_bench_report(root: Path, path: Path, *, level: ClusterLevel = "prompt") -> None:
    """Write the report of all results below a folder.

    Args:
        root: folder that holds results at any depth.
        path: the HTML file.
        level: what the bootstrap draws again: captions or seeds within each concept, or whole concepts.

    Raises:
        ConfigError: if there is no result, or one cannot be read or compared.
        OutputError: if the file cannot be written.
    """
    from semipermeable.generation import staged_file

    html = render(read_sections(root, level), level)
    with staged_file(path) as stage:
        stage.write_text(html, encoding="utf-8")


def read_sections(root: Path, level: ClusterLevel = "prompt") -> list[Section]:
    """Read all results below a folder, one section per benchmark.

    Raises:
        ConfigError: if there is none, one cannot be read, or erasers of a benchmark ran on different shards.
    """
    files = sorted(root.rglob("benchmark.json"))
    sections = [section for file in files if (section := _section(file, level)) is not None]
    if not sections:
        raise ConfigError(
            f"no results below {str(root)!r}; make some: spm evaluate emoji-objects --eraser spm --out {str(root)!r}"
        )
    return sections


def _section(file: Path, level: ClusterLevel) -> Section | None:
    benchmark = read_benchmark(file)
    found = {result.eraser: result for result in map(read_result, sorted(file.parent.glob("*/result.json")))}
    if not found:
        return None
    if _BASE not in found:
        raise ConfigError(f"{str(file.parent)!r} has no result of the base model ({_BASE!r}); run it again")
    base = found[_BASE]
    for result in found.values():
        if result.benchmark_digest != benchmark.digest or result.shards != base.shards:
            raise ConfigError(
                f"{str(file.parent)!r}: {result.eraser!r} ran on other cases or seeds than the base model; run "
                f"spm evaluate {benchmark.name} with all erasers and the same --seeds and --case"
            )
    bare = sheet_of(benchmark, base.shards, base.columns, base.columns)
    draws = resample(bare, level)

    def entry(result: Result, number: int) -> Entry:
        sheet = sheet_of(benchmark, result.shards, result.columns, base.columns)
        sets = {name: Estimate(value, math.nan, math.nan, len(sheet.prompts)) for name, value in result.sets.items()}
        return Entry(
            number=number,
            result=result,
            place=Place(file.parent, result.eraser),
            sheet=sheet,
            figures={**figures_of(sheet, draws), **sets},
            differences=differences_of(sheet, bare, draws),
            by_case=case_values(sheet),
        )

    others = [result for name, result in found.items() if name != _BASE]
    entries = [entry(result, number) for number, result in enumerate(others, 1)]
    ranked = sorted(entries, key=lambda one: (-one.rank, one.result.eraser))
    return Section(
        benchmark=benchmark,
        base=entry(base, 0),
        gated=tuple(one for one in ranked if one.result.gated),
        open=tuple(one for one in ranked if not one.result.gated),
    )


def render(sections: Sequence[Section], level: ClusterLevel) -> str:
    """Return the report as HTML.

    Args:
        sections: benchmarks with their erasers.
        level: what the bootstrap drew, for the text.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("bench.html.j2").render(
        sections=[_view(section, level) for section in sections], level=level, figures=FIGURES
    )


def _view(section: Section, level: ClusterLevel) -> dict[str, Any]:
    everyone = section.entries
    names = [name for name in FIGURES if any(name in one.figures for one in everyone)]
    parts = list(dict.fromkeys(name for one in everyone for name in one.figures if ":" in name))
    groups = [("gated", section.gated), ("always open", section.open)]
    machines = {canonical(machine): machine for one in everyone for machine in one.result.environment["machines"]}
    return {
        "benchmark": section.benchmark,
        "seeds": len({seed for _, seed in section.base.result.shards}),
        "pictures": len(section.base.sheet.prompts),
        "everyone": everyone,
        "plane": plane([_point(one) for one in everyone if {"ua", "keep"} <= one.figures.keys()]),
        "histograms": [(one, histogram(_kept_drift(one))) for one in (*section.gated, *section.open)],
        "tables": [_table(title, section.base, entries, names) for title, entries in groups if entries],
        "parts": [_table(title, section.base, entries, parts) for title, entries in groups if entries and parts],
        "duels": [(title, _duels(entries, level)) for title, entries in groups if entries],
        "costs": [(one, one.result.costs) for one in everyone],
        "cases": [_case(section, case) for case in section.benchmark.cases if case.name in section.base.by_case],
        "notes": list(dict.fromkeys(note for one in everyone for note in one.result.notes)),
        "machines": list(machines.values()),
    }


def _point(one: Entry) -> tuple[int, str, bool, Estimate, Estimate]:
    return one.number, one.result.eraser, one.result.gated, one.figures["ua"], one.figures["keep"]


def _kept_drift(one: Entry) -> list[float]:
    return one.sheet.drift[~one.sheet.hits.asks].tolist()


def _table(title: str, base: Entry, entries: Sequence[Entry], names: Sequence[str]) -> dict[str, Any]:
    """Return a table whose best value of each column is marked; the base model stands above it and takes no part."""
    best = {name: _best(name, [one.figures[name].value for one in entries if name in one.figures]) for name in names}
    rows = [(base, [_cell(base.figures.get(name), base, name, None) for name in names])]
    rows += [(one, [_cell(one.figures.get(name), one, name, best[name]) for name in names]) for one in entries]
    return {"title": title, "columns": [figure_of(name) for name in names], "rows": rows}


def _best(name: str, values: Sequence[float]) -> float | None:
    """Return the value to mark; None where there is none, or where all erasers have the same."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite or (len(finite) > 1 and min(finite) == max(finite)):
        return None
    return max(finite) if figure_of(name).better == "high" else min(finite)


def _cell(found: Estimate | None, one: Entry, name: str, best: float | None) -> dict[str, Any] | None:
    if found is None or math.isnan(found.value):
        return None
    difference = one.differences.get(name)
    return {
        "value": found.value,
        "interval": None if math.isnan(found.low) else (found.low, found.high),
        "n": found.n,
        "best": best is not None and math.isclose(found.value, best, abs_tol=5e-6),
        "difference": None if one.number == 0 else difference,
    }


def _duels(entries: Sequence[Entry], level: ClusterLevel) -> list[tuple[Entry, Entry, Mapping[str, Estimate]]]:
    """Return the paired differences of the first of a group to each of the others."""
    first, *rest = entries
    draws = resample(first.sheet, level)
    names = ("harmonic", "ua", "ira", "cra")
    found: list[tuple[Entry, Entry, Mapping[str, Estimate]]] = []
    for other in rest:
        differences = differences_of(first.sheet, other.sheet, draws)
        found.append((first, other, {name: differences[name] for name in names if name in differences}))
    return found


def _case(section: Section, case: Case) -> dict[str, Any]:
    everyone = section.entries
    names = [name for name in FIGURES if any(name in one.by_case[case.name] for one in everyone)]
    seed = next(seed for name, seed in section.base.result.shards if name == case.name)
    return {
        "name": case.name,
        "erased": [concept.name for concept in case.concepts],
        "columns": [figure_of(name) for name in names],
        "rows": [(one, [one.by_case[case.name].get(name) for name in names]) for one in everyone],
        "strips": [_strip(section, case, row, seed) for row in _shown(case)],
        "gates": [(one, _gate(one, case)) for one in everyone if case.name in one.result.openings],
    }


def _shown(case: Case) -> list[Row]:
    ordered = sorted(case.rows, key=lambda row: row.number)
    return [row for role in ("target", "kept") for row in [r for r in ordered if r.role == role][:_SHOWN_PER_ROLE]]


def _strip(section: Section, case: Case, row: Row, seed: int) -> dict[str, Any]:
    index = case.rows.index(row)
    pictures = [
        (one, _inline(one.place.picture(case.name, seed, row)), _openings(one, case, index)) for one in section.entries
    ]
    return {"row": row, "seed": seed, "pictures": pictures}


def _openings(one: Entry, case: Case, index: int) -> list[tuple[str, float, str]] | None:
    """Return what a row's prompt opened; None for an eraser without a gate."""
    found = one.result.openings.get(case.name)
    return None if found is None else found[index]


def _gate(one: Entry, case: Case) -> dict[str, Any]:
    """Return how far a gate opened on prompts that ask for an erased concept, and on the others.

    γ of a prompt is that of the concept that opens furthest on it.
    """
    opened = one.result.openings[case.name]
    gamma = [max((g for _, g, _ in found), default=0.0) for found in opened]
    asked = [g for row, g in zip(case.rows, gamma, strict=True) if row.role == "target"]
    others = [g for row, g in zip(case.rows, gamma, strict=True) if row.role == "kept"]
    closed = [row.prompt for row, g in zip(case.rows, gamma, strict=True) if row.role == "target" and g <= _OPEN]
    wrong = [
        (row.prompt, max(found, key=lambda opening: opening[1]))
        for row, found, g in zip(case.rows, opened, gamma, strict=True)
        if row.role == "kept" and g > _OPEN
    ]
    return {
        "asked": fmean(asked) if asked else None,
        "others": fmean(others) if others else None,
        "closed": closed[:_NAMED],
        "num_closed": len(closed),
        "wrong": wrong[:_NAMED],
        "num_wrong": len(wrong),
    }


def _inline(path: Path) -> str | None:
    """Return a picture as a data URL; None if the pictures were not kept beside the results."""
    if not path.is_file():
        return None
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
