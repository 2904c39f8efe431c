"""Cast shadows are found, and lit by what light they lack at their borders, before a network sees the photo.

What a shadow lacks is a factor for each colour, the same over all that lies in it: the light of the sun,
where that of the sky is left. Beside its border lies the same ground in both, so the factor can be read
there and carried inside (Guo, Dai & Hoiem, Paired Regions for Shadow Detection and Removal, TPAMI 2013).
Only where the shadow lies is learnt.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from daclip.networks.conditioning import Listener
from daclip.networks.fill import DEPTH, padded, push_pull

_REDUCED, _AROUND = 4, 17
"""Light is compared across a border at a part of the resolution; there, the side of what is compared."""

_DRAWN = 0.2
"""Weight of all borders beside those near a place, which may divide more than light (docs/decisions.md)."""

_GAMMA = 2.2
"""Stored values to light, as a power."""

_DARKEST = 0.02
"""Stored values below this say nothing of how much light there is."""

_HELPS, _SEEN = 0.6, 0.1
"""What is between two photos is shadow if lighting it leaves so much of the error, or less, and so much of
the photo is as it was."""

_SURE = 0.5
"""Probability of a shadow from which on it is lit: half lit, it would stay one."""


class Shade(Listener):
    """Finds the cast shadows of a photo that DA-CLIP calls shadowed, and lights them.

    A U-Net from a half down to a thirty-second of the resolution says where shadow lies; whether a photo is
    to be touched at all is the encoder's own word. Starts by finding nearly nothing.

    Args:
        width: channels at half resolution; twice, three and four times as many further down.
        size: of the degradation embedding.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__(size)
        widths = [width, 2 * width, 3 * width, 4 * width, 4 * width]
        finer = list(pairwise(widths))
        self.head = nn.Conv2d(24, width, 3, padding=1)
        self.encoders = nn.ModuleList(nn.Conv2d(c, c, 3, padding=1) for c in widths[:-1])
        self.downs = nn.ModuleList(nn.Conv2d(c, coarse, 2, stride=2) for c, coarse in finer)
        self.middle = nn.ModuleList(nn.Conv2d(widths[-1], widths[-1], 3, padding=1) for _ in range(3))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(coarse, c, 2, stride=2) for c, coarse in finer)
        self.decoders = nn.ModuleList(nn.Conv2d(c, c, 3, padding=1) for c in widths[:-1])
        for each in self.modules():
            if isinstance(each, nn.Conv2d | nn.ConvTranspose2d):  # by default it learns at half the speed
                mode = "fan_in" if isinstance(each, nn.Conv2d) else "fan_out"
                nn.init.kaiming_normal_(each.weight, mode=mode)
        self.tail = nn.Conv2d(width, 4, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        self.tail.bias = nn.Parameter(torch.full((4,), -3.0))

    def forward(self, mu: Float[Tensor, "b 3 h w"], told: Float[Tensor, "b d"]) -> Float[Tensor, "b 3 h w"]:
        """The photo without its shadows, of any size, unclamped; other photos as they are.

        Args:
            mu: the photo.
            told: direction of the degradation embedding, see conditioning.unit.
        """
        return self._lit(mu, told, self._logits(mu))

    def lesson(
        self, mu: Float[Tensor, "b 3 h w"], told: Float[Tensor, "b d"], clean: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b"]]:
        """The answer of `forward`, and the error to learn from: the cross-entropy of where shadow lies.

        Photos that lack something else than light teach nothing: those do not call it.
        """
        shadow, is_shadowed = shadow_between(mu, clean)
        logits = self._logits(mu)
        error = F.binary_cross_entropy_with_logits(logits, shadow, reduction="none").mean((1, 2, 3))
        return self._lit(mu, told, logits.detach()), error * is_shadowed

    def _lit(
        self, mu: Float[Tensor, "b 3 h w"], told: Float[Tensor, "b d"], logits: Float[Tensor, "b 1 h w"]
    ) -> Float[Tensor, "b 3 h w"]:
        """The photo, lit by the logits of `_logits` where the encoder calls it shadowed."""
        there = (self.probability(told) >= _SURE).to(mu.dtype)[:, None, None, None]
        return torch.lerp(mu, relit(mu, logits.sigmoid()), there)

    def _logits(self, mu: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
        """Of each pixel, whether it lies in a shadow."""
        height, width = mu.shape[-2:]
        whole = padded(mu, 2 ** (len(self.downs) + 1))
        # a factor of light is a step in the logarithm, whatever it falls on
        x = torch.cat([whole, whole.clamp(min=_DARKEST).log() / 2 + 1], dim=1)
        x = F.relu(self.head(F.pixel_unshuffle(x, 2)))
        skips: list[Tensor] = []
        for conv, down in zip(self.encoders, self.downs, strict=True):
            x = x + F.relu(conv(x))
            skips.append(x)
            x = F.relu(down(x))
        for conv in self.middle:
            x = x + F.relu(conv(x))
        for conv, up in reversed(list(zip(self.decoders, self.ups, strict=True))):
            x = F.relu(skips.pop() + up(x))
            x = x + F.relu(conv(x))
        return F.pixel_shuffle(self.tail(x), 2)[..., :height, :width].float()


def relit(mu: Float[Tensor, "b 3 h w"], shadow: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 3 h w"]:
    """The photo with the light that it lacks in its shadows, unclamped: mu / (1 - shadow (1 - left)).

    The division is one of light, not of stored values. `left` is what is left of the light deep in the
    shadow, for each colour and place: the ratio of what lies inside and outside near its border, drawn
    towards that of all borders and spread by `push_pull`.

    Args:
        mu: the photo.
        shadow: 0 where it is lit, 1 deep in the shadow.
    """
    with torch.autocast(mu.device.type, enabled=False):
        height, width = mu.shape[-2:]
        logs = F.avg_pool2d(padded(mu.float()).clamp(min=_DARKEST).log(), _REDUCED)
        deep = F.avg_pool2d(padded(shadow.float()), _REDUCED)
        # the rims of the shadow belong to neither side
        inside, outside = deep**8, (1 - deep) ** 8
        beside = F.max_pool2d(torch.cat([outside, inside], dim=1), _AROUND, 1, _AROUND // 2)
        dark, much_dark = _mean(logs, inside * beside[:, :1])
        lit, much_lit = _mean(logs, outside * beside[:, 1:])
        said = torch.minimum(much_dark, much_lit)
        everywhere = ((lit - dark) * said).mean((2, 3), keepdim=True)
        everywhere = everywhere / (said.mean((2, 3), keepdim=True) + 1e-9)
        lacks = ((lit - dark) * said + everywhere * _DRAWN) / (said + _DRAWN)
        lacks = push_pull(lacks.clamp(min=0), said.clamp(1e-6, 1), depth=DEPTH - 2)
        lacks = F.interpolate(lacks, scale_factor=float(_REDUCED), mode="bilinear")[..., :height, :width]
        left = (-_GAMMA * lacks).exp()
        return mu * (1 - shadow * (1 - left)).pow(-1 / _GAMMA)


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
        lost = 1 - (dark / light.clamp(min=_DARKEST)) ** _GAMMA
        # the deepest part; where it is dark anyway nothing can be told
        seen = light > 4 * _DARKEST
        deepest = torch.quantile((lost * seen).flatten(1), 0.98, dim=1).clamp(min=0.2)
        shadow = (lost / deepest[:, None, None, None]).clamp(0, 1) * seen
        found = relit(mu, shadow)
        before, after = ((each - clean).abs().mean((1, 2, 3)) for each in (mu, found))
        untouched = ((mu - clean).abs().amax(1) < 0.02).to(mu.dtype).mean((1, 2))
        helps = (after < _HELPS * before) & (untouched > _SEEN)
        return shadow, helps.to(mu.dtype)
