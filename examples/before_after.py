"""Restore the example photos of the package and draw them before and after, as one picture.

python examples/before_after.py [PICTURE] [MODEL]
"""

import sys
from pathlib import Path

import daclip
from daclip import image
from daclip.evaluate import Panel, draw
from daclip.restore import Restorer

PHOTOS = Path(daclip.__file__).parent / "photos"


def panel(path: Path, restorer: Restorer) -> Panel:
    photo = image.read(path)
    done = restorer.restore(photo)
    found = ", ".join(f"{name} {done.detection.probability(name):.2f}" for name in done.applied)
    return Panel(pictures=[(path.stem, photo.own), (f"found: {found or 'nothing'}", done.pixels)])


def main(picture: str = "docs/before_after.jpg", model: str = "compact") -> None:
    restorer = Restorer(model)
    sheet = draw([panel(path, restorer) for path in image.find_photos([PHOTOS])], tile=(200, 300))
    print(image.write(image.from_array(sheet), sheet, picture, quality=88, overwrite=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
