"""Settings of an eraser other than its own: what follows the colon of a spec string.

    uce                         the settings of its card
    uce:tuned                   those found for the bundled model (see `tuned`)
    esd-x:tuned,num_steps=50    the same with one field changed
    spm:instant                 another preset of training
    spm:rank=4,num_anchors=0    fields of TrainConfig, for ablations

Every eraser with settings takes them, ours and rivals alike, so that nobody's settings need code to be changed.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from semipermeable.errors import ConfigError, UnknownNameError, closest
from semipermeable.membrane import Json

__all__ = ["TUNED", "changed", "read_variant"]

TUNED = "tuned"
"""The word for the settings that were found on tuning concepts."""

S = TypeVar("S")


def read_variant(name: str, words: Sequence[str], settings: S, named: Mapping[str, Mapping[str, Json]]) -> S:
    """Return settings with the changes that a spec string asks for, from left to right.

    Args:
        name: of the eraser, for messages.
        words: a key of `named`, or "field=value".
        settings: a frozen dataclass, left as it is.
        named: several fields by the one word that stands for them, e.g. "tuned".

    Raises:
        UnknownNameError: if a word is neither.
        ConfigError: if a field is unknown or a value does not fit it.
    """
    for word in words:
        field, equals, value = word.partition("=")
        if equals:
            settings = changed(name, settings, {field.strip(): _value(value.strip())})
        elif word in named:
            settings = changed(name, settings, named[word])
        else:
            example = dataclasses.fields(settings)[0].name  # pyright: ignore[reportArgumentType]
            choice = "".join(f"{known!r} or " for known in named)
            raise UnknownNameError(f"after {name!r} comes {choice}a setting such as {example}=…, found {word!r}")
    return settings


def changed(name: str, settings: S, fields: Mapping[str, Json]) -> S:
    """Return settings with other values of some fields.

    Args:
        name: of the eraser, for messages.
        settings: a frozen dataclass, left as it is.
        fields: JSON values by field name.

    Raises:
        ConfigError: if a field is unknown or a value has another type than the field's own.
    """
    known = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}  # pyright: ignore[reportArgumentType]
    new: dict[str, Any] = {}
    for field, value in fields.items():
        if field not in known:
            raise ConfigError(closest(field, known, what=f"setting of the eraser {name!r}"))
        new[field] = _fitting(name, field, known[field], value)
    return dataclasses.replace(settings, **new)  # pyright: ignore[reportArgumentType]


def _value(text: str) -> Json:
    """Return a value as JSON reads it; what JSON cannot read is a word."""
    try:
        found: Json = json.loads(text)
    except json.JSONDecodeError:
        return text
    return found


def _fitting(name: str, field: str, now: Any, value: Json) -> Any:
    if isinstance(now, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # A field that may be None says nothing about its type; its own class checks what it is given.
    if now is None or (value is None and now is not None) or type(value) is type(now):
        if value is None and isinstance(now, (bool, int, float, str)):
            raise ConfigError(f"{name!r}: {field} is {now!r} by default and cannot be null")
        return value
    raise ConfigError(
        f"{name!r}: {field} is {now!r} by default and must be of type {type(now).__name__}, found {value!r}"
    )
