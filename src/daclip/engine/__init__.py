"""Who runs a model folder: the protocol all engines share, and the choice among them."""

from typing import Protocol

import numpy as np
from jaxtyping import Float32

from daclip.detect import Embeddings


class Engine(Protocol):
    """Runs the two networks of one model folder. Thread-safe. Arrays are float32; colours sRGB in [0, 1]."""

    name: str
    precision: str

    def encode(self, views: Float32[np.ndarray, "n 3 s s"]) -> Embeddings[Float32[np.ndarray, "n d"]]:
        """Embeddings of normalised views, un-normalised."""
        ...

    def predict_clean(
        self,
        mu: Float32[np.ndarray, "b 3 h w"],
        content: Float32[np.ndarray, "b d"],
        degradation: Float32[np.ndarray, "b d"],
    ) -> Float32[np.ndarray, "b 3 h w"]:
        """The clean photo, by a one-pass restorer."""
        ...

    def predict_noise(
        self,
        x: Float32[np.ndarray, "b 3 h w"],
        mu: Float32[np.ndarray, "b 3 h w"],
        t: Float32[np.ndarray, "b"],
        content: Float32[np.ndarray, "b d"],
        degradation: Float32[np.ndarray, "b d"],
    ) -> Float32[np.ndarray, "b 3 h w"]:
        """The noise in the state x at time t, by a diffusion restorer."""
        ...
