"""Many membranes in one file, or in one folder, without reading them: what a bank knows of each before it is needed.

A packed file is a `.safetensors` with canonical bytes. Tensor `member::<number>` (U8) holds one membrane file, byte for
byte, so that reading a membrane is one contiguous read of memory-mapped pages. Tensor `index` (U8) holds a JSON list
with the story and SHA-256 of each, in the order of their names. Tensors `gate::<dtype>::<length>` hold the gates'
tensors, flattened, one a row: a gate must be asked before its membrane is read. The one metadata key says the version.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse
from torch import Tensor

from semipermeable.errors import MembraneFileError, OutputError
from semipermeable.files.atomic import check_apart, write_atomically
from semipermeable.files.container import DTYPES, Container, Entry, fail, open_container, strict_json
from semipermeable.files.loading import load, membrane_files
from semipermeable.files.metadata import KEY, Story, decode, encode
from semipermeable.files.native import read_native, to_bytes
from semipermeable.membrane import GateState, Membrane

__all__ = ["BANK_KEY", "PackedFile", "Record", "pack", "record_of", "scan_file", "scan_folder"]

BANK_KEY = "semipermeable.bank"
"""The one metadata key of a packed file."""
_VERSION = 1
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_INDEX = "index"


@dataclass(frozen=True, eq=False)
class Record:
    """What is known of a membrane before it is read.

    Args:
        story: its concept, provenance and gate settings.
        gate: its gate with tensors, or None.
        origin: where it lies, for messages.
        read: reads it.
    """

    story: Story
    gate: GateState | None
    origin: str
    read: Callable[[], Membrane]

    @property
    def name(self) -> str:
        """The concept's name."""
        return self.story.concept.name


def record_of(membrane: Membrane, origin: str) -> Record:
    """Return the record of a membrane that is in memory already."""
    return Record(decode(encode(membrane)), membrane.gate, origin, lambda: membrane)


def scan_file(path: Path) -> Record:
    """Read the story and the gate of one membrane file, in any format that `load` knows; not its pairs if it is ours.

    Raises:
        MembraneFileError: if it is no membrane.
    """
    with open_container(path) as container:
        if KEY not in container.metadata:
            return record_of(load(path), str(path))
        try:
            story = decode(container.metadata[KEY])
        except MembraneFileError as error:
            fail(container.path, str(error), error.key, error)
        tensors = {
            name.removeprefix("gate::"): container.tensor(name)
            for name in container.entries
            if name.startswith("gate::")
        }
    gate = None if story.gate is None else GateState(story.gate[0], story.gate[1], tensors)
    return Record(story, gate, str(path), lambda: load(path))


def scan_folder(folder: Path) -> dict[Path, Record]:
    """Scan every membrane file of a folder (`membrane_files`), in the order of their names.

    Raises:
        MembraneFileError: if it is no folder, or a file is no membrane.
    """
    if not folder.is_dir():
        fail(str(folder), "is no folder of membranes; pass a folder, or a file that `spm bank pack` wrote")
    return {path: scan_file(path) for path in membrane_files(folder)}


def pack(folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> int:
    """Write all membranes of a folder into one file, atomically; equal folders give equal bytes.

    Args:
        folder: holds membrane files; each is read and checked whole.
        path: where; ends in ".safetensors" and does not lie in the folder.

    Returns:
        How many there are.

    Raises:
        MembraneFileError: if there is none, a file is no membrane, or two erase the same concept.
        OutputError: if the file cannot be written, or would replace one that it packs.
    """
    source, target = Path(folder), Path(path)
    if target.suffix != ".safetensors":
        raise OutputError(f"cannot write {str(target)!r}: a packed file ends in .safetensors; change the name")
    if target.resolve().parent == source.resolve():
        raise OutputError(f"cannot write {str(target)!r} into the folder that it packs; choose another folder")
    records = scan_folder(source)
    if not records:
        fail(str(source), "holds no .safetensors file; there is nothing to pack")
    check_apart(target, *records)
    by_name: dict[str, Path] = {}
    for file, record in records.items():
        other = by_name.setdefault(record.name, file)
        if other != file:
            fail(str(source), f"{other.name} and {file.name} both erase {record.name!r}; remove one")
    files = [by_name[name] for name in sorted(by_name)]
    _write(target, [(records[file], _Member(file)) for file in files])
    return len(files)


class _Member:
    """One membrane's bytes, read again when they are written, so that a large bank needs no memory."""

    def __init__(self, file: Path) -> None:
        membrane = load(file)
        with open_container(file) as container:
            self._file = file if KEY in container.metadata else None
        self._data = b"" if self._file else to_bytes(membrane)
        self.story = encode(membrane)
        data = self.read()
        self.num_bytes = len(data)
        self.digest = hashlib.sha256(data).hexdigest()

    def read(self) -> bytes:
        """Return the bytes."""
        return self._file.read_bytes() if self._file else self._data


def _write(target: Path, members: Sequence[tuple[Record, _Member]]) -> None:
    stacks: dict[str, list[Tensor]] = {}
    index: list[dict[str, Any]] = []
    for record, member in members:
        gates: dict[str, list[Any]] = {}
        for name, tensor in sorted((record.gate.tensors if record.gate else {}).items()):
            place = f"gate::{_DTYPE_NAMES[tensor.dtype]}::{tensor.numel()}"
            rows = stacks.setdefault(place, [])
            gates[name] = [place, len(rows), list(tensor.shape)]
            rows.append(tensor.flatten().contiguous())
        index.append({"gate": gates, "sha256": member.digest, "story": member.story})
    listing = json.dumps(index, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    small = {_INDEX: torch.frombuffer(bytearray(listing), dtype=torch.uint8)}
    small |= {name: torch.stack(rows) for name, rows in sorted(stacks.items())}
    write_atomically(target, _stream(small, [member for _, member in members]))


def _stream(small: Mapping[str, Tensor], members: Sequence[_Member]) -> Iterator[bytes]:
    """Give the file piece by piece; the safetensors library would hold all of it in memory."""
    header: dict[str, Any] = {"__metadata__": {BANK_KEY: json.dumps({"num": len(members), "version": _VERSION})}}
    at = 0
    sizes = [(n, _DTYPE_NAMES[t.dtype], list(t.shape), t.numel() * t.element_size()) for n, t in small.items()]
    sizes += [(_member_name(i), "U8", [member.num_bytes], member.num_bytes) for i, member in enumerate(members)]
    for name, dtype, shape, num_bytes in sizes:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + num_bytes]}
        at += num_bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in small.values():
        yield tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    for member in members:
        data = member.read()
        if len(data) != member.num_bytes:
            raise OutputError("a membrane changed while it was being packed; pack again")
        yield data


def _member_name(number: int) -> str:
    return f"member::{number:07d}"


class PackedFile:
    """An opened packed file: records of all members; a member is read when asked for.

    Args:
        path: a file that `pack` wrote.

    Raises:
        MembraneFileError: if it is not such a file, or damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        with ExitStack() as stack:
            self._container = stack.enter_context(open_container(path))
            listing = self._listing()
            self._places = {
                name: self._container.tensor(name) for name in self._container.entries if name.startswith("gate::")
            }
            self.records = [self._record(number, entry) for number, entry in enumerate(listing)]
            self._open = stack.pop_all()

    def close(self) -> None:
        """Unmap the file; members cannot be read any more."""
        self._open.close()

    def _listing(self) -> list[dict[str, Any]]:
        container = self._container
        try:
            version = strict_json(container.metadata.get(BANK_KEY, "null"))["version"]
        except (ValueError, TypeError, KeyError) as error:
            fail(
                container.path,
                f"is no packed bank (no metadata key {BANK_KEY!r}); `spm bank pack` writes one",
                BANK_KEY,
                error,
            )
        if version != _VERSION:
            fail(
                container.path,
                f"bank version {version!r}; this package reads {_VERSION}: update semipermeable",
                BANK_KEY,
            )
        if _INDEX not in container.entries:
            fail(container.path, "has no tensor 'index'; the file is damaged, pack again", _INDEX)
        members = [name for name in container.entries if name.startswith("member::")]
        for name in (_INDEX, *members):
            if container.entries[name].dtype != torch.uint8:
                fail(container.path, f"tensor {name!r} must hold bytes (U8); the file is damaged, pack again", name)
        try:
            listing = strict_json(container.tensor(_INDEX).numpy().tobytes().decode())
        except ValueError as error:
            fail(container.path, f"its index is not JSON ({error}); the file is damaged, pack again", _INDEX, error)
        if not isinstance(listing, list) or len(cast("list[Any]", listing)) != len(members):
            fail(
                container.path,
                f"its index does not list its {len(members)} members; the file is damaged, pack again",
                _INDEX,
            )
        return cast("list[dict[str, Any]]", listing)

    def _record(self, number: int, entry: dict[str, Any]) -> Record:
        path = self._container.path
        try:
            story = decode(entry["story"])
            tensors = {
                name: self._places[place][row].reshape(shape) for name, (place, row, shape) in entry["gate"].items()
            }
            digest = str(entry["sha256"])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            fail(path, f"entry {number} of its index is not usable ({error}); pack again", _INDEX, error)
        gate = None if story.gate is None else GateState(story.gate[0], story.gate[1], tensors)
        return Record(story, gate, f"{path}, member {number}", lambda: self._read(number, digest, entry["story"]))

    def _read(self, number: int, digest: str, story: str) -> Membrane:
        name, path = _member_name(number), f"{self._container.path}, member {number}"
        data = self._container.tensor(name).numpy().tobytes()
        if hashlib.sha256(data).hexdigest() != digest:
            fail(path, "is not what was packed: its SHA-256 differs; the file is damaged, pack again", name)
        try:
            tensors = parse(data)
        except SafetensorError as error:
            fail(path, f"is no membrane file ({error}); pack again", name, error)
        entries = {key: Entry(tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()}
        return read_native(Container(path, {KEY: story}, entries, _Parsed(tensors)))


class _Parsed:
    """Tensors in memory, read as safetensors' handle is."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def get_tensor(self, name: str) -> Tensor:
        """Return one tensor."""
        return self._tensors[name]
