"""Train a toy restorer on a folder of your own clean photos: 75 thousand parameters, a minute on a CPU.

python examples/train_tiny.py PHOTOS [RUN] [NAME=VALUE]...      300 steps: about +0.1 dB, steps=1500: +1.0 dB
daclip restore photo.jpg --model RUN/model --engine torch
"""

import sys
from pathlib import Path
from typing import Any

from daclip.train import preset, train


def show(figures: dict[str, Any]) -> None:
    if "val" in figures:
        print(f"step {figures['step']}: {figures['val']['gain']:+.2f} dB over the degraded photos")


def main(photos: str, run: str = "runs/tiny", *changes: str) -> None:
    settings = preset("compact-tiny", [f"data={photos}", "encoder=compact-encoder", *changes])
    model = train(settings, Path(run), log=show, on_progress=lambda *_: None)
    print(f"the model is in {model}")


if __name__ == "__main__":
    main(*sys.argv[1:])
