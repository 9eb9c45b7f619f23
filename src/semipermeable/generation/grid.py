"""A before/after grid with captions: every row one prompt, every column one way of drawing it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont

__all__ = ["Row", "comparison_grid"]

_GAP = 12
_TEXT = 15
_INK, _PALE, _PAPER = (28, 28, 30), (110, 110, 118), (255, 255, 255)


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """One line of the grid.

    Args:
        caption: shown above the pictures, e.g. the prompt.
        pictures: one per column.
        note: shown after the caption, e.g. "γ cat = 1".
    """

    caption: str
    pictures: tuple[Image.Image, ...]
    note: str = ""


def comparison_grid(rows: Sequence[Row], columns: Sequence[str], *, across: int = 1, side: int = 192) -> Image.Image:
    """Draw blocks of pictures, a title above each picture and a caption above each block.

    Args:
        rows: at least one; each with as many pictures as there are columns, all of one size.
        columns: titles of a block's pictures, e.g. ("before", "after").
        across: blocks beside each other.
        side: least width of a picture in pixels; small pictures are enlarged by a whole factor.

    Raises:
        ValueError: if there is no row, or a row has another number of pictures.
    """
    if not rows or any(len(row.pictures) != len(columns) for row in rows):
        raise ValueError(f"a grid needs at least one row, and {len(columns)} pictures in each")
    factor = max(1, -(-side // rows[0].pictures[0].width))
    width, height = (length * factor for length in rows[0].pictures[0].size)
    line = _TEXT + _GAP
    block = (len(columns) * (width + _GAP) + _GAP, height + 2 * line)
    across = min(across, len(rows))
    down = -(-len(rows) // across)
    sheet = Image.new("RGB", (across * block[0] + _GAP, down * block[1] + _GAP), _PAPER)
    for number, row in enumerate(rows):
        left, top = _GAP + number % across * block[0], number // across * block[1] + _GAP // 2
        _draw_block(sheet, row, columns, (left, top), (width, height))
    return sheet


def _draw_block(
    sheet: Image.Image, row: Row, columns: Sequence[str], corner: tuple[int, int], size: tuple[int, int]
) -> None:
    # Matplotlib's own font: Pillow's has no γ.
    font = ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", _TEXT)
    pen = ImageDraw.Draw(sheet)
    (left, top), (width, _), line = corner, size, _TEXT + _GAP
    room = len(columns) * (width + _GAP) - _GAP
    pen.text((left, top), _fit(f"{row.caption}   {row.note}".rstrip(), room, font), fill=_INK, font=font)
    for column, (title, picture) in enumerate(zip(columns, row.pictures, strict=True)):
        x = left + column * (width + _GAP)
        pen.text((x, top + line - _GAP // 2), _fit(title, width, font), fill=_PALE, font=font)
        sheet.paste(picture.convert("RGB").resize(size, Image.Resampling.NEAREST), (x, top + 2 * line - _GAP))


def _fit(text: str, room: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Cut a text so that it fits into `room` pixels."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…"
