"""Which text a row of prompt embeddings came from.

A denoiser sees embeddings, a permeability rule needs words. The book remembers, for every row that the pipeline's own
`encode_prompt` produced, a fingerprint of its bytes, its text, and in which role it was made. A row that is handed back
later as `prompt_embeds` is recognised as long as its bytes are the same.
"""

import ctypes
import enum
import hashlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

__all__ = ["Entry", "PromptBook", "Role"]


class Role(enum.Flag):
    """What a row is for: a prompt, or the text to steer away from (negative or empty prompt)."""

    PROMPT = enum.auto()
    NEGATIVE = enum.auto()


class Entry(NamedTuple):
    """A known row: its text and every role it has been made in."""

    text: str
    role: Role


def _fingerprints(rows: Tensor | Sequence[Tensor]) -> list[bytes]:
    """One digest per row of `rows`, shape (rows, ...) or a list of rows, over dtype and bytes."""
    if not isinstance(rows, Tensor):
        return [_fingerprints(row[None])[0] for row in rows]
    if rows.device.type != "cpu" or not rows.is_contiguous():
        rows = rows.detach().contiguous().cpu()
    number, start = len(rows), rows.data_ptr()
    num_bytes = rows.numel() // max(number, 1) * rows.element_size()
    kind = str(rows.dtype).encode()
    raw = [ctypes.string_at(start + r * num_bytes, num_bytes) for r in range(number)]
    return [hashlib.blake2b(row, digest_size=16, key=kind).digest() for row in raw]


class PromptBook:
    """Bounded memory of rows, safe for several threads.

    Args:
        max_rows: how many rows are remembered; the oldest are forgotten first.
    """

    def __init__(self, max_rows: int = 16_384) -> None:
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._max_rows = max_rows
        self._lock = threading.Lock()
        self._last: _Last | None = None

    def write(self, rows: Tensor | Sequence[Tensor], texts: Sequence[str], role: Role) -> None:
        """Remember rows.

        Args:
            rows: embeddings, shape (n · len(texts), ...), or a list of rows; each text repeated n times in a row.
            texts: their texts.
            role: what they were made for; roles of the same row add up.
        """
        repeats = len(rows) // max(len(texts), 1)
        per_row = [text for text in texts for _ in range(repeats)]
        keys = _fingerprints(rows)
        with self._lock:
            for key, text in zip(keys, per_row, strict=True):
                known = self._entries.pop(key, None)
                self._entries[key] = Entry(text, role if known is None else role | known.role)
            # Without classifier-free guidance the denoiser is given these very tensors.
            self._last = _Last.of(rows, [self._entries[key] for key in keys])
            while len(self._entries) > self._max_rows:
                self._entries.popitem(last=False)

    def read(self, rows: Tensor | Sequence[Tensor]) -> list[Entry | None]:
        """Return what is known of each row, of shape (rows, ...) or a list of rows; None where it is unknown.

        A sampler passes the same tensors at every step, so the last answer is kept for those very tensors.
        """
        last = self._last
        if last is not None and last.is_about(rows):
            return last.entries
        keys = _fingerprints(rows)
        with self._lock:
            found = [self._entries.get(key) for key in keys]
            self._last = _Last.of(rows, found)
        return found


def _tensors(rows: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [rows] if isinstance(rows, Tensor) else rows


class _Last(NamedTuple):
    """The tensors last asked about, and what is known of their rows."""

    whole: bool
    """Whether the rows came as one tensor, not as a list."""
    tensors: list[tuple[weakref.ref[Tensor], int]]
    entries: list[Entry | None]

    @classmethod
    def of(cls, rows: Tensor | Sequence[Tensor], entries: list[Entry | None]) -> "_Last | None":
        """Return it; None for tensors in which a write would leave no mark."""
        tensors = _tensors(rows)
        if any(tensor.is_inference() for tensor in tensors):
            return None
        return cls(isinstance(rows, Tensor), [(weakref.ref(tensor), tensor._version) for tensor in tensors], entries)

    def is_about(self, rows: Tensor | Sequence[Tensor]) -> bool:
        """Whether these are the same tensors, not written to since."""
        tensors = _tensors(rows)
        if isinstance(rows, Tensor) is not self.whole or len(tensors) != len(self.tensors):
            return False
        pairs = zip(self.tensors, tensors, strict=True)
        return all(ref() is tensor and version == tensor._version for (ref, version), tensor in pairs)
