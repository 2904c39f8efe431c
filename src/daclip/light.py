"""What light is missing in the cast shadows of a photo, and the photo lit by it, at any size.

Part of step e of the path of a photo. Shadows are found in a small copy of the photo, by a network
(networks.shade); here they are lit in the photo itself.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

LONGEST = 480
"""Longer side in pixels of the photo in which shadows are looked for; larger ones are reduced to it."""

GAMMA = 2.2
"""Stored values to light, as a power."""

_SURELY = 0.99
"""A shadow is as sure as the surest hundredth of the photo."""


@dataclass(frozen=True, kw_only=True)
class Light:
    """Where light is missing in a photo, and how much of it, at a part of the photo's size.

    Args:
        shadow: of each place the logit that it lies in a shadow.
        lacks: logarithm of what its stored values lack there, as a factor, for each colour.
    """

    shadow: Float32[np.ndarray, "i j"]
    lacks: Float32[np.ndarray, "i j 3"]

    @property
    def surely(self) -> float:
        """The logit that there is a shadow in the photo."""
        return float(np.quantile(self.shadow, _SURELY))

    def lit(
        self, mu: Float32[np.ndarray, "h w 3"], *, top: int, left: int, height: int, width: int
    ) -> Float32[np.ndarray, "h w 3"]:
        """A part of the photo with the light that it lacks, unclamped: the same in every part.

        Args:
            mu: the part, sRGB in [0, 1].
            top: of the part in the photo, in pixels.
            left: of the part.
            height: of the photo.
            width: of the photo.
        """
        rows = _between(self.shadow.shape[0], height, top, mu.shape[0])
        columns = _between(self.shadow.shape[1], width, left, mu.shape[1])
        shadow, lacks = (_enlarged(each, rows, columns) for each in (self.shadow[..., None], self.lacks))
        return mu * (1 - _sigmoid(shadow) * (1 - np.exp(-GAMMA * lacks))) ** np.float32(-1 / GAMMA)


_Places = tuple[np.ndarray, np.ndarray, Float32[np.ndarray, "..."]]
"""For each pixel along one side: the places before and after it, and how far it is from one to the other."""


def _between(few: int, many: int, start: int, count: int) -> _Places:
    """Where `count` of `many` pixels from `start` on lie between `few` places along the same side."""
    at = np.clip((np.arange(start, start + count) + 0.5) * (few / many) - 0.5, 0, few - 1)
    before = at.astype(np.intp)
    return before, np.minimum(before + 1, few - 1), (at - before).astype(np.float32)


def _enlarged(
    x: Float32[np.ndarray, "i j c"], rows: _Places, columns: _Places
) -> Float32[np.ndarray, "h w c"]:
    """The values at the pixels, bilinear."""
    before, after, part = rows
    x = x[before] + part[:, None, None] * (x[after] - x[before])
    before, after, part = columns
    return x[:, before] + part[:, None] * (x[:, after] - x[:, before])


def _sigmoid(x: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    return 1 / (1 + np.exp(-x.clip(-60, 60)))
