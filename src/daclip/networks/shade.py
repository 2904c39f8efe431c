"""Cast shadows are found, and lit by what light they lack at their borders, before a network sees the photo.

What a shadow lacks is a factor for each colour, the same over all that lies in it: the light of the sun,
where that of the sky is left. Beside its border lies the same ground in both, so the factor can be read
there and carried inside (Guo, Dai & Hoiem, Paired Regions for Shadow Detection and Removal, TPAMI 2013).
Only where the shadow lies is learnt.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from daclip.light import GAMMA
from daclip.networks.fill import DEPTH, padded, push_pull
from daclip.networks.lite0 import halve_evenly, lite0

_STAGES = (0, 1, 2, 4)
"""Stages of the tower that the decoder sees: at a quarter, an eighth, a sixteenth, and a thirty-second."""

_MULTIPLE = 32
"""Sides that halve evenly down to the coarsest stage."""

_REDUCED, _AROUND = 4, 17
"""Light is compared across a border at a part of the resolution; there, the side of what is compared."""

_DRAWN = 1.0
"""Weight of all borders beside those near a place, which may divide more than light (docs/decisions.md)."""

_DEEP = 16
"""Power of the shadow from which on a place is in it, or out of it."""

_NOTHING = 1e-5
"""Less trust than this is none."""

_DARKEST = 0.02
"""Stored values below this say nothing of how much light there is."""

_HELPS, _SEEN = 0.6, 0.1
"""What is between two photos is shadow if lighting it leaves so much of the error, or less, and so much of
the photo is as it was."""


class Shade(nn.Module):
    """Finds the cast shadows of a photo, and what light they lack.

    What is dark by nature and what lies in the shade can only be told by what things are. So the first five
    stages of EfficientNet-Lite0, see `begin`, look at the photo at half its size, and a decoder says where
    shadow lies. It wants to see the whole photo, `light.LONGEST` pixels long. Starts by finding nearly
    nothing.

    Args:
        width: channels of the decoder at a quarter of the resolution, half of them at half of it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        tower = lite0(pretrained=False)
        self.stem, self.stages = tower.stem, nn.ModuleList(tower.stages[: _STAGES[-1] + 1])
        halve_evenly(self)
        self.joins = nn.ModuleList(nn.Conv2d(tower.channels[i], width, 1) for i in _STAGES)
        self.decoders = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in _STAGES)
        self.head = nn.Conv2d(24, width // 2, 3, padding=1)
        self.up = nn.Conv2d(width, width // 2, 1)
        self.fine = nn.ModuleList(nn.Conv2d(width // 2, width // 2, 3, padding=1) for _ in range(2))
        for each in self.modules():
            if isinstance(each, nn.Conv2d):
                nn.init.kaiming_normal_(each.weight)  # by default it learns at half the speed
        self.tail = nn.Conv2d(width // 2, 4, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        self.tail.bias = nn.Parameter(torch.full((4,), -3.0))

    def begin(self) -> None:
        """Take the ImageNet weights of the tower, from the extra [backbone], where nothing was learnt yet."""
        if self.tail.weight.any():
            return
        tower = lite0(pretrained=True)
        self.stem.load_state_dict(tower.stem.state_dict())
        for own, stage in zip(self.stages, tower.stages, strict=False):
            own.load_state_dict(stage.state_dict())

    def forward(
        self, mu: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b 1 h w"], Float[Tensor, "b 3 h w"]]:
        """What light.Light holds of a photo of any size: logits of its shadows, and what they lack."""
        logits = self._logits(mu)
        return logits, lacking(mu, logits.sigmoid())

    def lit(self, mu: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """The photo without its shadows, unclamped."""
        logits, lacks = self(mu)
        return lit(mu, logits.sigmoid(), lacks)

    def lesson(
        self, mu: Float[Tensor, "b 3 h w"], clean: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b"]]:
        """The photo lit, and the error to learn from: the cross-entropy of where shadow lies.

        Untouched photos teach what is dark without a shadow; those that lack something else than light
        teach nothing.
        """
        shadow, is_shadowed = shadow_between(mu, clean)
        teaches = is_shadowed + (mu == clean).all(3).all(2).all(1)
        logits = self._logits(mu)
        error = F.binary_cross_entropy_with_logits(logits, shadow, reduction="none").mean((1, 2, 3))
        found = logits.detach().sigmoid()
        return lit(mu, found, lacking(mu, found)), error * teaches

    def _logits(self, mu: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
        """Of each pixel, whether it lies in a shadow."""
        height, width = mu.shape[-2:]
        whole = padded(mu, _MULTIPLE)
        x = self.stem(2 * F.avg_pool2d(whole, 2) - 1)
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        x = torch.zeros(())  # from nothing coarser
        for i, join, decoder in reversed(list(zip(_STAGES, self.joins, self.decoders, strict=True))):
            x = F.relu(join(maps[i]) + x)
            x = F.interpolate(x + F.relu(decoder(x)), scale_factor=2.0, mode="bilinear")
        # a factor of light is a step in the logarithm, whatever it falls on
        fine = torch.cat([whole, whole.clamp(min=_DARKEST).log() / 2 + 1], dim=1)
        x = F.relu(self.up(x) + self.head(F.pixel_unshuffle(fine, 2)))
        for conv in self.fine:
            x = x + F.relu(conv(x))
        return F.pixel_shuffle(self.tail(x), 2)[..., :height, :width].float()


def lacking(mu: Float[Tensor, "b 3 h w"], shadow: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 3 h w"]:
    """What stored values lack deep in the shadow, as the logarithm of a factor, for each colour and place.

    The ratio of the mean light inside and outside near the shadow's border, drawn towards that of all borders
    and spread by `push_pull`.

    Args:
        mu: the photo.
        shadow: 0 where it is lit, 1 deep in the shadow.
    """
    with torch.autocast(mu.device.type, enabled=False):
        height, width = mu.shape[-2:]
        light = F.avg_pool2d(padded(mu.float()).clamp(min=_DARKEST) ** GAMMA, _REDUCED)
        deep = F.avg_pool2d(padded(shadow.float()), _REDUCED)
        # the rims of the shadow belong to neither side
        inside, outside = deep**_DEEP, (1 - deep) ** _DEEP
        beside = F.max_pool2d(torch.cat([outside, inside], dim=1), _AROUND, 1, _AROUND // 2)
        dark, much_dark = _mean(light, inside * beside[:, :1])
        bright, much_bright = _mean(light, outside * beside[:, 1:])
        said = torch.minimum(much_dark, much_bright)
        # means over nothing say nothing
        found = torch.where(
            said > _NOTHING, (bright / dark.clamp(min=_DARKEST**GAMMA)).clamp(min=1).log(), 0.0
        )
        everywhere = (found * said).mean((2, 3), keepdim=True) / (said.mean((2, 3), keepdim=True) + 1e-9)
        lacks = (found * said + everywhere * _DRAWN) / (said + _DRAWN) / GAMMA
        lacks = push_pull(lacks, said.clamp(min=1e-6), depth=DEPTH - 2)
        return F.interpolate(lacks, scale_factor=float(_REDUCED), mode="bilinear")[..., :height, :width]


def lit(
    mu: Float[Tensor, "b 3 h w"], shadow: Float[Tensor, "b 1 h w"], lacks: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, "b 3 h w"]:
    """The photo with the light that it lacks in its shadows, unclamped; as light.Light.lit has it.

    mu / (1 - shadow (1 - left)), where `left` is what the shadow leaves of the light. The division is one of
    light, not of stored values.
    """
    left = (-GAMMA * lacks).exp()
    return mu * (1 - shadow * (1 - left)).pow(-1 / GAMMA)


def _mean(
    x: Float[Tensor, "b 3 h w"], trust: Float[Tensor, "b 1 h w"]
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 1 h w"]]:
    """Of what is trusted in the window around each place, and how much of it is."""
    parts = torch.cat([x * trust, trust], dim=1)
    for window in ((_AROUND, 1), (1, _AROUND)):
        parts = F.avg_pool2d(parts, window, 1, (window[0] // 2, window[1] // 2))
    much = parts[:, 3:]
    return parts[:, :3] / (much + 1e-6), much


def shadow_between(
    mu: Float[Tensor, "b 3 h w"], clean: Float[Tensor, "b 3 h w"]
) -> tuple[Float[Tensor, "b 1 h w"], Float[Tensor, "b"]]:
    """How deep in shadow each pixel lies, 0 to 1, and whether that is what is between the two photos."""
    with torch.no_grad():
        dark, light = (
            F.avg_pool2d(F.pad(each.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate"), 3, 1)
            for each in (mu, clean)
        )
        lost = 1 - (dark / light.clamp(min=_DARKEST)) ** GAMMA
        # the deepest part; where it is dark anyway nothing can be told
        seen = light > 4 * _DARKEST
        deepest = torch.quantile((lost * seen).flatten(1), 0.98, dim=1).clamp(min=0.2)
        shadow = (lost / deepest[:, None, None, None]).clamp(0, 1) * seen
        found = lit(mu, shadow, lacking(mu, shadow))
        before, after = ((each - clean).abs().mean((1, 2, 3)) for each in (mu, found))
        untouched = ((mu - clean).abs().amax(1) < 0.02).to(mu.dtype).mean((1, 2))
        helps = (after < _HELPS * before) & (untouched > _SEEN)
        return shadow, helps.to(mu.dtype)
