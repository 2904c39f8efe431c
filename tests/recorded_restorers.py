"""What the published Restormer, PromptIR and AirNet computed, and what the tests of all three share."""

import gzip
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PARITY = Path(__file__).parent / "parity"
sys.path.insert(0, str(PARITY))

from unet_weights import weights  # noqa: E402


@cache
def recording() -> dict[str, np.ndarray]:
    with np.load(PARITY / "restorers_small.npz") as file:
        return dict(file)


def state(name: str) -> dict[str, Tensor]:
    """The weights of a small recorded network, as its published file would hold them."""
    names, shapes = recording()[f"{name}_names"].tolist(), recording()[f"{name}_shapes"].tolist()
    sizes = {
        key: tuple(map(int, shape.split("x"))) if shape else ()
        for key, shape in zip(names, shapes, strict=True)
    }
    counters = {key: size for key, size in sizes.items() if key.endswith(("batches_tracked", "queue_ptr"))}
    made = {
        key: torch.from_numpy(np.asarray(value))
        for key, value in weights({k: v for k, v in sizes.items() if k not in counters}).items()
    }
    for key, value in made.items():
        if name == "airnet" and key.startswith("R."):
            value *= 0.5
        if key.endswith("running_var"):
            made[key] = value.abs() + 0.5
    return {**made, **{key: torch.zeros(size, dtype=torch.long) for key, size in counters.items()}}


def photos(name: str) -> list[tuple[Tensor, Tensor]]:
    """Degraded photos and what the published network made of them."""
    return [
        (torch.from_numpy(recording()[f"{name}_{i}_mu"]), torch.from_numpy(recording()[f"{name}_{i}_clean"]))
        for i in (0, 1)
    ]


@cache
def official_keys() -> dict[str, dict[str, Tensor]]:
    """Every weight of the published files at full size, as a tensor without memory."""
    found: dict[str, dict[str, Tensor]] = {}
    with gzip.open(PARITY / "restorers_official_keys.tsv.gz", "rt") as lines:
        for line in lines:
            file, name, shape = line.rstrip("\n").split("\t")
            sizes = [] if shape == "scalar" else [int(side) for side in shape.split("x")]
            found.setdefault(file, {})[name] = torch.empty(sizes, device="meta")
    return found


def shapes_of(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in weights.items()}


def agrees(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= 1e-5 * wanted.abs().max())


def shaken(network: nn.Module, size: float = 0.1) -> Any:
    """The network with every weight moved, so that nothing is zero; in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=generator))
    return network.eval()


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def embedding(count: int, seed: int) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
