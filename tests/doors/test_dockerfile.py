"""The Dockerfile's own steps, in a plain folder instead of a container, so that the file cannot rot."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text()).splitlines()

pytestmark = pytest.mark.slow


def steps(word: str) -> list[str]:
    return [line.removeprefix(word).strip() for line in STEPS if line.startswith(f"{word} ")]


def test_the_image_is_small_unprivileged_and_takes_only_what_is_there() -> None:
    assert steps("USER") == ["10001:10001"]
    for line in steps("COPY"):
        if not line.startswith("--from"):
            assert all((ROOT / name).exists() for name in line.split()[:-1])
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == {
        name for line in steps("COPY") if not line.startswith("--from") for name in line.split()[:-1]
    }


def test_its_steps_end_in_a_server_that_is_healthy(tmp_path: Path) -> None:
    def here(text: str) -> str:
        """The text with places of the image below the test's folder."""
        return (
            text.replace("/opt/", f"{tmp_path}/opt/")
            .replace("8000", str(port))
            .replace("0.0.0.0", "127.0.0.1")
        )

    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    work = tmp_path / steps("WORKDIR")[0].strip("/")
    work.mkdir()
    (tmp_path / "opt").mkdir()
    for line in steps("COPY"):
        if not line.startswith("--from"):
            *names, _ = line.split()
            for name in names:
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                copy(ROOT / name, work / name)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for command in steps("RUN"):
        subprocess.run(
            here(command), shell=True, cwd=work, check=True, timeout=280, env={**os.environ, "PATH": path}
        )
    settings = dict(pair.split("=", 1) for line in steps("ENV") for pair in shlex.split(line))
    words = [here(word) for line in (*steps("ENTRYPOINT"), *steps("CMD")) for word in json.loads(line)]
    health = json.loads(steps("HEALTHCHECK")[0].partition("CMD ")[2])
    server = subprocess.Popen(words, env=settings, cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while subprocess.run(
            [here(word) for word in health], env=settings, capture_output=True, check=False
        ).returncode:
            assert server.poll() is None
            assert time.monotonic() < end
            time.sleep(0.3)
    finally:
        server.terminate()
        server.wait(30)
    listed = subprocess.run(
        [here("/opt/daclip/bin/python"), "-m", "pip", "list"], capture_output=True, text=True, check=True
    ).stdout
    assert "fastapi" in listed
    assert "torch" not in listed
