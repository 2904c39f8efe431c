"""In which ranges a restorer's maps lie, so that its convolutions can compute in 8-bit integers."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn

from daclip import data, metrics
from daclip.data.files import Split
from daclip.data.sample import Sample
from daclip.engine.torch import TorchEngine
from daclip.errors import DataError, ModelError
from daclip.models import ModelFolder, Ranges
from daclip.networks.drunet import DRUNet
from daclip.restore import Restorer

Span = tuple[float, float]
"""Lowest and highest value."""

_PARTS = ("encoders", "downs", "middle", "decoders")
"""Parts of a DRUNet whose convolutions tolerate rounding: what sees and makes colours themselves (head, tail,
and what runs before the blocks) stays in float."""

_FINEST = ("encoders.0.", "decoders.0.")
"""So does the finest level, whose rounding is seen in the photo: it cost real noise .2 dB."""

_REGION = 320
"""Side of the degraded photos, in pixels."""

_CALIBRATED, _CHECKED = 48, 32
"""How many of them tell the ranges, and on how many others the loss is measured."""

_RARE = 1e-4
"""So small a part of the values of a photo may lie beyond either end of its range."""


def degraded(source: str, split: Split, count: int) -> list[Sample]:
    """Degraded photos, from clean ones or pairs: see data.open_data.

    Raises DataError where none is degraded.
    """
    drawn = data.open_data(source, split=split, region=_REGION, seed=0)
    found = [sample for i in range(2 * count) if (sample := drawn.draw(i)).names][:count]
    if not found:
        raise DataError(f"{source}: no degraded photo comes of it", hint="name clean photos, or pairs")
    return found


def ranges(found: ModelFolder, photos: str) -> Ranges:
    """What the convolutions of a restorer are given, and give, when it restores degraded photos, as at use.

    Raises ModelError for a network that is no DRUNet.
    """
    restorer = Restorer(found, engine="torch", precision="fp32", device="cpu")
    assert isinstance(restorer.engine, TorchEngine)
    network = restorer.engine.network
    if not isinstance(network, DRUNet):
        raise ModelError(f"{found.path}: only a DRUNet computes in 8-bit integers")
    convolutions = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and name.split(".")[0] in _PARTS and not name.startswith(_FINEST)
    }
    with _watched(convolutions) as seen:
        for sample in degraded(photos, "train", _CALIBRATED):
            restorer.restore(sample.degraded)
    if not all(given for given, _ in seen.values()):
        raise ModelError(f"{found.path}: finds nothing wrong with degraded photos of {photos}")
    return {name: (*_whole(given), *_whole(answered)) for name, (given, answered) in seen.items()}


def _whole(spans: list[Span]) -> Span:
    """From the lowest to the highest of all, and zero."""
    return min(0.0, *(low for low, _ in spans)), max(0.0, *(high for _, high in spans))


@contextmanager
def _watched(convolutions: dict[str, nn.Conv2d]) -> Generator[dict[str, tuple[list[Span], list[Span]]]]:
    """The ranges of all that the convolutions are given meanwhile, and of what they give."""
    seen: dict[str, tuple[list[Span], list[Span]]] = {name: ([], []) for name in convolutions}

    def watch(name: str, module: nn.Conv2d) -> Any:
        def look(_: nn.Module, given: tuple[Tensor, ...], answered: Tensor) -> None:
            for spans, values in zip(seen[name], (given[0], answered), strict=True):
                low, high = np.quantile(values.float().numpy(), [_RARE, 1 - _RARE])
                spans.append((float(low), float(high)))

        return module.register_forward_hook(look)

    with ExitStack() as hooks:
        for name, module in convolutions.items():
            hooks.enter_context(watch(name, module))
        yield seen


def loss(found: ModelFolder, photos: str) -> float:
    """What 8-bit integers cost on other degraded photos: dB of PSNR, in the mean over those it restores."""
    exact, rounded = (Restorer(found, engine="onnx", precision=each) for each in ("fp32", "int8"))
    losses: list[float] = []
    for sample in degraded(photos, "val", _CHECKED):
        seen = exact.encode(sample.degraded)
        answers = [each.restore(sample.degraded, embeddings=seen) for each in (exact, rounded)]
        if answers[0].action == "restored":
            before, after = (metrics.psnr(each.pixels, sample.clean) for each in answers)
            losses.append(before - after)
    return float(np.mean(losses)) if losses else 0.0
