"""A model folder with known answers, and a tree of small photos."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toy_model import write_toy_model


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_model(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Six dark photos in three folders, all different, a clean one, and a file that is none."""
    from skimage import data

    folder, astronaut = tmp_path / "in", data.astronaut()
    for number, name in enumerate(["a.png", "b.jpg", "sub/c.png", "sub/d.webp", "sub/deep/e.tif", "z.png"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        dark = (astronaut[10 * number :][:64, :80] * 0.2).astype(np.uint8)
        Image.fromarray(dark).save(folder / name)
    Image.fromarray(astronaut[:200, :260]).save(folder / "clean.png")
    (folder / "broken.jpg").write_text("no picture")
    return folder


@pytest.fixture(scope="session")
def toy_sde(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusion model, which takes as long as it has steps."""
    return write_toy_model(tmp_path_factory.mktemp("models") / "toysde", "diffusion")
