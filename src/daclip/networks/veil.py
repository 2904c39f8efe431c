"""The veil of haze is measured by the dark channel and taken off, before a network sees the photo.

How dense haze is at a place is said by the darkest value around it (dark channel prior: He, Sun & Tang, CVPR
2009). Minima over a neighbourhood and the division by the transmission are what convolutions and rectifiers
learn worst; here they are computed.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from daclip.networks.branch import changed_if
from daclip.networks.conditioning import TONES

_REDUCED = 4
_PATCH = 9
_WINDOW = 15
"""Sides of the dark channel's patch and of the guided filter's window, at a quarter of the resolution."""

_EPSILON = 1e-2
"""Of the guided filter: what varies by less than its root is no edge of the haze."""

_LEAST = 0.15
"""Transmission below which the scene is not asked for more than this."""

_MOST = 0.9
"""Share of the veil that is taken where the encoder is sure: with all of it, far things come out too dark."""

_DOUBT = 0.5
"""Probability of haze below which nothing is taken, for blocks that never saw a little would take it for
something else."""


class Veil(nn.Module):
    """Takes the veil of haze off a photo that DA-CLIP calls hazy, as surely as it does.

    Nothing here learns: haze is the encoder's own word, sigmoid(scale cosine + bias). Before `listen` it
    hears the word nowhere for sure, with a probability of .12.

    Args:
        size: of the degradation embedding.
    """

    direction: Tensor
    bias: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("direction", torch.zeros(size))
        self.register_buffer("bias", torch.tensor(-2.0))

    def listen(self, text: Float[Tensor, "d"], *, scale: float, bias: float) -> None:
        """Take the encoder's word: its text embedding, and the rule that makes it a probability."""
        # the numbers of `told` are 1 in the square mean
        self.direction.copy_(scale * text / text.norm() / len(text) ** 0.5)
        self.bias.fill_(bias)

    def probability(self, told: Float[Tensor, "b d"]) -> Float[Tensor, "b"]:
        """Of the word, as the encoder says it by the direction of the degradation embedding, see `unit`."""
        return (told.float() @ self.direction.float() + self.bias.float()).sigmoid()

    def forward(
        self, mu: Float[Tensor, "b 3 h w"], told: Float[Tensor, "b d"], white: Float[Tensor, "b"]
    ) -> Float[Tensor, "b 3 h w"]:
        """The photo behind the veil, unclamped.

        Args:
            mu: the photo, of any size.
            told: direction of the degradation embedding, see conditioning.unit.
            white: lightness of the veil where nothing is seen through it (airlight).
        """
        with torch.autocast(mu.device.type, enabled=False):
            strength = _MOST * F.threshold(self.probability(told), _DOUBT, 0.0)
            told_too = (each.reshape(-1, 1, 1, 1) for each in (strength, white.float()))
            return changed_if((strength > 0).any(), without_veil, mu.float(), *told_too)


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
