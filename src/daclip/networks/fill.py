"""What hides the photo is found and its place filled from around, before a network sees the photo.

A convolution cannot leave a pixel out of its sum. Networks of convolutions and rectifiers so learn slowly
that nothing of a white hole, a flake or a streak may be mixed into what they put there, and fill holes with
grey. Sums over trusted pixels alone are normalised convolutions (Knutsson & Westin, CVPR 1993), in networks
partial convolutions (Liu et al., ECCV 2018); here they are a pyramid without weights.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from daclip.networks.conditioning import Modulation

DEPTH = 7
"""Levels of the pyramid: holes up to 2 ** 7 pixels wide are filled from around."""


class Fill(nn.Module):
    """Finds what hides the photo, told by DA-CLIP what it is, and puts there what is around it.

    Starts by finding all but nothing.

    Args:
        width: channels at half resolution; twice as many at a quarter.
        size: of the conditioning vector.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(12, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 2, stride=2)
        self.conv = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.wide = nn.Conv2d(2 * width, 2 * width, 3, padding=4, dilation=4)  # holes may be wide
        self.modulation = Modulation(2 * width, size)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.tail = nn.Conv2d(width, 4, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        self.tail.bias = nn.Parameter(torch.full((4,), -3.0))

    def forward(
        self,
        mu: Float[Tensor, "b 3 h w"],
        vector: Float[Tensor, "b e"] | None,
        clean: Float[Tensor, "b 3 h w"] | None = None,
    ) -> list[Float[Tensor, "b 3 h w"]]:
        """The photo without what hides it, of any size; in training, given `clean`, two to learn from.

        The second is filled from the pixels that truly are as in the clean photo. Filled from those it trusts
        itself, it sees no gain in hiding the middle of a hole whose border it still trusts.
        """
        height, width = mu.shape[-2:]
        padding = (0, -width % 2**DEPTH, 0, -height % 2**DEPTH)
        padded = F.pad(mu, padding)
        x = F.relu(self.head(F.pixel_unshuffle(padded, 2)))
        coarse = F.relu(self.down(x))
        coarse = coarse + F.relu(self.modulation(self.conv(coarse), vector))
        coarse = coarse + F.relu(self.wide(coarse))
        hides = F.pixel_shuffle(self.tail(F.relu(x + self.up(coarse))), 2)[..., :height, :width]
        with torch.autocast(mu.device.type, enabled=False):
            hides = hides.float().sigmoid()

            def filled(trust: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 3 h w"]:
                around = push_pull(padded.float(), F.pad(trust, padding))[..., :height, :width]
                return torch.addcmul(mu, hides, around - mu)

            return [filled(1 - hides), *([] if clean is None else [filled(same_pixels(mu, clean))])]


def same_pixels(mu: Float[Tensor, "b 3 h w"], clean: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """1 where a photo shows what the clean one shows, 0 where something hides it."""
    return ((mu - clean).abs().amax(1, keepdim=True) < 0.1).to(mu.dtype)


def push_pull(x: Float[Tensor, "b 3 h w"], trust: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 3 h w"]:
    """What the trusted pixels around it say of each pixel (Gortler et al., The Lumigraph, SIGGRAPH 1996).

    Pushed up a pyramid of weighted means, then pulled down again as far as there was no trust. Sides must
    divide by 2 ** 7.
    """
    levels: list[tuple[Tensor, Tensor]] = []
    for _ in range(DEPTH):
        weight = F.avg_pool2d(trust, 2)
        x = F.avg_pool2d(x * trust, 2) / (weight + 1e-4)
        trust = weight * (2 - weight)
        levels.append((x, trust))
    for finer, trust in reversed(levels[:-1]):
        around = F.interpolate(x, scale_factor=2.0, mode="bilinear")
        x = torch.lerp(around, finer, trust.expand_as(finer))
    return F.interpolate(x, scale_factor=2.0, mode="bilinear")
