"""The safetensors container, checked before a tensor is touched, so that an error can name the key at fault.

Layout: 8 bytes header length (little-endian), a JSON header `{name: {dtype, shape, data_offsets}, "__metadata__":
{text: text}}`, then the tensors' bytes without gaps. Files that are not this are refused, pickles with their own words:
loading a pickle runs code of whoever made it.
"""

import json
import math
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from semipermeable.errors import MembraneFileError

__all__ = ["DTYPES", "Container", "Entry", "fail", "open_container", "strict_json"]

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The dtypes a membrane file may hold, by their safetensors names."""

_MAX_HEADER = 100_000_000
"""The limit of the safetensors library, in bytes."""
_PICKLE_SUFFIXES = (".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth")


@dataclass(frozen=True, slots=True)
class Entry:
    """What the header says of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Container:
    """An opened file: the checked header and a reader of tensors.

    Args:
        path: where it lies, for messages.
        metadata: the `__metadata__` texts.
        entries: tensor name to dtype and shape.
        reader: safetensors' memory-mapped handle.
    """

    path: str
    metadata: Mapping[str, str]
    entries: Mapping[str, Entry]
    reader: Any

    def tensor(self, name: str) -> Tensor:
        """Read one tensor; it shares no memory with the file.

        Raises:
            MembraneFileError: if it holds NaN or infinity.
        """
        try:
            tensor = cast("Tensor", self.reader.get_tensor(name)).clone()
        except (SafetensorError, OSError, RuntimeError) as error:
            fail(self.path, f"tensor {name!r} cannot be read ({error}); fetch the file again", name, error)
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            fail(self.path, f"tensor {name!r} holds NaN or infinity; the training that made it diverged", name)
        return tensor


def fail(path: str, message: str, key: str | None = None, cause: BaseException | None = None) -> NoReturn:
    """Raise a MembraneFileError that names the file and the key."""
    raise MembraneFileError(f"{path}: {message}", key=key) from cause


@contextmanager
def open_container(path: str | os.PathLike[str]) -> Generator[Container, None, None]:
    """Open and check a safetensors file.

    Args:
        path: the file.

    Raises:
        MembraneFileError: if it is missing, a pickle, truncated, or its header is not consistent.
    """
    shown = os.fspath(path)
    try:
        header, num_bytes = _read_header(shown)
    except MembraneFileError:
        raise
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        fail(shown, f"cannot be read: {reason}; check the path", None, error)
    metadata = _metadata(shown, header.pop("__metadata__", {}))
    entries = _entries(shown, header, num_bytes)
    try:
        reader = safe_open(shown, framework="pt", device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        fail(shown, f"is not a valid safetensors file ({error}); fetch it again", None, error)
    with reader as opened:
        yield Container(shown, metadata, entries, opened)


def strict_json(text: str) -> Any:
    """Parse JSON; NaN, infinity, repeated keys and absurd nesting are errors.

    Raises:
        ValueError: with what is wrong.
    """

    def number(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise ValueError(f"{digits} is not a finite number")
        return value

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in items:
            if key in found:
                raise ValueError(f"the key {key!r} appears twice")
            found[key] = value
        return found

    try:
        return json.loads(text, parse_constant=number, parse_float=number, object_pairs_hook=pairs)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _read_header(path: str) -> tuple[dict[str, Any], int]:
    """Return the parsed header and the number of bytes after it."""
    suffix = Path(path).suffix.lower()
    if suffix in _PICKLE_SUFFIXES:
        fail(path, f"{suffix} files may run code when loaded and are refused; convert it to .safetensors", suffix)
    with open(path, "rb") as file:  # noqa: PTH123 - `path` is text here
        size = os.fstat(file.fileno()).st_size
        start = file.read(9)
        if start[8:9] != b"{" and _is_pickle(start):
            fail(path, "is a pickle under another name and may run code when loaded; convert it to .safetensors")
        if len(start) < 9:
            fail(path, f"is no safetensors file: {size} bytes; fetch it again")
        length = int.from_bytes(start[:8], "little")
        if length > min(size - 8, _MAX_HEADER):
            fail(path, f"is truncated or no safetensors file: header of {length} bytes in a file of {size}")
        file.seek(8)
        raw = file.read(length)
    try:
        header = strict_json(raw.decode("utf-8"))
    except ValueError as error:
        fail(path, f"its header is not JSON ({error}); the file is damaged, fetch it again", "header", error)
    if not raw.startswith(b"{") or not isinstance(header, dict):
        fail(path, "its header is not a JSON object; the file is damaged, fetch it again", "header")
    return cast("dict[str, Any]", header), size - 8 - length


def _is_pickle(start: bytes) -> bool:
    return start[:4] == b"PK\x03\x04" or start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _metadata(path: str, found: object) -> dict[str, str]:
    if not isinstance(found, dict):
        fail(path, "'__metadata__' must be an object of texts", "__metadata__")
    for key, value in cast("dict[str, object]", found).items():
        if not isinstance(value, str):
            fail(path, f"metadata key {key!r} must be text, found {type(value).__name__}", key)
    return cast("dict[str, str]", found)


def _entries(path: str, header: Mapping[str, Any], num_bytes: int) -> dict[str, Entry]:
    spans: list[tuple[int, int, str]] = []
    entries: dict[str, Entry] = {}
    for name, described in header.items():
        entry, begin, end = _entry(path, name, described)
        entries[name] = entry
        spans.append((begin, end, name))
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            fail(
                path,
                f"tensor {name!r} starts at byte {begin}, expected {at}: overlap or gap; the file is damaged",
                name,
            )
        at = end
        if at > num_bytes:
            fail(path, f"is truncated: tensor {name!r} ends at byte {end} of {num_bytes}; fetch it again", name)
    if at != num_bytes:
        fail(path, f"holds {num_bytes - at} bytes that belong to no tensor; the file is damaged, fetch it again")
    return entries


def _is_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**48 for n in cast("list[object]", value))


def _entry(path: str, name: str, described: object) -> tuple[Entry, int, int]:
    fields = cast("dict[str, Any]", described) if isinstance(described, dict) else {}
    if set(fields) != {"dtype", "shape", "data_offsets"}:
        fail(path, f"tensor {name!r} needs exactly dtype, shape and data_offsets in the header", name)
    dtype = DTYPES.get(fields["dtype"]) if isinstance(fields["dtype"], str) else None
    if dtype is None:
        fail(path, f"tensor {name!r} has dtype {fields['dtype']!r}; supported: {', '.join(DTYPES)}", name)
    shape, offsets = fields["shape"], fields["data_offsets"]
    if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
        fail(path, f"tensor {name!r} has shape {shape!r} and offsets {offsets!r}; both must be whole numbers ≥ 0", name)
    expected = math.prod(shape) * dtype.itemsize
    begin, end = offsets
    if end - begin != expected:
        fail(path, f"tensor {name!r} takes {end - begin} bytes, its shape {shape} needs {expected}", name)
    return Entry(dtype, tuple(shape)), begin, end
