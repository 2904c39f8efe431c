"""Cases made on the fly: clean photos, degraded the same way every time (extra [data])."""

from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import numpy as np

from daclip import degradations, image
from daclip.degradations import Settings
from daclip.errors import DataError
from daclip.evaluate.cases import Case
from daclip.image import Photo
from daclip.metrics import Pixels8
from daclip.vocabulary import CLEAN, DEGRADATIONS


def degraded(
    folder: Path,
    *,
    names: Sequence[str] = DEGRADATIONS,
    settings: Settings = "wild",
    severity: int | float = 0.7,
    seed: int = 0,
    limit: int | None = None,
) -> list[Case]:
    """A case for each clean photo of the folder and each degradation; "clean" leaves it as it is.

    Each draws by seed, degradation and file name alone: other photos beside it change nothing.
    """
    photos = image.find_photos([folder])[:limit]
    if not photos:
        raise DataError(f"{folder}: no photos in it", hint="name a folder of clean photos")
    return [
        _case(path, name, settings=settings, severity=severity, seed=seed)
        for name in names
        for path in photos
    ]


def _case(path: Path, name: str, *, settings: Settings, severity: int | float, seed: int) -> Case:
    def read() -> tuple[Photo, Pixels8]:
        photo = image.read(path)
        clean = photo.crop_8bit(0, 0, photo.height, photo.width)
        if name == CLEAN:
            return image.from_array(clean), clean
        rng = np.random.default_rng([seed, crc32(f"{name}/{path.name}".encode())])
        unit = clean.astype(np.float32) / np.float32(255)
        made = degradations.degrade(unit, name, severity=severity, rng=rng, settings=settings)
        return image.from_array(np.rint(made.pixels * 255).astype(np.uint8)), clean

    return Case(degradation=name, name=f"{name}: {path.name}", files=(path,), read=read)
