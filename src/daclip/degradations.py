"""Ten degradations: clean pixels in, degraded pixels and a record that reproduces them out (PAPER 1.5).

`wild` settings draw from physical models, mild to heavy; `paper` settings follow the published protocol.
Pixels are float32 sRGB in [0, 1]; light is added, blurred and absorbed in linear light. Sizes in pixels hold
for photos of about 480 rows and for cut-outs of them; larger photos get larger drops, streaks, flakes and
kernels.

A result depends only on pixels, record and the versions of NumPy and OpenCV, never on threads or workers; it
is rounded to 8 bits, as cameras store it, which also hides differences between processors in the last bit of
a float.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, TypedDict

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int32, UInt8

from daclip.errors import UsageError
from daclip.vocabulary import DEGRADATIONS, degradation, mixture_text

Pixels = Float32[np.ndarray, "h w 3"]
Plane = Float32[np.ndarray, "h w"]
Rng = np.random.Generator
Number = int | float  # the type checker of the tests takes no int for a float
Parameters = dict[str, Any]
Settings = Literal["wild", "paper"]
Degrade = Callable[[np.ndarray, float, Rng], tuple[np.ndarray, Parameters]]


class Part(TypedDict):
    """One degradation as applied: name, severity, settings and seed reproduce it, parameters describe it."""

    name: str
    severity: float
    settings: str
    seed: int
    parameters: Parameters


class Record(TypedDict):
    """What was done to a photo, ready for JSON: parts in order of application, their names, the text."""

    names: tuple[str, ...]
    text: str
    parts: list[Part]


@dataclass(frozen=True, kw_only=True)
class Degraded:
    """Degraded pixels and the record from which `replay` makes them again."""

    pixels: Pixels
    record: Record


# ---- shared by several of the ten ----


def _between(rng: Rng, low: Number, high: Number) -> float:
    """A uniform draw as a plain float."""
    return low + (high - low) * float(rng.random())


def _chance(rng: Rng, share: float) -> bool:
    """True in a share of draws."""
    return float(rng.random()) < share


def _choice(rng: Rng, shares: dict[str, float]) -> str:
    """One of the keys, drawn by its share (shares sum to 1)."""
    at = float(rng.random())
    for key, share in shares.items():
        at -= share
        if at < 0:
            return key
    return next(reversed(shares))


def _scale(pixels: np.ndarray) -> float:
    """How much larger than 480 rows a photo is; 1 for smaller ones and for cut-outs."""
    return max(1.0, min(pixels.shape[:2]) / 480)


@cache
def _tables() -> tuple[Float32[np.ndarray, "65536"], Float32[np.ndarray, "65536"]]:
    """IEC 61966-2-1 both ways over 16-bit steps: sRGB -> linear, linear -> sRGB."""
    x = np.arange(65536) / 65535
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    stored = np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)
    return linear.astype(np.float32), stored.astype(np.float32)


def _looked_up(
    table: Float32[np.ndarray, "65536"], values: Float32[np.ndarray, "*s"]
) -> Float32[np.ndarray, "*s"]:
    """The table at values clipped to [0, 1]."""
    return np.take(table, (np.clip(values, 0, 1) * 65535 + 0.5).astype(np.uint16))


def to_linear(pixels: Float32[np.ndarray, "*s 3"]) -> Float32[np.ndarray, "*s 3"]:
    """Linear light of sRGB values."""
    return _looked_up(_tables()[0], pixels)


def to_stored(light: Float32[np.ndarray, "*s 3"]) -> Float32[np.ndarray, "*s 3"]:
    """The sRGB values of linear light, clipped to [0, 1]."""
    return _looked_up(_tables()[1], light)


def _rounded(pixels: Float32[np.ndarray, "h w c"]) -> Float32[np.ndarray, "h w c"]:
    """The pixels on the 8-bit grid."""
    return (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8).astype(np.float32) / np.float32(255)


def _blurred(plane: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur; the planes or pixels themselves below a sigma that shows."""
    return plane if sigma < 0.15 else cv2.GaussianBlur(plane, (0, 0), sigma)


def _field(shape: tuple[int, int], cells: Number, rng: Rng) -> Plane:
    """A smooth random field in [0, 1] with about `cells` bumps along the longer side."""
    height, width = shape
    longest = max(height, width)
    grid = rng.random(
        (max(2, round(cells * height / longest)), max(2, round(cells * width / longest))), np.float32
    )
    field = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(field, 0, 1)


def _ramp(shape: tuple[int, int], angle: float) -> Plane:
    """A linear slope over the photo from 0 to 1 in the direction of the angle (radians)."""
    height, width = shape
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None] * np.float32(math.sin(angle))
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, :] * np.float32(math.cos(angle))
    slope = (x + y) / np.float32(abs(math.sin(angle)) + abs(math.cos(angle))) + np.float32(0.5)
    return np.clip(slope, 0, 1)


def _near_white(rng: Rng, spread: float) -> Float32[np.ndarray, "3"]:
    """A light colour between bluish and yellowish, largest channel 1."""
    warm = _between(rng, -spread, spread)
    green = _between(rng, -spread, spread) / 4
    colour = np.array([1 + warm, 1 + green, 1 - warm], np.float32)
    return colour / colour.max()


def _listed(values: np.ndarray) -> list[float]:
    """Numbers for the record, short enough to read."""
    return [round(float(value), 4) for value in values]


# ---- motion-blurry ----


def _trajectory(extent: Number, wobble: float, rng: Rng) -> Float[np.ndarray, "n 2"]:
    """Path of a point over the exposure: a random walk of direction and speed, `extent` pixels long or wide.

    Its mean is zero, so the photo is not shifted.
    """
    n = 64
    turns = rng.standard_normal(n) * wobble
    if _chance(rng, 0.25):
        turns[rng.integers(n)] += _between(rng, 1.5, math.pi)  # a jerk: the hand turns back
    heading = _between(rng, 0, 2 * math.pi) + np.cumsum(turns)
    speed = np.exp(0.25 * np.cumsum(rng.standard_normal(n)) - 0.1)
    steps = speed[:, None] * np.stack([np.cos(heading), np.sin(heading)], axis=1)
    points = np.cumsum(steps, axis=0)
    points *= extent / max(float(np.ptp(points, axis=0).max()), 1e-9)
    fine = np.linspace(0, n - 1, max(n, int(extent * 8)))
    dense = np.stack([np.interp(fine, np.arange(n), points[:, axis]) for axis in (0, 1)], axis=1)
    return dense - dense.mean(axis=0)


def _kernel(points: Float[np.ndarray, "n 2"]) -> Float32[np.ndarray, "k k"]:
    """The path drawn with sub-pixel accuracy, softened by the lens, sum 1."""
    half = math.ceil(float(np.abs(points).max())) + 1
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float64)
    base = np.floor(points).astype(np.int64)
    part = points - base
    for dy in (0, 1):
        for dx in (0, 1):
            weight = np.abs(1 - dx - part[:, 0]) * np.abs(1 - dy - part[:, 1])
            np.add.at(kernel, (base[:, 1] + dy + half, base[:, 0] + dx + half), weight)
    return (kernel / kernel.sum()).astype(np.float32)


def _moving_object(light: Pixels, extent: float, rng: Rng) -> Pixels:
    """One thing moves straight on before a still scene: its light and its outline are smeared together."""
    angle = _between(rng, 0, math.pi)
    reach = np.linspace(-extent / 2, extent / 2, max(8, int(extent * 4)))
    kernel = _kernel(np.stack([reach * math.cos(angle), reach * math.sin(angle)], axis=1))
    matte = _blurred(_blob((light.shape[0], light.shape[1]), _between(rng, 0.5, 1), rng), 1.0)[..., None]
    smeared = cv2.filter2D(np.concatenate([light * matte, matte], axis=2), -1, kernel)
    return light * (1 - smeared[..., 3:]) + smeared[..., :3]


def motion_blurry(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """Light summed along a path during the exposure, then a little sensor noise.

    Camera shake (the same or a changing path over the photo), a straight pan, or an object that moves. The
    path is up to 31 pixels wide at severity 1.
    """
    kind = _choice(rng, {"shake": 0.4, "changing shake": 0.25, "pan": 0.15, "object": 0.2})
    extent = 31 * severity**0.9 * _between(rng, 0.75, 1) * _scale(pixels)
    light = to_linear(pixels)
    path = _trajectory(
        extent * (0.3 if kind == "object" else 1), 0.02 if kind == "pan" else _between(rng, 0.1, 0.5), rng
    )
    blurred = cv2.filter2D(light, -1, _kernel(path))
    if kind == "changing shake":
        turn = _between(rng, -0.6, 0.6)
        turned = path @ np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        other = cv2.filter2D(light, -1, _kernel(turned * _between(rng, 0.2, 0.8)))
        share = _field((pixels.shape[0], pixels.shape[1]), 3, rng)[..., None]
        blurred += (other - blurred) * share
    elif kind == "object":
        blurred = _moving_object(blurred, extent * 1.4, rng)
    sigma = _between(rng, 0, 2) * min(1.0, 4 * severity) / 255
    noisy_values = to_stored(blurred) + np.float32(sigma) * rng.standard_normal(pixels.shape, np.float32)
    return noisy_values, {
        "kind": kind,
        "extent_pixels": round(extent, 2),
        "noise_8bit": round(sigma * 255, 2),
    }


# ---- hazy ----


def _guided(plane: Plane, guide: Plane, radius: int) -> Plane:
    """The plane smoothed so that its edges follow those of the guide (guided filter, He et al. 2010)."""
    mean = partial(cv2.blur, ksize=(2 * radius + 1, 2 * radius + 1))
    guide_mean, plane_mean = mean(guide), mean(plane)
    slope = (mean(guide * plane) - guide_mean * plane_mean) / (mean(guide * guide) - guide_mean**2 + 1e-3)
    return mean(slope) * guide + mean(plane_mean - slope * guide_mean)


def _depth(pixels: Pixels, rng: Rng) -> Plane:
    """A plausible distance of each pixel, mean 1: far at the top, one brightness at one distance."""
    shape = (pixels.shape[0], pixels.shape[1])
    luma = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    upward = _ramp(shape, -math.pi / 2 + _between(rng, -0.5, 0.5))
    radius = max(2, round(min(shape) / 24))
    heights = np.sort(rng.random(5)) + 0.3 * rng.random(5)  # brighter is farther, more often than not
    levels = np.interp(np.linspace(0, 1, 256), np.linspace(0, 1, 5), heights)
    things = np.take(levels.astype(np.float32), (cv2.blur(luma, (5, 5)) * 255).astype(np.uint8))
    depth = (
        _between(rng, 0.2, 2) * upward ** _between(rng, 0.7, 3)
        + _between(rng, 0, 0.8) * _field(shape, _between(rng, 2, 6), rng)
        + _between(rng, 0, 0.8) * things
        + _between(rng, 0.1, 0.8)
    )
    depth = np.maximum(_guided(depth.astype(np.float32), luma, radius), 0.02)
    return depth / depth.mean()


def hazy(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """Koschmieder's law, I = J t + A (1 - t), t = exp(-optical depth): mean optical depth up to about 2.

    In linear light, as nature has it, or in stored values, as the RESIDE benchmark has it.
    """
    space = _choice(rng, {"stored": 0.6, "linear": 0.4})
    thickness = 1.75 * severity**1.25 * _between(rng, 0.65, 1)
    airlight = _near_white(rng, 0.04 if _chance(rng, 0.7) else 0.1) * np.float32(_between(rng, 0.72, 1))
    through = np.exp(-np.float32(thickness) * _depth(pixels, rng))[..., None]
    if space == "linear":
        veiled = to_stored(to_linear(pixels) * through + to_linear(airlight) * (1 - through))
    else:
        veiled = pixels * through + airlight * (1 - through)
    return veiled, {"optical_depth": round(thickness, 3), "airlight": _listed(airlight), "light": space}


# ---- jpeg-compressed ----

_SUBSAMPLING = {
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
}


def _jpeg(pixels: Pixels, quality: int, subsampling: str) -> Pixels:
    """The pixels through libjpeg at a quality of 1 to 100."""
    stored = (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, _SUBSAMPLING[subsampling]]
    done, coded = cv2.imencode(".jpg", cv2.cvtColor(stored, cv2.COLOR_RGB2BGR), flags)
    if not done:
        height, width = pixels.shape[:2]
        raise UsageError(
            f"JPEG cannot hold {width} x {height} pixels", hint="cut the photo to at most 65,500"
        )
    decoded = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
    return decoded[..., ::-1].astype(np.float32) / np.float32(255)


def jpeg_compressed(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """A real JPEG coder at quality 100 (severity 0), 60 (0.17), 22 (0.5), 10 (0.77) to 5 (1)."""
    quality = max(5, round(100 * 0.05**severity))
    subsampling = _choice(rng, {"4:2:0": 0.65, "4:4:4": 0.25, "4:2:2": 0.1})
    return _jpeg(pixels, quality, subsampling), {"quality": quality, "subsampling": subsampling}


# ---- low-light and noisy ----


def _sensor_noise(light: Pixels, shot: float, read: float, rng: Rng) -> Pixels:
    """Noise of a sensor in linear light: variance shot * light + read^2, normal draws."""
    deviation = np.sqrt(np.maximum(light, 0) * np.float32(shot) + np.float32(read * read))
    return deviation * rng.standard_normal(light.shape, np.float32)


def low_light(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """Too little light: exposure down to 1/120 in linear light, a colour cast, shot and read noise, 8 bits.

    Bright places lose less: there the clean photo had compressed the light that its tone curve could not
    hold. A pedestal (stray light, black level) lifts the deepest shadows. Both as measured on real dark and
    light pairs.
    """
    exposure = math.exp(-math.log(120) * severity**0.65 * _between(rng, 0.85, 1))
    cast = _near_white(rng, 0.3 * severity)
    highlights = _between(rng, 0, 5) * severity
    pedestal = _between(rng, 0, 5e-4) * severity
    shot, read = severity * 10 ** _between(rng, -5, -3.7), severity * 10 ** _between(rng, -4, -3.1)
    grain = _between(rng, 0, 0.8)
    light = to_linear(pixels)
    light = light * (1 + np.float32(highlights) * np.max(light, axis=2, keepdims=True) ** 7)
    light = light * (cast * np.float32(exposure)) + np.float32(pedestal)
    noise = _sensor_noise(light, shot, read, rng) * np.array([1.5, 1, 1.5], np.float32)
    return _rounded(to_stored(light + _blurred(noise, grain))), {
        "exposure": round(exposure, 4),
        "cast": _listed(cast),
        "highlights": round(highlights, 2),
        "pedestal": round(pedestal, 6),
        "shot": round(shot, 7),
        "read": round(read, 6),
        "grain_pixels": round(grain, 2),
    }


def _gaussian_noise(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    sigma = 60 * severity * _between(rng, 0.8, 1)
    grey = _chance(rng, 0.1)
    shape = (*pixels.shape[:2], 1 if grey else 3)
    noisy_values = pixels + np.float32(sigma / 255) * rng.standard_normal(shape, np.float32)
    truncated = _chance(rng, 0.3)
    if truncated:  # published: stored as 8 bits by truncation
        noisy_values = np.floor(np.clip(noisy_values, 0, 1) * 255) / np.float32(255)
    return noisy_values, {"sigma_8bit": round(sigma, 2), "grey": grey, "truncated": truncated}


def _poisson_noise(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    # at mid grey (0.5) the deviation is sqrt(0.5 / photons), so this matches sigma = 50 * severity there
    sigma = 50 / 255 * severity * _between(rng, 0.8, 1)
    photons = 0.5 / max(sigma, 1e-3) ** 2
    counts = rng.poisson(pixels * np.float32(photons))
    return (counts / photons).astype(np.float32), {"photons": round(photons, 1)}


def _camera_noise(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """Sensor noise in linear light with white-balance gains, spread over neighbours and channels.

    Measured on real photos: correlation 0.6-0.75 with the next pixel, 0.2-0.5 with the next but two, 0.3-0.85
    between channels; least noise in the highlights, where the tone curve is flat.
    """
    light = to_linear(pixels)
    shot, read = severity**2 * 10 ** _between(rng, -2.4, -1.8), severity**2 * 10 ** _between(rng, -3.2, -2.3)
    grain, blotch = _between(rng, 0.55, 0.95), _between(rng, 0.1, 0.8)
    shared = _between(rng, 0.1, 0.65)
    gains = np.array([_between(rng, 1.1, 1.9), 1, _between(rng, 1.1, 1.9)], np.float32)
    noise = _sensor_noise(light, shot, read, rng)
    noise += (noise[..., 1:2] - noise) * np.float32(shared)
    # a blur of deviation s leaves 1 / (2 s sqrt(pi)) of the deviation of white noise
    noise = _blurred(noise, grain) * np.float32(3.5 * grain)
    noise += _blurred(noise, 2.0) * np.float32(4 * blotch)
    return to_stored(light + noise * gains), {
        "shot": round(shot, 6),
        "read": round(read, 6),
        "grain_pixels": round(grain, 2),
        "blotch": round(blotch, 2),
        "shared": round(shared, 2),
    }


def noisy(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """Gaussian noise (some of it grey, or truncated), Poisson noise, or a camera's correlated noise."""
    kind = _choice(rng, {"gaussian": 0.45, "camera": 0.4, "poisson": 0.15})
    noisy_values, parameters = _NOISES[kind](pixels, severity, rng)
    return noisy_values, {"kind": kind, **parameters}


_NOISES: dict[str, Degrade] = {
    "gaussian": _gaussian_noise,
    "poisson": _poisson_noise,
    "camera": _camera_noise,
}


# ---- raindrop ----


def _drop_outlines(
    shape: tuple[int, int], drops: Float32[np.ndarray, "n 3"], rng: Rng
) -> tuple[Plane, Int32[np.ndarray, "h w"]]:
    """How much of each pixel is drop, and whose: round outlines with two and three lobes and soft edges.

    Each row of `drops` is a centre x, y and a radius in pixels.
    """
    cover, owner = np.zeros(shape, np.float32), np.zeros(shape, np.int32)
    lobes = rng.random((len(drops), 2)) * (0.2, 0.12) * np.exp(2j * math.pi * rng.random((len(drops), 2)))
    for index, ((x, y, radius), (two, three)) in enumerate(
        zip(drops.tolist(), lobes.astype(np.complex64), strict=True)
    ):
        top, bottom = max(0, int(y - 1.4 * radius)), min(shape[0], int(y + 1.4 * radius) + 2)
        left, right = max(0, int(x - 1.4 * radius)), min(shape[1], int(x + 1.4 * radius) + 2)
        dx, dy = np.arange(left, right, dtype=np.float32) - x, np.arange(top, bottom, dtype=np.float32) - y
        place = (dx[None, :] + 1j * dy[:, None]) / radius
        distance = np.abs(place)
        around = place / np.maximum(distance, 1e-6)
        outline = 1 + (around * around * (two + three * around)).real
        inside = np.minimum((1 - distance / outline) * 4, 1)
        mine = inside > cover[top:bottom, left:right]
        np.copyto(cover[top:bottom, left:right], inside, where=mine, casting="same_kind")
        np.copyto(owner[top:bottom, left:right], index, where=mine)
    return cover, owner


def _through_drops(
    light: Pixels, drops: Float32[np.ndarray, "n 3"], owner: Int32[np.ndarray, "h w"], bright: float
) -> Pixels:
    """What each pixel shows where its drop covers it: the scene around the drop, upside down and shrunken.

    Upside down means that the sky fills the lower half, all the more as much of it lies beyond the photo.
    """
    height, width = owner.shape
    x, y, radius = drops.T[:, owner]
    dx = (np.arange(width, dtype=np.float32) - x) / radius
    dy = (np.arange(height, dtype=np.float32)[:, None] - y) / radius
    reach = np.float32(0.4 * min(height, width))
    small = cv2.resize(light, (max(1, width // 4), max(1, height // 4)), interpolation=cv2.INTER_AREA)
    seen = cv2.remap(
        _blurred(small, 1.5),
        (x - dx * reach) / 4,
        (y - dy * reach) / 4,
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    low = np.clip(0.5 + 0.5 * dy, 0, 1)[..., None]
    return seen * (0.4 + 0.6 * low) + (_sky(light) - seen) * (np.float32(bright) * low)


def _sky(light: Pixels) -> Float32[np.ndarray, "3"]:
    """The light of the brightest twentieth of the photo."""
    return np.quantile(light[::4, ::4].reshape(-1, 3), 0.95, axis=0).astype(np.float32)


def _drops(shape: tuple[int, int], cover: float, radius: float, rng: Rng) -> Float32[np.ndarray, "n 3"]:
    """Places and radii of drops that cover about a share of the photo: x, y, radius in pixels."""
    count = max(1, round(cover * shape[0] * shape[1] / (1.8 * math.pi * radius**2)))
    radii = np.clip(radius * np.exp(0.5 * rng.standard_normal(count)), 1.2, 5 * radius)
    drops = [rng.random(count) * shape[1], rng.random(count) * shape[0], radii]
    return np.stack(drops, axis=1).astype(np.float32)


def raindrop(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """Drops on a pane before the lens: each shows the scene upside down, small, out of focus, soft-edged.

    Upside down means the light of the sky fills their lower half, so they are brighter than the scene and
    dark at the top. All drops of a photo share one defocus. The pane between them is wet and a little blurred
    in places.
    """
    shape = (pixels.shape[0], pixels.shape[1])
    scale = _scale(pixels)
    light = to_linear(pixels)
    radius = _between(rng, 3, 13) * (0.6 + 0.4 * severity) * scale
    drops = _drops(shape, severity * _between(rng, 0.35, 0.7), radius, rng)
    cover, owner = _drop_outlines(shape, drops, rng)
    bright = _between(rng, 0.2, 0.9)
    seen = _through_drops(light, drops, owner, bright)
    defocus = radius * _between(rng, 0.15, 0.8)
    opacity = np.float32(_between(rng, 0.7, 1) * min(1.0, 0.5 + severity))
    layer = _blurred(np.concatenate([seen * cover[..., None], cover[..., None]], axis=2), defocus) * opacity
    wet = (_field(shape, 4, rng) * np.float32(severity * _between(rng, 0.2, 1)))[..., None]
    scene = light + (_blurred(light, 2 * scale) - light) * wet
    scene += (_sky(light) - scene) * np.float32(0.08) * wet
    return to_stored(scene * (1 - layer[..., 3:]) + layer[..., :3]), {
        "drops": len(drops),
        "radius_pixels": round(radius, 1),
        "defocus_pixels": round(defocus, 2),
        "brightening": round(bright, 2),
    }


# ---- rainy and snowy ----


def _streaks(
    shape: tuple[int, int], *, density: float, length: float, thickness: float, angle: float, rng: Rng
) -> Plane:
    """A layer of parallel streaks, each up to 1; `density` per pixel, `angle` in degrees off vertical."""
    height, width = shape
    side = int(math.hypot(height, width)) + 3
    canvas = np.zeros(side * side, np.float32)
    count = max(1, int(density * side * side))
    canvas[rng.integers(side * side, size=count)] = rng.random(count, np.float32) * np.float32(
        0.7
    ) + np.float32(0.3)
    rows = max(1, round(length))
    streaks = cv2.boxFilter(canvas.reshape(side, side), -1, (1, rows), normalize=False)
    streaks = cv2.blur(streaks, (1, max(1, rows // 3)))  # ends fade
    if thickness > 0.3:
        streaks = cv2.GaussianBlur(streaks, (0, 0), sigmaX=thickness, sigmaY=0.3) * np.float32(
            1.6 * thickness
        )
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), angle, 1.0)
    turn[:, 2] -= ((side - width) / 2, (side - height) / 2)
    return cv2.warpAffine(
        streaks, turn, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )


def rainy(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """Streaks of falling drops at several depths: far ones fine and dense, near ones long and wide.

    Additive in stored values (light as Rain100L at severity 0.3, heavy as Rain100H near 1) or, as in real
    photos, translucent in linear light with a veil of far rain.
    """
    shape = (pixels.shape[0], pixels.shape[1])
    scale = _scale(pixels)
    kind = _choice(rng, {"additive": 0.6, "veiled": 0.4})
    layers = int(rng.integers(1, 4))
    angle, length = _between(rng, -35, 35), _between(rng, 12, 50) * scale
    rain = np.zeros(shape, np.float32)
    for _ in range(layers):
        near = float(rng.random())
        stretch = length * (0.5 + near)
        streaks = _streaks(
            shape,
            density=severity**1.5 * (1.5 - near) * _between(rng, 0.2, 0.65) / stretch / scale / layers**0.5,
            length=stretch,
            thickness=(0.4 + 0.9 * near * _between(rng, 0.6, 1.4)) * scale,
            angle=angle + _between(rng, -4, 4),
            rng=rng,
        )
        rain += streaks * np.float32(0.5 + 0.5 * near)
    strength = severity**0.5 * _between(rng, 0.6, 1)
    rain = np.minimum(rain * np.float32(strength), 1)[..., None]
    parameters: Parameters = {"kind": kind, "layers": layers, "angle_degrees": round(angle, 1)}
    parameters |= {"length_pixels": round(length, 1), "strength": round(strength, 2)}
    if kind == "additive":
        return pixels + rain, parameters
    veil = 0.55 * severity * float(rng.random())
    light = to_linear(pixels)
    sky = _near_white(rng, 0.06) * np.float32(_between(rng, 0.5, 0.9))
    light += (sky - light) * (np.float32(veil) * (0.6 + 0.4 * _field(shape, 3, rng)))[..., None]
    light += (np.maximum(sky, light) - light) * rain * np.float32(0.8)
    return to_stored(light), {**parameters, "veil": round(veil, 2)}


def _flakes(shape: tuple[int, int], radius: float, cover: float, rng: Rng) -> Plane:
    """Round and oval flakes of about one radius, of many opacities, that cover about a share of the photo."""
    height, width = shape
    canvas = np.zeros(shape, np.uint8)
    count = max(1, round(cover * height * width / (math.pi * radius**2)))
    xs, ys = rng.random(count) * width * 16, rng.random(count) * height * 16
    sizes = radius * 16 * np.exp(0.35 * rng.standard_normal(count))
    shades, ovals, turns = (
        rng.integers(90, 256, count),
        rng.random(count) * 0.6 + 0.4,
        rng.random(count) * 180,
    )
    for x, y, size, shade, oval, turn in zip(xs, ys, sizes, shades, ovals, turns, strict=True):
        axes = (max(8, int(size)), max(8, int(size * oval)))
        cv2.ellipse(canvas, (int(x), int(y)), axes, float(turn), 0, 360, int(shade), -1, cv2.LINE_AA, 4)
    return canvas.astype(np.float32) / np.float32(255)


def snowy(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """Flakes at several distances, blurred by defocus and fall, over a veil of flakes too far to be seen."""
    shape = (pixels.shape[0], pixels.shape[1])
    scale = _scale(pixels)
    angle, fall = _between(rng, -45, 45), _between(rng, 0, 3)
    clear = np.ones(shape, np.float32)
    sizes = {"small": 0.9, "medium": 2.2, "large": 6.0}
    covers = {"small": 0.07, "medium": 0.06, "large": 0.07}
    parameters: Parameters = {"angle_degrees": round(angle, 1), "fall": round(fall, 2)}
    for size, radius in sizes.items():
        cover = covers[size] * severity * _between(rng, 0.2, 1.6)
        actual = radius * _between(rng, 0.7, 1.5) * scale
        if actual < 1.6:
            layer = _streaks(
                shape, density=cover / 3, length=1 + fall * 1.5, thickness=0.6, angle=angle, rng=rng
            )
        else:
            reach = fall * actual * 0.6
            layer = _flakes(shape, actual, cover, rng)
            layer = _blurred(_smeared(layer, reach, angle), actual * _between(rng, 0.1, 0.5))
        clear *= 1 - np.minimum(layer, 1) * np.float32(0.5 + 0.5 * severity)
        parameters |= {f"{size}_cover": round(cover, 3)}
    veil = 0.5 * severity**1.3 * float(rng.random())
    white = _near_white(rng, 0.04) * np.float32(_between(rng, 0.7, 1))
    light = to_linear(pixels)
    light += (white * np.float32(0.8) - light) * (np.float32(veil) * (0.5 + 0.5 * _field(shape, 3, rng)))[
        ..., None
    ]
    light += (white - light) * (1 - clear)[..., None]
    return to_stored(light), {**parameters, "veil": round(veil, 2)}


def _smeared(plane: Plane, reach: float, angle: float) -> Plane:
    """The plane moved along a straight line; the angle is degrees off vertical."""
    if reach < 1:
        return plane
    steps = np.linspace(-reach / 2, reach / 2, max(3, int(reach * 3)))
    turn = math.radians(angle)
    return cv2.filter2D(
        plane, -1, _kernel(np.stack([steps * math.sin(turn), steps * math.cos(turn)], axis=1))
    )


# ---- shadowed ----


def _polygon(shape: tuple[int, int], size: float, rng: Rng) -> UInt8[np.ndarray, "h w"]:
    """A filled star-shaped polygon of a size relative to the shorter side, anywhere, also over the border."""
    height, width = shape
    count = int(rng.integers(3, 11))
    angles = np.sort(rng.random(count)) * 2 * math.pi
    radii = size * min(shape) * (0.4 + 0.6 * rng.random(count))
    corners = np.stack(
        [
            _between(rng, 0, 1) * width + radii * np.cos(angles) * _between(rng, 0.6, 1.6),
            _between(rng, 0, 1) * height + radii * np.sin(angles) * _between(rng, 0.6, 1.6),
        ],
        axis=1,
    )
    mask = np.zeros(shape, np.uint8)
    return cv2.fillPoly(mask, [np.round(corners * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)


def _blob(shape: tuple[int, int], size: float, rng: Rng) -> Plane:
    """A round thing with a wavy outline, 1 inside and 0 outside."""
    height, width = shape
    count = 48
    angles = np.linspace(0, 2 * math.pi, count, endpoint=False)
    radii = np.ones(count)
    for k in (1, 2, 3, 4):
        radii += 0.35 / k * _between(rng, -1, 1) * np.cos(k * angles + _between(rng, 0, 6.3))
    radii *= size * min(shape) / 2
    x = _between(rng, 0.1, 0.9) * width + radii * np.cos(angles) * _between(rng, 0.7, 1.4)
    y = _between(rng, 0.1, 0.9) * height + radii * np.sin(angles) * _between(rng, 0.7, 1.4)
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [np.round(np.stack([x, y], axis=1) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return mask.astype(np.float32) / np.float32(255)


def _branches(shape: tuple[int, int], rng: Rng) -> Plane:
    """The shadow of a tree: a trunk that forks several times, with or without leaves."""
    height, width = shape
    mask = np.zeros(shape, np.uint8)
    side = min(shape)
    turned = _between(rng, 0, 2 * math.pi)
    start = (width / 2 - math.cos(turned) * width * 0.6, height / 2 - math.sin(turned) * height * 0.6)
    stems = [(*start, turned, side * _between(rng, 0.3, 0.5), side * _between(rng, 0.02, 0.08))]
    leaves = _chance(rng, 0.5)
    for _ in range(5):
        forks: list[tuple[float, float, float, float, float]] = []
        for x, y, heading, length, thickness in stems:
            end = (x + math.cos(heading) * length, y + math.sin(heading) * length)
            line = [(int(x * 16), int(y * 16)), (int(end[0] * 16), int(end[1] * 16))]
            cv2.line(mask, line[0], line[1], 255, max(1, round(thickness)), cv2.LINE_AA, 4)
            if leaves:
                cv2.circle(mask, line[1], int(16 * length * _between(rng, 0.1, 0.3)), 255, -1, cv2.LINE_AA, 4)
            forks += [
                (*end, heading + turn, length * _between(rng, 0.55, 0.9), thickness * 0.65)
                for turn in (_between(rng, -0.8, -0.1), _between(rng, 0.1, 0.8))
            ]
        stems = forks
    return mask.astype(np.float32) / np.float32(255)


def _shadow_shape(kind: str, shape: tuple[int, int], rng: Rng) -> Plane:
    """A hard-edged shadow of the named kind, 1 in the shade."""
    if kind == "polygon":
        return _polygon(shape, _between(rng, 0.35, 0.9), rng).astype(np.float32) / np.float32(255)
    if kind == "blob":
        return np.maximum(
            _blob(shape, _between(rng, 0.3, 0.8), rng), _blob(shape, _between(rng, 0.15, 0.5), rng)
        )
    if kind == "tree":
        return _branches(shape, rng)
    if kind == "edge":
        ramp = _ramp(shape, _between(rng, 0, 2 * math.pi))
        return (ramp > _between(rng, 0.3, 0.7)).astype(np.float32)
    if kind == "bars":
        ramp = _ramp(shape, _between(rng, 0, math.pi)) * np.float32(_between(rng, 3, 9))
        return (ramp % 1 < _between(rng, 0.3, 0.6)).astype(np.float32)
    field = _field(shape, _between(rng, 3, 14), rng)
    return (field > np.float32(_between(rng, 0.4, 0.55))).astype(np.float32)


def _shadow_where_light_is(kind: str, light: Pixels, rng: Rng) -> Plane:
    """A shadow of the named kind over 8 to 75 % of the photo's light; after twelve tries, the last one."""
    luma = light.mean(axis=2)
    total = max(float(luma.sum()), 1e-6)
    mask = luma
    for _ in range(12):
        mask = _shadow_shape(kind, (light.shape[0], light.shape[1]), rng)
        if 0.08 <= float((mask * luma).sum()) / total <= 0.75:
            break
    return mask


def shadowed(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """A cast shadow: inside it only the light of the sky is left, bluer and down to a fifth, in linear light.

    The edge is sharp where the thing is near and soft where it is far.
    """
    shape = (pixels.shape[0], pixels.shape[1])
    kind = _choice(
        rng, {"polygon": 0.25, "blob": 0.25, "tree": 0.15, "edge": 0.15, "dapple": 0.12, "bars": 0.08}
    )
    light = to_linear(pixels)
    mask = _shadow_where_light_is(kind, light, rng)
    sharp, soft = _between(rng, 0.5, 2) * _scale(pixels), _between(rng, 2, 9) * _scale(pixels)
    far = _ramp(shape, _between(rng, 0, 2 * math.pi))
    edge = _blurred(mask, sharp)
    edge += (_blurred(mask, soft) - edge) * far
    left = math.exp(-severity * _between(rng, 1.1, 2.1))
    blue = _between(rng, 0, 0.35) * severity
    ambient = np.array([left * (1 - blue), left, min(1.0, left * (1 + blue))], np.float32)
    light *= 1 - edge[..., None] * (1 - ambient)
    return to_stored(light), {
        "kind": kind,
        "light_left": _listed(ambient),
        "edge_pixels": [round(sharp, 1), round(soft, 1)],
        "share": round(float(mask.mean()), 3),
    }


# ---- uncompleted ----


def _strokes(
    shape: tuple[int, int], missing: float, thickness: tuple[Number, Number], rng: Rng
) -> UInt8[np.ndarray, "h w"]:
    """Zigzag strokes with round ends, drawn until a share of the photo is covered; 255 = missing.

    The thickness is drawn from a range relative to the shorter side.
    """
    height, width = shape
    side = min(shape)
    mask = np.zeros(shape, np.uint8)
    for _ in range(400):  # far more than it takes; an end for photos of a few pixels
        x, y = _between(rng, 0, width), _between(rng, 0, height)
        heading = _between(rng, 0, 2 * math.pi)
        thick = max(1, round(side * _between(rng, *thickness)))
        for _ in range(int(rng.integers(1, 6))):
            length = side * _between(rng, 0.04, 0.22)
            end = (x + math.cos(heading) * length, y + math.sin(heading) * length)
            cv2.line(mask, (round(x), round(y)), (round(end[0]), round(end[1])), 255, thick)
            if cv2.countNonZero(mask) >= missing * mask.size:
                return mask
            x, y = end
            heading += _between(rng, -1.2, 1.2) + (math.pi if _chance(rng, 0.3) else 0)
    return mask


def _boxes(shape: tuple[int, int], missing: float, rng: Rng) -> UInt8[np.ndarray, "h w"]:
    """Rectangles that cover a share of the photo together; 255 = missing."""
    height, width = shape
    mask = np.zeros(shape, np.uint8)
    largest = math.sqrt(missing) * _between(rng, 0.4, 1)
    for _ in range(200):
        tall, wide = (max(1, round(side * largest * _between(rng, 0.4, 1))) for side in shape)
        top, left = (
            round(_between(rng, -tall / 2, height - tall / 2)),
            round(_between(rng, -wide / 2, width - wide / 2)),
        )
        mask[max(0, top) : max(0, top + tall), max(0, left) : max(0, left + wide)] = 255
        if cv2.countNonZero(mask) >= missing * mask.size:
            break
    return mask


_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789&@%!?"


def _writing(shape: tuple[int, int], missing: float, rng: Rng) -> UInt8[np.ndarray, "h w"]:
    """Lines of random writing over the photo; 255 = missing. More is missing with more and bolder lines."""
    height, width = shape
    mask = np.zeros(shape, np.uint8)
    fonts = (
        cv2.FONT_HERSHEY_SIMPLEX,
        cv2.FONT_HERSHEY_DUPLEX,
        cv2.FONT_HERSHEY_TRIPLEX,
        cv2.FONT_HERSHEY_COMPLEX,
    )
    for _ in range(60):
        size = min(shape) / 256 * _between(rng, 0.4, 1.6)
        thick = max(1, round(size * 2 * (1 + 3 * missing)))
        text = "".join(
            _LETTERS[i] if i < len(_LETTERS) else " " for i in rng.integers(len(_LETTERS) + 8, size=40)
        )
        at = (round(_between(rng, -0.3, 0.5) * width), round(_between(rng, 0, 1.05) * height))
        cv2.putText(mask, text, at, fonts[int(rng.integers(4))], size, 255, thick)
        if cv2.countNonZero(mask) >= missing * mask.size:
            break
    return mask


_FILLS = {"white": 0.62, "black": 0.12, "grey": 0.06, "colour": 0.1, "noise": 0.1}


def _fill(kind: str, shape: tuple[int, int], rng: Rng) -> Float32[np.ndarray, "#h #w 3"]:
    """What stands in the missing places."""
    if kind == "noise":
        return rng.random((*shape, 3), np.float32)
    if kind == "colour":
        return rng.random((1, 1, 3), np.float32)
    return np.full((1, 1, 3), {"white": 1.0, "black": 0.0, "grey": 0.5}[kind], np.float32)


def uncompleted(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """Parts of the photo are gone, up to half: strokes, scratches, boxes or writing, mostly white."""
    shape = (pixels.shape[0], pixels.shape[1])
    kind = _choice(rng, {"strokes": 0.55, "scratches": 0.15, "boxes": 0.15, "writing": 0.15})
    missing = severity * _between(rng, 0.35, 0.5) * (0.5 if kind in ("scratches", "writing") else 1)
    if kind == "strokes":
        mask = _strokes(shape, missing, (0.02, 0.08), rng)
    elif kind == "scratches":
        mask = _strokes(shape, missing, (0.004, 0.012), rng)
    elif kind == "boxes":
        mask = _boxes(shape, missing, rng)
    else:
        mask = _writing(shape, missing, rng)
    fill = _choice(rng, _FILLS)
    gone = (mask > 0)[..., None]
    return np.where(gone, _fill(fill, shape, rng), pixels), {
        "kind": kind,
        "fill": fill,
        "missing": round(float(gone.mean()), 3),
    }


# ---- the paper's protocol ----


def _paper_noisy(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """Noise of sigma 50/255, clipped; severity is not used."""
    noise = rng.standard_normal(pixels.shape, np.float32)
    values = np.clip(pixels + np.float32(50 / 255) * noise, 0, 1)
    # published: stored as 8 bits by truncation, which darkens by about 0.42 levels
    return np.floor(values * 255) / np.float32(255), {"sigma_8bit": 50.0}


def _paper_jpeg(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """OpenCV's coder at quality 10, its own 4:2:0; severity is not used."""
    return _jpeg(pixels, 10, "4:2:0"), {"quality": 10, "subsampling": "4:2:0"}


def _paper_uncompleted(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """Thick strokes with round ends, white, 3.5 to 50 % missing, 30 % on average; severity is not used."""
    missing = 0.035 + 0.465 * float(rng.beta(2.0, 1.5))
    mask = _strokes((pixels.shape[0], pixels.shape[1]), missing, (0.035, 0.053), rng)
    gone = (mask > 0)[..., None]
    return np.where(gone, np.float32(1), pixels), {"missing": round(float(gone.mean()), 3)}


def _heavy(pixels: Pixels, severity: float, rng: Rng, *, name: str) -> tuple[Pixels, Parameters]:
    """The degradation about as heavy as its benchmark of the paper's Table 1; severity is not used."""
    return DEGRADE[name](pixels, _between(rng, *_BENCHMARK_SEVERITY[name]), rng)


_BENCHMARK_SEVERITY: dict[str, tuple[float, float]] = {
    "motion-blurry": (0.3, 0.9),
    "hazy": (0.4, 1.0),
    "low-light": (0.6, 1.0),
    "raindrop": (0.4, 1.0),
    "rainy": (0.8, 1.0),
    "shadowed": (0.4, 1.0),
    "snowy": (0.7, 1.0),
}


# ---- the random degradation of wild-IR (PAPER 1.5) ----


def _radius_and_angle(
    size: int,
) -> tuple[Float[np.ndarray, "k k"], Float[np.ndarray, "k k"], Float[np.ndarray, "k k"]]:
    """Distance from the middle tap, and its x and y parts, in pixels."""
    at = np.arange(size) - size // 2
    x, y = np.meshgrid(at, at)
    return np.hypot(x, y), x.astype(np.float64), y.astype(np.float64)


def _low_pass(size: int, rng: Rng) -> Float[np.ndarray, "k k"]:
    """A circular low-pass kernel, wc J1(wc r) / (2 pi r): its side lobes leave rings beside edges."""
    cutoff = _between(rng, math.pi / (3 if size < 13 else 5), math.pi)
    r = _radius_and_angle(size)[0]
    tau = (np.arange(64) + 0.5) * math.pi / 64  # J1 by its integral, exact to rounding for arguments below 60
    bessel = np.cos(tau - cutoff * r[..., None] * np.sin(tau)).mean(axis=-1)
    middle = cutoff**2 / (4 * math.pi)
    return np.where(r > 0, cutoff * bessel / (2 * math.pi * np.maximum(r, 1e-9)), middle)


def _bell(size: int, kind: str, sigma: tuple[float, float], rng: Rng) -> Float[np.ndarray, "k k"]:
    """Gaussian exp(-q/2), generalised exp(-q^beta/2), plateau 1/(1+q^beta); q: squared distance in sigmas."""
    _, x, y = _radius_and_angle(size)
    family, form = kind.split()
    sigma_x = _between(rng, *sigma)
    sigma_y, angle = (
        (_between(rng, *sigma), _between(rng, -math.pi, math.pi)) if form == "anisotropic" else (sigma_x, 0.0)
    )
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    q = (along / sigma_x) ** 2 + (across / sigma_y) ** 2
    if family == "plateau":
        return 1 / (1 + q ** (1.0 if _chance(rng, 0.5) else _between(rng, 1, 1.5)))
    beta = 1.0
    if family == "generalised":
        beta = _between(rng, 0.5, 1) if _chance(rng, 0.5) else _between(rng, 1, 2)
    return np.exp(-(q**beta) / 2) * (0.9 + 0.2 * rng.random(q.shape))


_IR_KERNELS = {
    "gaussian isotropic": 0.35,
    "gaussian anisotropic": 0.2,
    "generalised isotropic": 0.1,
    "generalised anisotropic": 0.03,
    "plateau isotropic": 0.1,
    "plateau anisotropic": 0.03,
    "disk": 0.1,
    "box": 0.03,
    "line": 0.03,
    "shake": 0.03,
}


def _ir_kernel(size: int, sigma: tuple[float, float], rng: Rng) -> Float[np.ndarray, "k k"]:
    """One of the ten kinds of blur, not yet normalised.

    published: the last kind is a list of recorded camera paths that is not in the repository; ours are drawn.
    """
    kind = _choice(rng, _IR_KERNELS)
    if kind == "disk":
        return (_radius_and_angle(size)[0] <= size / 2).astype(np.float64)
    if kind == "box":
        return np.ones((size, size))
    if kind == "line":
        length, angle = (size - 10 if size > 15 else size), _between(rng, 0, math.pi)
        at = np.linspace(-0.5, 0.5, 8 * length) * (length - 1)
        return _kernel(np.stack([at * math.cos(angle), at * math.sin(angle)], axis=1)).astype(np.float64)
    if kind == "shake":
        return _kernel(_trajectory(size - 3, 0.3, rng)).astype(np.float64)
    return _bell(size, kind, sigma, rng)


def _wiener(pixels: Pixels, kernel: Float[np.ndarray, "k k"]) -> Pixels:
    """The pixels with the kernel taken out again, assuming a noise power of 0.006; this too leaves rings."""
    padded = np.pad(pixels, ((20, 20), (20, 20), (0, 0)), mode="symmetric")
    response = np.zeros(padded.shape[:2])
    half = kernel.shape[0] // 2
    response[: kernel.shape[0], : kernel.shape[0]] = kernel
    transfer = np.fft.rfft2(np.roll(response, (-half, -half), (0, 1)))[..., None]
    spectrum = np.fft.rfft2(padded, axes=(0, 1)) * np.conj(transfer) / (np.abs(transfer) ** 2 + 0.006)
    restored = np.fft.irfft2(spectrum, s=padded.shape[:2], axes=(0, 1))
    return np.clip(restored[20:-20, 20:-20], 0, 1).astype(np.float32)


def _ir_blur(
    pixels: Pixels, *, largest: int, rings: float, sigma: tuple[float, float], rng: Rng, names: set[str]
) -> Pixels:
    """A random blur; with a share of `rings` a low-pass kernel, and now and then deconvolved again."""
    size = 5 + 2 * int(rng.integers(largest - 2))
    names.add("blur")
    low_pass = _chance(rng, rings)
    kernel = _low_pass(size, rng) if low_pass else _ir_kernel(size, sigma, rng)
    kernel = kernel / kernel.sum()
    blurred = cv2.filter2D(pixels, -1, kernel.astype(np.float32))
    if low_pass:
        names.add("ringing artifact")
    elif _chance(rng, 0.1) and size < 8:
        names.add("ringing artifact")
        sharpened = _wiener(blurred, kernel)
        share = np.float32(_between(rng, 0.1, 0.5) if _chance(rng, 0.1) else 0)
        blurred = share * blurred + (1 - share) * sharpened
    return np.clip(blurred, 0, 1)


def _ir_noise(pixels: Pixels, rng: Rng, names: set[str]) -> Pixels:
    """Weak Gaussian and Poisson noise, each coloured or grey, stored as 8 bits."""
    names.add("noise")
    values = pixels
    if _chance(rng, 0.6):
        sigma, shape = _between(rng, 1, 5) / 255, (*pixels.shape[:2], 1 if _chance(rng, 0.4) else 3)
        values = values + np.float32(sigma) * rng.standard_normal(shape, np.float32)
    if _chance(rng, 0.4):
        share = _between(rng, 0.01, 0.5)
        source = _rounded(pixels.mean(axis=2, keepdims=True) if _chance(rng, 0.4) else pixels)
        levels = 2.0 ** math.ceil(math.log2(len(np.unique(source))))
        values = values + ((rng.poisson(source * levels) / levels - source) * share).astype(np.float32)
    return _rounded(values)


_INTERPOLATIONS = (cv2.INTER_AREA, cv2.INTER_CUBIC, cv2.INTER_LINEAR)


def _ir_resize(
    pixels: Pixels, height: int, width: int, rng: Rng, names: set[str]
) -> Float32[np.ndarray, "{max(1,height)} {max(1,width)} 3"]:
    """The pixels at another size."""
    names.add("blur")
    kind = _INTERPOLATIONS[int(rng.integers(3))]
    return np.clip(cv2.resize(pixels, (max(1, width), max(1, height)), interpolation=kind), 0, 1)


def _wild_ir(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """Three stages of blur, resizing, noise and JPEG in random order; severity is not used.

    published: one blur in ten is that of an under-display camera whose measured kernel is not in the
    repository; it is left out.
    """
    height, width = pixels.shape[:2]
    names: set[str] = set()
    values = pixels
    orders = [[list(steps)[int(i)] for i in rng.permutation(len(steps))] for steps in ("brnj", "bn", "brj")]
    resized = _chance(rng, 0.8)
    for stage, order in enumerate(orders):
        for step in order:
            if step == "b" and _chance(rng, (0.8, 0.4, 0.8)[stage]):
                sigma = ((0.2, 2.2), (0.2, 1.5), (0.2, 1.0))[stage]
                largest, rings = (10, 5, 10)[stage], (0.1, 0.1, 0.8)[stage]
                values = _ir_blur(values, largest=largest, rings=rings, sigma=sigma, rng=rng, names=names)
            elif step == "r" and resized:
                factor = _between(rng, 0.5, 1.4) if stage == 0 else 1.0
                values = _ir_resize(values, int(height * factor), int(width * factor), rng, names)
            elif step == "n" and _chance(rng, (0.4, 0.2)[stage]):
                values = _ir_noise(values, rng, names)
            elif step == "j" and _chance(rng, 0.4):
                names.add("jpeg block")
                quality = int(_between(rng, 60, 95) if stage == 0 else _between(rng, 80, 100))
                values = _jpeg(values, quality, "4:2:0")
    return values, {"names": [name for name in WILD_IR_NAMES if name in names]}


WILD_IR_NAMES = ("blur", "ringing artifact", "noise", "jpeg block")
"""The words of wild-IR's texts, in the order of its log."""


# ---- doors ----


def _applied(pixels: Pixels, part: Part) -> tuple[Pixels, Parameters]:
    """The pixels after one part; untouched at severity 0 of the wild settings. A grey photo stays grey."""
    rng = np.random.Generator(np.random.PCG64(part["seed"]))
    if part["settings"] == "wild" and part["severity"] == 0:
        return pixels, {}
    function = _SETTINGS[part["settings"]][part["name"]]
    degraded, parameters = function(pixels, part["severity"], rng)
    if part["settings"] == "wild" and (pixels == pixels[..., :1]).all():
        degraded = np.repeat(degraded.mean(axis=2, keepdims=True), 3, axis=2)
    return np.clip(degraded, 0, 1), parameters


def _finished(clean: Pixels, pixels: Pixels, parts: list[Part]) -> Degraded:
    """The degraded pixels as they would be stored, with their record; untouched ones keep their depth."""
    names = tuple(name for part in parts for name in part["parameters"].get("names", [part["name"]]))
    stored = clean.copy() if pixels is clean else _rounded(pixels)
    return Degraded(pixels=stored, record={"names": names, "text": mixture_text(names), "parts": parts})


def _run(pixels: Pixels, asked: Sequence[tuple[str, float, str, int]]) -> Degraded:
    """All parts (name, severity, settings, seed) in order."""
    parts: list[Part] = []
    degraded = pixels
    for name, severity, settings, seed in asked:
        part: Part = {
            "name": name,
            "severity": severity,
            "settings": settings,
            "seed": seed,
            "parameters": {},
        }
        degraded, parameters = _applied(degraded, part)
        parts.append({**part, "parameters": parameters})
    return _finished(pixels, degraded, parts)


def _seed(rng: Rng) -> int:
    return int(rng.integers(2**63))


def degrade(
    pixels: Pixels, name: str | Sequence[str], *, severity: Number, rng: Rng, settings: Settings = "wild"
) -> Degraded:
    """The pixels with one degradation, or several in the order given.

    Severity goes from 0 (untouched) to 1 (as heavy as the benchmarks have it); `paper` settings follow the
    paper's protocol and have one severity only. Raises UsageError for an unknown name or a severity outside.

    >>> grey = np.full((8, 8, 3), 0.5, np.float32)
    >>> degrade(grey, "noisy", severity=0.5, rng=np.random.default_rng(3)).record["text"]
    'noisy'
    """
    if not 0 <= severity <= 1:
        raise UsageError(f"severity {severity:g} is not between 0 and 1")
    known = tuple(DEGRADE)
    names = [degradation(word, known=known) for word in ([name] if isinstance(name, str) else name)]
    return _run(pixels, [(each, float(severity), settings, _seed(rng)) for each in names])


def replay(pixels: Pixels, record: Record) -> Pixels:
    """The degraded pixels again, from the clean ones and the record."""
    asked = [(part["name"], part["severity"], part["settings"], part["seed"]) for part in record["parts"]]
    return _run(pixels, asked).pixels


SEVERITIES = (0.12, 1.0)
"""Range from which `wild` draws the severity of a single degradation."""

MIXTURE_SEVERITIES = (0.12, 0.7)
"""Range of the severities in a mixture: parts of full severity would leave nothing to restore."""

PHYSICAL_ORDER = (
    *("shadowed", "hazy", "snowy", "rainy", "raindrop"),
    *("motion-blurry", "low-light", "noisy", "jpeg-compressed", "uncompleted"),
)
"""How light meets them: things in the scene, the air, the pane, the camera, the file."""


def _shares(names: Sequence[str], weights: Sequence[Number] | None) -> Float[np.ndarray, "k"]:
    """The weights of the names scaled to sum 1; equal ones where none are given."""
    given = np.ones(len(names)) if weights is None else np.asarray(weights, np.float64)
    return given / given.sum()


def mixture(
    pixels: Pixels,
    *,
    rng: Rng,
    names: Sequence[str] = DEGRADATIONS,
    weights: Sequence[Number] | None = None,
    severity: tuple[Number, Number] = MIXTURE_SEVERITIES,
) -> Degraded:
    """Two or three different degradations, in three of four draws in the order of nature, else in any."""
    shares = _shares(names, weights)
    count = min(2 if _chance(rng, 0.65) else 3, int(np.count_nonzero(shares)))
    drawn = [names[int(i)] for i in rng.choice(len(names), size=count, replace=False, p=shares)]
    if _chance(rng, 0.75):
        drawn.sort(key=lambda name: PHYSICAL_ORDER.index(name) if name in PHYSICAL_ORDER else -1)
    return _run(pixels, [(name, _between(rng, *severity), "wild", _seed(rng)) for name in drawn])


def wild(
    pixels: Pixels,
    rng: Rng,
    *,
    clean_share: Number = 0.1,
    mixture_share: Number = 0.2,
    names: Sequence[str] = DEGRADATIONS,
    weights: Sequence[Number] | None = None,
) -> Degraded:
    """The pixels as the wild has them: left clean, with a mixture, or with one degradation, by the shares."""
    kind = float(rng.random())
    if kind < clean_share:
        return _finished(pixels, pixels, [])
    if kind < clean_share + mixture_share:
        return mixture(pixels, rng=rng, names=names, weights=weights)
    name = names[int(rng.choice(len(names), p=_shares(names, weights)))]
    return degrade(pixels, name, severity=_between(rng, *SEVERITIES), rng=rng)


def wild_ir(pixels: Pixels, rng: Rng) -> Degraded:
    """The pixels with the random degradation of wild-IR, never clean, named by what was drawn."""
    return _run(pixels, [("wild-ir", 1.0, "wild-ir", _seed(rng))])


DEGRADE: dict[str, Degrade] = {
    "motion-blurry": motion_blurry,
    "hazy": hazy,
    "jpeg-compressed": jpeg_compressed,
    "low-light": low_light,
    "noisy": noisy,
    "raindrop": raindrop,
    "rainy": rainy,
    "shadowed": shadowed,
    "snowy": snowy,
    "uncompleted": uncompleted,
}

PAPER: dict[str, Degrade] = {
    **{name: partial(_heavy, name=name) for name in _BENCHMARK_SEVERITY},
    "noisy": _paper_noisy,
    "jpeg-compressed": _paper_jpeg,
    "uncompleted": _paper_uncompleted,
}

_SETTINGS: dict[str, dict[str, Degrade]] = {
    "wild": DEGRADE,
    "paper": PAPER,
    "wild-ir": {"wild-ir": _wild_ir},
}
