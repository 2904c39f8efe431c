"""`daclip batch` on one processor and on two: photos per second, and processor seconds that each photo costs.

python benchmarks/batch.py [--photos 40] [--rounds 3]

On a machine that does other work wall time says little; then the processor seconds per photo count: what
two processes at once use more than one, they lose of the double. Start-up is measured by a batch of as many
photos as processes, and taken off.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from serve import machine


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=40)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(
        f"daclip batch, {given.photos} photos of {given.side} x {given.side} px, model compact, engine onnx"
    )
    print(f"{machine()}; load {os.getloadavg()[0]:.1f} at the start\n")
    print("| round | processors | seconds | processor seconds / photo | photos / s | against one |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        write_photos(Path(place) / "in", given.photos, given.side)
        for number in range(1, given.rounds + 1):
            alone = 0.0
            for jobs in (1, 2):
                few, few_processor = batch(Path(place), jobs, jobs)
                seconds, processor = batch(Path(place), jobs, given.photos)
                done = given.photos - jobs
                seconds, each = seconds - few, (processor - few_processor) / done
                alone = each if jobs == 1 else alone
                gain = f"{2 * alone / each:.2f} x" if jobs == 2 else ""
                print(
                    f"| {number} | {jobs} | {seconds:.1f} | {each:.3f} | {done / seconds:.2f} | {gain} |",
                    flush=True,
                )


def write_photos(folder: Path, count: int, side: int) -> None:
    import pyvips

    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 60, (side, side, 3)).astype(np.uint8)
        pyvips.Image.new_from_array(pixels).write_to_file(str(folder / f"{number:03}.jpg"))


def batch(place: Path, jobs: int, count: int) -> tuple[float, float]:
    """Wall and processor seconds of a batch of the first photos."""
    with tempfile.TemporaryDirectory(dir=place) as out:
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        words = [sys.executable, "-m", "daclip", "batch", str(place / "in"), out, "-q", "--engine", "onnx"]
        words += ["-j", str(jobs), "--limit", str(count), "--memory", f"{jobs}GB"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        own = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(
            0, own[-jobs:]
        )  # the child has what we have, and makes no more threads than that
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=environment)
        os.sched_setaffinity(0, own)
        seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
