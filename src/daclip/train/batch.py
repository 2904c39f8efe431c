"""What a training step is given: regions in a batch, and the views and planes made of them.

Every draw belongs to a sample: it follows from the seed and the sample's number. A batch that is split over
processes or computed in parts so gives the same views, patches and noise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from daclip.data import Sample
from daclip.tiling import TONE_SHARES


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Regions as they come from the loader: number of the draw, what is wrong with each (nothing: clean)."""

    degraded: UInt8[Tensor, "b h w 3"]
    clean: UInt8[Tensor, "b h w 3"]
    names: list[tuple[str, ...]]
    captions: list[str | None]
    indices: list[int]

    def parts(self, count: int) -> list["Batch"]:
        """The batch in `count` equal parts."""
        size = len(self.indices) // count
        return [self.part(i * size, (i + 1) * size) for i in range(count)]

    def part(self, start: int, stop: int) -> "Batch":
        """Some of its samples, without a copy."""
        own = slice(start, stop)
        return Batch(
            degraded=self.degraded[own],
            clean=self.clean[own],
            names=self.names[own],
            captions=self.captions[own],
            indices=self.indices[own],
        )

    def to(self, device: torch.device) -> "Batch":
        """The batch with its pixels on a device."""
        degraded, clean = (each.to(device, non_blocking=True) for each in (self.degraded, self.clean))
        return replace(self, degraded=degraded, clean=clean)

    def pin_memory(self) -> "Batch":
        """The batch where a CUDA device copies from while the processor goes on; torch's loader calls it."""
        return replace(self, degraded=self.degraded.pin_memory(), clean=self.clean.pin_memory())

    def generators(self, seed: int) -> list[torch.Generator]:
        """The source of randomness of each sample, on the CPU."""
        return [torch.Generator().manual_seed(seed * 1_000_003 + index) for index in self.indices]


def collate(samples: Sequence[tuple[int, Sample]]) -> Batch:
    """Numbered samples of one size as one batch."""
    return Batch(
        degraded=torch.stack([torch.from_numpy(sample.degraded) for _, sample in samples]),
        clean=torch.stack([torch.from_numpy(sample.clean) for _, sample in samples]),
        names=[sample.names for _, sample in samples],
        captions=[sample.caption for _, sample in samples],
        indices=[index for index, _ in samples],
    )


_WHOLE_SHARE = 0.3
"""Of views that show a region as a whole."""


def planes(pixels: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """8-bit regions as float planes in [0, 1]."""
    return pixels.permute(0, 3, 1, 2).float() / 255


def normalised(
    pixels: Float[Tensor, "b 3 h w"],
    mean: Sequence[float] | Float[Tensor, "3"],
    std: Sequence[float] | Float[Tensor, "3"],
) -> Float[Tensor, "b 3 h w"]:
    """Pixels in [0, 1] as the encoder wants them. Numbers that are not on their device yet wait for it."""
    less, by = (torch.as_tensor(each, dtype=pixels.dtype, device=pixels.device) for each in (mean, std))
    return (pixels - less[:, None, None]) / by[:, None, None]


def tones(regions: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 18"]:
    """How light each region is, as `tiling.tone` says it of a photo, from every fourth pixel."""
    ordered = regions[:, :, ::2, ::2].flatten(2).sort(dim=2).values
    numbers: list[Tensor] = []
    for share in TONE_SHARES:  # torch.quantile takes its shares from the device, and waits
        below, part = divmod(share * (ordered.shape[2] - 1), 1)
        pair = ordered[..., int(below)], ordered[..., math.ceil(below + part)]
        numbers.append(torch.lerp(*pair, part))
    return torch.cat([*numbers, ordered.mean(2)], dim=1)


def draw_views(
    regions: Sequence[Float[Tensor, "b 3 h w"]], side: int, generators: Sequence[torch.Generator]
) -> list[Float[Tensor, "b 3 s s"]]:
    """One view of each region, the same cut in each tensor given: in its own scale, or all of it resized.

    These are the two kinds of view the encoder is given at use (tiling.views), there at its own side.
    """
    height, width = regions[0].shape[-2:]
    views: list[list[Tensor]] = [[] for _ in regions]
    for i, generator in enumerate(generators):
        whole = float(torch.rand((), generator=generator)) < _WHOLE_SHARE or min(height, width) < side
        top, left = (0, 0) if whole else _corner(height, width, side, generator)
        for pixels, kept in zip(regions, views, strict=True):
            if whole:
                kept.append(F.interpolate(pixels[i : i + 1], (side, side), mode="bicubic", antialias=True))
            else:
                kept.append(pixels[i : i + 1, :, top : top + side, left : left + side])
    return [torch.cat(kept) for kept in views]


def draw_patches(
    regions: Sequence[Float[Tensor, "b 3 h w"]],
    side: int,
    *,
    count: int,
    generators: Sequence[torch.Generator],
) -> list[Float[Tensor, "n 3 p p"]]:
    """`count` cuts of each region, the same ones in each tensor given, channels-last.

    Most begin where a block of JPEG does, as photos and their tiles do at use: networks whose coarsest maps
    have a place for each block learn where its borders lie.
    """
    height, width = regions[0].shape[-2:]
    places = [
        (i, *_on_grid(_corner(height, width, side, generator), generator))
        for i, generator in enumerate(generators)
        for _ in range(count)
    ]
    return [
        torch.stack([pixels[i, :, top : top + side, left : left + side] for i, top, left in places]).to(
            memory_format=torch.channels_last
        )
        for pixels in regions
    ]


def _corner(height: int, width: int, side: int, generator: torch.Generator) -> tuple[int, int]:
    """Top and left of a square that lies in a region."""
    top = int(torch.randint(height - side + 1, (), generator=generator))
    return top, int(torch.randint(width - side + 1, (), generator=generator))


_BLOCK = 8
"""Side of a block of JPEG, in pixels."""

_ON_GRID = 0.8
"""Share of the patches that begin with one: some photos were cut before people had them."""


def _on_grid(corner: tuple[int, int], generator: torch.Generator) -> tuple[int, int]:
    """The corner, mostly moved to the block of JPEG that it lies in."""
    step = _BLOCK if float(torch.rand((), generator=generator)) < _ON_GRID else 1
    top, left = corner
    return top // step * step, left // step * step
