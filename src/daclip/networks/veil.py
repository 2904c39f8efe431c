"""The veil of haze is measured by the dark channel and taken off, before a network sees the photo.

How dense haze is at a place is said by the darkest value around it (dark channel prior: He, Sun & Tang, CVPR
2009). Minima over a neighbourhood and the division by the transmission are what convolutions and rectifiers
learn worst; here they are computed, and what is learnt is how much of the veil to take.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from daclip.networks.conditioning import TONES

_REDUCED = 4
_PATCH = 9
_WINDOW = 15
"""Sides of the dark channel's patch and of the guided filter's window, at a quarter of the resolution."""

_EPSILON = 1e-2
"""Of the guided filter: what varies by less than its root is no edge of the haze."""

_LEAST = 0.15
"""Transmission below which the scene is not asked for more than this."""

_DOUBT = 0.7
"""Strength below which nothing is taken."""

_HELPS = 0.7
"""A photo has a veil if taking it off leaves so much of its error, or less."""


class Veil(nn.Module):
    """Takes the veil of haze off a photo, as much as DA-CLIP says of it; starts by taking all but nothing.

    Args:
        size: of the degradation embedding.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.strength = nn.Linear(size, 1)
        nn.init.zeros_(self.strength.weight)
        nn.init.constant_(self.strength.bias, -2.0)

    def forward(
        self, mu: Float[Tensor, "b 3 h w"], told: Float[Tensor, "b d"], white: Float[Tensor, "b"]
    ) -> Float[Tensor, "b 3 h w"]:
        """The photo behind the veil, unclamped.

        Args:
            mu: the photo, of any size.
            told: direction of the degradation embedding.
            white: lightness of the veil where nothing is seen through it (airlight).
        """
        # a little is none: blocks that never saw it would take it for something else
        return self._bare(mu, F.threshold(self._strength(told), _DOUBT, 0.0), white)

    def lesson(
        self,
        mu: Float[Tensor, "b 3 h w"],
        told: Float[Tensor, "b d"],
        white: Float[Tensor, "b"],
        clean: Float[Tensor, "b 3 h w"],
    ) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b"]]:
        """The answer of `forward`, and its L1 to the clean photo, or to mu where there is no veil."""
        best = without_veil(mu, torch.tensor(0.9, device=mu.device), white[:, None, None, None])
        before, after = ((each - clean).abs().mean((1, 2, 3), keepdim=True) for each in (mu, best))
        aim = torch.where(after < _HELPS * before, clean, mu)
        learning = self._bare(mu, self._strength(told), white)
        return self(mu, told, white), (learning - aim).abs().mean((1, 2, 3))

    def _strength(self, told: Float[Tensor, "b d"]) -> Float[Tensor, "b 1"]:
        with torch.autocast(told.device.type, enabled=False):
            return self.strength(told.float()).sigmoid()

    def _bare(
        self, mu: Float[Tensor, "b 3 h w"], strength: Float[Tensor, "b 1"], white: Float[Tensor, "b"]
    ) -> Float[Tensor, "b 3 h w"]:
        with torch.autocast(mu.device.type, enabled=False):
            return without_veil(mu.float(), strength[:, :, None, None], white.float()[:, None, None, None])


def white(content: Float[Tensor, "b k"]) -> Float[Tensor, "b"]:
    """Lightness of the brightest hundredth of the whole photo, from the tone behind the content."""
    return content[:, -TONES:][:, 12:15].mean(1)


def without_veil(
    mu: Float[Tensor, "b 3 h w"], strength: Float[Tensor, "*b"], white: Float[Tensor, "b 1 1 1"]
) -> Float[Tensor, "b 3 h w"]:
    """J = A + (I - A) / t, with 1 - t the dark channel of I / A times a strength of 0 to 1.

    The transmission follows the edges of the photo by a guided filter at a part of the resolution (He & Sun,
    Fast Guided Filter, 2015).
    """
    height, width = mu.shape[-2:]
    white = white.clamp(min=0.3)
    grey = mu.mean(1, keepdim=True)
    guide = F.avg_pool2d(_padded(grey), _REDUCED)
    darkest = -F.max_pool2d(-_padded(mu.amin(1, keepdim=True) / white), _REDUCED)
    for patch in ((_PATCH, 1), (1, _PATCH)):
        darkest = -F.max_pool2d(-darkest, patch, 1, (patch[0] // 2, patch[1] // 2))
    through = 1 - strength * darkest
    mean, mean_through = _mean(guide), _mean(through)
    slope = (_mean(guide * through) - mean * mean_through) / (_mean(guide * guide) - mean * mean + _EPSILON)
    offset = mean_through - slope * mean
    slope, offset = (
        F.interpolate(_mean(each), scale_factor=float(_REDUCED), mode="bilinear")[..., :height, :width]
        for each in (slope, offset)
    )
    return white + (mu - white) / torch.addcmul(offset, slope, grey).clamp(_LEAST, 1.0)


def _padded(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
    """The last row and column again, up to a size that can be reduced."""
    return F.pad(x, (0, -x.shape[-1] % _REDUCED, 0, -x.shape[-2] % _REDUCED), mode="replicate")


def _mean(x: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Over the window around each place, or what of it lies in the photo."""
    for window in ((_WINDOW, 1), (1, _WINDOW)):
        around = (window[0] // 2, window[1] // 2)
        x = F.avg_pool2d(x, window, 1, around, count_include_pad=False)
    return x
