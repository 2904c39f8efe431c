"""The sensor: too little light, and noise."""

import math

import numpy as np

from daclip.degradations.common import (
    Degrade,
    Parameters,
    Pixels,
    Rng,
    between,
    chance,
    choice,
    listed,
    near_white,
    rounded,
    softened,
    to_linear,
    to_stored,
)


def _sensor_noise(light: Pixels, shot: float, read: float, rng: Rng) -> Pixels:
    """Noise of a sensor in linear light: variance shot * light + read^2, normal draws."""
    deviation = np.sqrt(np.maximum(light, 0) * np.float32(shot) + np.float32(read * read))
    return deviation * rng.standard_normal(light.shape, np.float32)


_USUAL_LIGHT = 0.22
"""Linear light of a photo in the mean: half of the photos of this project are lighter."""


def low_light(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """Too little light: exposure down to 1/120 in linear light, a colour cast, shot and read noise, 8 bits.

    The severity says how much light is left, so a lighter scene is exposed less: a dark photo says nothing of
    the light of its scene, as in real pairs. Drawn alone, the exposure would make most dark photos those of
    dark scenes. Bright places lose less: there the clean photo had compressed the light that its tone curve
    could not hold. A pedestal (stray light, black level) lifts the deepest shadows. Both as measured on real
    dark and light pairs.
    """
    left = math.exp(-math.log(120) * severity**0.65 * between(rng, 0.85, 1))
    cast = near_white(rng, 0.3 * severity)
    highlights = between(rng, 0, 5) * severity
    pedestal = between(rng, 0, 5e-4) * severity
    shot, read = severity * 10 ** between(rng, -5, -3.7), severity * 10 ** between(rng, -4, -3.1)
    grain = between(rng, 0, 0.8)
    light = to_linear(pixels)
    exposure = min(1.0, left * min(3.0, _USUAL_LIGHT / max(float(light.mean()), 1e-3)))
    light = light * (1 + np.float32(highlights) * np.max(light, axis=2, keepdims=True) ** 7)
    light = light * (cast * np.float32(exposure)) + np.float32(pedestal)
    noise = _sensor_noise(light, shot, read, rng) * np.array([1.5, 1, 1.5], np.float32)
    return rounded(to_stored(light + softened(noise, grain))), {
        "exposure": round(exposure, 4),
        "cast": listed(cast),
        "highlights": round(highlights, 2),
        "pedestal": round(pedestal, 6),
        "shot": round(shot, 7),
        "read": round(read, 6),
        "grain_pixels": round(grain, 2),
    }


def _gaussian_noise(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    sigma = 60 * severity * between(rng, 0.8, 1)
    grey = chance(rng, 0.1)
    shape = (*pixels.shape[:2], 1 if grey else 3)
    noisy_values = pixels + np.float32(sigma / 255) * rng.standard_normal(shape, np.float32)
    truncated = chance(rng, 0.3)
    if truncated:  # published: stored as 8 bits by truncation
        noisy_values = np.floor(np.clip(noisy_values, 0, 1) * 255) / np.float32(255)
    return noisy_values, {"sigma_8bit": round(sigma, 2), "grey": grey, "truncated": truncated}


def _poisson_noise(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    # at mid grey (0.5) the deviation is sqrt(0.5 / photons), so this matches sigma = 50 * severity there
    sigma = 50 / 255 * severity * between(rng, 0.8, 1)
    photons = 0.5 / max(sigma, 1e-3) ** 2
    counts = rng.poisson(pixels * np.float32(photons))
    return (counts / photons).astype(np.float32), {"photons": round(photons, 1)}


def _camera_noise(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """Sensor noise in linear light with white-balance gains, spread over neighbours and channels.

    Measured on real photos: correlation 0.6-0.75 with the next pixel, 0.2-0.5 with the next but two, 0.3-0.85
    between channels; least noise in the highlights, where the tone curve is flat.
    """
    light = to_linear(pixels)
    shot, read = severity**2 * 10 ** between(rng, -2.4, -1.8), severity**2 * 10 ** between(rng, -3.2, -2.3)
    grain, blotch = between(rng, 0.55, 0.95), between(rng, 0.1, 0.8)
    shared = between(rng, 0.1, 0.65)
    gains = np.array([between(rng, 1.1, 1.9), 1, between(rng, 1.1, 1.9)], np.float32)
    noise = _sensor_noise(light, shot, read, rng)
    noise += (noise[..., 1:2] - noise) * np.float32(shared)
    # a blur of deviation s leaves 1 / (2 s sqrt(pi)) of the deviation of white noise
    noise = softened(noise, grain) * np.float32(3.5 * grain)
    noise += softened(noise, 2.0) * np.float32(4 * blotch)
    return to_stored(light + noise * gains), {
        "shot": round(shot, 6),
        "read": round(read, 6),
        "grain_pixels": round(grain, 2),
        "blotch": round(blotch, 2),
        "shared": round(shared, 2),
    }


def noisy(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """Gaussian noise (some of it grey, or truncated), Poisson noise, or a camera's correlated noise."""
    kind = choice(rng, {"gaussian": 0.45, "camera": 0.4, "poisson": 0.15})
    noisy_values, parameters = _NOISES[kind](pixels, severity, rng)
    return noisy_values, {"kind": kind, **parameters}


_NOISES: dict[str, Degrade] = {
    "gaussian": _gaussian_noise,
    "poisson": _poisson_noise,
    "camera": _camera_noise,
}
