"""Optimisers, learning-rate schedule and parameter groups."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from daclip.train.presets import Loop


def optimiser(named: Iterable[tuple[str, nn.Parameter]], loop: Loop) -> torch.optim.Optimizer:
    """The optimiser of a run over its trainable weights."""
    groups = weight_groups(named, weight_decay=loop.weight_decay)
    betas = (loop.beta1, loop.beta2)
    if loop.optimiser == "lion":
        return Lion(groups, lr=loop.learning_rate, betas=betas)
    return torch.optim.AdamW(groups, lr=loop.learning_rate, betas=betas, eps=loop.eps, fused=True)


class Lion(torch.optim.Optimizer):
    """Lion (Chen et al., 2023, algorithm 2): steps by the sign of a mixed average, decoupled weight decay.

    Args:
        groups: parameter groups, each with its `weight_decay`.
        lr: a third to a tenth of AdamW's.
        betas: share of the average in the step, and in the next average.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                average: Tensor = self.state[weight].setdefault("exp_avg", torch.zeros_like(weight))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(average.lerp(weight.grad, 1 - beta1).sign_(), alpha=-group["lr"])
                average.lerp_(weight.grad, 1 - beta2)


def learning_rate(loop: Loop, step: int) -> float:
    """The rate of a run at a step."""
    return loop.learning_rate * cosine(step, loop.steps, warmup=loop.warmup, floor=loop.floor)


def cosine(step: int, steps: int, *, warmup: int = 0, floor: float = 0.0) -> float:
    """Share of the learning rate at a step: linear warm-up to 1, then cosine to `floor` behind the last."""
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
