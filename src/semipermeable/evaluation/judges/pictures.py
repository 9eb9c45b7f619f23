"""Read pictures as tensors, one by one or a folder in batches."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from semipermeable.errors import ConfigError

__all__ = ["picture_files", "read_batches", "read_picture"]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises: a broken chunk of a PNG is a SyntaxError, and an immense picture has an error of its own."""


def read_picture(path: Path, side: int | None = None) -> Tensor:
    """Return a picture in [0, 1], shape (3, height, width).

    Args:
        path: a picture file.
        side: scale it to a square of that many pixels; None leaves it as it is.

    Raises:
        ConfigError: if it is missing or unreadable.
    """
    try:
        with Image.open(path) as image:
            plain = image.convert("RGB")
            if side is not None:
                plain = plain.resize((side, side), Image.Resampling.BICUBIC)
            pixels = np.asarray(plain, dtype=np.float32) / 255
    except _UNREADABLE as error:
        raise ConfigError(f"picture {str(path)!r} cannot be read ({error}); replace or remove it") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def picture_files(folder: Path) -> list[Path]:
    """Return the picture files of a folder, at any depth, sorted.

    Raises:
        ConfigError: if there are fewer than two.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if len(found) < 2:
        raise ConfigError(
            f"folder {str(folder)!r} holds {len(found)} pictures ({', '.join(_SUFFIXES)}); at least 2 needed"
        )
    return found


def read_batches(files: list[Path], side: int, batch: int = 32) -> Iterator[Tensor]:
    """Yield pictures in [0, 1], scaled to squares, shape (rows, 3, side, side).

    Raises:
        ConfigError: if one is unreadable.
    """
    for start in range(0, len(files), batch):
        yield torch.stack([read_picture(path, side) for path in files[start : start + batch]])
