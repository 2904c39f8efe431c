"""The runs one can name: typed values made by functions. Variants change one thing of another."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, Literal, cast, get_args, get_type_hints

from daclip.errors import UsageError
from daclip.vocabulary import DEGRADATIONS

SHARES = {
    "motion-blurry": 1.4,
    "hazy": 0.8,
    "jpeg-compressed": 1.4,
    "low-light": 0.9,
    "noisy": 1.6,
    "raindrop": 1.3,
    "rainy": 1.0,
    "shadowed": 1.3,
    "snowy": 0.9,
    "uncompleted": 1.0,
}
"""Relative draws of the restorer: fine detail (noise, jpeg, blur, drops, shadow) learns slowly, gets more."""


@dataclass(frozen=True, kw_only=True)
class BackboneRun:
    """Stage 0, `train.backbone`: join the frozen halves of the compact backbone.

    Args:
        captions: CSV with the columns file, split, caption1, caption2, ...
        embed_dim: width of the embeddings.
        dropout: of the frozen features, while the heads learn.
        threads: of the arithmetic; another number gives other last digits.
    """

    captions: str = "captions.csv"
    embed_dim: int = 256
    epochs: int = 40
    batch: int = 1024
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    dropout: float = 0.3
    threads: int = 1
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ControllerRun:
    """Stage 1, `train.controller`: teach the controller what is wrong and what the clean photo would show.

    Args:
        data: folder of clean photos.
        encoder: run folder of the backbone, or a model by folder or name.
        batch: regions a step; each is seen in one view.
        region: side of the degraded square, in pixels.
        view: side of what the encoder sees, in pixels: smaller than at use, where 224 costs three times more.
        content_weight: of the L1 between content embedding and the clean photo's plain embedding.
        precision: of the forward pass.
        workers: processes that degrade photos; their number changes nothing but the speed.
        threads: of the arithmetic; another number gives other last digits.
        validate_every, validate_regions: how often, in steps, and on how many regions.
        save_every, log_every: steps.
    """

    data: str = "photos"
    encoder: str = "runs/compact-backbone"
    steps: int = 3000
    batch: int = 32
    region: int = 256
    view: int = 128
    learning_rate: float = 4e-4
    weight_decay: float = 0.05
    warmup: int = 100
    clip_norm: float = 1.0
    content_weight: float = 5.0
    ema: float = 0.995
    precision: Literal["fp32", "bf16"] = "bf16"
    workers: int = 1
    threads: int = 1
    seed: int = 0
    validate_every: int = 500
    validate_regions: int = 256
    save_every: int = 250
    log_every: int = 50
    shares: dict[str, float] = field(default_factory=lambda: dict.fromkeys(DEGRADATIONS, 1.0))


@dataclass(frozen=True, kw_only=True)
class RestorerRun:
    """Stage 2, `train.restorer`: teach a network to mend what the controller names.

    Args:
        data: folder of clean photos.
        encoder: run folder of the controller, or a model by folder or name. Weights from a folder go into the
            finished model, a bundled name or hub id stays a name in it.
        network: name and constructor arguments of the network.
        batch: patches a step, cut from `batch / patches_per_region` regions.
        patch: side in pixels.
        view: side of what the encoder sees, in pixels.
        loss: `l1`, `root-l1` or `log-l1`, see train.restorer.LOSSES. Under the log a tenth less error
            counts the same in a dark patch and in a slightly blurred one, as it does in PSNR.

    The other settings are those of ControllerRun.
    """

    data: str = "photos"
    encoder: str = "runs/compact-controller"
    network: dict[str, Any] = field(default_factory=dict[str, Any])
    steps: int = 20_000
    batch: int = 32
    region: int = 256
    patch: int = 128
    view: int = 160
    patches_per_region: int = 4
    learning_rate: float = 8e-4
    weight_decay: float = 1e-4
    warmup: int = 200
    clip_norm: float = 1.0
    loss: Literal["l1", "root-l1", "log-l1"] = "root-l1"
    ema: float = 0.999
    precision: Literal["fp32", "bf16"] = "bf16"
    workers: int = 1
    threads: int = 1
    seed: int = 0
    validate_every: int = 1000
    validate_regions: int = 256
    save_every: int = 250
    log_every: int = 50
    shares: dict[str, float] = field(default_factory=lambda: dict(SHARES))

    def __post_init__(self) -> None:
        """Raise UsageError for sizes that contradict each other."""
        if self.batch % self.patches_per_region:
            raise UsageError(
                f"batch={self.batch} is no multiple of patches_per_region={self.patches_per_region}"
            )
        if self.patch > self.region:
            raise UsageError(f"patch={self.patch} does not fit into region={self.region}")


Run = BackboneRun | ControllerRun | RestorerRun


def compact() -> RestorerRun:
    """The bundled one-pass restorer: NAFNet + DA-CLIP with a stem at half resolution, 1.46 M parameters."""
    network = {
        "name": "nafnet",
        "width": 40,
        "encoder_blocks": [1, 2],
        "middle_blocks": 4,
        "decoder_blocks": [1, 1],
        "context_dim": 256,
        "degradation": True,
        "content": "vector",
        "attention": "embedding",
        "shuffle": 2,
        "gain": 0.1,
    }
    return RestorerRun(network=network)


def compact_tiny() -> RestorerRun:
    """A toy of 75 thousand parameters: 300 steps take a minute on a CPU, and the gain turns positive."""
    run = compact()
    network = {**run.network, "width": 16, "encoder_blocks": [1], "middle_blocks": 1, "decoder_blocks": [1]}
    return replace(
        run,
        network=network,
        steps=300,
        batch=8,
        patch=64,
        region=128,
        ema=0.98,  # an average over 1000 steps would still hold the random start
        validate_every=150,
        save_every=100,
    )


PRESETS: dict[str, Callable[[], Run]] = {
    "compact-backbone": BackboneRun,
    "compact-controller": ControllerRun,
    "compact": compact,
    "compact-tiny": compact_tiny,
}


def preset(name: str, overrides: Sequence[str] = ()) -> Run:
    """The run of a name, with `field=value` overrides; values are read as JSON, or as plain words.

    Raises UsageError for an unknown preset or field, with the nearest known one, and for a value that the
    field cannot take.
    """
    if name not in PRESETS:
        raise UsageError(f'unknown preset "{name}"', hint=_known(name, list(PRESETS)))
    run = PRESETS[name]()
    known = [each.name for each in fields(run)]
    changes: dict[str, Any] = {}
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or key not in known:
            raise UsageError(f'unknown setting "{override}"', hint=_known(key, known))
        changes[key] = _value(run, key, text)
    return replace(run, **changes)


def _value(run: Run, key: str, text: str) -> Any:
    """The text as a value of the kind the setting has now."""
    now = getattr(run, key)
    words = get_args(get_type_hints(type(run))[key]) if isinstance(now, str) else ()
    if isinstance(now, str):
        if words and text not in words:
            raise UsageError(f'{key} cannot be "{text}"', hint=f"known: {', '.join(words)}")
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if isinstance(now, float) and isinstance(value, int):
        value = float(value)
    if key == "shares" and isinstance(value, dict):
        value = {str(word): float(share) for word, share in cast("dict[str, Any]", value).items()}
    if type(value) is not type(now):
        raise UsageError(f'{key} cannot be "{text}"', hint=f"give a value like {json.dumps(now)}")
    if isinstance(value, int | float) and (value < 0 or (value == 0 and key not in _MAY_BE_ZERO)):
        raise UsageError(f"{key} cannot be {text}", hint="give a larger number")
    return value


_MAY_BE_ZERO = frozenset({"content_weight", "dropout", "ema", "seed", "warmup", "weight_decay", "workers"})


def _known(word: str, known: list[str]) -> str:
    near = get_close_matches(word, known, n=1)
    meant = f'did you mean "{near[0]}"? ' if near else ""
    return f"{meant}known: {', '.join(known)}"
