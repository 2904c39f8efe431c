"""The random degradation of wild-IR (PAPER 1.5)."""

import math

import cv2
import numpy as np
from jaxtyping import Float, Float32

from daclip.degradations.blur import path_kernel, shake_path
from daclip.degradations.common import (
    Parameters,
    Pixels,
    Rng,
    between,
    chance,
    choice,
    rounded,
)
from daclip.degradations.jpeg import through_jpeg


def _radius_and_angle(
    size: int,
) -> tuple[Float[np.ndarray, "k k"], Float[np.ndarray, "k k"], Float[np.ndarray, "k k"]]:
    """Distance from the middle tap, and its x and y parts, in pixels."""
    at = np.arange(size) - size // 2
    x, y = np.meshgrid(at, at)
    return np.hypot(x, y), x.astype(np.float64), y.astype(np.float64)


def _low_pass(size: int, rng: Rng) -> Float[np.ndarray, "k k"]:
    """A circular low-pass kernel, wc J1(wc r) / (2 pi r): its side lobes leave rings beside edges."""
    cutoff = between(rng, math.pi / (3 if size < 13 else 5), math.pi)
    r = _radius_and_angle(size)[0]
    tau = (np.arange(64) + 0.5) * math.pi / 64  # J1 by its integral, exact to rounding for arguments below 60
    bessel = np.cos(tau - cutoff * r[..., None] * np.sin(tau)).mean(axis=-1)
    middle = cutoff**2 / (4 * math.pi)
    return np.where(r > 0, cutoff * bessel / (2 * math.pi * np.maximum(r, 1e-9)), middle)


def _bell(size: int, kind: str, sigma: tuple[float, float], rng: Rng) -> Float[np.ndarray, "k k"]:
    """Gaussian exp(-q/2), generalised exp(-q^beta/2), plateau 1/(1+q^beta); q: squared distance in sigmas."""
    _, x, y = _radius_and_angle(size)
    family, form = kind.split()
    sigma_x = between(rng, *sigma)
    sigma_y, angle = (
        (between(rng, *sigma), between(rng, -math.pi, math.pi)) if form == "anisotropic" else (sigma_x, 0.0)
    )
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    q = (along / sigma_x) ** 2 + (across / sigma_y) ** 2
    if family == "plateau":
        return 1 / (1 + q ** (1.0 if chance(rng, 0.5) else between(rng, 1, 1.5)))
    beta = 1.0
    if family == "generalised":
        beta = between(rng, 0.5, 1) if chance(rng, 0.5) else between(rng, 1, 2)
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
    kind = choice(rng, _IR_KERNELS)
    if kind == "disk":
        return (_radius_and_angle(size)[0] <= size / 2).astype(np.float64)
    if kind == "box":
        return np.ones((size, size))
    if kind == "line":
        length, angle = (size - 10 if size > 15 else size), between(rng, 0, math.pi)
        at = np.linspace(-0.5, 0.5, 8 * length) * (length - 1)
        return path_kernel(np.stack([at * math.cos(angle), at * math.sin(angle)], axis=1)).astype(np.float64)
    if kind == "shake":
        return path_kernel(shake_path(size - 3, 0.3, rng)).astype(np.float64)
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
    low_pass = chance(rng, rings)
    kernel = _low_pass(size, rng) if low_pass else _ir_kernel(size, sigma, rng)
    kernel = kernel / kernel.sum()
    blurred = cv2.filter2D(pixels, -1, kernel.astype(np.float32))
    if low_pass:
        names.add("ringing artifact")
    elif chance(rng, 0.1) and size < 8:
        names.add("ringing artifact")
        sharpened = _wiener(blurred, kernel)
        share = np.float32(between(rng, 0.1, 0.5) if chance(rng, 0.1) else 0)
        blurred = share * blurred + (1 - share) * sharpened
    return np.clip(blurred, 0, 1)


def _ir_noise(pixels: Pixels, rng: Rng, names: set[str]) -> Pixels:
    """Weak Gaussian and Poisson noise, each coloured or grey, stored as 8 bits."""
    names.add("noise")
    values = pixels
    if chance(rng, 0.6):
        sigma, shape = between(rng, 1, 5) / 255, (*pixels.shape[:2], 1 if chance(rng, 0.4) else 3)
        values = values + np.float32(sigma) * rng.standard_normal(shape, np.float32)
    if chance(rng, 0.4):
        share = between(rng, 0.01, 0.5)
        source = rounded(pixels.mean(axis=2, keepdims=True) if chance(rng, 0.4) else pixels)
        levels = 2.0 ** math.ceil(math.log2(len(np.unique(source))))
        values = values + ((rng.poisson(source * levels) / levels - source) * share).astype(np.float32)
    return rounded(values)


_INTERPOLATIONS = (cv2.INTER_AREA, cv2.INTER_CUBIC, cv2.INTER_LINEAR)


def _ir_resize(
    pixels: Pixels, height: int, width: int, rng: Rng, names: set[str]
) -> Float32[np.ndarray, "{max(1,height)} {max(1,width)} 3"]:
    """The pixels at another size."""
    names.add("blur")
    kind = _INTERPOLATIONS[int(rng.integers(3))]
    return np.clip(cv2.resize(pixels, (max(1, width), max(1, height)), interpolation=kind), 0, 1)


def three_stages(pixels: Pixels, severity: float, rng: Rng) -> tuple[Pixels, Parameters]:
    """Three stages of blur, resizing, noise and JPEG in random order; severity is not used.

    published: one blur in ten is that of an under-display camera whose measured kernel is not in the
    repository; it is left out.
    """
    height, width = pixels.shape[:2]
    names: set[str] = set()
    values = pixels
    orders = [[list(steps)[int(i)] for i in rng.permutation(len(steps))] for steps in ("brnj", "bn", "brj")]
    resized = chance(rng, 0.8)
    for stage, order in enumerate(orders):
        for step in order:
            if step == "b" and chance(rng, (0.8, 0.4, 0.8)[stage]):
                sigma = ((0.2, 2.2), (0.2, 1.5), (0.2, 1.0))[stage]
                largest, rings = (10, 5, 10)[stage], (0.1, 0.1, 0.8)[stage]
                values = _ir_blur(values, largest=largest, rings=rings, sigma=sigma, rng=rng, names=names)
            elif step == "r" and resized:
                factor = between(rng, 0.5, 1.4) if stage == 0 else 1.0
                values = _ir_resize(values, int(height * factor), int(width * factor), rng, names)
            elif step == "n" and chance(rng, (0.4, 0.2)[stage]):
                values = _ir_noise(values, rng, names)
            elif step == "j" and chance(rng, 0.4):
                names.add("jpeg block")
                quality = int(between(rng, 60, 95) if stage == 0 else between(rng, 80, 100))
                values = through_jpeg(values, quality, "4:2:0")
    return values, {"names": [name for name in WILD_IR_NAMES if name in names]}


WILD_IR_NAMES = ("blur", "ringing artifact", "noise", "jpeg block")
"""The words of wild-IR's texts, in the order of its log."""
