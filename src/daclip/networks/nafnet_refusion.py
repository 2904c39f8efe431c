"""Refusion's conditional NAFNet: predicts the noise of the mean-reverting SDE, modulated by the time.

Refusion (Luo et al., CVPRW 2023), section 3. Module names are the published ones. Not a part of DA-CLIP: it
takes no embeddings, and is here because IR-SDE's users hold its files.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from daclip.errors import ModelError
from daclip.networks.nafnet import NAFBlock, SimpleGate, counts
from daclip.networks.unet import LayerNorm, Sinusoid


class RefusionNAFNet(nn.Module):
    """NAFNet whose blocks are modulated by the time; unlike plain NAFNet it adds nothing to its input.

    Args:
        width: channels w of the first level, doubled at each further one.
        encoder_blocks, middle_blocks, decoder_blocks: NAFBlocks per level, first level first (decoder: last).
        channels: of the picture; 4 or 8 in latent space.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        encoder_blocks: Sequence[int] = (1, 1, 1, 28),
        middle_blocks: int = 1,
        decoder_blocks: Sequence[int] = (1, 1, 1, 1),
        channels: int = 3,
    ) -> None:
        super().__init__()
        size = 4 * width
        widths = [width * 2**i for i in range(len(encoder_blocks) + 1)]
        self.multiple = 2 ** len(encoder_blocks)
        self.time_mlp = nn.Sequential(
            Sinusoid(width), nn.Linear(width, 2 * size), SimpleGate(), nn.Linear(size, size)
        )
        self.intro = nn.Conv2d(2 * channels, width, 3, padding=1)
        self.ending = nn.Conv2d(width, channels, 3, padding=1)
        self.encoders = nn.ModuleList(
            _level(n, c, size) for n, c in zip(encoder_blocks, widths, strict=False)
        )
        self.downs = nn.ModuleList(nn.Conv2d(c, 2 * c, 2, stride=2) for c in widths[:-1])
        self.middle_blks = _level(middle_blocks, widths[-1], size)
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, 2 * c, 1, bias=False), nn.PixelShuffle(2)) for c in widths[:0:-1]
        )
        self.decoders = nn.ModuleList(
            _level(n, c, size) for n, c in zip(decoder_blocks, widths[-2::-1], strict=True)
        )

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        mu: Float[Tensor, "b c h w"],
        t: Float[Tensor, "b"],
        content: Float[Tensor, "b d"] | None = None,
        degradation: Float[Tensor, "b d"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """The noise in state x at time t. Embeddings are taken and left unused. Any size."""
        height, width = x.shape[-2:]
        z = torch.cat([x - mu, mu], dim=1)
        z = self.intro(F.pad(z, (0, -width % self.multiple, 0, -height % self.multiple)))
        time = self.time_mlp(t)
        skips: list[Tensor] = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            z = _through(encoder, z, time)
            skips.append(z)
            z = down(z)
        z = _through(self.middle_blks, z, time)
        for decoder, up in zip(self.decoders, self.ups, strict=True):
            z = _through(decoder, up(z) + skips.pop(), time)
        return self.ending(z)[..., :height, :width]


def arguments_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The constructor arguments that the names and shapes of a state dict tell.

    Raises ModelError when they are not those of this network.
    """
    try:
        return {
            "width": state["intro.weight"].shape[0],
            "encoder_blocks": counts(state, "encoders"),
            "middle_blocks": len({key.split(".")[1] for key in state if key.startswith("middle_blks.")}),
            "decoder_blocks": counts(state, "decoders"),
            "channels": state["ending.weight"].shape[0],
        }
    except KeyError as error:
        raise ModelError(f"not the weights of Refusion's NAFNet: {error} is missing") from error


def _level(count: int, channels: int, size: int) -> nn.ModuleList:
    blocks = [NAFBlock(channels, embedding=size) for _ in range(count)]
    for block in blocks:
        for name in ("norm1", "norm2"):
            block.set_submodule(name, LayerNorm(channels))  # a gain, no offset, as in the U-Net
    return nn.ModuleList(blocks)


def _through(blocks: nn.Module, z: Tensor, time: Tensor) -> Tensor:
    for block in blocks.children():
        z = block(z, time)
    return z
