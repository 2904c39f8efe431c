"""Before / after sheets: several pictures of several photos in one, with a word under each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyvips
from jaxtyping import Float32, UInt8

from daclip.evaluate.measure import Measurement

Picture = UInt8[np.ndarray, "_ _ 3"]

_WHITE = 255
_GAP = 6
_STRIP = 26
"""Height in pixels of the strip that holds the words."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Pictures of one photo, side by side, each with its words."""

    pictures: Sequence[tuple[str, Picture]]
    title: str = ""


def draw(
    panels: Sequence[Panel], *, columns: int = 2, tile: tuple[int, int] = (240, 360), zoom: bool = False
) -> UInt8[np.ndarray, "h w 3"]:
    """All panels on white, `columns` in a row; each picture scaled to fit the tile, nothing cut off.

    Args:
        panels: equally many pictures each.
        columns: panels beside each other.
        tile: height and width of a picture, in pixels.
        zoom: under each picture a part of it, enlarged.
    """
    room = (2 * tile[0], tile[1]) if zoom else tile
    cells = [
        np.concatenate(
            [
                _cell(words, zoomed(panel, number, width=tile[1]) if zoom else pixels, room)
                for number, (words, pixels) in enumerate(panel.pictures)
            ],
            axis=1,
        )
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


def best_median_worst(measurements: Sequence[Measurement], *, method: str) -> dict[str, str]:
    """Three photos of each degradation by the PSNR of a method's answer, each with what to write under it."""
    by_word: dict[str, list[Measurement]] = {}
    for one in measurements:
        if one.method == method and "psnr" in one.after:
            by_word.setdefault(one.degradation, []).append(one)
    found: dict[str, str] = {}
    for word, some in by_word.items():
        ranked = sorted(some, key=lambda one: -one.after["psnr"])
        places = {"best": 0, "median": len(ranked) // 2, "worst": len(ranked) - 1}
        for name, place in places.items():
            one = ranked[place]
            found[one.photo] = f"{word}, {name}: {one.after['psnr']:.1f} dB"
    return found


def zoomed(panel: Panel, number: int, *, width: int = 320) -> Picture:
    """One picture of a panel, and under it the busiest quarter of its last picture's width, enlarged.

    The same place in all pictures of the panel, of whatever size each is; a red frame marks it.
    """
    pixels, last = panel.pictures[number][1], panel.pictures[-1][1]
    down, across = pixels.shape[0] / last.shape[0], pixels.shape[1] / last.shape[1]
    top, left, height, side = _busiest(last)
    top, left = int(top * down), int(left * across)
    height, side = max(int(height * down), 1), max(int(side * across), 1)
    below = _scaled(pixels[top : top + height, left : left + side], width / side, kernel="cubic")
    framed = pixels.copy()
    thick = max(2, pixels.shape[1] // 200)
    frame = np.zeros(pixels.shape[:2], bool)
    frame[top : top + height, left : left + side] = True
    frame[top + thick : top + height - thick, left + thick : left + side - thick] = False
    framed[frame] = (220, 40, 40)
    above = _scaled(framed, width / pixels.shape[1], kernel="lanczos3")
    common = min(above.shape[1], below.shape[1])
    gap = np.full((_GAP, common, 3), _WHITE, np.uint8)
    return np.concatenate([above[:, :common], gap, below[:, :common]])


def _busiest(pixels: Picture) -> tuple[int, int, int, int]:
    """Top, left, height and width of the part a quarter as wide as the picture with the most detail."""
    width = max(pixels.shape[1] // 4, 1)
    height = max(min(width * 3 // 4, pixels.shape[0]), 1)
    grey = pixels.astype(np.float32).mean(axis=2)
    rows = range(0, pixels.shape[0] - height + 1, max(height // 2, 1))
    columns = range(0, pixels.shape[1] - width + 1, max(width // 2, 1))
    places = [(row, column) for row in rows for column in columns]
    detail = [_detail(grey[row : row + height, column : column + width]) for row, column in places]
    top, left = places[int(np.argmax(detail))]
    return top, left, height, width


def _detail(grey: Float32[np.ndarray, "_ _"]) -> float:
    # the median of the differences: a single hard edge is no detail
    return float(np.median(np.abs(np.diff(grey, axis=1)))) if grey.shape[1] > 1 else 0.0


def _scaled(pixels: Picture, factor: float, *, kernel: str) -> Picture:
    return np.asarray(_vips(pixels).resize(factor, kernel=kernel).numpy(), np.uint8)


def _vips(pixels: Picture) -> Any:
    data = np.ascontiguousarray(pixels)
    return pyvips.Image.new_from_memory(data.tobytes(), data.shape[1], data.shape[0], 3, "uchar")


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
    return np.asarray(_vips(pixels).thumbnail_image(width, height=height).numpy(), np.uint8)


def _written(words: str) -> UInt8[np.ndarray, "h w"]:
    """Words as ink, 255 where it is darkest."""
    if not words.strip():
        return np.zeros((1, 1), np.uint8)
    escaped = words.replace("&", "&amp;").replace("<", "&lt;")  # Pango reads markup
    ink = pyvips.Image.text(escaped, font="sans 12", dpi=84)
    return np.asarray(ink.numpy(), np.uint8).reshape(ink.height, ink.width)
