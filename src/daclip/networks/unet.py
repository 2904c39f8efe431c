"""The conditional U-Net of DA-CLIP: the noise in a state, given degraded photo, time and embeddings.

One class is the U-Net of universal-ir, of wild-ir (half resolution) and of plain IR-SDE (no conditions).
Modules are named as in the published files. docs/paper.md, "Conditional U-Net".
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from daclip.errors import ModelError, UsageError
from daclip.networks import recompute

HEAD = 32
"""Channels of one attention head, in both kinds of attention."""


class UNet(nn.Module):
    """`network(x, mu, t, content=..., degradation=...)` is the noise in x at time t.

    Args:
        width: channels at full resolution.
        multipliers: channels behind level i are width * multipliers[i]; all but the last halve the sides.
        context_dim: length of the embeddings; None for a network without conditions.
        degradation: add the degradation embedding, through the learned prompt, to the time embedding.
        content: attend to the content embedding in the middle and at `content_levels`.
        content_levels: None for the deepest level alone. Published networks of four levels all have (3,).
        half_resolution: work on half the sides between the first and the last convolution (wild-ir).
        in_channels, out_channels: of a photo.

    With `checkpoint_activations` (networks.recompute) it trains with less memory and a third more time:
    levels keep only what they hand on.

    The published settings: universal-ir is the default, wild-ir has context_dim=768, degradation=False,
    half_resolution=True, plain IR-SDE multipliers=(2, 4, 8, 16), context_dim=None.
    """

    def __init__(
        self,
        width: int = 64,
        *,
        multipliers: Sequence[int] = (1, 2, 4, 8),
        context_dim: int | None = 512,
        degradation: bool = True,
        content: bool = True,
        content_levels: Sequence[int] | None = None,
        half_resolution: bool = False,
        in_channels: int = 3,
        out_channels: int = 3,
    ) -> None:
        super().__init__()
        depth, time = len(multipliers), 4 * width
        content_dim = context_dim if content else None
        levels = (depth - 1,) if content_levels is None else content_levels
        self.needs_content = content_dim is not None
        self.needs_degradation = degradation and context_dim is not None
        self.multiple = 2**depth
        self.checkpoint_activations = False
        self.init_conv = nn.Conv2d(2 * in_channels, width, 7, padding=3, bias=False)
        self.time_mlp = nn.Sequential(
            Sinusoid(width), nn.Linear(width, time), nn.GELU(), nn.Linear(time, time)
        )
        if degradation and context_dim is not None:
            self.prompt = nn.Parameter(torch.rand(1, time))
            self.text_mlp = nn.Sequential(nn.Linear(context_dim, time), nn.SiLU(), nn.Linear(time, time))
            self.prompt_mlp = nn.Linear(time, time)
        self.half_resolution = half_resolution
        if half_resolution:
            self.downsample = nn.Conv2d(width, width, 4, stride=2, padding=1)
            self.upsample = upsample(width, width)

        widths = [width, *(width * m for m in multipliers)]
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for i, (fine, coarse) in enumerate(pairwise(widths)):
            here = content_dim if i in levels else None
            last = i == depth - 1
            down = nn.Conv2d(fine, coarse, 3, padding=1, bias=False) if last else halve(fine, coarse)
            up = nn.Conv2d(coarse, fine, 3, padding=1, bias=False) if i == 0 else upsample(coarse, fine)
            self.downs.append(
                nn.ModuleList(
                    [ResBlock(fine, fine, time), ResBlock(fine, fine, time), Attention(fine, here), down]
                )
            )
            self.ups.insert(
                0,
                nn.ModuleList(
                    [
                        ResBlock(coarse + fine, coarse, time),
                        ResBlock(coarse + fine, coarse, time),
                        Attention(coarse, here),
                        up,
                    ]
                ),
            )
        self.mid_block1 = ResBlock(widths[-1], widths[-1], time)
        self.mid_attn = Attention(widths[-1], content_dim)
        self.mid_block2 = ResBlock(widths[-1], widths[-1], time)
        self.final_res_block = ResBlock(2 * width, width, time)
        self.final_conv = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        mu: Float[Tensor, "b c h w"],
        t: Float[Tensor, "#b"],
        *,
        content: Float[Tensor, "b d"] | None = None,
        degradation: Float[Tensor, "b d"] | None = None,
    ) -> Float[Tensor, "b o h w"]:
        """The noise in x.

        Args:
            x: state of the diffusion, any size.
            mu: degraded photo in [0, 1].
            t: time in the steps of the schedule, 1 to 100, fractions allowed.
            content: un-normalised content embedding; not looked at by a network without content.
            degradation: un-normalised degradation embedding; without it the prompt is left out.
        """
        if content is None and self.needs_content:
            raise UsageError("this network needs a content embedding", hint="pass content=")
        height, width = x.shape[-2:]
        z = self.init_conv(padded(torch.cat([x - mu, mu], dim=1), self.multiple))
        first = z
        if self.half_resolution:
            z = self.downsample(z)
        embedding = self._embed(t, degradation)
        skips: list[Tensor] = []
        again = self.checkpoint_activations
        for level in self.downs:
            *made, z = recompute.run(_descend, level, z, embedding, content, recompute=again)
            skips += made
        z = self.mid_block1(z, embedding)
        z = self.mid_block2(self.mid_attn(z, content), embedding)
        for level in self.ups:
            pair = skips.pop(), skips.pop()
            z = recompute.run(_ascend, level, z, *pair, embedding, content, recompute=again)
        if self.half_resolution:
            z = self.upsample(z)
        z = self.final_res_block(torch.cat([z, first], dim=1), embedding)
        return self.final_conv(z)[..., :height, :width]

    def _embed(
        self, t: Float[Tensor, "#b"], degradation: Float[Tensor, "#b d"] | None
    ) -> Float[Tensor, "#b e"]:
        """SiLU of time embedding plus degradation prompt (DA-CLIP section 3.2), which all blocks read."""
        embedding = self.time_mlp(t)
        if degradation is not None and self.needs_degradation:
            chosen = self.text_mlp(degradation).softmax(dim=1) * self.prompt
            embedding = embedding + self.prompt_mlp(chosen)
        return F.silu(embedding)


def _descend(
    level: nn.Module, z: Tensor, embedding: Tensor, content: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """One level down: the two maps that the way up reads, and the map of the next level."""
    block1, block2, attention, down = level.children()
    first = block1(z, embedding)
    second = attention(block2(first, embedding), content)
    return first, second, down(second)


def _ascend(
    level: nn.Module, z: Tensor, second: Tensor, first: Tensor, embedding: Tensor, content: Tensor | None
) -> Tensor:
    """One level up, with the maps of the same level of the way down."""
    block1, block2, attention, up = level.children()
    z = block1(torch.cat([z, second], dim=1), embedding)
    z = block2(torch.cat([z, first], dim=1), embedding)
    return up(attention(z, content))


class ResBlock(nn.Module):
    """Two 3x3 convolutions, the first modulated by the embedding, and a skip; no norm."""

    def __init__(self, inside: int, outside: int, embedding: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Identity(), nn.Linear(embedding, 2 * outside))
        self.block1 = Projection(inside, outside)
        self.block2 = Projection(outside, outside)
        self.res_conv = nn.Conv2d(inside, outside, 1, bias=False) if inside != outside else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"], embedding: Float[Tensor, "#b e"]) -> Tensor:
        """SiLU(conv(SiLU(conv(x) (scale + 1) + shift))) + skip; scale and shift linear in the embedding."""
        scale, shift = self.mlp(embedding)[:, :, None, None].chunk(2, dim=1)
        # in place, because on a CPU a fresh array of this size costs more than the arithmetic
        hidden = F.silu(self.block1(x).mul_(scale + 1).add_(shift), inplace=True)
        return F.silu(self.block2(hidden), inplace=True).add_(self.res_conv(x))


class Projection(nn.Module):
    """A 3x3 convolution without bias, under the name it has in published files."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inside, outside, 3, padding=1, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """The convolution."""
        return self.proj(x)


class Attention(nn.Module):
    """x + attention(LayerNorm(x)): linear attention, or a transformer that attends to the content too."""

    def __init__(self, channels: int, content_dim: int | None) -> None:
        super().__init__()
        inner = (
            LinearAttention(channels) if content_dim is None else SpatialTransformer(channels, content_dim)
        )
        self.fn = nn.ModuleDict({"norm": LayerNorm(channels), "fn": inner})

    def forward(self, x: Float[Tensor, "b c h w"], content: Float[Tensor, "b d"] | None) -> Tensor:
        """As the class says; linear attention does not look at the content."""
        return self.fn["fn"](self.fn["norm"](x), content).add_(x)


class LayerNorm(nn.Module):
    """Normalisation of each pixel over its channels, with a gain and no bias.

    published: epsilon is 1e-3 in half precision. Here it is 1e-5 always, with moments in float32.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The normalised pixels, channels last in memory."""
        pixels = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), self.g.flatten(), eps=1e-5)
        return pixels.permute(0, 3, 1, 2)


class LinearAttention(nn.Module):
    """Attention of 4 heads in linear time: keys and values meet before the queries.

    With q softmaxed over the channels of a head and k over the n positions,
    out = to_out(q (k^T v) / (n sqrt 32)). As v = W_v x and to_out are linear, k^T v = (k^T x) W_v^T and the
    head's part of to_out join into one matrix for a photo: neither v nor the attended values are made for all
    positions.
    """

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Conv2d(channels, 3 * heads * HEAD, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(heads * HEAD, channels, 1), LayerNorm(channels))

    def forward(
        self, x: Float[Tensor, "b c h w"], content: Float[Tensor, "b d"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Self-attention of x; the content is not looked at."""
        project, norm = self.to_out
        assert isinstance(project, nn.Conv2d)
        assert project.bias is not None
        heads, n = self.heads, x.shape[2] * x.shape[3]
        w_q, w_k, w_v = self.to_qkv.weight.flatten(1).chunk(3)
        pixels = tokens(x)
        q = F.linear(pixels, w_q).unflatten(2, (heads, HEAD)).softmax(dim=3).flatten(2)
        k = F.linear(pixels, w_k).softmax(dim=1)
        seen = k.transpose(1, 2) @ pixels  # b 128 c
        values = seen.unflatten(1, (heads, HEAD)) @ w_v.view(heads, HEAD, -1).transpose(1, 2)  # b heads 32 32
        w_out = project.weight.view(-1, heads, HEAD).permute(1, 2, 0)  # heads 32 c
        # published: values are divided by the number of positions, so results depend on the size of the photo
        joined = (values @ w_out).flatten(1, 2) * (HEAD**-0.5 / n)
        return norm(grid((q @ joined).add_(project.bias), x))


class SpatialTransformer(nn.Module):
    """A transformer block over all positions, with the content as a second source; heads of 32 channels.

    The input comes back added, so inside `Attention` both x and its normalised form are in the sum.
    """

    def __init__(self, channels: int, content_dim: int) -> None:
        super().__init__()
        if channels % HEAD:
            raise UsageError(f"content at {channels} channels", hint=f"channels must be a multiple of {HEAD}")
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, content_dim)])
        self.proj_out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.proj_out.weight)
        assert self.proj_out.bias is not None
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Float[Tensor, "b c h w"], content: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        """The input plus what the block makes of it: 0 at the start of training."""
        u = tokens(self.proj_in(self.norm(x)))
        for block in self.transformer_blocks:
            u = block(u, content)
        return self.proj_out(grid(u, x)).add_(x)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the content, gated feed-forward; each after a norm, each added."""

    def __init__(self, channels: int, content_dim: int) -> None:
        super().__init__()
        self.attn1 = SelfAttention(channels)
        self.attn2 = ContentAttention(channels, content_dim)
        self.ff = FeedForward(channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels).requires_grad_(False)  # see ContentAttention
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, u: Float[Tensor, "b n c"], content: Float[Tensor, "b d"]) -> Float[Tensor, "b n c"]:
        """The positions, having seen each other and the content."""
        u = u + self.attn1(self.norm1(u))
        u = u + self.attn2(content)[:, None]
        return u + self.ff(self.norm3(u))


class SelfAttention(nn.Module):
    """Softmax attention among all positions, in memory linear in their number."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, u: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """What each position takes from all."""
        q, k, v = (f(u).unflatten(2, (-1, HEAD)).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ContentAttention(nn.Module):
    """Cross-attention to the content embedding, which is one token.

    A softmax over one token is 1, so every position takes the same to_out(to_v(content)): an exact equivalent
    of the attention. Queries, keys and their norm have neither effect nor gradient and serve the files alone.
    """

    def __init__(self, channels: int, content_dim: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(channels, channels, bias=False).requires_grad_(False)
        self.to_k = nn.Linear(content_dim, channels, bias=False).requires_grad_(False)
        self.to_v = nn.Linear(content_dim, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, content: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        """What every position takes from the content."""
        return self.to_out(self.to_v(content))


class FeedForward(nn.Module):
    """Two linear layers with a GELU gate between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        gate = nn.Sequential(OrderedDict(proj=nn.Linear(channels, 8 * channels)))
        self.net = nn.ModuleList([gate, nn.Identity(), nn.Linear(4 * channels, channels)])

    def forward(self, u: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Linear(value GELU(gate)), value and gate linear in u."""
        value, gate = self.net[0](u).chunk(2, dim=-1)
        return self.net[2](value * F.gelu(gate))


class DoublingConv(nn.Module):
    """Each pixel repeated to 2 x 2, then a 3x3 convolution with bias.

    An output pixel sees only 2 x 2 different inputs, so this is one transposed convolution with the weights
    of equal inputs added: the same numbers with 4/9 of the work, and without the repeated pixels in memory.
    """

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        conv = nn.Conv2d(inside, outside, 3)
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d 2*h 2*w"]:
        """The convolution of the doubled x."""
        w = F.pad(self.weight.transpose(0, 1).flip(2, 3), (1, 1, 1, 1))
        w = w[:, :, 1:] + w[:, :, :-1]
        w = w[:, :, :, 1:] + w[:, :, :, :-1]
        return F.conv_transpose2d(x, w, self.bias, stride=2, padding=1)


class Sinusoid(nn.Module):
    """Sines and cosines of the time, at frequencies falling from 1 to 1/10,000."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, t: Float[Tensor, "b"]) -> Float[Tensor, "b e"]:
        """[sin(t f), cos(t f)], computed in float32."""
        half = self.size // 2
        exponent = torch.arange(half, device=t.device) * (-math.log(10000) / (half - 1))
        angle = t.float()[:, None] * exponent.exp()
        return torch.cat([angle.sin(), angle.cos()], dim=1).to(t.dtype)


def halve(inside: int, outside: int) -> nn.Conv2d:
    """A convolution that halves the sides."""
    return nn.Conv2d(inside, outside, 4, stride=2, padding=1)


def upsample(inside: int, outside: int) -> nn.Sequential:
    """Sides doubled by repeating pixels, then a 3x3 convolution; two modules, as in published files."""
    return nn.Sequential(nn.Identity(), DoublingConv(inside, outside))


def tokens(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
    """The pixels in a row, row by row; a view when x is channels last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def grid(u: Float[Tensor, "b n c"], like: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """The row of pixels as a grid of the shape of `like`, channels last in memory."""
    return u.unflatten(1, like.shape[-2:]).permute(0, 3, 1, 2)


def padded(z: Float[Tensor, "b c h w"], multiple: int) -> Float[Tensor, "b c hp wp"]:
    """Reflected at the right and the bottom to sides that are multiples, laid out channels last.

    By index, so that sides shorter than their padding are reflected to and fro, and an exported graph
    keeps any size.
    """
    rows, columns = (_reflected(side, multiple, z.device) for side in z.shape[-2:])
    z = z.index_select(2, rows).index_select(3, columns)
    # norms and attentions read all channels of a pixel, and convolutions on a CPU are faster so
    return z.contiguous(memory_format=torch.channels_last)


def _reflected(side: int | torch.SymInt, multiple: int, device: torch.device) -> Int[Tensor, "n"]:
    """Positions 0 .. side - 1 and on, to and fro, to the next multiple."""
    # a tensor, because ONNX has no remainder by a side that is known only at run time
    period = torch.full((1,), max(2 * side - 2, 1), device=device)
    there = torch.arange((side + multiple - 1) // multiple * multiple, device=device) % period
    return (there - (side - 1)).abs().neg() + (side - 1)


def arguments_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `UNet` that fit the weights, read from their names and shapes; JSON can hold them.

    Raises ModelError when they are not those of a U-Net.
    """
    try:
        width, twice_in = weights["init_conv.weight"].shape[:2]
        depth = sum(name.startswith("downs.") and name.endswith(".0.block1.proj.weight") for name in weights)
        content = "mid_attn.fn.fn.proj_in.weight" in weights
        context = "mid_attn.fn.fn.transformer_blocks.0.attn2.to_k.weight" if content else "text_mlp.0.weight"
        return {
            "width": width,
            "multipliers": [weights[f"downs.{i}.3.weight"].shape[0] // width for i in range(depth)],
            "context_dim": weights[context].shape[1] if context in weights else None,
            "degradation": "prompt" in weights,
            "content": content,
            "content_levels": [i for i in range(depth) if f"downs.{i}.2.fn.fn.proj_in.weight" in weights],
            "half_resolution": "downsample.weight" in weights,
            "in_channels": twice_in // 2,
            "out_channels": weights["final_conv.weight"].shape[0],
        }
    except (KeyError, IndexError) as error:
        raise ModelError(f"not the weights of a U-Net: {error} is missing") from error
