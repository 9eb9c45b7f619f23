"""The demo's short table for a terminal."""

from semipermeable.evaluation.records import BeforeAfter, ConceptFigures, DemoResult

__all__ = ["summary_table"]

_HEADER = ("concept", "figure", "n", "before", "after", "bar", "")


def summary_table(result: DemoResult) -> str:
    """Return all figures with n, 95 % intervals and verdicts as plain text."""
    lines: list[tuple[str, ...]] = [_HEADER]
    for figures in result.concepts:
        lines += _concept_lines(figures, result)
    lines += [
        _line("both", "object seen", result.combined.object_seen),
        _line("both", "style seen", result.combined.style_seen),
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADER))]
    lines.insert(1, tuple("-" * width for width in widths))
    table = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
    equal = f"{result.unrelated_equal} of {result.unrelated_rows}"
    gates = "; ".join(
        f"{f.name}: {f.wordings_opened.successes} of {f.wordings_opened.n} wordings opened, "
        f"{f.neighbours_closed.successes} of {f.neighbours_closed.n} other captions closed"
        for f in result.concepts
    )
    trained = "; ".join(f"{f.name}: {f.train_seconds:.0f} s, {f.membrane_bytes:,} bytes" for f in result.concepts)
    missed = [f"MISSED  {v.concept}: {v.figure} is {v.found}, bar {v.bar}" for v in result.verdicts if not v.passed]
    notes = [
        "",
        f"unrelated pictures equal bit for bit: {equal}",
        f"gate, no picture drawn: {gates}",
        f"training: {trained}",
        f"whole demo: {result.seconds['total']:.0f} s on {result.device}",
        *(["quick: fewer pictures than the bars ask for; a look, not a proof"] if result.quick else []),
        *missed,
    ]
    return table + "\n" + "\n".join(notes)


def _concept_lines(figures: ConceptFigures, result: DemoResult) -> list[tuple[str, ...]]:
    passed = {v.figure: (v.bar, "ok" if v.passed else "MISSED") for v in result.verdicts if v.concept == figures.name}
    name = figures.name
    other = "style right" if figures.kind == "object" else "object right"
    return [
        _line(name, "target seen", figures.target, *passed["target after"]),
        _line(name, "or a namesake", figures.target_or_namesake, *passed["target or namesake after"]),
        _line(name, "or a near twin", figures.target_or_twin),
        _line(name, other, figures.other_axis, *passed["other axis after"]),
        _line(name, "kept", figures.kept, *passed["kept after"]),
        _line(name, "kept, open", figures.kept_open, *passed["kept, open everywhere"]),
    ]


def _line(concept: str, figure: str, pair: BeforeAfter, bar: str = "", verdict: str = "") -> tuple[str, ...]:
    return concept, figure, str(pair.before.n), str(pair.before), str(pair.after), bar, verdict
