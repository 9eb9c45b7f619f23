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

__all__ = ["Entry", "PromptBook", "Role", "RowText"]


class Role(enum.Flag):
    """What a row is for: a prompt, or the text to steer away from (negative or empty prompt)."""

    PROMPT = enum.auto()
    NEGATIVE = enum.auto()


class Entry(NamedTuple):
    """A known row: its text and every role it has been made in."""

    text: str
    role: Role


class RowText(str):
    """What a row was made from, where that is more than one text in the family's usual window.

    As text it is all of them, for people to read. It equals no plain text: a decision on that one is none on this.

    Args:
        texts: at least one.
        window: how many tokens of each the encoder took; 0: as many as usual.
    """

    texts: tuple[str, ...]
    window: int

    def __new__(cls, texts: Sequence[str], window: int = 0) -> "RowText":
        """Make it; a str takes its text here."""
        row = super().__new__(cls, " | ".join(texts))
        row.texts, row.window = tuple(texts), window
        return row

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowText) and (self.texts, self.window) == (other.texts, other.window)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((self.texts, self.window))

    @classmethod
    def joined(cls, rows: "Sequence[str]") -> "RowText":
        """Return one row text that holds all texts of several, and the longest of their windows."""
        several = [row if isinstance(row, cls) else cls([row]) for row in rows]
        texts = dict.fromkeys(text for row in several for text in row.texts)
        return cls(list(texts), max(row.window for row in several))


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
        made: dict[bytes, list[str]] = {}
        for key, text in zip(keys, per_row, strict=True):
            made.setdefault(key, []).append(text)
        with self._lock:
            for key, several in made.items():
                # Bytes need not be all that the denoiser gets: FLUX.1's rows are T5's, and CLIP may have read others.
                text = several[0] if len(set(several)) == 1 else RowText.joined(several)
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
