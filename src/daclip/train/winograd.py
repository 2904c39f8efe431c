"""3 x 3 convolutions that learn faster on a CPU in float32: Winograd's minimal filtering, F(4 x 4, 3 x 3).

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (CVPR 2016): the map is cut into tiles of
6 x 6 that overlap by 2; tile, kernel and result are each transformed, and 36 matrix products do what takes
144. So forward pass and map gradient of wide layers are 1.2 to 1.7 times as quick as oneDNN's; and so is
every weight gradient, for which oneDNN is slow where AVX2 is all there is and channels come last (13 to 65
GFLOP/s on a core whose forward pass makes 97). Equal to the direct sums to 1e-5 of the largest value.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from daclip.train.depthwise import native_gradient

_OUT, _IN = 4, 6
"""Sides of a tile of the result and of the map."""

# the polynomial is evaluated at 0, 1, -1, 2, -2 and infinity
_OF_MAP = torch.tensor(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    dtype=torch.float32,
)
_OF_KERNEL = torch.tensor(
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float32
).div(24)
_TO_RESULT = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=torch.float32
)
_MAP, _KERNEL, _RESULT = (torch.kron(one, one) for one in (_OF_MAP, _OF_KERNEL, _TO_RESULT))
"""36 x 36, 36 x 9 and 16 x 36: both directions at once."""

_NARROW, _WIDE = 48, 96
"""Fewer channels on either side, and the transforms of tiles cost more than the products save: of a weight
gradient; of forward pass and map gradient."""
_FEW = 32
"""Fewer tiles, and the transform of the kernel costs more than the products save, in a weight gradient; in a
forward pass and a map gradient, with fewer than half as many as channels."""
_CHUNK = 1 << 20
"""Numbers of a transformed chunk of tiles: what stays in a processor's cache."""
_TILES = 256
"""At least so many tiles at once, for the products' sake."""


def convolved(
    x: Float[Tensor, "b c h w"], weight: Float[Tensor, "d c 3 3"], bias: Float[Tensor, "d"] | None = None
) -> Float[Tensor, "b d h w"]:
    """conv2d(x, weight, bias, padding=1) with channels last."""
    rows, columns = _tiles(x)
    kernels = (_KERNEL @ weight.permute(2, 3, 0, 1).reshape(9, -1)).view(36, *weight.shape[:2])
    padded = _padded(x, 1)
    sides = rows * _OUT, columns * _OUT
    y = torch.empty(len(x), len(weight), *sides, memory_format=torch.channels_last)
    tiles = y.permute(0, 2, 3, 1).view(len(x), rows, _OUT, columns, _OUT, -1)
    for first, last in _chunks(x, max(weight.shape[:2])):
        points = (_MAP @ _cut(padded, first, last, _IN)).view(36, -1, x.shape[1])
        part = (_RESULT @ torch.bmm(points, kernels.transpose(1, 2)).view(36, -1)).view(
            _OUT, _OUT, len(x), last - first, columns, -1
        )
        tiles[:, first:last].copy_(part.permute(2, 3, 0, 4, 1, 5))
    if bias is not None:
        y += bias[:, None, None]
    if y.shape[2:] != x.shape[2:]:
        y = y[..., : x.shape[2], : x.shape[3]].clone(memory_format=torch.channels_last)
    return y


def weight_gradient(y: Float[Tensor, "b d h w"], x: Float[Tensor, "b c h w"]) -> Float[Tensor, "d c 3 3"]:
    """Gradient of the weight of `convolved`, from the gradient `y` of its result: all transposed."""
    padded, filled = _padded(x, 1), _padded(y, 0)
    found: Tensor | None = None
    for first, last in _chunks(x, max(x.shape[1], y.shape[1])):
        points = (_MAP @ _cut(padded, first, last, _IN)).view(36, -1, x.shape[1])
        changes = (_RESULT.t() @ _cut(filled, first, last, _OUT)).view(36, -1, y.shape[1])
        changes = changes.transpose(1, 2)
        found = torch.bmm(changes, points) if found is None else found.baddbmm_(changes, points)
    assert found is not None  # a map has a row
    return (_KERNEL.t() @ found.view(36, -1)).view(3, 3, y.shape[1], x.shape[1]).permute(2, 3, 0, 1)


def _tiles(x: Tensor) -> tuple[int, int]:
    """Rows and columns of tiles."""
    return -(-x.shape[2] // _OUT), -(-x.shape[3] // _OUT)


def _end(x: Tensor, dim: int) -> int:
    """Pixels that the last tile reaches past the map."""
    return -x.shape[dim] % _OUT


def _padded(x: Tensor, rim: int) -> Float[Tensor, "b h w c"]:
    """The map, channels last in its shape as well, to the end of the last tile and a rim around it."""
    pads = (0, 0, rim, _end(x, 3) + rim, rim, _end(x, 2) + rim)
    x = x.permute(0, 2, 3, 1)
    return F.pad(x, pads) if any(pads) else x  # pad copies even where there is nothing to add


def _chunks(x: Tensor, channels: int) -> list[tuple[int, int]]:
    """First row of tiles and the one past the last, chunk by chunk."""
    rows, columns = _tiles(x)
    of_row = len(x) * columns
    step = max(1, _CHUNK // (36 * of_row * channels), -(-_TILES // of_row))
    return [(first, min(rows, first + step)) for first in range(0, rows, step)]


def _cut(padded: Float[Tensor, "b h w c"], first: int, last: int, side: int) -> Float[Tensor, "n m"]:
    """Tiles of some rows: side^2 places of a tile by all tiles and channels."""
    batch, _, width, channels = padded.shape
    columns = (width - side) // _OUT + 1
    found = padded.new_empty(side, side, batch, last - first, columns, channels)
    for i in range(side):
        below = slice(i + _OUT * first, i + _OUT * (last - 1) + 1, _OUT)
        for j in range(side):
            found[i, j].copy_(padded[:, below, j : j + _OUT * (columns - 1) + 1 : _OUT])
    return found.view(side * side, -1)


# ---- operators which torch.compile leaves alone


@torch.library.custom_op("daclip::convolution3x3", mutates_args=())
def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv2d(x, weight, bias, padding=1), float32, on a CPU: by tiles where that is quicker."""
    if _pays(x, weight):
        return convolved(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=1).contiguous(memory_format=torch.channels_last)


@convolution.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = x.new_empty(len(x), len(weight), *x.shape[2:])
    return y.contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("daclip::convolution3x3_of_map", mutates_args=())
def _of_map(y: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the map."""
    if _pays(y, weight):
        return convolved(y, weight.flip(2, 3).transpose(0, 1))
    x = torch.empty(len(y), weight.shape[1], *y.shape[2:], memory_format=torch.channels_last)
    of_x = native_gradient(y, x, weight, of_map=True, padding=1, groups=1)
    return of_x.contiguous(memory_format=torch.channels_last)


@_of_map.register_fake
def _(y: Tensor, weight: Tensor) -> Tensor:
    x = y.new_empty(len(y), weight.shape[1], *y.shape[2:])
    return x.contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("daclip::convolution3x3_of_weight", mutates_args=())
def _of_weight(y: Tensor, x: Tensor) -> Tensor:
    """Gradient of the weight."""
    if min(x.shape[1], y.shape[1]) >= _NARROW and _count(x) >= _FEW:
        return weight_gradient(y, x).contiguous(memory_format=torch.channels_last)
    weight = torch.empty(y.shape[1], x.shape[1], 3, 3, memory_format=torch.channels_last)
    of_weight = native_gradient(y, x, weight, of_map=False, padding=1, groups=1)
    return of_weight.contiguous(memory_format=torch.channels_last)


@_of_weight.register_fake
def _(y: Tensor, x: Tensor) -> Tensor:
    weight = y.new_empty(y.shape[1], x.shape[1], 3, 3)
    return weight.contiguous(memory_format=torch.channels_last)


def _pays(x: Tensor, weight: Tensor) -> bool:
    """Whether tiles are quicker for a forward pass, or for a map gradient."""
    return min(weight.shape[:2]) >= _WIDE and 2 * _count(x) >= max(weight.shape[:2])


def _count(x: Tensor) -> int:
    """Tiles of all maps."""
    rows, columns = _tiles(x)
    return len(x) * rows * columns


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)
    ctx.has_bias = bias is not None


def _gradients(ctx: Any, y: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    y = y.contiguous(memory_format=torch.channels_last)
    return (
        _of_map(y, weight) if ctx.needs_input_grad[0] else None,
        _of_weight(y, x) if ctx.needs_input_grad[1] else None,
        y.sum((0, 2, 3)) if ctx.has_bias else None,
    )


convolution.register_autograd(_gradients, setup_context=_keep)


# ---- in a network


class Convolution(nn.Conv2d):
    """A 3 x 3 convolution that takes the place of another and shares its weights, under their names."""

    def __init__(self, conv: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(conv.__dict__)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        is_plain = input.device.type == "cpu" and input.dtype == weight.dtype == torch.float32
        if not is_plain or torch.is_autocast_enabled("cpu") or not torch.is_grad_enabled():
            return super()._conv_forward(input, weight, bias)
        return convolution(input, weight, bias)


def quicken(network: nn.Module) -> None:
    """Put a Convolution in the place of each that would be slow to train; names of weights stay."""
    for name, child in list(network.named_modules()):
        if type(child) is not nn.Conv2d or child.kernel_size != (3, 3) or child.padding_mode != "zeros":
            continue
        is_plain = child.stride == child.padding == child.dilation == (1, 1) and child.groups == 1
        if is_plain and min(child.in_channels, child.out_channels) >= _NARROW:
            network.set_submodule(name, Convolution(child))
