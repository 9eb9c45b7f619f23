"""The bank itself: names and gates in memory, membranes on disk until they are needed.

bank = Bank("membranes/")                  # a folder, or one file that `spm bank pack` wrote
with attach(pipe, bank) as guard:
    images = pipe(prompts).images
    bank.add("new.safetensors")            # acts from the next prompt on
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from semipermeable.errors import AttachError, MembraneError, closest
from semipermeable.files.bank import PackedFile, Record, record_of, scan_file, scan_folder
from semipermeable.files.container import fail
from semipermeable.files.loading import membrane_files
from semipermeable.membrane import GateState, Membrane
from semipermeable.permeability import EncodedPrompt
from semipermeable.permeability.index import ConceptIndex

__all__ = ["Bank", "usable_gate"]

HOST_BYTES = 2**30
"""Memory for membranes that have been read, if nothing else is said."""


class Bank:
    """Membranes of a folder or a packed file; several attachments may share it, also in several threads.

    Args:
        path: a folder of membrane files, or a file that `spm bank pack` wrote.
        host_bytes: memory for membranes that have been read; those used longest ago are dropped first.

    Raises:
        MembraneFileError: if it is neither, a file is no membrane, or two erase the same concept.
    """

    def __init__(self, path: str | os.PathLike[str], *, host_bytes: int = HOST_BYTES) -> None:
        self.path = Path(path)
        self._host_bytes = host_bytes
        self._lock = threading.RLock()
        self._records: dict[str, Record] = {}
        self._files: dict[Path, tuple[tuple[int, int], Record]] = {}
        self._read: OrderedDict[str, tuple[Membrane, int]] = OrderedDict()
        self._indices: dict[str, ConceptIndex[str]] = {}
        self._version = 0
        if self.path.is_dir():
            for file, record in scan_folder(self.path).items():
                self._put(record)
                self._files[file] = (_stamp(file), record)
        else:
            for record in PackedFile(self.path).records:
                self._put(record)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all concepts, sorted."""
        with self._lock:
            return tuple(sorted(self._records))

    @property
    def version(self) -> int:
        """Grows with every change; decisions taken under an older one are taken again."""
        return self._version

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, name: object) -> bool:
        return name in self._records

    def __repr__(self) -> str:
        return f"Bank({self.path.name!r}, membranes={len(self)})"

    def record(self, name: str) -> Record:
        """Return what is known of a membrane without reading it.

        Raises:
            AttachError: if there is none of that name.
        """
        record = self._records.get(name)
        if record is None:
            raise AttachError(f"{closest(name, self.names, what='membrane')} The bank is {self.path.name!r}.")
        return record

    def holds(self, record: Record) -> bool:
        """Whether this very record is in the bank, not another of its name."""
        return self._records.get(record.name) is record

    def read(self, name: str) -> Membrane:
        """Return a membrane; it is read if it is not in memory.

        Raises:
            AttachError: if there is none of that name.
            MembraneFileError: if it cannot be read.
        """
        with self._lock:
            membrane, num_bytes = self._read.pop(name, (None, 0))
            if membrane is None:
                record = self.record(name)
                membrane = record.read()
                if membrane.name != record.name:
                    fail(record.origin, f"now erases {membrane.name!r}, was {record.name!r}; call .refresh()")
                num_bytes = _num_bytes(membrane)
            self._read[name] = (membrane, num_bytes)
            held = sum(size for _, size in self._read.values())
            while held > self._host_bytes and len(self._read) > 1:
                held -= self._read.popitem(last=False)[1][1]
            return membrane

    @property
    def in_memory(self) -> tuple[str, ...]:
        """Names of the membranes that are in memory, the one used longest ago first."""
        with self._lock:
            return tuple(self._read)

    def add(self, membrane: Membrane | str | os.PathLike[str]) -> None:
        """Add a membrane or a file; it acts from the next prompt on. Nothing is written to the bank's folder or file.

        Raises:
            AttachError: if a membrane of that name is in the bank.
            MembraneFileError: if the file is no membrane.
        """
        own = None
        if isinstance(membrane, Membrane):
            record = record_of(membrane, "memory")
        else:
            record = scan_file(Path(membrane))
            own = self._own(Path(membrane))
        with self._lock:
            if record.name in self._records:
                raise AttachError(f"two membranes erase {record.name!r}; remove one, or rename a concept")
            self._put(record)
            if own is not None:
                self._files[own] = (_stamp(own), record)

    def remove(self, name: str) -> None:
        """Take a membrane out; it acts on no prompt from the next one on. Nothing is deleted on disk.

        Raises:
            AttachError: if there is none of that name.
        """
        with self._lock:
            self.record(name)
            self._drop(name)

    def refresh(self) -> None:
        """Look at the folder again: new files are added, changed ones read again, deleted ones taken out.

        Raises:
            MembraneError: if the bank is a packed file.
            MembraneFileError: if a file is no membrane; the bank is as before then.
        """
        if not self.path.is_dir():
            raise MembraneError(
                f"{self.path.name!r} is a packed file, which does not change; open another Bank instead"
            )
        present = {file: _stamp(file) for file in membrane_files(self.path)}
        with self._lock:
            gone = [file for file, (stamp, _) in self._files.items() if present.get(file) != stamp]
            new = {file: scan_file(file) for file, stamp in present.items() if self._stamp_of(file) != stamp}
            leaving = {self._files[file][1] for file in gone}.intersection(self._records.values())
            names = [record.name for record in new.values()]
            for file, record in new.items():
                other = self._records.get(record.name)
                if names.count(record.name) > 1 or (other is not None and other not in leaving):
                    fail(str(file), f"erases {record.name!r}, as another membrane of the bank does; remove one")
            for file in gone:
                del self._files[file]
            for record in leaving:
                self._drop(record.name)
            for file, record in new.items():
                self._put(record)
                self._files[file] = (present[file], record)

    def candidates(self, prompts: Sequence[EncodedPrompt], encoder_hash: str) -> list[set[str]]:
        """Return, for every prompt, names of concepts among which are all that `Transport` opens.

        Args:
            prompts: encoded by the text encoder in use.
            encoder_hash: SHA-256 of its weights; gates that were fitted on another one do not count.
        """
        with self._lock:
            if encoder_hash not in self._indices:
                index = ConceptIndex[str]()
                for name, record in self._records.items():
                    index.add(name, record.story.concept, usable_gate(record, encoder_hash))
                self._indices[encoder_hash] = index
            return self._indices[encoder_hash].candidates(prompts)

    def _own(self, file: Path) -> Path | None:
        """Return a file as `refresh` will meet it; None if it lies elsewhere."""
        inside = file.suffix == ".safetensors" and file.resolve().parent == self.path.resolve()
        return self.path / file.name if inside else None

    def _stamp_of(self, file: Path) -> tuple[int, int] | None:
        known = self._files.get(file)
        return None if known is None else known[0]

    def _put(self, record: Record) -> None:
        other = self._records.get(record.name)
        if other is not None:
            fail(record.origin, f"erases {record.name!r}, as {other.origin} does; remove one")
        self._records[record.name] = record
        for encoder_hash, index in self._indices.items():
            index.add(record.name, record.story.concept, usable_gate(record, encoder_hash))
        self._version += 1

    def _drop(self, name: str) -> None:
        self._records.pop(name, None)
        self._read.pop(name, None)
        for index in self._indices.values():
            index.remove(name)
        self._version += 1


def usable_gate(record: Record, encoder_hash: str) -> GateState | None:
    """Return a record's gate unless it was fitted on another text encoder.

    Args:
        record: of a membrane.
        encoder_hash: SHA-256 of the text encoder in use.
    """
    made_on = record.story.provenance.text_encoder_hash
    return None if made_on and made_on != encoder_hash else record.gate


def _stamp(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _num_bytes(membrane: Membrane) -> int:
    return sum(t.numel() * t.element_size() for pair in membrane.pairs.values() for t in pair)
