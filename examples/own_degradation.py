"""Teach the encoder a degradation of your own: a folder of pairs and a word.

python examples/own_degradation.py PAIRS BACKBONE [RUN]

PAIRS holds a folder for each word, PAIRS/<word>/{LQ,GT}/name.png: your own word beside others that it must be
told apart from (`daclip data make --photos` makes the ten known ones from any clean photos). BACKBONE is the
run of `daclip train compact-backbone`, whose text tower reads the new word. A restorer for it is the next
run: `daclip train compact encoder=RUN --data PAIRS`.
"""

import sys
from pathlib import Path
from typing import Any

from daclip.models import read_config
from daclip.train import preset, train


def show(figures: dict[str, Any]) -> None:
    if "val" in figures:
        right = {name: f"{share:.0%}" for name, share in figures["val"].items() if "accuracy" in name}
        print(f"step {figures['step']}: {right}")


def main(pairs: str, backbone: str, run: str = "runs/own", *changes: str) -> None:
    settings = preset("controller-tiny", [f"data={pairs}", f"encoder={backbone}", *changes])
    model = train(settings, Path(run), log=show, on_progress=lambda *_: None)
    texts = read_config(model).texts
    print(f"{model} knows: {', '.join(texts.names) if texts else 'nothing'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
