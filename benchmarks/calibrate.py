"""Makes the probabilities of an encoder's words true: python benchmarks/calibrate.py MODEL PHOTOS.

Temperature scaling (Guo et al., On Calibration of Modern Neural Networks, ICML 2017): scale and bias of the
texts are multiplied by the factor under which "the likeliest word is right" has the least cross-entropy; one
half stays one half. Fitted on photos that training holds out, damaged by each word at three severities;
MODEL's config.json is rewritten. Prints the calibration error before and after, on these photos.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from daclip import Restorer, models
from daclip.data.files import list_photos, split
from daclip.detect import ClassTexts, detect
from daclip.evaluate import synthetic
from daclip.evaluate.classification import calibration_error

SEVERITIES = (0.45, 0.7, 0.95)
PHOTOS = 24
FACTORS = np.arange(0.5, 4, 0.05)


def main(model: str, photos: str) -> None:
    folder = models.find(model)
    restorer, texts = Restorer(folder), folder.texts
    _, held_out = split(list_photos(Path(photos)))
    said: list[tuple[str, np.ndarray]] = []
    with TemporaryDirectory() as chosen:
        for path in held_out:
            (Path(chosen) / path.name).symlink_to(path.resolve())
        for severity in SEVERITIES:
            for case in synthetic.degraded(
                Path(chosen), names=texts.names, severity=severity, seed=round(100 * severity), limit=PHOTOS
            ):
                photo, _ = case.read()
                said.append((case.degradation, restorer.encode(photo).degradation))
    figures = {float(factor): _figures(said, texts, factor) for factor in (1.0, *FACTORS)}
    best = min(figures, key=lambda factor: figures[factor][0])
    for factor in (1.0, best):
        print(
            f"scale and bias x {factor:.2f}: calibration error {figures[factor][1]:.3f}, {len(said)} photos"
        )
    config = folder.path / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["texts"]["scale"] *= best
    settings["texts"]["bias"] *= best
    config.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _figures(said: list[tuple[str, np.ndarray]], texts: ClassTexts, factor: float) -> tuple[float, float]:
    """Mean cross-entropy of "the likeliest word is right", and the calibration error."""
    confidences, is_right = [], []
    scaled = replace(texts, scale=factor * texts.scale, bias=factor * texts.bias)
    for word, views in said:
        known = detect(views, scaled).probabilities
        confidences.append(float(known.max()))
        is_right.append(texts.names[int(known.argmax())] == word)
    sure = np.clip(np.where(is_right, confidences, 1 - np.array(confidences)), 1e-4, 1)
    return float(-np.log(sure).mean()), calibration_error(confidences, is_right)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
