"""3 x 3 convolutions by tiles: the same numbers as PyTorch's, forwards and backwards."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from daclip.train import winograd

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler"),
]


def _near(got: Tensor, wanted: Tensor) -> None:
    """Equal to 2e-5 of the largest value, which a tile's sums are computed beside."""
    assert got.shape == wanted.shape
    assert float((got - wanted).abs().max()) <= 2e-5 * float(wanted.abs().max())


@pytest.mark.parametrize("sides", [(16, 16), (13, 18), (1, 7)])
@pytest.mark.parametrize("channels", [(24, 50), (96, 112)])
def test_tiles_give_what_the_sums_give(sides: tuple[int, int], channels: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, channels[0], *sides).to(memory_format=torch.channels_last)
    weight, bias = torch.randn(channels[1], channels[0], 3, 3), torch.randn(channels[1])
    y = winograd.convolved(x, weight, bias)
    assert y.is_contiguous(memory_format=torch.channels_last)
    _near(y, F.conv2d(x, weight, bias, padding=1))
    given = torch.randn_like(y)
    wanted = conv2d_weight(x, list(weight.shape), given, padding=1)
    _near(winograd.weight_gradient(given, x), wanted)


@pytest.mark.parametrize("budget", [1 << 10, 1 << 24])
def test_the_size_of_a_chunk_changes_nothing(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "_CHUNK", budget)
    monkeypatch.setattr(winograd, "_TILES", 1)
    x, weight = torch.randn(1, 16, 40, 24), torch.randn(16, 16, 3, 3)
    _near(winograd.convolved(x, weight), F.conv2d(x, weight, padding=1))


class _Network(nn.Module):
    """Convolutions that are replaced, by tiles or not, and others that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 48, 3, padding=1)
        self.kept = nn.Sequential(nn.Conv2d(48, 100, 3, padding=1, bias=False), nn.ReLU(inplace=True))
        self.wide = nn.Conv2d(100, 96, 3, padding=1)
        self.strided = nn.Conv2d(96, 96, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(96, 96, 3, padding=1, groups=96)

    def forward(self, x: Tensor) -> Tensor:
        return self.grouped(self.strided(self.wide(self.kept(self.first(x))).mul_(2)))


_COMPILED = (
    pytest.mark.long,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with it"),
)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=_COMPILED)])
def test_a_network_learns_the_same(compiled: bool) -> None:
    torch.manual_seed(0)
    network = _Network()
    x = torch.randn(2, 3, 37, 42)

    def learnt() -> list[Tensor]:
        network.zero_grad()
        y = network(x)
        y.square().mean().backward()
        return [
            y.detach(),
            *(weight.grad.clone() for weight in network.parameters() if weight.grad is not None),
        ]

    names, before = list(network.state_dict()), learnt()
    winograd.quicken(network)
    replaced = [name for name, part in network.named_modules() if isinstance(part, winograd.Convolution)]
    assert replaced == ["kept.0", "wide"]
    assert list(network.state_dict()) == names
    if compiled:
        network.compile(dynamic=False)
    after = learnt()
    assert len(after) == len(before) == 10
    for got, wanted in zip(after, before, strict=True):
        _near(got, wanted)


def test_without_a_compiler_or_one_that_fails_all_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for compiler in ("no-such-compiler", "false"):
        monkeypatch.setenv("CC", compiler)
        winograd.transforms.cache_clear()
        network = _Network()
        winograd.quicken(network)
        assert not any(isinstance(part, winograd.Convolution) for part in network.modules())
    monkeypatch.undo()
    winograd.transforms.cache_clear()
    assert winograd.transforms() is not None


def test_other_precisions_and_frozen_use_are_as_they_were() -> None:
    conv = winograd.Convolution(nn.Conv2d(96, 96, 3, padding=1))
    x = torch.randn(1, 96, 64, 64)
    plain = F.conv2d(x, conv.weight, conv.bias, padding=1)
    with torch.no_grad():
        assert torch.equal(conv(x), plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
    assert conv.double()(x.double()).dtype == torch.double
