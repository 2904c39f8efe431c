"""What a data set gives: a sample for an index, the same on every machine and after any interruption."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import cv2
import numpy as np

from daclip.data.files import Pixels8


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A degraded photo, its clean photo (same size), what is wrong with it (nothing: clean), a caption."""

    degraded: Pixels8
    clean: Pixels8
    names: tuple[str, ...]
    caption: str | None = None


@runtime_checkable
class DataSet(Protocol):
    """Anything training draws samples from."""

    def draw(self, index: int) -> Sample:
        """The sample of an index; any index from 0 is valid."""
        ...


def grey(pixels: Pixels8) -> Pixels8:
    """The luma of a photo (BT.601), in all three channels."""
    return np.repeat(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
