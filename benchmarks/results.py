"""docs/results.md: the bundled model on photos that nobody trained on.

    python benchmarks/results.py ../shared/data > docs/results.md

DATA holds tests/cbsd68, tests/live1 (the usual test sets) and pairs/<degradation>/{LQ,GT}. Every table is
made by the `daclip evaluate` command printed above it, the last one by benchmarks/restore.py.
"""

import shlex
import subprocess
import sys
from pathlib import Path

TABLES = {
    "Photos of CBSD68, degraded by this project at severity 0.7": (
        "--model compact --model compact-sde --photos {data}/tests/cbsd68 --severity 0.7 --limit 16"
        " --metrics psnr,ssim,lpips --metric-weights {data}/weights"
    ),
    "Pairs of others: real or benchmark degradations": (
        "--model compact --model compact-sde --data {data}/pairs"
        " --metrics psnr,ssim,lpips --metric-weights {data}/weights"
    ),
    "Photos of CBSD68, degraded as in the paper: sigma 50, quality 10, heavy rain, snow and masks": (
        "--photos {data}/tests/cbsd68 --settings paper --limit 16"
    ),
    "CBSD68, sigma 50, stored as 8 bits": "--photos {data}/tests/cbsd68 --only noisy --settings paper",
    "LIVE1, JPEG quality 10": "--photos {data}/tests/live1 --only jpeg-compressed --settings paper",
    "Clean photos in": "--photos {data}/tests/cbsd68 --only clean",
}

INTRODUCTION = """# Results

Made by `python benchmarks/results.py {data} > docs/results.md`: each table by the command above it.
Nothing here was trained on. Two things were chosen with some of these photos in sight: the times of the
calls of `compact-sde`, and how sure darkness must be to be treated (docs/decisions.md). CBSD68 and LIVE1 are
the usual test sets; the pairs are public demo pairs of other projects (`{data}` is where this project's test
photos lie; use your own copies). `compact` is faithful, `compact-sde` realistic. Gains are of PSNR in dB,
with 95 % intervals.
"""


def printed(*words: str) -> str:
    """What a command prints."""
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def main(data: str) -> None:
    print(INTRODUCTION.format(data=data))
    daclip = [sys.executable, "-m", "daclip", "evaluate"]
    for title, arguments in TABLES.items():
        asked = arguments.format(data=data)
        table = printed(*daclip, *shlex.split(asked), "--format", "markdown", "--workers", "2", "-q")
        command = f"`daclip evaluate {asked}`"
        print(f"## {title}\n\n{command}\n\n{table.removesuffix(command).strip()}\n", flush=True)
    print("## Speed and memory of `daclip restore`")
    for arguments in ("", " --model compact-sde"):
        speed = printed(sys.executable, str(Path(__file__).with_name("restore.py")), *arguments.split())
        print(f"\n`python benchmarks/restore.py{arguments}`\n\n{speed}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
