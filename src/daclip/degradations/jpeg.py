"""JPEG: a real coder."""

import cv2
import numpy as np

from daclip.degradations.common import Parameters, Pixels, Rng, choice
from daclip.errors import UsageError

_SUBSAMPLING = {
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
}


def through_jpeg(pixels: Pixels, quality: int, subsampling: str) -> Pixels:
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
    subsampling = choice(rng, {"4:2:0": 0.65, "4:4:4": 0.25, "4:2:2": 0.1})
    return through_jpeg(pixels, quality, subsampling), {"quality": quality, "subsampling": subsampling}
