"""The record of what a permeability rule decided, prompt by prompt; prints as a table."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import overload

from semipermeable.errors import PermeabilityError
from semipermeable.permeability.decisions import Decision

__all__ = ["Trace", "TraceRow"]

_WIDEST_PROMPT = 60


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One decision.

    Args:
        prompt: the text decided on.
        concept: the concept's name.
        gamma: γ in [0, 1].
        reason: why, one short clause.
        similarity: the rule's score, or None.
        threshold: what the score was held against, or None.
        matched: the words of the prompt that matched.
    """

    prompt: str
    concept: str
    gamma: float
    reason: str
    similarity: float | None
    threshold: float | None
    matched: tuple[str, ...]


class Trace(Sequence[TraceRow]):
    """Decisions in the order they were taken; the oldest are dropped beyond `limit`.

    Args:
        limit: how many rows are kept; None keeps all.

    Raises:
        PermeabilityError: if `limit` is not positive.
    """

    def __init__(self, limit: int | None = 10_000) -> None:
        if limit is not None and limit < 1:
            raise PermeabilityError(f"a trace keeps at least one row, found limit={limit}; None keeps all")
        self._rows: deque[TraceRow] = deque(maxlen=limit)

    def add(self, prompt: str, concept: str, decision: Decision) -> None:
        """Append one decision about `prompt` and the concept called `concept`."""
        d = decision
        self._rows.append(TraceRow(str(prompt), concept, d.gamma, d.reason, d.similarity, d.threshold, d.matched))

    def clear(self) -> None:
        """Forget all rows."""
        self._rows.clear()

    @property
    def rows(self) -> tuple[TraceRow, ...]:
        """All rows kept, oldest first."""
        return tuple(self._rows)

    def as_dicts(self) -> list[dict[str, object]]:
        """Return the rows as plain dictionaries, ready for JSON."""
        return [{**asdict(row), "matched": list(row.matched)} for row in self.rows]

    @overload
    def __getitem__(self, index: int) -> TraceRow: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[TraceRow, ...]: ...
    def __getitem__(self, index: int | slice) -> TraceRow | tuple[TraceRow, ...]:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[TraceRow]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return f"Trace({len(self)} decisions)"

    def __str__(self) -> str:
        if not self._rows:
            return "(no decision yet)"
        table: list[tuple[str, ...]] = [("prompt", "concept", "γ", "score", "threshold", "reason")]
        for row in self.rows:
            table.append(
                (
                    _short(row.prompt),
                    row.concept,
                    f"{row.gamma:g}",
                    _number(row.similarity),
                    _number(row.threshold),
                    row.reason,
                )
            )
        widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
        table.insert(1, tuple("-" * width for width in widths))
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table)
        return "\n".join(line.rstrip() for line in lines)


def _short(prompt: str) -> str:
    line = " ".join(prompt.split()) or '""'
    return line if len(line) <= _WIDEST_PROMPT else line[: _WIDEST_PROMPT - 1] + "…"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
