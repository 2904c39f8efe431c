"""A model folder with known answers, a folder of real photos, and the command as a subprocess."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from toy_model import write_toy_model

Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_model(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture(scope="session")
def toy_sde(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_model(tmp_path_factory.mktemp("models") / "toysde", "diffusion")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with real photos: three dark ones of different kinds, one clean."""
    from PIL import Image
    from skimage import data

    astronaut = data.astronaut()[:200, :260]
    dark = (astronaut * 0.2).astype("uint8")
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    Image.fromarray(dark).save(tmp_path / "dark.jpg", quality=95, exif=exif)
    Image.fromarray(dark).convert("L").save(tmp_path / "grey.png")
    alpha = Image.fromarray(dark).convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(alpha.size))
    alpha.save(tmp_path / "alpha.png")
    Image.fromarray(astronaut).save(tmp_path / "clean.jpg", quality=90)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def daclip(toy: Path) -> Run:
    """Runs `daclip`; restore and detect with the toy model unless another is named."""

    def run(*words: str, stdin: bytes = b"", env: dict[str, str] | None = None, **options: object) -> object:
        given = list(words)
        if words[:1] in (("restore",), ("detect",)) and "--model" not in words and "-h" not in words:
            # ONNX Runtime, for it loads in a third of the time
            given += ["--model", str(toy), "--engine", "onnx"]
        return subprocess.run(
            [sys.executable, "-m", "daclip", *given],
            input=stdin,
            capture_output=True,
            env={**os.environ, **(env or {})},
            check=False,
            **options,
        )

    return run  # pyright: ignore[reportReturnType]
