"""`daclip serve` under load: 200 mixed requests, bad files too, of 16 clients; then memory over 1,000 more.

python benchmarks/serve.py [--workers 2] [--requests 200] [--clients 16] [--then 1000]
"""

import argparse
import http.client
import io
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

BOUNDARY = "daclip-benchmark"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="compact")
    parser.add_argument("--engine", default="onnx")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--then", type=int, default=1000, help="small requests while memory is watched")
    given = parser.parse_args()
    words = [sys.executable, "-m", "daclip", "serve", "--port", "0", "--model", given.model]
    words += ["--engine", given.engine, "--workers", str(given.workers), "--queue", str(given.clients // 2)]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        host = urlsplit(server.stdout.readline().strip()).netloc
        post(host, photos()[0][1])
        print(f"daclip serve --model {given.model} --engine {given.engine} --workers {given.workers}")
        print(f"{machine()}; load {os.getloadavg()[0]:.1f} at the start\n")
        print("| requests | clients | seconds | requests / s | answers | undeclared | MiB after |")
        print("|---|---|---|---|---|---|---|")
        mixed = [photos()[number % len(photos())] for number in range(given.requests)]
        row(server.pid, host, mixed, given.clients)
        small = [photos()[0]] * (given.then // 4)
        for _ in range(4):
            row(server.pid, host, small, 4)
    finally:
        server.terminate()
        server.wait()


def photos() -> list[tuple[set[int], bytes]]:
    """Files with the answers they may get, a busy server apart: dark and noisy photos, and broken ones."""
    import pyvips

    rng = np.random.default_rng(0)
    found: list[tuple[set[int], bytes]] = []
    for height, width in ((64, 64), (96, 128), (256, 192), (480, 640)):
        pixels = (rng.integers(0, 60, (height, width, 3))).astype(np.uint8)
        image = pyvips.Image.new_from_array(pixels)
        found.append(({200}, image.write_to_buffer(".jpg" if width > 100 else ".png")))
    cut = found[2][1][:-500]
    return [*found, ({422}, cut), ({415}, b"no picture"), ({415}, b"")]


def row(pid: int, host: str, files: list[tuple[set[int], bytes]], clients: int) -> None:
    """Send the files from so many clients at once, and print what came back."""
    start = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        statuses = list(pool.map(lambda file: post(host, file[1]), files))
    seconds = time.monotonic() - start
    wrong = sum(status not in declared | {429} for status, (declared, _) in zip(statuses, files, strict=True))
    counts = ", ".join(f"{count} x {status}" for status, count in sorted(Counter(statuses).items()))
    rate = f"{seconds:.1f} | {len(files) / seconds:.1f}"
    print(f"| {len(files)} | {clients} | {rate} | {counts} | {wrong} | {memory_mib(pid):.0f} |", flush=True)


def post(host: str, data: bytes) -> int:
    """The status of one restoration; a busy server is asked again up to three times."""
    body = io.BytesIO()
    body.write(f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'.encode())
    body.write(data + f"\r\n--{BOUNDARY}--\r\n".encode())
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    status = 0
    for _ in range(4):
        connection = http.client.HTTPConnection(host, timeout=300)
        connection.request("POST", "/v1/restore", body.getvalue(), headers)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        status = answer.status
        if status != 429:
            break
        time.sleep(min(int(answer.headers["Retry-After"]), 5))
    return status


def memory_mib(pid: int) -> float:
    """What the process holds now."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def machine() -> str:
    """The processor, its count and the system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )
    return f"{os.cpu_count()} processors ({name}), Python {platform.python_version()}, {platform.system()}"


if __name__ == "__main__":
    main()
