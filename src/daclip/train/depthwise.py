"""Depthwise convolutions whose gradients are as quick as their forward pass, on a CPU.

oneDNN has no quick kernel for the weight gradient of a 5 x 5 kernel, nor for any gradient under a stride:
they cost 20 to 130 times the forward pass and were 84 % of a controller step. Convolutions and 3 x 3 weight
gradients without stride are quick, and all others can be put together from them: a kernel in 3 x 3 blocks, a
stride in its phases.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn


class DepthwiseConv(nn.Module):
    """A depthwise convolution that takes the place of another and shares its weights, under their names."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.stride = conv.stride[0]
        self.padding = conv.padding[0] if isinstance(conv.padding[0], int) else 0
        self.is_same = isinstance(conv, Conv2dSame)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c y x"]:
        """The convolved map."""
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled(x.device.type):
            kind = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(kind), weight.to(kind)
            bias = bias if bias is None else bias.to(kind)
        if self.is_same:
            side = self.weight.shape[-1]
            x = pad_same(x, [side, side], [self.stride, self.stride])
        if x.dtype != torch.bfloat16:  # PyTorch's own float32 gradients are as quick
            return F.conv2d(x, weight, bias, self.stride, self.padding, 1, x.shape[1])
        return _Depthwise.apply(x, weight, bias, self.stride, self.padding)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, bias, stride, padding, 1, x.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = gradients
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        return (
            map_gradient(y, x, weight, ctx.stride, ctx.padding) if needs_x else None,
            weight_gradient(y, x, weight.shape[-1], ctx.stride, ctx.padding) if needs_weight else None,
            y.sum((0, 2, 3)) if needs_bias else None,
            None,
            None,
        )


def map_gradient(
    y: Float[Tensor, "b c y x"], x: Float[Tensor, "b c h w"], weight: Tensor, stride: int, padding: int
) -> Float[Tensor, "b c h w"]:
    """Gradient of a depthwise convolution's input `x`: without stride, one convolution for each phase."""
    if stride == 1:
        return native_gradient(y, x, weight, of_map=True, padding=padding, groups=x.shape[1])
    height, width = x.shape[-2] + 2 * padding, x.shape[-1] + 2 * padding
    found = x.new_empty(*x.shape[:2], height, width).contiguous(memory_format=torch.channels_last)
    for top in range(stride):
        for left in range(stride):
            taps = weight[..., top::stride, left::stride].flip(2, 3)
            part = found[..., top::stride, left::stride]
            above, before = taps.shape[-2] - 1, taps.shape[-1] - 1
            below, after = part.shape[-2] - y.shape[-2], part.shape[-1] - y.shape[-1]
            padded = F.pad(y, (before, after, above, below))
            part.copy_(F.conv2d(padded, taps.contiguous(), groups=x.shape[1]))
    return found[..., padding : height - padding, padding : width - padding]


def weight_gradient(
    y: Float[Tensor, "b c y x"], x: Float[Tensor, "b c h w"], side: int, stride: int, padding: int
) -> Float[Tensor, "c 1 k k"]:
    """Gradient of a depthwise convolution's weight, from 3 x 3 gradients without stride.

    Args:
        y: gradient of the convolved map.
        x: the map that was convolved.
        side: of the kernel, k <= 5 * stride.
        stride: of the convolution.
        padding: of the convolution, on all four sides.
    """
    rows, columns = y.shape[-2:]
    # tap t of the kernel reads phase t % stride of the map, at place t // stride: blocks of three places
    starts = [start for start in (0, 2) if start == 0 or start * stride < side - stride]
    room = (starts[-1] + 3) * stride  # the last block may reach past the map, at taps that do not exist
    x = F.pad(x, (padding, padding + room, padding, padding + room))
    found, of_block = x.new_zeros(x.shape[1], 1, side, side), x.new_empty(x.shape[1], 1, 3, 3)
    for top in (phase + start * stride for phase in range(stride) for start in starts):
        for left in (phase + start * stride for phase in range(stride) for start in starts):
            part = x[..., top::stride, left::stride][..., : rows + 2, : columns + 2]
            part = part.contiguous(memory_format=torch.channels_last)
            block = native_gradient(y, part, of_block, of_map=False, padding=0, groups=x.shape[1])
            kept = found[..., top : top + 3 * stride : stride, left : left + 3 * stride : stride]
            kept.copy_(block[..., : kept.shape[-2], : kept.shape[-1]])
    return found


def native_gradient(
    y: Tensor, x: Tensor, weight: Tensor, *, of_map: bool, padding: int, groups: int
) -> Tensor:
    """PyTorch's gradient of a convolution without stride: of the map, or else of the weight.

    What is asked for (`x` or `weight`) gives its shape and layout alone.
    """
    mask, ones = [of_map, not of_map, False], [1, 1]
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        y, x, weight, None, ones, [padding, padding], ones, False, [0, 0], groups, mask
    )
    return of_x if of_map else of_weight


def quicken(module: nn.Module) -> None:
    """Put a DepthwiseConv in the place of each depthwise convolution that would be slow to train."""
    for name, child in list(module.named_modules()):
        if (
            not isinstance(child, nn.Conv2d)
            or not 1 < child.groups == child.in_channels == child.out_channels
        ):
            continue
        if child.kernel_size[0] > 3 or child.stride[0] > 1:
            module.set_submodule(name, DepthwiseConv(child))
