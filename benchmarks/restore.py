"""Seconds per megapixel and peak memory of `daclip restore`, whole processes from start to written file.

    python benchmarks/restore.py [--model compact] [--engine auto] [--megapixels 0.3 1 12 100]

One table on stdout; the machine is in its caption. Photos are made on the fly: a real one of scikit-image,
enlarged by mirroring, darkened and with noise; tasks are named, so that none is left alone.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="compact")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--threads", type=int, default=0, help="of the engine; 0 leaves it to the library")
    parser.add_argument("--format", default="jpg", choices=["jpg", "png", "tif"])
    parser.add_argument("--megapixels", type=float, nargs="+", default=[0.3, 1, 12, 100])
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for megapixels in given.megapixels:
            photo = write_photo(Path(folder) / f"photo.{given.format}", megapixels)
            rows.append(restore(photo, given))
            photo.unlink()
    first = rows[0]
    engine = f"{first['engine']} {first['precision']}"
    print(f"daclip restore --model {given.model} --memory {given.memory}: {engine}")
    print(f"{machine()}; load {os.getloadavg()[0]:.1f} at the end\n")
    print("| megapixels | size | seconds | seconds / MP | processor seconds / MP | peak MiB |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        size, seconds = f"{row['width']} x {row['height']}", row["seconds"]
        rates = f"{seconds / row['megapixels']:.2f} | {row['cpu'] / row['megapixels']:.2f}"
        print(f"| {row['megapixels']:g} | {size} | {seconds:.1f} | {rates} | {row['mib']:.0f} |")


def write_photo(path: Path, megapixels: float) -> Path:
    """A photo of 4:3 with that many pixels, too dark and noisy."""
    import pyvips
    from skimage import data

    width = round((megapixels * 1e6 * 4 / 3) ** 0.5)
    height = round(megapixels * 1e6 / width)
    source = pyvips.Image.new_from_array(data.astronaut())
    mirrored = source.embed(0, 0, width, height, extend="mirror")
    noise = pyvips.Image.gaussnoise(width, height, sigma=8, seed=1)
    (mirrored * 0.3 + noise).cast("uchar").copy(interpretation="srgb").write_to_file(str(path))
    return path


def restore(photo: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Run the command; its seconds, processor seconds and peak memory."""
    words = [sys.executable, "-m", "daclip", "restore", str(photo), "--model", given.model, "--json"]
    words += ["--engine", given.engine, "--memory", given.memory, "--task", "low-light,noisy"]
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(given.threads)} if given.threads else {})}
    start = time.monotonic()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    record = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    if status != 0 or record["action"] != "restored":
        sys.exit(f"{photo}: {record}")
    Path(record["output"]).unlink()
    pixels = record["width"] * record["height"] / 1e6
    return record | {
        "megapixels": np.round(pixels, 2),
        "seconds": seconds,
        "cpu": usage.ru_utime + usage.ru_stime,
        "mib": usage.ru_maxrss / 1024,
    }


def machine() -> str:
    """The processor, its count and the system."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{os.cpu_count()} processors ({name}), Python {platform.python_version()}, {platform.system()}"


if __name__ == "__main__":
    main()
