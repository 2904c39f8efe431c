"""The paper's protocol: one severity, as its benchmarks have it (PAPER 1.5)."""

from functools import partial

import numpy as np

from daclip.degradations.common import Degrade, Parameters, Pixels, Rng, between
from daclip.degradations.holes import draw_strokes
from daclip.degradations.jpeg import through_jpeg
from daclip.degradations.ten import DEGRADE
from daclip.degradations.weather import rainy


def _noisy(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """Noise of sigma 50/255, clipped; severity is not used."""
    noise = rng.standard_normal(pixels.shape, np.float32)
    values = np.clip(pixels + np.float32(50 / 255) * noise, 0, 1)
    # published: stored as 8 bits by truncation, which darkens by about 0.42 levels
    return np.floor(values * 255) / np.float32(255), {"sigma_8bit": 50.0}


def _jpeg_compressed(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """OpenCV's coder at quality 10, its own 4:2:0; severity is not used."""
    return through_jpeg(pixels, 10, "4:2:0"), {"quality": 10, "subsampling": "4:2:0"}


def _uncompleted(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """Thick strokes with round ends, white, 3.5 to 50 % missing, 30 % on average; severity is not used."""
    missing = 0.035 + 0.465 * float(rng.beta(2.0, 1.5))
    mask = draw_strokes((pixels.shape[0], pixels.shape[1]), missing, (0.035, 0.053), rng)
    gone = (mask > 0)[..., None]
    return np.where(gone, np.float32(1), pixels), {"missing": round(float(gone.mean()), 3)}


def _heavy(pixels: Pixels, severity: float, rng: Rng, *, name: str) -> tuple[Pixels, Parameters]:
    """The degradation about as heavy as its benchmark of the paper's Table 1; severity is not used."""
    return DEGRADE[name](pixels, between(rng, *_BENCHMARK_SEVERITY[name]), rng)


def _rainy(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """Streaks added to stored values, as heavy as Rain100H; severity is not used."""
    return rainy(pixels, between(rng, 0.8, 1.0), rng, kind="additive")


_BENCHMARK_SEVERITY: dict[str, tuple[float, float]] = {
    "motion-blurry": (0.3, 0.9),
    "hazy": (0.4, 1.0),
    "low-light": (0.6, 1.0),
    "raindrop": (0.4, 1.0),
    "shadowed": (0.4, 1.0),
    "snowy": (0.7, 1.0),
}


PAPER: dict[str, Degrade] = {
    **{name: partial(_heavy, name=name) for name in _BENCHMARK_SEVERITY},
    "noisy": _noisy,
    "jpeg-compressed": _jpeg_compressed,
    "rainy": _rainy,
    "uncompleted": _uncompleted,
}
