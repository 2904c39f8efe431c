"""How near a restored photo is to the clean one: PSNR and SSIM on 8-bit pixels, LPIPS; the protocol is named.

PSNR and SSIM need numpy alone; only `load_lpips` needs torch. Published evaluation: PAPER 2.6.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt8

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

# torchmetrics cuts AlexNet after each of its five ReLUs
_SLICE_OF_LAYER = {0: "slice1", 3: "slice2", 6: "slice3", 8: "slice4", 10: "slice5"}


def load_lpips(folder: Path) -> Metric:
    """LPIPS v0.1 on AlexNet (Zhang et al. 2018), whole photo in any protocol; 0 for equal photos.

    published: computed on the unclamped float output; here on the 8-bit photo that a user gets.
    Raises DataError when one of LPIPS_FILES is not in the folder or does not fit, MissingExtra without torch.
    """
    for name in LPIPS_FILES:
        if not (folder / name).is_file():
            raise DataError(
                f"{folder / name}: not there", hint="LPIPS needs it; --metric-weights names its folder"
            )
    # here and not at the top, so that PSNR and SSIM need no torch
    try:
        import torch
        from safetensors.torch import load_file
        from torchmetrics.functional.image.lpips import _LPIPS  # pyright: ignore[reportPrivateUsage]
    except ModuleNotFoundError as error:
        raise missing_extra(error, "LPIPS") from error
    weights = {**load_file(folder / LPIPS_FILES[0]), **load_file(folder / LPIPS_FILES[1])}
    network = _LPIPS(pretrained=False, net="alex", pnet_rand=True)
    try:
        keys = network.load_state_dict({_renamed(name): weights[name] for name in weights}, strict=False)
    except RuntimeError as error:
        raise DataError(f"{folder}: the weights of LPIPS do not fit ({error})") from error
    # torchmetrics registers the heads twice, under `lin0` and under `lins.0`
    if missing := sorted(name for name in keys.missing_keys if not name.startswith("lins.")):
        raise DataError(f"{folder}: {len(missing)} weights missing ({missing[0]}, ...)")

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
