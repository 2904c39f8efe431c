"""Depthwise convolutions for training: the same numbers as PyTorch's, forwards and backwards."""

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from daclip.train.depthwise import DepthwiseConv, map_gradient, quicken, weight_gradient

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("height", [8, 9, 15])
def test_gradients_put_together_from_parts_are_those_of_the_whole(
    side: int, stride: int, height: int
) -> None:
    conv = nn.Conv2d(6, 6, side, stride, side // 2, groups=6).double()
    x = torch.randn(2, 6, height, height + 1, dtype=torch.double, requires_grad=True)
    y = conv(x)
    given = torch.randn_like(y)
    of_x, of_weight = torch.autograd.grad(y, [x, conv.weight], given)
    torch.testing.assert_close(map_gradient(given, x.detach(), conv.weight, stride, side // 2), of_x)
    torch.testing.assert_close(weight_gradient(given, x.detach(), side, stride, side // 2), of_weight)


@pytest.mark.parametrize("kind", [nn.Conv2d, Conv2dSame])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_depthwise_convolution_is_replaced_by_one_that_learns_the_same(
    kind: type[nn.Conv2d], autocast: bool
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(kind(4, 4, 5, 2, 2, groups=4), nn.Conv2d(4, 4, 3, padding=1, groups=4))
    x = torch.randn(2, 4, 13, 12)

    def learnt() -> list[torch.Tensor]:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = network(x)
        y.float().square().sum().backward()
        return [y, *(weight.grad.clone() for weight in network.parameters() if weight.grad is not None)]

    names, before = list(network.state_dict()), learnt()
    quicken(network)
    assert isinstance(network[0], DepthwiseConv)
    assert isinstance(network[1], nn.Conv2d)  # quick as it is
    assert list(network.state_dict()) == names
    for got, wanted in zip(learnt(), before, strict=True):
        torch.testing.assert_close(
            got, wanted, rtol=0.02 if autocast else 1e-5, atol=0.3 if autocast else 1e-4
        )
