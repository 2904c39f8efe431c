"""Before / after sheets: several pictures of several photos in one, with a word under each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyvips
from jaxtyping import UInt8

Picture = UInt8[np.ndarray, "_ _ 3"]

_WHITE = 255
_GAP = 6
_STRIP = 26
"""Height in pixels of the strip that holds the words."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Pictures of one photo, side by side, each with its words."""

    pictures: Sequence[tuple[str, Picture]]


def draw(
    panels: Sequence[Panel], *, columns: int = 2, tile: tuple[int, int] = (240, 360)
) -> UInt8[np.ndarray, "h w 3"]:
    """All panels on white, `columns` in a row; each picture scaled to fit the tile, nothing cut off.

    Args:
        panels: equally many pictures each.
        columns: panels beside each other.
        tile: height and width of a picture, in pixels.
    """
    cells = [
        np.concatenate([_cell(words, pixels, tile) for words, pixels in panel.pictures], axis=1)
        for panel in panels
    ]
    height, width = cells[0].shape[:2]
    rows = math.ceil(len(cells) / columns)
    columns = min(columns, len(cells))
    sheet = np.full((rows * (height + _GAP), columns * (width + 2 * _GAP), 3), _WHITE, np.uint8)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        top, left = row * (height + _GAP), column * (width + 2 * _GAP)
        sheet[top : top + height, left : left + width] = cell
    return sheet[: -_GAP or None, : -2 * _GAP]


def _cell(words: str, pixels: Picture, tile: tuple[int, int]) -> Picture:
    """A picture over its words, with a gap on its right."""
    height, width = tile
    cell = np.full((height + _STRIP, width + _GAP, 3), _WHITE, np.uint8)
    picture = _fitted(pixels, height, width)
    top, left = height - picture.shape[0], (width - picture.shape[1]) // 2
    cell[top:height, left : left + picture.shape[1]] = picture
    written = _WHITE - _written(words)[:_STRIP, : width - left]
    top = height + (_STRIP - written.shape[0]) // 2
    cell[top : top + written.shape[0], left : left + written.shape[1]] = written[..., None]
    return cell


def _fitted(pixels: Picture, height: int, width: int) -> Picture:
    """The whole picture, as large as fits."""
    data = np.ascontiguousarray(pixels)
    whole = pyvips.Image.new_from_memory(data.data, data.shape[1], data.shape[0], 3, "uchar")
    return np.asarray(whole.thumbnail_image(width, height=height).numpy(), np.uint8)


def _written(words: str) -> UInt8[np.ndarray, "h w"]:
    """Words as ink, 255 where it is darkest."""
    if not words.strip():
        return np.zeros((1, 1), np.uint8)
    escaped = words.replace("&", "&amp;").replace("<", "&lt;")  # Pango reads markup
    ink = pyvips.Image.text(escaped, font="sans 12", dpi=84)
    return np.asarray(ink.numpy(), np.uint8).reshape(ink.height, ink.width)
