"""A `daclip serve` process on a free port, and a client of it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import httpx


class Server:
    """A running `daclip serve` and a client of it."""

    def __init__(self, process: "subprocess.Popen[str]", address: str) -> None:
        self.process, self.address = process, address
        self.client = httpx.Client(base_url=address, timeout=60, trust_env=False)

    def post(self, path: str, data: bytes, *, accept: str = "*/*", **fields: str) -> httpx.Response:
        files = {"image": ("secret name.jpg", data)}
        return self.client.post(path, files=files, data=fields, headers={"Accept": accept})


@contextmanager
def running(model: Path, *words: str, env: dict[str, str] | None = None) -> Generator[Server, None, None]:
    command = [sys.executable, "-m", "daclip", "serve", "--port", "0", "--model", str(model)]
    process = subprocess.Popen(
        [*command, "--engine", "onnx", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), process.communicate(timeout=20)
        server = Server(process, address)
        wait_for(lambda: answers(server))
        yield server
        server.client.close()
    finally:
        process.kill()
        process.communicate()


def answers(server: Server) -> bool:
    try:
        return server.client.get("/ready").status_code == 200
    except httpx.TransportError:
        return False


def wait_for(is_so: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)
