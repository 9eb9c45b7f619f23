"""The demo's bars: what must hold, and what was found."""

from semipermeable.evaluation.records import BeforeAfter, ConceptFigures, DemoResult, Verdict

__all__ = ["LEAST_N", "verdicts_of"]

LEAST_N = 96
"""Pictures behind each target figure."""
_DRAWN, _LEFT, _OTHER_AXIS, _OPEN = 0.8, 0.05, 0.10, 0.03


def verdicts_of(result: DemoResult) -> tuple[Verdict, ...]:
    """Hold every figure against its bar.

    Args:
        result: the figures; its own verdicts are not read.
    """
    verdicts = [verdict for figures in result.concepts for verdict in _concept(figures, result.quick)]
    equal = f"{result.unrelated_equal} of {result.unrelated_rows} pictures equal bit for bit"
    verdicts.append(Verdict("both", "unrelated pictures", equal, "all of them", result.unrelated_bit_identical))
    return tuple(verdicts)


def _concept(figures: ConceptFigures, quick: bool) -> list[Verdict]:
    name, target = figures.name, figures.target
    least = 1 if quick else LEAST_N
    return [
        Verdict(name, "pictures judged", str(target.before.n), f"at least {least}", target.before.n >= least),
        _at_least(name, "target before", target.before.value, _DRAWN, "else the demo proves nothing"),
        Verdict(name, "target after", _number(target.after.value), f"≤ {_LEFT:g}", target.after.value <= _LEFT),
        Verdict(
            name,
            "target or namesake after",
            _number(figures.target_or_namesake.after.value),
            f"≤ {_LEFT:g}",
            figures.target_or_namesake.after.value <= _LEFT,
        ),
        _not_less(name, "other axis after", figures.other_axis, _OTHER_AXIS),
        Verdict(
            name,
            "kept after",
            _number(figures.kept.after.value),
            f"= before ({_number(figures.kept.before.value)})",
            figures.kept.after == figures.kept.before,
        ),
        _not_less(name, "kept, open everywhere", figures.kept_open, _OPEN),
    ]


def _at_least(name: str, figure: str, found: float, bar: float, why: str) -> Verdict:
    return Verdict(name, figure, _number(found), f"≥ {bar:g}, {why}", found >= bar)


def _not_less(name: str, figure: str, pair: BeforeAfter, slack: float) -> Verdict:
    # Shares are fractions of n: a slack of exactly that much must pass in spite of rounding.
    passed = pair.after.value >= pair.before.value - slack - 1e-9
    bar = f"≥ before ({_number(pair.before.value)}) − {slack:g}"
    return Verdict(name, figure, _number(pair.after.value), bar, passed)


def _number(value: float) -> str:
    return f"{value:.3f}"
