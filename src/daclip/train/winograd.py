"""3 x 3 convolutions that learn faster on a CPU in float32: Winograd's minimal filtering, F(4 x 4, 3 x 3).

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (CVPR 2016): the map is cut into tiles of
6 x 6 that overlap by 2; tile, kernel and result are each transformed (winograd.c), and 36 matrix products do
what takes 144. On a processor with AVX2 forward pass and map gradient are up to twice as quick as oneDNN's,
and so is every weight gradient, for which oneDNN is slow where channels come last (benchmarks/winograd.py).
Equal to the direct sums to 1e-5 of the largest value.
"""

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from daclip.train.depthwise import native_gradient

_OUT = 4
"""Side of a tile of the result; of its points 6."""

_NARROW = 48
"""Fewer channels on either side, and the transforms of tiles cost more than the products save."""
_FEW = 32
"""Fewer tiles, and the transform of the kernel costs more than the products save, in a weight gradient; in a
forward pass and a map gradient, with fewer than an eighth as many as channels."""
_CHUNK = 1 << 19
"""Points of a chunk of tiles: what stays in a processor's cache."""
_TILES = 128
"""At least so many tiles at once, for the products' sake."""

_GAP = 16
"""Numbers between planes: at distances of a power of 2 they would push each other out of the cache."""

_Transform = Literal["of_map", "of_kernel", "of_change", "to_result", "to_gradient"]


class _Shape(ctypes.Structure):
    """As in winograd.c."""

    _fields_ = [
        (name, ctypes.c_ssize_t)
        for name in ("batch", "height", "width", "channels", "first", "rows", "columns", "plane")
    ]


@functools.cache
def transforms() -> ctypes.CDLL | None:
    """The functions of winograd.c, compiled for this processor in half a second; None without a compiler."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        return None
    source = Path(__file__).with_suffix(".c")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "winograd.so")
        flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-o", library, source]
        done = subprocess.run([*compiler, *flags], capture_output=True, check=False)
        return ctypes.CDLL(str(library)) if done.returncode == 0 else None


def convolved(
    x: Float[Tensor, "b c h w"], weight: Float[Tensor, "d c 3 3"], bias: Float[Tensor, "d"] | None = None
) -> Float[Tensor, "b d h w"]:
    """conv2d(x, weight, bias, padding=1) with channels last; 16 channels or more on both sides."""
    return _convolved(x, _points("of_kernel", weight).mT, bias)


def map_gradient(y: Float[Tensor, "b d h w"], weight: Float[Tensor, "d c 3 3"]) -> Float[Tensor, "b c h w"]:
    """Gradient of the map of `convolved`, from the gradient `y` of its result: y under the turned kernels."""
    return _convolved(y, _points("of_kernel", weight.flip(2, 3)), None)


def _convolved(
    x: Float[Tensor, "b c h w"], kernels: Float[Tensor, "36 c d"], bias: Float[Tensor, "d"] | None
) -> Float[Tensor, "b d h w"]:
    x = _last(x)
    y = torch.empty(len(x), kernels.shape[2], *x.shape[2:], memory_format=torch.channels_last)
    for rows in _chunks(x, max(kernels.shape[1:])):
        points = _points("of_map", x, rows)
        product = _planes("product", points.shape[1], kernels.shape[2])
        _transform("to_result", y, torch.bmm(points, kernels, out=product), rows)
    return y if bias is None else y.add_(bias[:, None, None])


def weight_gradient(y: Float[Tensor, "b d h w"], x: Float[Tensor, "b c h w"]) -> Float[Tensor, "d c 3 3"]:
    """Gradient of the weight of `convolved`, from the gradient `y` of its result: all transposed."""
    x, y = _last(x), _last(y)
    found = _planes("found", y.shape[1], x.shape[1])
    for rows in _chunks(x, max(x.shape[1], y.shape[1])):
        points, changes = _points("of_map", x, rows), _points("of_change", y, rows).mT
        if rows.start == 0:
            torch.bmm(changes, points, out=found)
        else:
            found.baddbmm_(changes, points)
    weight = torch.empty(y.shape[1], x.shape[1], 3, 3, memory_format=torch.channels_last)
    _transform("to_gradient", weight, found, range(1))
    return weight


def _chunks(x: Tensor, channels: int) -> list[range]:
    """Rows of tiles, chunk by chunk."""
    rows, columns = _tiles(x)
    of_row = len(x) * columns
    step = max(1, _CHUNK // (36 * of_row * channels), -(-_TILES // of_row))
    return [range(first, min(rows, first + step)) for first in range(0, rows, step)]


def _tiles(x: Tensor) -> tuple[int, int]:
    """Rows and columns of tiles."""
    return -(-x.shape[2] // _OUT), -(-x.shape[3] // _OUT)


def _points(
    transform: _Transform, x: Float[Tensor, "b c h w"], rows: range = range(1)
) -> Float[Tensor, "36 n c"]:
    """Points of some rows of tiles; kernels are maps of one tile."""
    planes = _planes(transform, len(x) * len(rows) * _tiles(x)[1], x.shape[1], gap=_GAP)
    _transform(transform, _last(x), planes, rows)
    return planes


_rooms = threading.local()
"""Memory for planes, kept: room that is new each time costs a page fault every 4 KiB."""


def _planes(use: str, tiles: int, channels: int, *, gap: int = 0) -> Float[Tensor, "36 n c"]:
    """Planes of points, overwritten by the next of the same use."""
    plane = tiles * channels + gap
    room = getattr(_rooms, use, None)
    if room is None or len(room) < 36 * plane:
        room = torch.empty(36 * plane)
        setattr(_rooms, use, room)
    return room[: 36 * plane].view(36, plane)[:, : plane - gap].unflatten(1, (tiles, channels))


def _last(x: Tensor) -> Tensor:
    """The map with channels last."""
    return x.contiguous(memory_format=torch.channels_last)


def _transform(transform: _Transform, x: Tensor, planes: Tensor, rows: range) -> None:
    """Write planes from x, or x from planes, for some rows of tiles."""
    library = transforms()
    assert library is not None  # else no convolution was replaced
    batch, channels, height, width = x.shape
    shape = _Shape(batch, height, width, channels, rows.start, len(rows), _tiles(x)[1], planes.stride(0))
    addresses = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, planes))
    getattr(library, f"{transform}_tiles")(*addresses, shape, torch.get_num_threads())


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
        return map_gradient(y, weight)
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
        return weight_gradient(y, x)
    weight = torch.empty(y.shape[1], x.shape[1], 3, 3, memory_format=torch.channels_last)
    of_weight = native_gradient(y, x, weight, of_map=False, padding=1, groups=1)
    return of_weight.contiguous(memory_format=torch.channels_last)


@_of_weight.register_fake
def _(y: Tensor, x: Tensor) -> Tensor:
    weight = y.new_empty(y.shape[1], x.shape[1], 3, 3)
    return weight.contiguous(memory_format=torch.channels_last)


def _pays(x: Tensor, weight: Tensor) -> bool:
    """Whether tiles are quicker for a forward pass, or for a map gradient."""
    return min(weight.shape[:2]) >= _NARROW and 8 * _count(x) >= max(weight.shape[:2])


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
    """Put a Convolution in the place of each that would be slow to train; names of weights stay.

    Without a C compiler all stay as they are; it is asked where there is something to replace.
    """
    for name, child in list(network.named_modules()):
        if type(child) is not nn.Conv2d or child.kernel_size != (3, 3) or child.padding_mode != "zeros":
            continue
        is_plain = child.stride == child.padding == child.dilation == (1, 1) and child.groups == 1
        is_wide = min(child.in_channels, child.out_channels) >= _NARROW
        if is_plain and is_wide and transforms() is not None:
            network.set_submodule(name, Convolution(child))
