"""NAFNet and its conditioned forms: one pass from a degraded photo to a clean one.

NAFNet (Chen et al., ECCV 2022) as published, plus the rows "NAFNet + Degradation" and "NAFNet + DA-CLIP" of
Table 3 of the DA-CLIP paper. Module names are the published ones, so plain checkpoints load as they are.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from daclip.errors import ModelError
from daclip.networks import recompute
from daclip.networks.conditioning import ContentVector, DegradationPrompt, conditioning_vector
from daclip.networks.unet import Attention

BlockAttention = Literal["pool", "embedding", "content"]


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel, with gain and offset (eps 1e-6)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The normalised map; channels-last input needs no copy."""
        normalised = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, eps=1e-6)
        return normalised.permute(0, 3, 1, 2)


class SimpleGate(nn.Module):
    """First half of the channels times the second half (NAFNet section 3.3)."""

    def forward(self, x: Tensor) -> Tensor:
        """A tensor with half the channels (axis 1)."""
        first, second = x.chunk(2, dim=1)
        return first * second


class NAFBlock(nn.Module):
    """NAFNet's block; with an `embedding` it is modulated as in Refusion, by what is wrong.

    Args:
        channels: width c of the map.
        embedding: size of the conditioning vector; 0 for the plain block.
        attention: `pool` scales channels by the map's global average (the published simplified channel
            attention); `embedding` by the conditioning vector instead, so that a tile gives the same pixels
            as the whole photo; `content` puts the U-Net's transformer block with the content in that place.
        content_dim: width of the content embedding, for `content`.
        gain: start of the two residual gains, 0 as published.
    """

    def __init__(
        self,
        channels: int,
        *,
        embedding: int = 0,
        attention: BlockAttention = "pool",
        content_dim: int | None = None,
        gain: float = 0.0,
    ) -> None:
        super().__init__()
        c = channels
        self.norm1, self.norm2 = ChannelNorm(c), ChannelNorm(c)
        self.conv1 = nn.Conv2d(c, 2 * c, 1)
        self.conv2 = nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=2 * c)
        self.conv3 = nn.Conv2d(c, c, 1)
        self.conv4 = nn.Conv2d(c, 2 * c, 1)
        self.conv5 = nn.Conv2d(c, c, 1)
        self.sg = SimpleGate()
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, c, 1)) if attention == "pool" else None
        self.attn = Attention(c, content_dim) if attention == "content" else None
        self.beta = nn.Parameter(torch.full((1, c, 1, 1), gain))
        self.gamma = nn.Parameter(torch.full((1, c, 1, 1), gain))
        self.parts = 5 if attention == "embedding" else 4
        self.mlp = None
        if embedding:
            last = nn.Linear(embedding // 2, self.parts * c)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.mlp = nn.Sequential(SimpleGate(), last)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        embedding: Float[Tensor, "b e"] | None = None,
        content: Float[Tensor, "b d"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """The map after channel mixing with depthwise context, then the feed-forward part."""
        a, modulation = self.norm1(x), None
        if self.mlp is not None and embedding is not None:
            modulation = self.mlp(embedding)[:, :, None, None].chunk(self.parts, dim=1)
            a = a * (modulation[1] + 1) + modulation[0]
        a = self.sg(self.conv2(self.conv1(a)))
        if self.sca is not None:
            a = a * self.sca(a)
        elif self.attn is not None:
            a = self.attn(a, content)
        elif modulation is not None:
            a = a * (modulation[4] + 1)
        y = x + self.conv3(a) * self.beta
        b = self.norm2(y)
        if modulation is not None:
            b = b * (modulation[3] + 1) + modulation[2]
        return y + self.conv5(self.sg(self.conv4(b))) * self.gamma


class Blocks(nn.ModuleList):
    """NAFBlocks one after another, all given the same conditioning vector and content."""

    checkpoint_activations = False

    def forward(self, x: Tensor, embedding: Tensor | None, content: Tensor | None) -> Tensor:
        """The map after all blocks."""
        for block in self:
            x = recompute.run(block, x, embedding, content, recompute=self.checkpoint_activations)
        return x


class NAFNet(nn.Module):
    """NAFNet: plain, + Degradation, or + DA-CLIP; adds its output to the photo.

    Args:
        width: channels w at the first level, doubled at each further one.
        encoder_blocks, middle_blocks, decoder_blocks: NAFBlocks per level, first level first (decoder: last
            first).
        context_dim: width of the DA-CLIP embeddings; None for the plain network.
        degradation: modulate every block by the degradation prompt.
        prompt: what the degradation prompt reads: the `embedding` as it is, or its `direction` alone.
        content: `attention` puts the U-Net's transformer block, which attends to the content embedding, in
            place of the middle blocks' channel attention (the paper's Figure 7); `vector` adds the content
            embedding to the modulation instead: attention to one token is the same vector everywhere.
        attention: channel attention of the other blocks, see NAFBlock.
        shuffle: pixel-unshuffle factor of the stem; 2 works at half resolution at a third of the cost.
        gain: see NAFBlock.
    """

    def __init__(
        self,
        *,
        width: int = 32,
        encoder_blocks: Sequence[int] = (1, 1, 1, 28),
        middle_blocks: int = 1,
        decoder_blocks: Sequence[int] = (1, 1, 1, 1),
        context_dim: int | None = None,
        degradation: bool = False,
        prompt: Literal["direction", "embedding"] = "direction",
        content: Literal["none", "vector", "attention"] = "none",
        attention: Literal["pool", "embedding"] = "pool",
        shuffle: int = 1,
        gain: float = 0.0,
    ) -> None:
        super().__init__()
        self.shuffle = shuffle
        self.multiple = shuffle * 2 ** len(encoder_blocks)
        if (degradation or content != "none") and context_dim is None:
            raise ValueError("conditioning needs context_dim, the width of the embeddings")
        size = 4 * width if degradation or content == "vector" else 0
        planes = 3 * shuffle**2

        def level(count: int, channels: int, kind: BlockAttention) -> Blocks:
            return Blocks(
                NAFBlock(channels, embedding=size, attention=kind, content_dim=context_dim, gain=gain)
                for _ in range(count)
            )

        self.intro = nn.Conv2d(planes, width, 3, padding=1)
        self.ending = nn.Conv2d(width, planes, 3, padding=1)
        widths = [width * 2**i for i in range(len(encoder_blocks) + 1)]
        self.encoders = nn.ModuleList(
            level(n, c, attention) for n, c in zip(encoder_blocks, widths, strict=False)
        )
        self.downs = nn.ModuleList(nn.Conv2d(c, 2 * c, 2, stride=2) for c in widths[:-1])
        middle = "content" if content == "attention" else attention
        self.middle_blks = level(middle_blocks, widths[-1], middle)
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, 2 * c, 1, bias=False), nn.PixelShuffle(2)) for c in widths[:0:-1]
        )
        self.decoders = nn.ModuleList(
            level(n, c, attention) for n, c in zip(decoder_blocks, widths[-2::-1], strict=True)
        )
        self.prompt = None
        if degradation and context_dim:
            self.prompt = DegradationPrompt(context_dim, size, reads=prompt)
        self.content_mlp = ContentVector(context_dim, size) if content == "vector" and context_dim else None

    def embedding(
        self, content: Float[Tensor, "b d"] | None, degradation: Float[Tensor, "b d"] | None
    ) -> Float[Tensor, "b e"] | None:
        """The conditioning vector of all blocks; None for the plain network."""
        return conditioning_vector(self.prompt, degradation, self.content_mlp, content)

    def forward(
        self,
        mu: Float[Tensor, "b 3 h w"],
        content: Float[Tensor, "b d"] | None = None,
        degradation: Float[Tensor, "b d"] | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """The clean photo, unclamped. Embeddings un-normalised. Any size: padded, then cropped."""
        height, width = mu.shape[-2:]
        padded = F.pad(mu, (0, -width % self.multiple, 0, -height % self.multiple))
        x = self.intro(F.pixel_unshuffle(padded, self.shuffle) if self.shuffle > 1 else padded)
        vector = self.embedding(content, degradation)
        skips: list[Tensor] = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x, vector, content)
            skips.append(x)
            x = down(x)
        x = self.middle_blks(x, vector, content)
        for decoder, up in zip(self.decoders, self.ups, strict=True):
            x = decoder(up(x) + skips.pop(), vector, content)
        x = self.ending(x)
        residual = F.pixel_shuffle(x, self.shuffle) if self.shuffle > 1 else x
        return (padded + residual)[..., :height, :width]


def arguments_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `NAFNet` that fit published weights, which are plain, read from names and shapes.

    Raises ModelError when they are not those of a NAFNet.
    """
    try:
        return {
            "width": state["intro.weight"].shape[0],
            "encoder_blocks": counts(state, "encoders"),
            "middle_blocks": len({key.split(".")[1] for key in state if key.startswith("middle_blks.")}),
            "decoder_blocks": counts(state, "decoders"),
        }
    except KeyError as error:
        raise ModelError(f"not the weights of NAFNet: {error} is missing") from error


def counts(state: Mapping[str, Tensor], part: str) -> list[int]:
    """Number of blocks of each level of the encoder or decoder, the level with the lowest number first."""
    found = {(int(m[1]), int(m[2])) for key in state if (m := re.match(rf"{part}\.(\d+)\.(\d+)\.", key))}
    levels = {level for level, _ in found}
    return [sum(at == level for at, _ in found) for level in sorted(levels)]
