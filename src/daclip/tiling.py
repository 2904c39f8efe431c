"""Photos of any size: views for the encoder, tiles from a memory budget, blending, noise by position.

Steps a, d, f and g of the path of a photo.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float32, UInt

from daclip.errors import PhotoError
from daclip.image import Photo, centre_offset, shortest_side, window

_MOST_SQUARES = 4
"""Squares along the long side of a shrunk photo: enough that a panorama of 4 : 1 is seen whole."""


def centre_view(photo: Photo, side: int) -> Float32[np.ndarray, "{side} {side} 3"]:
    """The one view of the published system: shortest side resized, centre square, in [0, 1] (PAPER 1.1)."""
    height, width = shortest_side(photo.height, photo.width, side)
    top, left = centre_offset(height, side), centre_offset(width, side)
    return window(photo, height, width, top=top, left=left, rows=side, columns=side)


def views(photo: Photo, side: int, *, crops: int = 4) -> Float32[np.ndarray, "n {side} {side} 3"]:
    """What the encoder looks at, in [0, 1]: the whole photo shrunk, then parts in their own scale.

    The shrunk photo is seen as one square, or several along its long side so that the ends are seen too.
    Noise, JPEG blocks and rain vanish when a photo shrinks; `crops` squares spread evenly over it show them.
    Photos smaller than `side` are mirrored at their edges to fill a crop: enlarged, they look blurry. One
    photo, always the same views.
    """
    whole: list[Float32[np.ndarray, "{side} {side} 3"]] = []
    if min(photo.height, photo.width) < side:
        crops = max(crops, 1)
    else:
        height, width = shortest_side(photo.height, photo.width, side)
        squares = min(_MOST_SQUARES, math.ceil(max(height, width) / side - 0.25))
        places = zip(_spread(height, side, squares), _spread(width, side, squares), strict=True)
        whole = [
            window(photo, height, width, top=top, left=left, rows=side, columns=side) for top, left in places
        ]
    parts = [
        _part(photo, side, top, left) for top, left in _crop_places(photo.height, photo.width, side, crops)
    ]
    return np.stack([*whole, *parts])


def reduced(photo: Photo, longest: int) -> Float32[np.ndarray, "h w 3"]:
    """The whole photo, in [0, 1], its longer side at most `longest` pixels."""
    height, width = (
        max(1, round(each * min(1.0, longest / max(photo.height, photo.width))))
        for each in (photo.height, photo.width)
    )
    return window(photo, height, width, top=0, left=0, rows=height, columns=width)


TONE_SHARES = (0.01, 0.1, 0.5, 0.9, 0.99)
"""Of the values of a colour that lie below each quantile of a tone."""


def tone(views: Float32[np.ndarray, "n h w 3"]) -> Float32[np.ndarray, "1 18"]:
    """How light a photo is, from views of it: 1, 10, 50, 90, 99 % quantiles and mean of red, green, blue.

    A network sees a tile; how far a dark or hazy photo must go is a question of the whole.
    """
    colours = views.reshape(-1, 3)
    quantiles = np.quantile(colours, TONE_SHARES, axis=0)
    return np.concatenate([quantiles.ravel(), colours.mean(axis=0)])[None].astype(np.float32)


def _spread(length: int, side: int, count: int) -> list[int]:
    """Starts of `count` spans of `side` from end to end of `length`; one alone stands in the middle."""
    room = max(0, length - side)
    return [room // 2] if count == 1 else [round(room * i / (count - 1)) for i in range(count)]


def _crop_places(height: int, width: int, side: int, count: int) -> list[tuple[int, int]]:
    """Tops and lefts of at most `count` squares in a grid over the photo, each in the middle of its cell."""
    if count == 0:
        return []
    rows = min(count, max(1, round(math.sqrt(count * height / width))))
    columns = max(1, count // rows)

    def starts(length: int, cells: int) -> list[int]:
        room = max(0, length - side)
        return [round(room * (2 * i + 1) / (2 * cells)) for i in range(cells)]

    places = [(top, left) for top in starts(height, rows) for left in starts(width, columns)]
    return list(dict.fromkeys(places))


def _part(photo: Photo, side: int, top: int, left: int) -> Float32[np.ndarray, "{side} {side} 3"]:
    part = photo.crop(top, left, min(side, photo.height), min(side, photo.width))
    missing = (side - part.shape[0], side - part.shape[1])
    return np.pad(part, [(n // 2, n - n // 2) for n in missing] + [(0, 0)], mode="symmetric")


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A part of a photo, in pixels from its upper left corner."""

    top: int
    left: int
    height: int
    width: int


def plan(
    height: int, width: int, *, memory_bytes: int, bytes_per_pixel: int, multiple: int = 1, overlap: int = 0
) -> list[Tile]:
    """Tiles of equal size that cover the photo, row by row from the top, with the least to compute.

    The whole photo is one tile where it fits; otherwise neighbours share at least `overlap` pixels. All tiles
    start at multiples of `multiple`, and have such sides except where the photo ends first: so a network that
    works on a coarser grid sees the same grid in every tile, and pads where it would pad the whole photo.

    Raises PhotoError `no-memory` naming the smallest budget that works.
    """
    rows, columns = math.ceil(height / multiple), math.ceil(width / multiple)
    shared = math.ceil(overlap / multiple)
    cell_bytes = bytes_per_pixel * multiple**2
    tallest, widest = _least_work(rows, columns, shared=shared, cells=memory_bytes // cell_bytes)
    if not tallest:
        needed = min(rows, _smallest(shared)) * min(columns, _smallest(shared)) * cell_bytes
        raise PhotoError(
            "no-memory",
            None,
            f"{memory_bytes / 1e6:,.0f} MB are too little for the smallest tile",
            hint=f"give at least {math.ceil(needed / 1e6):,} MB",
        )
    return [
        Tile(
            top=top * multiple,
            left=left * multiple,
            height=min(tallest * multiple, height - top * multiple),
            width=min(widest * multiple, width - left * multiple),
        )
        for top in _starts(rows, tallest, shared)
        for left in _starts(columns, widest, shared)
    ]


def _least_work(rows: int, columns: int, *, shared: int, cells: int) -> tuple[int, int]:
    """Sides of the tile of at most `cells` that makes the least to compute; 0, 0 where none is possible.

    Here and below lengths are counted in cells of `multiple` pixels.
    """
    best = (math.inf, 0, 0)
    wide = _sides(columns, shared)
    for tall_count, tall in _sides(rows, shared):
        # the fewest columns that fit beside this many rows
        wide_count, widest = next(((n, side) for n, side in wide if tall * side <= cells), (0, 0))
        if wide_count:
            best = min(best, (tall_count * wide_count * tall * widest, tall, widest))
    return best[1:]


def _smallest(shared: int) -> int:
    """A tile advances by at least what it shares, so that no more than two tiles are needed in one place."""
    return max(2 * shared, 1)


def _sides(length: int, shared: int) -> list[tuple[int, int]]:
    """How many tiles along one axis, and how long each is: from one whole to the smallest sensible."""
    sides = [(1, length)]
    count = 2
    while sides[-1][1] > _smallest(shared):
        side = max(_smallest(shared), math.ceil((length + (count - 1) * shared) / count))
        if side < sides[-1][1]:
            sides.append((len(_starts(length, side, shared)), side))
        count += 1
    return sides


def _starts(length: int, side: int, shared: int) -> list[int]:
    """Evenly spread starts of spans of `side` that cover `length`, neighbours sharing at least `shared`."""
    if side >= length:
        return [0]
    count = math.ceil((length - shared) / (side - shared))
    return [(length - side) * i // (count - 1) for i in range(count)]


class Canvas:
    """Puts restored tiles together, blended where they overlap, in the depth of the photo.

    Tiles come in the order of the plan. Only the rows of the tile row in work are kept as floats; rows that
    no later tile touches are rounded into the result at once.
    """

    def __init__(self, tiles: Sequence[Tile], dtype: np.dtype[np.generic]) -> None:
        self._white = np.float32(255 if dtype == np.uint8 else 65535)
        self._height = max(tile.top + tile.height for tile in tiles)
        self._width = max(tile.left + tile.width for tile in tiles)
        self._rows = _weights((tile.top, tile.height) for tile in tiles)
        self._columns = _weights((tile.left, tile.width) for tile in tiles)
        self._tiles = list(tiles)
        self._next = 0
        self._finished = 0
        self._result = np.empty((self._height, self._width, 3), dtype)
        self._band = np.zeros((max(tile.height for tile in tiles), self._width, 3), np.float32)

    def add(self, tile: Tile, pixels: Float32[np.ndarray, "h w 3"]) -> None:
        """Blend in the restored pixels of a tile, sRGB in [0, 1]; values outside are clipped in the end."""
        assert tile == self._tiles[self._next], "tiles come in the order of the plan"
        self._next += 1
        self._finish_rows(tile.top)
        rows = self._rows[tile.top, tile.height][:, None, None]
        columns = self._columns[tile.left, tile.width][None, :, None]
        self._band[: tile.height, tile.left : tile.left + tile.width] += rows * columns * pixels

    def pixels(self) -> UInt[np.ndarray, "h w 3"]:
        """The whole photo, once every tile of the plan was added."""
        assert self._next == len(self._tiles), "every tile of the plan comes first"
        self._finish_rows(self._height)
        return self._result

    def _finish_rows(self, end: int) -> None:
        """Round the rows above `end`, which no later tile touches, and move the rest of the band up."""
        count = end - self._finished
        if count <= 0:
            return
        done = self._band[:count]
        np.clip(done, 0, 1, out=done)
        np.multiply(done, self._white, out=done)
        np.add(done, np.float32(0.5), out=done)
        self._result[self._finished : end] = done[: end - self._finished]
        self._band[:-count] = self._band[count:]
        self._band[-count:] = 0
        self._finished = end


def _weights(spans: Iterable[tuple[int, int]]) -> dict[tuple[int, int], Float32[np.ndarray, "..."]]:
    """For each span (start, length) of one axis, its share of every place: raised cosines that sum to 1."""
    distinct = sorted(set(spans))
    shares = {span: np.ones(span[1]) for span in distinct}
    for first, second in pairwise(distinct):
        shared = first[0] + first[1] - second[0]
        if shared > 0:
            ramp = np.sin(np.pi / 2 * (np.arange(shared) + 0.5) / shared) ** 2
            shares[second][:shared] *= ramp[: second[1]]
            shares[first][-shared:] *= ramp[::-1][: first[1]]
    total = np.zeros(max(start + length for start, length in distinct))
    for (start, length), share in shares.items():
        total[start : start + length] += share
    return {
        (start, length): (share / total[start : start + length]).astype(np.float32)
        for (start, length), share in shares.items()
    }


_BLOCK = 64
"""Side of the squares in which noise is drawn; part of the meaning of a seed, so it never changes."""


def noise_field(tile: Tile, seed: int, step: int) -> Float32[np.ndarray, "h w 3"]:
    """Standard normal draws for a tile, by absolute position: a pixel gets the same noise in every tile.

    Each square of 64 x 64 pixels is a stream of its own of the counter-based generator Philox. The normal
    values come by Box and Muller from its whole numbers, which NumPy promises never to change, unlike its
    own normals.

    Args:
        tile: where.
        seed: of the run, 0 or above.
        step: 0 for the start, then one for each draw of the sampler.
    """
    field = np.empty((tile.height, tile.width, 3), np.float32)
    bottom, right = tile.top + tile.height, tile.left + tile.width
    for row in range(tile.top // _BLOCK, math.ceil(bottom / _BLOCK)):
        for column in range(tile.left // _BLOCK, math.ceil(right / _BLOCK)):
            top, left = max(tile.top, row * _BLOCK), max(tile.left, column * _BLOCK)
            low, far = min(bottom, (row + 1) * _BLOCK), min(right, (column + 1) * _BLOCK)
            block = _noise_block(seed, step, row, column)
            field[top - tile.top : low - tile.top, left - tile.left : far - tile.left] = block[
                top - row * _BLOCK : low - row * _BLOCK, left - column * _BLOCK : far - column * _BLOCK
            ]
    return field


def _noise_block(seed: int, step: int, row: int, column: int) -> Float32[np.ndarray, "64 64 3"]:
    # the low word counts inside the block, the high ones name it
    bits = np.random.Philox(
        key=np.array([seed, step], np.uint64), counter=np.array([0, 0, row, column], np.uint64)
    )
    drawn = bits.random_raw(_BLOCK * _BLOCK * 3)
    # 53 bits, moved by half a step so that the logarithm never sees 0
    uniform = ((drawn >> np.uint64(11)) + 0.5) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(uniform[::2])), 2 * np.pi * uniform[1::2]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return normal.astype(np.float32).reshape(_BLOCK, _BLOCK, 3)
