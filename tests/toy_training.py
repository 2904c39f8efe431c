"""The smallest things one can train on: a few soft photos, a toy encoder, a toy restorer."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from daclip import checkpoints, clip
from daclip.detect import ClassTexts
from daclip.models import ModelConfig
from daclip.train.controller import WORDS
from daclip.train.presets import ControllerRun, Loop, RestorerRun

VIT: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}

TOLD: dict[str, Any] = {
    "encoder_blocks": [1],
    "middle_blocks": 1,
    "decoder_blocks": [1],
    "context_dim": 24,
    "degradation": True,
    "content": "vector",
}
NETWORK: dict[str, Any] = {
    "name": "nafnet",
    "width": 8,
    **TOLD,
    "attention": "embedding",
    "shuffle": 2,
    "gain": 0.1,
}
DRUNET: dict[str, Any] = {"name": "drunet", "widths": [8, 8], **TOLD}


def write_photos(root: Path, count: int = 6) -> Path:
    """Soft pictures of 60 x 70 pixels."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        coarse = np.random.default_rng(number).random((5, 6, 3), dtype=np.float32)
        pixels = cv2.resize(coarse, (70, 60), interpolation=cv2.INTER_CUBIC).clip(0, 1)
        cv2.imwrite(str(root / f"{number}.png"), (pixels * 255).astype(np.uint8))
    return root


def toy_encoder(seed: int = 0) -> clip.DaClip:
    """A two-block vision transformer with a controller whose links are not zero."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = clip.vit(VIT)
        for weight in model.controller.zeros.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    return model


def write_encoder(folder: Path, **settings: Any) -> Path:
    """A model folder with the toy encoder; `settings` are further fields of its config."""
    embeddings = np.random.default_rng(1).normal(size=(len(WORDS), 24)).astype(np.float32)
    texts = ClassTexts(names=WORDS, embeddings=embeddings, rule="sigmoid", scale=10.0, bias=-2.0)
    encoder = {"name": "open_clip", "config": VIT}
    values: dict[str, Any] = {"view_side": 32, "dtype": "float16", **settings}
    config = ModelConfig(kind="encoder", encoder=encoder, texts=texts, **values)
    return checkpoints.save_pretrained(
        checkpoints.Model(daclip=toy_encoder(), network=None, config=config), folder
    )


LOOP = Loop(
    steps=6,
    batch=4,
    learning_rate=1e-3,
    weight_decay=1e-4,
    warmup=2,
    ema=0.99,
    precision="fp32",
    device="cpu",
    workers=0,
    validate_every=100,
    validate_regions=4,
    save_every=2,
    log_every=1,
    trackers=[],
)


def controller_run(photos: Path, encoder: Path | str, **changes: Any) -> ControllerRun:
    """Six steps of the controller; changes of the loop go by their names."""
    own, loop = _parted(changes)
    return ControllerRun(
        data=str(photos),
        encoder=str(encoder),
        **{"region": 32, "view": 32, **own},
        loop=replace(LOOP, **loop),
    )


def restorer_run(photos: Path | str, encoder: Path | str, **changes: Any) -> RestorerRun:
    """Six steps of the restorer; changes of the loop go by their names."""
    own, loop = _parted(changes)
    settings: dict[str, Any] = {"region": 32, "view": 32, "patch": 16, "late_patch": 32, "late_from": 0.5}
    settings |= {"patches_per_region": 2, "network": NETWORK, **own}
    return RestorerRun(data=str(photos), encoder=str(encoder), **settings, loop=replace(LOOP, **loop))


def _parted(changes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of a run, and those of its loop."""
    names = {each.name for each in fields(Loop)}
    return {k: v for k, v in changes.items() if k not in names}, {
        k: v for k, v in changes.items() if k in names
    }
