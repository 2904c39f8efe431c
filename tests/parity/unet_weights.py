"""Weights made from their names, so that recordings of a network need no file of weights."""

from collections.abc import Mapping, Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray


def weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, NDArray[np.float32]]:
    """Normal numbers for each name, of about the spread a trained network has; the same on every machine."""
    return {name: _weight(name, tuple(shape)) for name, shape in shapes.items()}


def _weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    # RandomState is frozen by numpy's own promise
    draw = np.random.RandomState(crc32(name.encode())).standard_normal(shape)
    if name.endswith(".g") or (len(shape) == 1 and name.endswith("weight")):  # gains of norms
        return (1 + 0.1 * draw).astype(np.float32)
    inputs = int(np.prod(shape[1:])) if len(shape) > 1 else 100
    return (draw / np.sqrt(inputs)).astype(np.float32)
