"""What a denoiser is told about each row: text states and whatever else a family adds, as opaque rows.

Training and erasers select, repeat and join rows; only the family's host knows what is in them. A part whose rows have
different lengths (text that is not padded to a fixed window) comes with a boolean part `mask`, True where a token is.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, overload

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["MASK", "Condition", "Rows"]

MASK = "mask"
"""Name of the boolean part, shape (rows, sequence), that says which positions of the other parts are tokens."""
Rows: TypeAlias = slice | Tensor | Sequence[int]
"""Which rows: a slice, a tensor of indices or of truth values, or a sequence of indices."""


@dataclass(frozen=True, eq=False)
class Condition:
    """Named tensors with one row per sample.

    Args:
        parts: name to tensor, shape (rows, ...); all have the same number of rows. Masks are boolean.
    """

    parts: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        rows = {len(part) for part in self.parts.values()}
        if len(rows) != 1:
            shapes = {name: tuple(part.shape) for name, part in self.parts.items()}
            raise ValueError(f"the parts of a condition need one and the same number of rows, found {shapes}")

    def __len__(self) -> int:
        return len(next(iter(self.parts.values())))

    @overload
    def __getitem__(self, chosen: str) -> Tensor: ...
    @overload
    def __getitem__(self, chosen: Rows) -> "Condition": ...
    def __getitem__(self, chosen: str | Rows) -> "Tensor | Condition":
        """Return a part by its name, or some rows as a condition."""
        if isinstance(chosen, str):
            return self.parts[chosen]
        return Condition({name: part[chosen] for name, part in self.parts.items()})

    def repeat(self, times: int) -> "Condition":
        """Return all rows `times` times, one whole set after the other."""
        return Condition({name: part.repeat(times, *[1] * (part.dim() - 1)) for name, part in self.parts.items()})

    def repeat_each(self, times: int) -> "Condition":
        """Return every row `times` times, one after the other."""
        return Condition({name: part.repeat_interleave(times, 0) for name, part in self.parts.items()})

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Condition":
        """Return the condition on a device, floating-point parts in a dtype."""
        return Condition(
            {
                name: part.to(device, dtype) if part.is_floating_point() else part.to(device)
                for name, part in self.parts.items()
            }
        )

    def trimmed(self) -> "Condition":
        """Return the condition without the last positions that no row's mask covers; unchanged without a mask."""
        mask = self.parts.get(MASK)
        if mask is None or not mask.numel():
            return self
        used = mask.any(0).nonzero()
        length = int(used[-1]) + 1 if len(used) else 1
        width = mask.shape[1]
        return Condition(
            {
                name: part[:, :length] if part.dim() > 1 and part.shape[1] == width else part
                for name, part in self.parts.items()
            }
        )

    @staticmethod
    def cat(conditions: Iterable["Condition"]) -> "Condition":
        """Join rows; under a mask, shorter texts are padded with zeros that the mask does not cover.

        Args:
            conditions: at least one, all of the same parts.

        Raises:
            ValueError: if parts differ in name, or in length without a mask.
        """
        several = list(conditions)
        names = list(several[0].parts)
        if any(list(other.parts) != names for other in several):
            raise ValueError(f"conditions of different parts cannot be joined: {[list(c.parts) for c in several]}")
        return Condition({name: _cat(name, [c.parts[name] for c in several], MASK in names) for name in names})


def _cat(name: str, tensors: Sequence[Tensor], masked: bool) -> Tensor:
    lengths = {tensor.shape[1] for tensor in tensors if tensor.dim() > 1}
    if len(lengths) <= 1:
        return torch.cat(list(tensors))
    if not masked:
        raise ValueError(
            f"part {name!r} has rows of different lengths {sorted(lengths)} and no mask to tell them apart"
        )
    longest = max(lengths)
    padded = [F.pad(t, (*(0, 0) * (t.dim() - 2), 0, longest - t.shape[1])) for t in tensors]
    return torch.cat(padded)
