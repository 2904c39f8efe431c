"""Restormer: a U-shaped transformer that attends among channels, and its form conditioned by DA-CLIP.

Restormer (Zamir et al., CVPR 2022). Module names are the published ones, so plain checkpoints load as they
are. Written here because conditioning changes the blocks, and spandrel's permissive half does not have it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from daclip.errors import ModelError
from daclip.networks import recompute
from daclip.networks.conditioning import Conditions, Content, Modulation
from daclip.networks.unet import Projection, grid, padded, tokens


class Restormer(nn.Module):
    """Four levels of transformer blocks, each at half the sides of the last; adds its output to the photo.

    Args:
        width: channels w of the first level, doubled at each further one; the last decoder level and the
            refinement have 2 w.
        blocks: of the four levels; the decoder has those of the first three.
        refinement: blocks at full resolution behind the decoder.
        heads: of the attention, by level.
        expansion: hidden channels of the feed-forward part per channel.
        norm_bias: norms subtract the mean and have an offset, as in the published files for rain and blur;
            without, as in those for noise.
        context_dim, degradation, content: see Conditions; the vector has 4 w numbers and modulates what each
            attention and each feed-forward part reads.
    """

    def __init__(
        self,
        *,
        width: int = 48,
        blocks: Sequence[int] = (4, 6, 6, 8),
        refinement: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        expansion: float = 2.66,
        norm_bias: bool = True,
        context_dim: int | None = None,
        degradation: bool = False,
        content: Content = "none",
    ) -> None:
        super().__init__()
        self.multiple = 8
        self.conditions = Conditions(context_dim, 4 * width, degradation=degradation, content=content)
        one, two, three, four = (width * 2**i for i in range(4))

        def level(channels: int, count: int, head: int) -> Level:
            return Level(
                TransformerBlock(
                    channels,
                    heads=head,
                    expansion=expansion,
                    norm_bias=norm_bias,
                    embedding=self.conditions.size,
                )
                for _ in range(count)
            )

        self.patch_embed = Projection(3, one)
        self.encoder_level1 = level(one, blocks[0], heads[0])
        self.down1_2 = down(one)
        self.encoder_level2 = level(two, blocks[1], heads[1])
        self.down2_3 = down(two)
        self.encoder_level3 = level(three, blocks[2], heads[2])
        self.down3_4 = down(three)
        self.latent = level(four, blocks[3], heads[3])
        self.up4_3 = up(four)
        self.reduce_chan_level3 = nn.Conv2d(2 * three, three, 1, bias=False)
        self.decoder_level3 = level(three, blocks[2], heads[2])
        self.up3_2 = up(three)
        self.reduce_chan_level2 = nn.Conv2d(2 * two, two, 1, bias=False)
        self.decoder_level2 = level(two, blocks[1], heads[1])
        self.up2_1 = up(two)
        self.decoder_level1 = level(two, blocks[0], heads[0])
        self.refinement = level(two, refinement, heads[0])
        self.output = nn.Conv2d(two, 3, 3, padding=1, bias=False)

    def forward(
        self,
        mu: Float[Tensor, "b 3 h w"],
        content: Float[Tensor, "b d"] | None = None,
        degradation: Float[Tensor, "b d"] | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """The clean photo, unclamped. Embeddings un-normalised. Any size: reflected, then cropped."""
        height, width = mu.shape[-2:]
        photo = padded(mu, self.multiple)
        vector = self.conditions(content, degradation)
        first = self.encoder_level1(self.patch_embed(photo), vector)
        second = self.encoder_level2(self.down1_2(first), vector)
        third = self.encoder_level3(self.down2_3(second), vector)
        z = self.latent(self.down3_4(third), vector)
        z = self.reduce_chan_level3(torch.cat([self.up4_3(z), third], dim=1))
        z = self.decoder_level3(z, vector)
        z = self.reduce_chan_level2(torch.cat([self.up3_2(z), second], dim=1))
        z = self.decoder_level2(z, vector)
        z = self.decoder_level1(torch.cat([self.up2_1(z), first], dim=1), vector)
        z = self.output(self.refinement(z, vector))
        return (z + photo)[..., :height, :width]


class Level(nn.ModuleList):
    """Transformer blocks one after another, all given the same conditioning vector."""

    checkpoint_activations = False

    def forward(
        self, x: Float[Tensor, "b c h w"], vector: Float[Tensor, "b e"] | None
    ) -> Float[Tensor, "b c h w"]:
        """The map after all blocks."""
        for block in self:
            x = recompute.run(block, x, vector, recompute=self.checkpoint_activations)
        return x


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)); what both read is modulated.

    Args:
        channels: width c of the map.
        heads: of the attention.
        expansion, norm_bias: see Restormer.
        embedding: size of the conditioning vector; 0 for the plain block.
    """

    def __init__(
        self, channels: int, *, heads: int, expansion: float, norm_bias: bool, embedding: int = 0
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(channels, bias=norm_bias), Norm(channels, bias=norm_bias)
        self.attn = ChannelAttention(channels, heads)
        self.ffn = FeedForward(channels, int(channels * expansion))
        self.modulation1 = Modulation(channels, embedding)
        self.modulation2 = Modulation(channels, embedding)

    def forward(
        self, x: Float[Tensor, "b c h w"], vector: Float[Tensor, "b e"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """The map, its channels having seen each other and each pixel its neighbours."""
        x = x + self.attn(self.modulation1(self.norm1(x), vector))
        return x + self.ffn(self.modulation2(self.norm2(x), vector))


class Norm(nn.Module):
    """Normalisation of each pixel over its channels."""

    def __init__(self, channels: int, *, bias: bool) -> None:
        super().__init__()
        self.body = nn.LayerNorm(channels) if bias else Scaling(channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The normalised map; channels-last input needs no copy."""
        return self.body(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Scaling(nn.Module):
    """Division by the standard deviation over the last axis, with a gain; the mean stays in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Float[Tensor, "... c"]) -> Float[Tensor, "... c"]:
        """The scaled values; the deviation is computed in float32."""
        variance = x.float().var(-1, keepdim=True, unbiased=False)
        return x * ((variance + 1e-5).rsqrt() * self.weight)


class ChannelAttention(nn.Module):
    """Attention among the channels of a head (MDTA): linear in the number of pixels.

    With q, k, v from a 1x1 and a depthwise 3x3 convolution and |.| over pixels,
    out = project_out(v softmax(temperature q^T k / |q| |k|)). As project_out is linear too, it joins the
    softmaxed matrices into one matrix for a photo, and the attended values are never made.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """What each channel takes from those of its head."""
        heads = self.temperature.shape[0]
        q, k, v = tokens(self.qkv_dwconv(self.qkv(x))).chunk(3, dim=2)
        q, k = (F.normalize(part, dim=1).unflatten(2, (heads, -1)) for part in (q, k))
        likeness = q.permute(0, 2, 3, 1) @ k.transpose(1, 2)  # b heads c/heads c/heads
        share = (likeness * self.temperature).softmax(dim=3)
        w_out = self.project_out.weight.flatten(1).unflatten(1, (heads, -1)).transpose(0, 1)
        joined = (w_out @ share).transpose(1, 2).flatten(2)  # b c c
        return grid(v @ joined.transpose(1, 2), x)


class FeedForward(nn.Module):
    """A gated feed-forward part that sees the neighbours of a pixel (GDFN)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=False)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """project_out(GELU(gate) value), both from a 1x1 and a depthwise 3x3 convolution."""
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * value)


class Resizing(nn.Module):
    """A 3x3 convolution and a rearrangement of its channels into pixels or back, under the published name."""

    def __init__(self, inside: int, outside: int, shuffle: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1, bias=False), shuffle)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Tensor:
        """The map at half or double the sides."""
        return self.body(x)


def down(channels: int) -> Resizing:
    """Half the sides, twice the channels."""
    return Resizing(channels, channels // 2, nn.PixelUnshuffle(2))


def up(channels: int) -> Resizing:
    """Twice the sides, half the channels."""
    return Resizing(channels, 2 * channels, nn.PixelShuffle(2))


def arguments_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `Restormer` that fit published weights, read from their names and shapes.

    Raises ModelError when they are not those of a Restormer.
    """
    try:
        levels = ["encoder_level1", "encoder_level2", "encoder_level3", "latent"]
        hidden, channels = state["latent.0.ffn.project_in.weight"].shape[:2]
        return {
            "width": state["patch_embed.proj.weight"].shape[0],
            "blocks": [blocks_in(state, level) for level in levels],
            "refinement": blocks_in(state, "refinement"),
            "heads": [state[f"{level}.0.attn.temperature"].shape[0] for level in levels],
            # published: hidden channels are rounded down, from a number with two decimals
            "expansion": math.ceil(50 * hidden / channels) / 100,
            "norm_bias": "latent.0.norm1.body.bias" in state,
        }
    except KeyError as error:
        raise ModelError(f"not the weights of a Restormer: {error} is missing") from error


def blocks_in(state: Mapping[str, Tensor], level: str) -> int:
    """Number of transformer blocks of a level."""
    return sum(name.startswith(f"{level}.") and name.endswith(".attn.temperature") for name in state)
