"""Speed of 3 x 3 convolutions in training on one thread: PyTorch's and those by tiles, in float32.

python benchmarks/winograd.py

Channels last. Gigaflop a second, as of the direct sums, so tiles can reach more than the processor does; the
best of five. Layers of the U-Net of universal-ir on 256 x 256 pixels, then of `compact` on eight patches of
128 x 128.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from unet import machine, seconds

from daclip.train import winograd
from daclip.train.depthwise import native_gradient

LAYERS = [(1, 64, 256), (1, 128, 128), (1, 256, 64), (1, 512, 32), (8, 48, 64), (8, 96, 32), (8, 160, 16)]
"""Maps, channels and side."""


def main() -> None:
    torch.set_num_threads(1)
    print(f"{machine(1).replace('threads', 'thread')}\n")
    print("| maps | channels | side | forward | by tiles | of map | by tiles | of weight | by tiles |")
    print(9 * "|---" + "|")
    for maps, channels, side in LAYERS:
        speeds = " | ".join(f"{speed:.0f}" for speed in speeds_of(maps, channels, side))
        print(f"| {maps} | {channels} | {side} | {speeds} |", flush=True)


def speeds_of(maps: int, channels: int, side: int) -> list[float]:
    """Forward, by tiles; gradient of the map, by tiles; gradient of the weight, by tiles."""
    x, y = (last(torch.randn(maps, channels, side, side)) for _ in range(2))
    weight = last(torch.randn(channels, channels, 3, 3))

    def native(of_map: bool) -> Tensor:
        return native_gradient(y, x, weight, of_map=of_map, padding=1, groups=1)

    ways: list[Callable[[], Tensor]] = [
        lambda: F.conv2d(x, weight, padding=1),
        lambda: winograd.convolved(x, weight),
        lambda: native(of_map=True),
        lambda: winograd.map_gradient(y, weight),
        lambda: native(of_map=False),
        lambda: winograd.weight_gradient(y, x),
    ]
    flop = 2 * 9 * channels**2 * maps * side**2
    return [flop / min(seconds(way)[1] for _ in range(5)) / 1e9 for way in ways]


def last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


if __name__ == "__main__":
    main()
