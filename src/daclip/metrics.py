"""How near restored photos are to clean ones: PSNR, SSIM, LPIPS and FID of 8-bit pixels, by named protocols.

PSNR and SSIM need numpy alone; only `load_lpips` and `load_inception` need torch. Published evaluation:
PAPER 2.6.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

from daclip.errors import DataError, missing_extra

Pixels8 = UInt8[np.ndarray, "h w 3"]
Metric = Callable[[Pixels8, Pixels8], float]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What of a photo is compared: luma alone or all three channels, without `border` pixels on each side."""

    luma: bool = False
    border: int = 0


PROTOCOLS: dict[str, Protocol] = {
    "rgb": Protocol(),
    # published: super-resolution's crop of the scale, 4, left over in every task
    "rgb-crop4": Protocol(border=4),
    "y": Protocol(luma=True),
    "y-crop4": Protocol(luma=True, border=4),
}
"""Names under which figures are given; figures of two protocols do not belong in one table."""


def psnr(restored: Pixels8, clean: Pixels8, *, protocol: Protocol = PROTOCOLS["rgb"]) -> float:
    """Peak signal-to-noise ratio in dB, 20 log10(255 / root of the mean squared error); inf for equal photos.

    >>> grey = np.full((16, 16, 3), 100, np.uint8)
    >>> round(psnr(grey + np.uint8(10), grey), 2)
    28.13
    """
    difference = _compared(restored, protocol) - _compared(clean, protocol)
    error = float(np.mean(np.square(difference)))
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


_SSIM_SIDE = 11


def ssim(restored: Pixels8, clean: Pixels8, *, protocol: Protocol = PROTOCOLS["rgb"]) -> float:
    """Structural similarity, 1 for equal photos: Gaussian window of 11, sigma 1.5, mean over the channels.

    Only windows that lie inside the photo count; variances are biased, C1 = (0.01 * 255)^2,
    C2 = (0.03 * 255)^2 (Wang et al. 2004). Raises DataError for a photo smaller than a window.
    """
    planes = [_compared(pixels, protocol) for pixels in (restored, clean)]
    height, width, channels = planes[0].shape
    if min(height, width) < _SSIM_SIDE:
        raise DataError(
            f"{width} x {height} pixels are too few for SSIM",
            hint=f"its window is {_SSIM_SIDE} pixels wide; leave ssim out",
        )
    values = [_ssim_of_plane(*(plane[..., channel] for plane in planes)) for channel in range(channels)]
    return float(np.mean(values))


def _ssim_of_plane(x: Float64[np.ndarray, "h w"], y: Float64[np.ndarray, "h w"]) -> float:
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = _windowed(x), _windowed(y)
    var_x, var_y = _windowed(x * x) - mean_x**2, _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return float(np.mean(structure * (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)))


def _windowed(plane: Float64[np.ndarray, "h w"]) -> Float64[np.ndarray, "v u"]:
    """Gaussian means of all windows that lie inside the plane."""
    at = np.arange(_SSIM_SIDE) - _SSIM_SIDE // 2
    weights = np.exp(-(at**2) / (2 * 1.5**2))
    weights /= weights.sum()
    height, width = plane.shape[0] - _SSIM_SIDE + 1, plane.shape[1] - _SSIM_SIDE + 1
    down = np.zeros((height, plane.shape[1]))
    for offset, weight in enumerate(weights):
        down += weight * plane[offset : offset + height]
    across = np.zeros((height, width))
    for offset, weight in enumerate(weights):
        across += weight * down[:, offset : offset + width]
    return across


def _compared(pixels: Pixels8, protocol: Protocol) -> Float64[np.ndarray, "v u c"]:
    """What the protocol compares, 0 to 255 (luma: 16 to 235, not rounded)."""
    border = protocol.border
    height, width = pixels.shape[:2]
    if min(height, width) <= 2 * border:
        raise DataError(f"{width} x {height} pixels leave nothing inside a border of {border}")
    inside = pixels[border : height - border, border : width - border].astype(np.float64)
    if not protocol.luma:
        return inside
    # ITU-R BT.601, as MATLAB's rgb2ycbcr and the published code have it
    return inside @ np.array([[65.481], [128.553], [24.966]]) / 255 + 16


LPIPS_FILES = ("alexnet_features.safetensors", "lpips_alex_v0.1.safetensors")
"""What `load_lpips` reads: torchvision's AlexNet IMAGENET1K_V1 (`features.*`), then the linear heads."""

_ALEXNET_IN_CACHE = "alexnet-owt-7be5be79.pth"
"""The same AlexNet as torchvision downloads it; the heads then are those that torchmetrics carries."""

# torchmetrics cuts AlexNet after each of its five ReLUs
_SLICE_OF_LAYER = {0: "slice1", 3: "slice2", 6: "slice3", 8: "slice4", 10: "slice5"}


def torch_cache() -> Path:
    """Where torch keeps weights it has downloaded: TORCH_HOME, else below the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TORCH_HOME") or Path(cache) / "torch") / "hub" / "checkpoints"


def load_lpips(folder: Path | None = None) -> Metric:
    """LPIPS v0.1 on AlexNet (Zhang et al. 2018), whole photo in any protocol; 0 for equal photos.

    published: computed on the unclamped float output; here on the 8-bit photo that a user gets.

    Args:
        folder: holds LPIPS_FILES; without it AlexNet is taken from the cache of torch.

    Raises DataError when weights are not there or do not fit, MissingExtra without torch.
    """
    paths = _lpips_paths(folder)
    # here and not at the top, so that PSNR and SSIM need no torch
    try:
        import torch
        from torchmetrics.functional.image.lpips import _LPIPS  # pyright: ignore[reportPrivateUsage]
    except ModuleNotFoundError as error:
        raise missing_extra(error, "LPIPS") from error
    # without files for the heads, torchmetrics reads those it carries
    network = _LPIPS(pretrained=len(paths) == 1, net="alex", pnet_rand=True)
    weights = {name: value for path in paths for name, value in _weights(path).items()}
    wanted = ("features.", "lin")
    try:
        keys = network.load_state_dict(
            {_renamed(name): weights[name] for name in weights if name.startswith(wanted)}, strict=False
        )
    except RuntimeError as error:
        raise DataError(f"{paths[0].parent}: the weights of LPIPS do not fit ({error})") from error
    # torchmetrics registers the heads twice, under `lin0` and under `lins.0`
    carried = ("lins.", "lin") if len(paths) == 1 else ("lins.",)
    if missing := sorted(name for name in keys.missing_keys if not name.startswith(carried)):
        raise DataError(f"{paths[0].parent}: {len(missing)} weights missing ({missing[0]}, ...)")

    def lpips(restored: Pixels8, clean: Pixels8) -> float:
        pair = (
            torch.from_numpy(pixels.transpose(2, 0, 1) / np.float32(127.5) - 1)
            for pixels in (restored, clean)
        )
        with torch.inference_mode():
            return float(network(*(pixels[None] for pixels in pair)))

    return lpips


def _renamed(name: str) -> str:
    """`features.3.weight` of torchvision is `net.slice2.3.weight` in torchmetrics; heads keep their names."""
    part, layer, *rest = name.split(".")
    return ".".join(["net", _SLICE_OF_LAYER[int(layer)], layer, *rest]) if part == "features" else name


def _lpips_paths(folder: Path | None) -> list[Path]:
    """The two files of a folder, or AlexNet alone from the cache of torch."""
    cached = torch_cache() / _ALEXNET_IN_CACHE
    if folder is None and cached.is_file():
        return [cached]
    paths = [(folder or Path()) / name for name in LPIPS_FILES]
    for path in paths:
        if not path.is_file():
            looked = "" if folder else f" and {cached} neither"
            raise DataError(
                f"{path}: not there{looked}", hint="LPIPS needs it; --metric-weights names its folder"
            )
    return paths


def _weights(path: Path) -> dict[str, Any]:
    """The tensors of a weight file by name, read without running anything in it."""
    import torch
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


FID_FILE = "weights-inception-2015-12-05-6726825d.pth"
"""What FID reads: the Inception of the original FID (TensorFlow, 2015), as torch-fidelity converted it."""

_FID_SHA256 = "6726825d"
"""How the hash of that file begins, as its name says. Other features give another distance, not FID."""

Features = Callable[[Pixels8], Float32[np.ndarray, "d"]]
"""What a network sees in a photo, as one vector."""


def load_inception(folder: Path | None = None) -> Features:
    """The 2048 features of a photo that FID compares, whole photo resized to 299 x 299 as in the original.

    Raises DataError when FID_FILE is neither in the folder nor in the cache of torch, or is another file;
    MissingExtra without torch.
    """
    path = _inception_path(folder)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(_FID_SHA256):
        raise DataError(
            f"{path}: sha256 {digest[:8]} instead of {_FID_SHA256}", hint="on other features it is not FID"
        )
    try:
        import torch
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ModuleNotFoundError as error:
        raise missing_extra(error, "FID") from error
    network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))

    def features(pixels: Pixels8) -> Float32[np.ndarray, "d"]:
        planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]))
        with torch.inference_mode():
            return network(planes)[0][0].numpy()

    return features


def _inception_path(folder: Path | None) -> Path:
    places = [place / FID_FILE for place in (folder, torch_cache()) if place is not None]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise DataError(
            f"{' and '.join(map(str, places))}: not there",
            hint="FID needs this file of torch-fidelity, 91 MB; --metric-weights names its folder",
        )
    return path


def weight_files(metric: str, folder: Path | None = None) -> list[Path]:
    """The files whose weights decide the figures of a metric, none for PSNR and SSIM.

    Raises DataError where they are not there.
    """
    if metric == "lpips":
        return _lpips_paths(folder)
    return [_inception_path(folder)] if metric == "fid" else []


def frechet(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """Fréchet distance of two sets of features, each taken as normally distributed (Heusel et al. 2017).

    |mean a - mean b|² + tr(A + B - 2 sqrt(A B)) with the covariances A and B. On the features of
    `load_inception` it is the FID; it is biased for few photos, so compare equal numbers only. Raises
    DataError for a set of one.
    """
    if min(len(a), len(b)) < 2:
        raise DataError("a Fréchet distance needs two photos and more", hint="take more photos")
    first, second = (_covariance_root(one.astype(np.float64)) for one in (a, b))
    # A = RᵀR and B = SᵀS: the roots of the eigenvalues of A B are the singular values of R Sᵀ, which are
    # few where photos are few; torch-fidelity takes the eigenvalues of the 2048 x 2048 product
    common = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    apart = np.square(a.mean(axis=0, dtype=np.float64) - b.mean(axis=0, dtype=np.float64)).sum()
    return float(apart + np.square(first).sum() + np.square(second).sum() - 2 * common)


def _covariance_root(features: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, "r d"]:
    """R of at most d rows with RᵀR the unbiased covariance."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    if len(centred) <= centred.shape[1]:
        return centred
    return np.asarray(np.linalg.qr(centred, mode="r"), np.float64)
