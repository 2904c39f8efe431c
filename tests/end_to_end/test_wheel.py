"""The built package, installed as a user would, in an environment of its own with the base install only."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).parent / "uv"

pytestmark = pytest.mark.slow


def run(*words: str | Path) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_restores_an_example_without_torch(tmp_path: Path) -> None:
    run(UV, "build", "-q", "--wheel", "-o", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 30_000_000
    run(UV, "venv", "-q", "--python", sys.executable, tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    run(UV, "pip", "install", "-q", "--python", python, "-c", ROOT / "constraints.txt", wheel)
    photo = ROOT / "src" / "daclip" / "photos" / "rainy.jpg"
    line = run(tmp_path / "env" / "bin" / "daclip", "restore", photo, "-o", tmp_path / "out.jpg")
    assert line.startswith(str(tmp_path / "out.jpg") + "\trainy")
    listed = run(UV, "pip", "list", "--python", python)
    assert "onnxruntime" in listed
    assert "torch" not in listed
