"""Learning-rate schedule and parameter groups."""

import math
from collections.abc import Iterable
from typing import Any

from torch import nn


def cosine(step: int, steps: int, *, warmup: int = 0, floor: float = 0.0) -> float:
    """Share of the learning rate at a step: linear warm-up to 1, then cosine to `floor` at the last step."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def weight_groups(named: Iterable[tuple[str, nn.Parameter]], *, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices and kernels decay; vectors, gains and scales do not."""
    trainable = [(name, weight) for name, weight in named if weight.requires_grad]
    decaying = [weight for _, weight in trainable if weight.ndim >= 2 and max(weight.shape) != weight.numel()]
    keep = {id(weight) for weight in decaying}
    return [
        {"params": decaying, "weight_decay": weight_decay},
        {"params": [weight for _, weight in trainable if id(weight) not in keep], "weight_decay": 0.0},
    ]
