"""Model folders: their description (config.json), and finding them by bundled name, path or hub id.

A model folder holds `config.json`, `model.safetensors` (weights of the restorer under `network.`, of the encoder under
`encoder.`), a card `README.md`, and after export the graphs `encoder.onnx` and `restorer.onnx`.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from daclip.detect import ClassTexts
from daclip.errors import ModelError

FORMAT = 1
"""Version of the folder format; a reader refuses a newer one."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The description of one model folder.

    Args:
        kind: `encoder` (a DA-CLIP alone), `one-pass` or `diffusion` (a restorer).
        encoder: the DA-CLIP in this folder as {"name": "open_clip" or "timm", ...}, or the name of the bundled or
            sibling folder that holds it.
        network: the restorer as {"name": "unet" or "nafnet", ... constructor arguments}; None for an encoder alone.
        sde: arguments of IRSDE; only for diffusion.
        objective: what the network was trained to predict: `published` (biased, PAPER 2.3) or `noise`.
        sampler, steps: defaults for a diffusion model.
        view_side, mean, std: side in pixels and normalisation of what the encoder sees.
        texts: the words the model knows, with embeddings.
        multiple: tile sides the network likes, in pixels.
        overlap: pixels of context a tile needs around it.
        bytes_per_pixel: working memory of the restorer per pixel of a tile, measured.
        dtype: of the stored weights.
    """

    kind: Literal["encoder", "one-pass", "diffusion"]
    encoder: dict[str, Any] | str
    network: dict[str, Any] | None = None
    sde: dict[str, Any] | None = None
    objective: Literal["published", "noise"] | None = None
    sampler: str | None = None
    steps: int = 1
    view_side: int = 224
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    texts: ClassTexts | None = None
    multiple: int = 16
    overlap: int = 32
    bytes_per_pixel: int = 2000
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"


def write_config(config: ModelConfig, folder: Path) -> None:
    """Write `config.json` into the folder."""
    values: dict[str, Any] = {"model_type": "daclip", "format": FORMAT, **asdict(config)}
    if config.texts is not None:
        values["texts"]["embeddings"] = [
            [float(f"{value:.7g}") for value in row] for row in config.texts.embeddings.tolist()
        ]
    (folder / "config.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def read_config(folder: Path) -> ModelConfig:
    """The description in `config.json` of the folder.

    Raises ModelError when the file is absent, not ours, of a newer format, or has unknown or missing keys.
    """
    path = folder / "config.json"
    try:
        values = cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ModelError(f"{folder}: no config.json", hint="name a model folder; `daclip models list` shows all") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error})") from error
    if values.pop("model_type", None) != "daclip":
        raise ModelError(f"{path}: not a daclip model")
    if (version := values.pop("format", None)) != FORMAT:
        raise ModelError(f"{path}: format {version}, this daclip reads {FORMAT}", hint="update daclip")
    known = {field.name for field in fields(ModelConfig)}
    if unknown := sorted(set(values) - known):
        raise ModelError(f"{path}: unknown keys {', '.join(unknown)}", hint="update daclip, or mend the file")
    try:
        texts = values.get("texts")
        if texts is not None:
            embeddings = np.asarray(texts["embeddings"], dtype=np.float32)
            values["texts"] = ClassTexts(**{**texts, "names": tuple(texts["names"]), "embeddings": embeddings})
        for name in ("mean", "std"):
            if name in values:
                values[name] = tuple(values[name])
        return ModelConfig(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: {error}", hint="mend the file, or convert the model again") from error
