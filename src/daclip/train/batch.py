"""What a training step is given: regions in a batch, and the views and planes made of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from daclip.data import Sample


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Regions as they come from the loader, and what is wrong with each (nothing: clean)."""

    degraded: UInt8[Tensor, "b h w 3"]
    clean: UInt8[Tensor, "b h w 3"]
    names: list[tuple[str, ...]]


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of one size as one batch."""
    return Batch(
        degraded=torch.stack([torch.from_numpy(sample.degraded) for sample in samples]),
        clean=torch.stack([torch.from_numpy(sample.clean) for sample in samples]),
        names=[sample.names for sample in samples],
    )


def planes(pixels: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """8-bit regions as float planes in [0, 1]."""
    return pixels.permute(0, 3, 1, 2).float() / 255


def normalised(
    pixels: Float[Tensor, "b 3 h w"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "b 3 h w"]:
    """Pixels in [0, 1] as the encoder wants them."""
    return (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]


def draw_views(
    regions: Sequence[Float[Tensor, "b 3 h w"]], side: int, generator: torch.Generator
) -> list[Float[Tensor, "b 3 s s"]]:
    """One view of each region, the same cut in each tensor given: in its own scale, or all of it resized.

    These are the two kinds of view the encoder is given at use (tiling.views).
    """
    count, _, height, width = regions[0].shape
    kinds = torch.rand(count, generator=generator) < 0.3
    tops = torch.randint(max(1, height - side + 1), (count,), generator=generator).tolist()
    lefts = torch.randint(max(1, width - side + 1), (count,), generator=generator).tolist()

    def view(pixels: Tensor, i: int) -> Tensor:
        if bool(kinds[i]) or min(height, width) < side:
            return F.interpolate(pixels[i : i + 1], (side, side), mode="bicubic", antialias=True)
        return pixels[i : i + 1, :, tops[i] : tops[i] + side, lefts[i] : lefts[i] + side]

    return [torch.cat([view(pixels, i) for i in range(count)]) for pixels in regions]


def draw_patches(
    regions: Sequence[Float[Tensor, "b 3 h w"]], side: int, *, count: int, generator: torch.Generator
) -> list[Float[Tensor, "n 3 p p"]]:
    """`count` cuts of each region, the same ones in each tensor given, channels-last."""
    b, _, height, width = regions[0].shape
    tops = torch.randint(height - side + 1, (b, count), generator=generator).tolist()
    lefts = torch.randint(width - side + 1, (b, count), generator=generator).tolist()
    places = [(i, y, x) for i in range(b) for y, x in zip(tops[i], lefts[i], strict=True)]
    return [
        torch.stack([pixels[i, :, y : y + side, x : x + side] for i, y, x in places]).contiguous(
            memory_format=torch.channels_last
        )
        for pixels in regions
    ]
