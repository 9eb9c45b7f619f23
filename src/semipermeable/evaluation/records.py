"""What an evaluation leaves behind: frozen figures that become `result.json`."""

from dataclasses import dataclass, field
from typing import Literal

from semipermeable.membrane import Json
from semipermeable.rates import Rate

__all__ = ["BeforeAfter", "Combined", "ConceptFigures", "DemoResult", "Verdict", "rate_json"]


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """One figure without and with membranes, over the same prompts and seeds."""

    before: Rate
    after: Rate

    def to_json(self) -> dict[str, Json]:
        """Return both values, n, and both intervals."""
        return {
            "before": self.before.value,
            "after": self.after.value,
            "n": self.before.n,
            "before_interval": list(self.before.interval),
            "after_interval": list(self.after.interval),
        }


def rate_json(rate: Rate) -> dict[str, Json]:
    """Return a rate with count, n and interval."""
    return {"value": rate.value, "count": rate.successes, "n": rate.n, "interval": list(rate.interval)}


@dataclass(frozen=True, kw_only=True)
class ConceptFigures:
    """Everything measured about one erased concept."""

    name: str
    """The concept."""
    kind: Literal["object", "style"]
    """Which of the judge's heads sees it."""
    twins: tuple[str, ...]
    """Near twins of an object; empty for a style."""
    train_seconds: float
    """Wall seconds of `erase`, gate included."""
    steps: int
    """Optimiser steps."""
    membrane_bytes: int
    """Size of the file."""
    membrane_sha256: str
    """SHA-256 of the file."""
    target: BeforeAfter
    """Share of the concept's prompts in which the judge sees it."""
    target_or_namesake: BeforeAfter
    """The same, also counting twins that bear its name ("cat face" for "cat")."""
    target_or_twin: BeforeAfter
    """The same, also counting all near twins."""
    other_axis: BeforeAfter
    """Share of the concept's prompts whose style (of an object) or object (of a style) is judged right."""
    kept: BeforeAfter
    """Share of unrelated prompts whose object and style are both judged right."""
    kept_open: BeforeAfter
    """The same with this membrane held fully open on every prompt."""
    wordings_opened: Rate
    """Share of wordings of the concept, none used to fit the gate, on which γ > 0.5."""
    neighbours_closed: Rate
    """Share of the captions of everything else on which γ is exactly 0."""
    wordings_missed: tuple[str, ...]
    """Wordings that stayed closed."""
    neighbours_opened: tuple[str, ...]
    """Captions that opened."""

    def to_json(self) -> dict[str, Json]:
        """Return the figures under the names of `result.json`."""
        return {
            "name": self.name,
            "kind": self.kind,
            "twins": list(self.twins),
            "train_seconds": round(self.train_seconds, 2),
            "steps": self.steps,
            "membrane_bytes": self.membrane_bytes,
            "membrane_sha256": self.membrane_sha256,
            "target_accuracy": self.target.to_json(),
            "target_or_namesake_accuracy": self.target_or_namesake.to_json(),
            "target_or_twin_accuracy": self.target_or_twin.to_json(),
            "other_axis_accuracy": self.other_axis.to_json(),
            "kept_accuracy": self.kept.to_json(),
            "kept_accuracy_open": self.kept_open.to_json(),
            "wordings_opened": {**rate_json(self.wordings_opened), "missed": list(self.wordings_missed)},
            "neighbours_closed": {**rate_json(self.neighbours_closed), "opened": list(self.neighbours_opened)},
        }


@dataclass(frozen=True, kw_only=True)
class Combined:
    """Prompts that ask for both concepts at once ("a neon icon of a cat"), with both membranes equipped."""

    object_seen: BeforeAfter
    """Share in which the judge sees the erased object."""
    style_seen: BeforeAfter
    """Share in which the judge sees the erased style."""
    kept: BeforeAfter
    """Unrelated prompts with both membranes equipped."""

    def to_json(self) -> dict[str, Json]:
        """Return the figures under the names of `result.json`."""
        return {
            "object_accuracy": self.object_seen.to_json(),
            "style_accuracy": self.style_seen.to_json(),
            "kept_accuracy": self.kept.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """One bar and whether it was reached.

    Args:
        concept: the concept, or "both".
        figure: what is measured.
        found: the value, as text.
        bar: the condition, as text.
        passed: whether it holds.
    """

    concept: str
    figure: str
    found: str
    bar: str
    passed: bool


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """The demo's outcome."""

    model: str
    """Bundled model."""
    device: str
    """Torch device."""
    seed: int
    """Seed of training and of all prompts' noise."""
    quick: bool
    """True: fewer pictures than the bars ask for."""
    concepts: tuple[ConceptFigures, ...]
    """One per erased concept."""
    combined: Combined
    """Both at once."""
    unrelated_rows: int
    """Pictures that were compared bit by bit."""
    unrelated_equal: int
    """Of these, how many are bit-identical with and without membranes."""
    verdicts: tuple[Verdict, ...] = ()
    """All bars."""
    seconds: dict[str, float] = field(default_factory=lambda: dict[str, float]())
    """Wall seconds per phase."""
    environment: dict[str, Json] = field(default_factory=lambda: dict[str, Json]())
    """Versions, commit, hardware."""

    @property
    def unrelated_bit_identical(self) -> bool:
        """Whether every unrelated picture is the same, bit for bit."""
        return self.unrelated_equal == self.unrelated_rows

    @property
    def passed(self) -> bool:
        """Whether every bar was reached."""
        return all(verdict.passed for verdict in self.verdicts)

    def to_json(self) -> dict[str, Json]:
        """Return the content of `result.json`."""
        return {
            "model": self.model,
            "device": self.device,
            "seed": self.seed,
            "quick": self.quick,
            "passed": self.passed,
            "concepts": [figures.to_json() for figures in self.concepts],
            "combined": self.combined.to_json(),
            "unrelated_bit_identical": self.unrelated_bit_identical,
            "unrelated_rows": self.unrelated_rows,
            "unrelated_rows_equal": self.unrelated_equal,
            "verdicts": [
                {"concept": v.concept, "figure": v.figure, "found": v.found, "bar": v.bar, "passed": v.passed}
                for v in self.verdicts
            ],
            "seconds": {phase: round(value, 2) for phase, value in self.seconds.items()},
            "environment": self.environment,
        }
