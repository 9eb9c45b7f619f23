"""Concepts as TOML: one `[[concept]]` table each.

[[concept]]
name = "cat"
aliases = ["kitty"]
surrogate = "animal"
keep = ["cat face"]
"""

import os
import tomllib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import tomli_w

from semipermeable.concept import Concept
from semipermeable.errors import ConceptError, closest
from semipermeable.files.atomic import write_atomically

__all__ = ["load_concepts", "save_concepts"]

_FIELDS = tuple(f.name for f in fields(Concept))


def load_concepts(path: str | os.PathLike[str]) -> tuple[Concept, ...]:
    """Read the concepts of a TOML file, in order.

    Args:
        path: a TOML file with one or more `[[concept]]` tables.

    Raises:
        ConceptError: naming the file and the number of the table (the first is 1) at fault.
    """
    shown = os.fspath(path)
    try:
        document = tomllib.loads(Path(path).read_bytes().decode("utf-8"))
    except OSError as error:
        raise ConceptError(f"{shown}: cannot be read: {error.strerror}; check the path") from error
    except (ValueError, RecursionError) as error:
        raise ConceptError(f"{shown}: is not valid TOML: {error}") from error
    for key in document:
        if key != "concept":
            raise ConceptError(f"{shown}: {closest(key, ['concept'], what='key')} Write one [[concept]] table each.")
    tables = document.get("concept")
    if not isinstance(tables, list) or not tables:
        found = "no concept" if tables is None or tables == [] else "a single [concept]"
        raise ConceptError(f"{shown}: holds {found}; write one [[concept]] table with a name for each")
    concepts = tuple(_concept(shown, i, table) for i, table in enumerate(cast("list[object]", tables), 1))
    _refuse_twice(concepts, shown)
    return concepts


def save_concepts(concepts: Sequence[Concept], path: str | os.PathLike[str]) -> None:
    """Write concepts as TOML, atomically; `load_concepts` gives them back equal.

    Args:
        concepts: at least one, with different names.
        path: where; an existing file is replaced.

    Raises:
        ConceptError: if there is none, or two have the same name.
        OutputError: if the file cannot be written.
    """
    shown = os.fspath(path)
    if not concepts:
        raise ConceptError(f"{shown}: there is no concept to write")
    _refuse_twice(concepts, shown)
    tables = [{name: value for name in _FIELDS if (value := _plain(getattr(c, name)))} for c in concepts]
    write_atomically(path, tomli_w.dumps({"concept": tables}).encode("utf-8"))


def _plain(value: str | tuple[str, ...]) -> str | list[str]:
    return value if isinstance(value, str) else list(value)


def _concept(path: str, index: int, table: object) -> Concept:
    where = f"{path}: concept {index}"
    if not isinstance(table, dict):
        raise ConceptError(f"{where}: must be a [[concept]] table, found {table!r}")
    values = cast("dict[str, Any]", table)
    for key in values:
        if key not in _FIELDS:
            raise ConceptError(f"{where}: {closest(key, _FIELDS, what='key')}")
    if "name" not in values:
        raise ConceptError(f'{where}: has no name; add e.g. name = "cat"')
    try:
        return Concept(**values)
    except ConceptError as error:
        raise ConceptError(f"{where}: {error}") from error


def _refuse_twice(concepts: Sequence[Concept], path: str) -> None:
    first: dict[str, int] = {}
    for index, concept in enumerate(concepts, 1):
        before = first.setdefault(concept.name.casefold(), index)
        if before != index:
            raise ConceptError(f"{path}: concept {index} has the name {concept.name!r} of concept {before}; join them")
