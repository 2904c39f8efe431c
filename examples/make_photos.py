"""Make the ten example photos of the package again, from free photos that other packages ship.

    python examples/make_photos.py [FOLDER]

Needs scikit-image and scikit-learn for their sample photos, and daclip[data]. The same versions of NumPy and
OpenCV give the same pixels.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from daclip import image
from daclip.degradations import degrade

SOURCES = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}

# degradation -> photo, severity, seed; chosen by eye for typical damage
EXAMPLES = {
    "motion-blurry": ("chelsea", 0.6, 1),
    "hazy": ("china", 0.7, 3),
    "jpeg-compressed": ("astronaut", 0.7, 0),
    "low-light": ("coffee", 0.5, 3),
    "noisy": ("astronaut", 0.7, 1),
    "raindrop": ("china", 0.6, 1),
    "rainy": ("flower", 0.5, 1),
    "shadowed": ("coffee", 0.8, 8),
    "snowy": ("rocket", 0.7, 1),
    "uncompleted": ("chelsea", 0.6, 3),
}
QUALITY = 92


def clean_photo(name: str) -> image.Photo:
    package, place = SOURCES[name]
    found = find_spec(package)
    if found is None or found.origin is None:
        raise SystemExit(f"{package} is not installed, and ships {place}")
    return image.read(Path(found.origin).parent / place)


def make(folder: Path) -> None:
    records = {}
    for degradation, (name, severity, seed) in EXAMPLES.items():
        photo = clean_photo(name)
        clean = photo.crop(0, 0, photo.height, photo.width)
        done = degrade(clean, degradation, severity=severity, rng=np.random.default_rng(seed))
        pixels = np.rint(done.pixels * 255).astype(np.uint8)
        path = folder / f"{degradation}.jpg"
        image.write(image.from_array(pixels), pixels, path, quality=QUALITY, overwrite=True)
        records[path.name] = {"source": "/".join(SOURCES[name]), "record": done.record}
        print(path)
    (folder / "records.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1] if len(sys.argv) > 1 else "src/daclip/photos"))
