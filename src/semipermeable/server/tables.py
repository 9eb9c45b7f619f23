"""Reading TOML into frozen pydantic models, with errors that name file, key and next step."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from semipermeable.errors import PolicyError, closest

__all__ = ["Table", "fit_table", "parse_table", "read_table"]

_MAX_BYTES = 4 * 1024 * 1024
_T = TypeVar("_T", bound="Table")


class Table(BaseModel):
    """A TOML table: frozen, unknown keys are errors, numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def read_table(path: Path, kind: type[_T]) -> _T:
    """Read a TOML file.

    Args:
        path: the file, at most 4 MiB.
        kind: the model its content must fit.

    Raises:
        PolicyError: if it cannot be read, is no TOML, or does not fit; names the file and the key.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PolicyError(f"{path.name}: cannot be read: {error.strerror}; check the path") from error
    return parse_table(data, path.name, kind)


def parse_table(data: bytes, name: str, kind: type[_T]) -> _T:
    """Parse the bytes of a TOML file; see `read_table`.

    Args:
        data: the content.
        name: of the file, for messages.
        kind: the model it must fit.

    Raises:
        PolicyError: if it is no TOML or does not fit.
    """
    if len(data) > _MAX_BYTES:
        raise PolicyError(f"{name}: {len(data)} bytes; such a file has at most {_MAX_BYTES}")
    try:
        content = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"{name}: is not valid TOML: {error}") from error
    return fit_table(content, name, kind)


def fit_table(content: Mapping[str, Any], name: str, kind: type[_T]) -> _T:
    """Return values as a table.

    Args:
        content: key to value.
        name: where they are from, for messages.
        kind: the model they must fit.

    Raises:
        PolicyError: if they do not.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise PolicyError(f"{name}: {_sentence(error, kind)}") from error


def _sentence(error: ValidationError, kind: type[BaseModel]) -> str:
    """Return the first finding as one clause; values are left out, a value may be a secret put in the wrong place."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part + 1) if isinstance(part, int) else part for part in first["loc"])
    if first["type"] == "extra_forbidden":
        *parents, key = first["loc"]
        return f"{where}: {closest(str(key), _fields(kind, parents), what='key')}"
    return f"{where or 'content'}: {first['msg']}"


def _fields(kind: type[BaseModel], location: list[int | str]) -> list[str]:
    """Return the keys allowed at a location inside a model."""
    found = kind
    for part in location:
        if isinstance(part, int) or part not in found.model_fields:
            continue
        inner = _model_in(found.model_fields[part].annotation)
        if inner is None:
            return []
        found = inner
    return [field.alias or name for name, field in found.model_fields.items()]


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for a in getattr(annotation, "__args__", ()) if (m := _model_in(a)) is not None), None)
