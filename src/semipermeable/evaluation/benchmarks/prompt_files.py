"""Read public prompt files: CSV with a header, a column `prompt`, and more by benchmark.

What goes wrong names the file and the row, as a spreadsheet counts them: the header is row 1.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from semipermeable.errors import ConfigError

__all__ = ["PromptRow", "read_prompts"]

_SEEDS = ("evaluation_seed", "sd_seed")
"""Names under which public files give the seed of the noise; the first that is there counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptRow:
    """One row of a prompt file."""

    prompt: str
    """What is asked for."""
    seed: int | None
    """Seed of the noise; None where the file gives none."""
    fields: Mapping[str, str]
    """All columns."""
    where: str
    """File and row, for messages."""


def read_prompts(paths: Sequence[Path], needs: Sequence[str] = (), limit: int | None = None) -> list[PromptRow]:
    """Read prompt files, one after another.

    Args:
        paths: CSV files.
        needs: columns that must be there and filled, beside `prompt`.
        limit: read only so many rows; None is all.

    Raises:
        ConfigError: if a file cannot be read, lacks a column, or holds a row that cannot be used.
    """
    found: list[PromptRow] = []
    for path in paths:
        for row in _rows(path, ("prompt", *needs)):
            if limit is not None and len(found) == limit:
                return found
            found.append(row)
    return found


def _rows(path: Path, needs: Sequence[str]) -> Iterator[PromptRow]:
    number = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = list(reader.fieldnames or [])
            for name in needs:
                if name not in columns:
                    raise ConfigError(f"{str(path)!r} has no column {name!r}; its header is {columns}")
            seed = next((name for name in _SEEDS if name in columns), None)
            for fields in reader:
                number += 1
                yield _row(fields, f"{str(path)!r}, row {number}", needs, seed)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompt file {str(path)!r} cannot be read ({error}); expected CSV in UTF-8") from error
    except csv.Error as error:
        raise ConfigError(f"{str(path)!r}, row {number + 1}: no CSV ({error}); mend the quotes") from error
    if number == 1:
        raise ConfigError(f"{str(path)!r} holds no row below its header; get the file again")


def _row(fields: Mapping[str | None, str | None], where: str, needs: Sequence[str], seed: str | None) -> PromptRow:
    if None in fields or None in fields.values():
        raise ConfigError(f"{where}: it has another number of fields than the header; quote fields that hold commas")
    whole = {str(name): str(value).strip() for name, value in fields.items()}
    for name in needs:
        if not whole[name]:
            raise ConfigError(f"{where}: column {name!r} is empty; fill it or remove the row")
    return PromptRow(
        prompt=whole["prompt"],
        seed=None if seed is None else _seed(whole[seed], seed, where),
        fields=whole,
        where=where,
    )


def _seed(text: str, column: str, where: str) -> int:
    try:
        value = int(text)
    except ValueError as error:
        raise ConfigError(f"{where}: column {column!r} holds {text!r}; expected a whole number") from error
    if not 0 <= value < 2**62:
        raise ConfigError(f"{where}: column {column!r} holds {value}; expected a number from 0 to 2^62")
    return value
