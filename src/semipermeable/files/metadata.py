"""A membrane's story as JSON text: sorted keys, no spaces, ASCII, so that equal membranes give equal bytes.

Reading is strict: every field must be there with its type, and a field that this version does not know is an error,
because ignoring it could change what the membrane does.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NoReturn, cast

from semipermeable.concept import Concept
from semipermeable.errors import ConceptError, MembraneError, MembraneFileError, closest
from semipermeable.files.container import strict_json
from semipermeable.membrane import Json, Membrane, Provenance

__all__ = ["KEY", "VERSION", "Story", "decode", "encode", "plain_json"]

KEY = "semipermeable"
"""The one metadata key of a membrane file."""
VERSION = 1
"""The version of the format that this package writes and reads."""

_TOP = ("concept", "foreign_names", "gate", "gate_power", "provenance", "version")
_Check = Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Story:
    """Everything in a membrane file that is not a tensor; `gate` is (kind, settings) or None."""

    concept: Concept
    provenance: Provenance
    gate: tuple[str, dict[str, Json]] | None
    gate_power: int
    foreign_names: bool


def plain_json(value: object, where: str) -> Json:
    """Return `value` as JSON data: mappings become dicts, tuples become lists.

    Args:
        value: what to store.
        where: its place, for the message, e.g. "provenance.training".

    Raises:
        MembraneError: if it holds anything JSON cannot, naming the place.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise MembraneError(f"{where} is {value}; a membrane file holds finite numbers only")
        return float(value)
    if isinstance(value, list | tuple):
        return [plain_json(item, f"{where}[{i}]") for i, item in enumerate(cast("list[object]", value))]
    if isinstance(value, Mapping):
        found: dict[str, Json] = {}
        for key, item in cast("Mapping[object, object]", value).items():
            if not isinstance(key, str):
                raise MembraneError(f"{where} has the key {key!r}; keys must be text")
            found[key] = plain_json(item, f"{where}.{key}")
        return found
    raise MembraneError(f"{where} is a {type(value).__name__}; a membrane file holds JSON data only, convert it first")


def encode(membrane: Membrane) -> str:
    """Return the metadata text of a membrane.

    Raises:
        MembraneError: if a setting cannot be stored as JSON, naming it.
    """
    concept, provenance, gate = membrane.concept, membrane.provenance, membrane.gate
    story = {
        "concept": {f.name: getattr(concept, f.name) for f in fields(concept)},
        "foreign_names": membrane.foreign_names,
        "gate": None if gate is None else {"kind": gate.kind, "settings": gate.settings},
        "gate_power": membrane.gate_power,
        "provenance": {f.name: getattr(provenance, f.name) for f in fields(provenance)},
        "version": VERSION,
    }
    try:
        plain = plain_json(story, "membrane")
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        decode(text)
    except MembraneFileError as error:
        raise MembraneError(f"membrane {membrane.name!r} could not be read back: {error}") from error
    except RecursionError as error:
        raise MembraneError(f"membrane {membrane.name!r}: its metadata nested too deeply for JSON") from error
    return text


def decode(text: str) -> Story:
    """Read the metadata text back.

    Raises:
        MembraneFileError: naming the field that is missing, unknown or of the wrong type; the message has no path.
    """
    try:
        found = strict_json(text)
    except ValueError as error:
        _fail(KEY, f"metadata key {KEY!r} is not JSON ({error})", error)
    top = _object(found, KEY)
    version = top.get("version")
    if type(version) is not int or version != VERSION:
        _fail("version", f"format version {version!r}; this package reads version {VERSION}: update semipermeable")
    _known(top, _TOP, "")
    if type(top["foreign_names"]) is not bool:
        _fail("foreign_names", f"'foreign_names' must be true or false, found {top['foreign_names']!r}")
    if type(top["gate_power"]) is not int or top["gate_power"] not in (1, 2):
        _fail("gate_power", f"'gate_power' must be 1 or 2, found {top['gate_power']!r}")
    return Story(
        _concept(_object(top["concept"], "concept")),
        _provenance(_object(top["provenance"], "provenance")),
        _gate(top["gate"]),
        top["gate_power"],
        top["foreign_names"],
    )


def _fail(key: str, message: str, cause: BaseException | None = None) -> NoReturn:
    raise MembraneFileError(message, key=key) from cause


def _object(found: object, key: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        _fail(key, f"{key!r} must be a JSON object, found {type(found).__name__}")
    return cast("dict[str, Any]", found)


def _known(found: Mapping[str, Any], names: tuple[str, ...], prefix: str) -> None:
    for name in sorted(found):
        if name not in names:
            sentence = closest(name, names, what="metadata field")
            _fail(prefix + name, f"{sentence} The file was made by a newer version; update semipermeable.")
    for name in names:
        if name not in found:
            _fail(prefix + name, f"metadata field {prefix + name!r} is missing; the file is damaged or incomplete")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in cast("list[object]", value))


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_numbers(value: object) -> bool:
    return isinstance(value, dict) and all(type(n) in (int, float) for n in cast("dict[str, object]", value).values())


def _is_seed(value: object) -> bool:
    return value is None or type(value) is int


_PROVENANCE: Mapping[str, tuple[_Check, str]] = {
    "base_hash": (_is_text, "text"),
    "base_model": (_is_text, "text"),
    "created": (_is_text, "text"),
    "family": (_is_text, "text"),
    "metrics": (_is_numbers, "an object of numbers"),
    "package_version": (_is_text, "text"),
    "prediction_type": (_is_text, "text"),
    "seed": (_is_seed, "a whole number or null"),
    "text_encoder_hash": (_is_text, "text"),
    "training": (_is_object, "an object"),
}
_CONCEPT: Mapping[str, tuple[_Check, str]] = {
    "aliases": (_is_texts, "a list of texts"),
    "keep": (_is_texts, "a list of texts"),
    "name": (_is_text, "text"),
    "surrogate": (_is_text, "text"),
}
_GATE: Mapping[str, tuple[_Check, str]] = {"kind": (_is_text, "text"), "settings": (_is_object, "an object")}


def _typed(found: dict[str, Any], checks: Mapping[str, tuple[_Check, str]], prefix: str) -> dict[str, Any]:
    _known(found, tuple(checks), f"{prefix}.")
    for name, (is_right, expected) in checks.items():
        if not is_right(found[name]):
            _fail(f"{prefix}.{name}", f"'{prefix}.{name}' must be {expected}, found {found[name]!r}")
    return found


def _concept(found: dict[str, Any]) -> Concept:
    values = _typed(found, _CONCEPT, "concept")
    try:
        return Concept(values["name"], tuple(values["aliases"]), values["surrogate"], tuple(values["keep"]))
    except ConceptError as error:
        _fail("concept", str(error), error)


def _provenance(found: dict[str, Any]) -> Provenance:
    return Provenance(**_typed(found, _PROVENANCE, "provenance"))


def _gate(found: object) -> tuple[str, dict[str, Json]] | None:
    if found is None:
        return None
    values = _typed(_object(found, "gate"), _GATE, "gate")
    return values["kind"], values["settings"]
