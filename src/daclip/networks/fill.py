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

from daclip.networks.branch import changed_if

DEPTH = 7
"""Levels of the pyramid: holes up to 2 ** 7 pixels wide are filled from around."""

_HELPS, _SEEN = 0.6, 0.3
"""Something hides a photo if filling leaves so much of its error, or less, and so much of it can be seen."""

_SAME = 0.5 / 255
"""Values that are nearer to each other than this are the same."""

_LEAST = 1e-5
"""A pixel is trusted so much at least: where nothing else is in reach, the mean of its own colours stays."""

_AJAR = 0.05
"""A gate that is less open than this is closed."""

_RELAXED = 3
"""Steps of relaxation on every level; worth .3 dB on masked photos."""

_FADE, _HARD = 0.05, 0.5
"""What a step of colour at a border is measured against, see `hardness`, and what that is above in holes."""


class Fill(nn.Module):
    """Finds what hides the photo, told by DA-CLIP what it is, and puts there what is around it.

    Starts by finding nearly nothing but what is flat and has hard borders (see `flat` and `hardness`), as
    what was cut out or painted over has. Whether anything hides the photo is said by the embedding alone: it
    tells a flake from a lamp, and a hole from a clipped sky.

    Args:
        width: channels at half resolution; twice as many at a quarter.
        size: of the degradation embedding; 0 for one that is told nothing.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(12, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 2, stride=2)
        self.conv = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.wide = nn.Conv2d(2 * width, 2 * width, 3, padding=4, dilation=4)  # holes may be wide
        self.told = nn.Linear(size, 2 * width) if size else None
        self.gate = nn.Linear(size, 1) if size else None
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.tail = nn.Conv2d(width, 4, 3, padding=1)
        self.flat = nn.Conv2d(5, width, 3, padding=1, bias=False)
        self.sure = nn.Parameter(torch.tensor(5.0))  # logit that what is flat hides the scene
        self.hard = nn.Parameter(torch.tensor(14.0))  # what its hardness adds to that
        nn.init.zeros_(self.flat.weight)
        nn.init.zeros_(self.tail.weight)
        self.tail.bias = nn.Parameter(torch.full((4,), -3.0))
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)

    def forward(
        self, mu: Float[Tensor, "b 3 h w"], told: Float[Tensor, "b d"] | None
    ) -> Float[Tensor, "b 3 h w"]:
        """The photo without what hides it, of any size.

        Args:
            mu: the photo.
            told: direction of the degradation embedding.
        """
        gate = self._gate(told)
        if gate is None or told is None:
            return self.without_hidden(mu, self._logits(mu, told), None)

        def change(mu: Tensor, told: Tensor, gate: Tensor) -> Tensor:
            return self.without_hidden(mu, self._logits(mu, told), gate)

        return changed_if((_opened(gate) > 0).any(), change, mu, told, gate)

    def lesson(
        self, mu: Float[Tensor, "b 3 h w"], told: Float[Tensor, "b d"] | None, clean: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b"]]:
        """The answer of `forward`, and the error to learn from: the cross-entropy of what hides the photo.

        Asked for the clean photo instead, it closes: nearly all photos and pixels ask it to change nothing,
        and one that hides the middle of a hole, whose border it still trusts, gains nothing by it.
        """
        hidden, gate = self._logits(mu, told), self._gate(told)
        same = same_pixels(mu, clean)
        best = filled(mu, 1 - same, same)
        before, after = ((each - clean).abs().mean((1, 2, 3)) for each in (mu, best))
        helps = ((after < _HELPS * before) & (same.mean((1, 2, 3)) > _SEEN)).to(mu.dtype)
        error = F.binary_cross_entropy_with_logits(hidden, 1 - same, reduction="none").mean((1, 2, 3)) * helps
        if gate is not None:
            error = error + F.binary_cross_entropy_with_logits(gate, helps, reduction="none")
        return self.without_hidden(mu, hidden, gate), error

    def _logits(
        self, mu: Float[Tensor, "b 3 h w"], told: Float[Tensor, "b d"] | None
    ) -> Float[Tensor, "b 1 h w"]:
        """Of each pixel, whether something hides the scene there."""
        height, width = mu.shape[-2:]
        one_colour = flat(mu)
        hard = hardness(mu, one_colour) - _HARD
        x = self.head(F.pixel_unshuffle(padded(mu), 2))
        told_flat = [F.pixel_unshuffle(padded(one_colour, mode="constant"), 2), hard]
        x = F.relu(x + self.flat(torch.cat(told_flat, dim=1)))
        coarse = F.relu(self.down(x))
        word = 0 if self.told is None or told is None else self.told(told)[:, :, None, None]
        coarse = coarse + F.relu(self.conv(coarse) + word)
        coarse = coarse + F.relu(self.wide(coarse))
        hidden = F.pixel_shuffle(self.tail(F.relu(x + self.up(coarse))), 2)[..., :height, :width]
        hard = F.interpolate(hard, scale_factor=2.0)[..., :height, :width]
        hidden = hidden + one_colour * (self.sure + self.hard * hard)
        return hidden.float()

    def _gate(self, told: Float[Tensor, "b d"] | None) -> Float[Tensor, "b"] | None:
        """Of the photo, whether something hides the scene anywhere."""
        return None if self.gate is None or told is None else self.gate(told)[:, 0].float()

    def without_hidden(
        self, mu: Float[Tensor, "b 3 h w"], hidden: Float[Tensor, "b 1 h w"], gate: Float[Tensor, "b"] | None
    ) -> Float[Tensor, "b 3 h w"]:
        """The photo, filled where both say so, by their logits."""
        hides = hidden.sigmoid()
        if gate is not None:
            hides = hides * _opened(gate)[:, None, None, None]
        # what is in doubt is not trusted: a tenth of the middle of a hole would outweigh its border
        return filled(mu, hides, (1 - hides) ** 4)


def _opened(gate: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
    """How far the gate is open, by its logit: exactly 0 where what it would let through is not seen."""
    return F.threshold(gate.sigmoid(), _AJAR, 0.0)


def filled(
    mu: Float[Tensor, "b 3 h w"], hides: Float[Tensor, "b 1 h w"], trust: Float[Tensor, "b 1 h w"]
) -> Float[Tensor, "b 3 h w"]:
    """The photo with what the trusted pixels say in place of those that something hides."""
    with torch.autocast(mu.device.type, enabled=False):
        # what is beyond the photo says nothing
        trust = padded(trust.clamp(min=_LEAST), mode="constant")
        around = push_pull(padded(mu).float(), trust, relaxed=_RELAXED)
        around = around[..., : mu.shape[-2], : mu.shape[-1]]
        return torch.addcmul(mu, hides, around - mu)


def flat(mu: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """1 in the squares of 2 x 2 pixels that show one colour alone, to the last digit; 0 elsewhere.

    A photo has noise, so little of it is but what is clipped; the squares make up a hole to its very border
    (an opening, in the terms of morphology). Beside them, pixels of the same colour are counted in (one step
    of its reconstruction): the tips of a stroke, which no square holds.
    """
    beyond = F.pad(mu, (0, 1, 0, 1), value=-1.0)
    spread = (F.max_pool2d(beyond, 2, 1) + F.max_pool2d(-beyond, 2, 1)).amax(1, keepdim=True)
    squares = F.max_pool2d(F.pad((spread < _SAME).to(mu.dtype), (1, 0, 1, 0)), 2, 1)
    # highest and lowest value of the squares around a pixel; far from all values where there is none
    nowhere = 9 * (1 - squares)
    highest = F.max_pool2d(mu - nowhere, 3, 1, 1)
    lowest = -F.max_pool2d(-mu - nowhere, 3, 1, 1)
    other = torch.maximum(highest - mu, mu - lowest).abs().amax(1, keepdim=True)
    return torch.maximum(squares, (other < _SAME).to(mu.dtype))


def hardness(mu: Float[Tensor, "b 3 h w"], one_colour: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 i j"]:
    """How hard the borders of what is flat are, 0 to 1, at half the resolution and spread from there.

    Beside a hole the photo stands as it was; what is clipped fades into the rest, if over a pixel only. So
    the step of colour over the border is measured against the next one, a / (a + b + `_FADE`), in four
    directions, and everywhere stands the mean of the nearest borders. 0 where nothing is flat.
    """
    kept = 1 - F.pad(one_colour, (2, 2, 2, 2), mode="replicate")
    photo = F.pad(mu, (2, 2, 2, 2), mode="replicate")
    hard, borders = torch.zeros_like(one_colour), torch.zeros_like(one_colour)
    for axis in (2, 3):
        size, across = mu.shape[axis], mu.shape[5 - axis]
        line, free = (each.narrow(5 - axis, 2, across) for each in (photo, kept))
        steps = line.narrow(axis, 1, size + 3) - line.narrow(axis, 0, size + 3)
        steps = steps.abs().amax(1, keepdim=True)
        # forwards and backwards: where the step over the border stands, the next one, and their pixels
        for over, beyond, first, second in ((2, 3, 3, 4), (1, 0, 1, 0)):
            step = steps.narrow(axis, over, size)
            at_border = one_colour * free.narrow(axis, first, size) * free.narrow(axis, second, size)
            hard = hard + at_border * step / (step + steps.narrow(axis, beyond, size) + _FADE)
            borders = borders + at_border
    hard, borders = (F.avg_pool2d(padded(each, mode="constant"), 2) for each in (hard, borders))
    return push_pull(hard / (borders + 1e-9), borders.clamp(max=1), depth=DEPTH - 1)


def padded(
    x: Float[Tensor, "b c h w"], multiple: int = 2**DEPTH, *, mode: str = "replicate"
) -> Float[Tensor, "b c i j"]:
    """With the last column and row again at the right and below, to sides that divide by `multiple`.

    Zeros (mode `constant`) would be a black frame, which networks that learn on whole cuts have never seen.
    """
    return F.pad(x, (0, -x.shape[-1] % multiple, 0, -x.shape[-2] % multiple), mode=mode)


def same_pixels(mu: Float[Tensor, "b 3 h w"], clean: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """1 where a photo shows what the clean one shows, 0 where something hides it."""
    return ((mu - clean).abs().amax(1, keepdim=True) < 0.1).to(mu.dtype)


def push_pull(
    x: Float[Tensor, "b c h w"], trust: Float[Tensor, "b 1 h w"], *, depth: int = DEPTH, relaxed: int = 0
) -> Float[Tensor, "b c h w"]:
    """What the trusted pixels around it say of each pixel (Gortler et al., The Lumigraph, SIGGRAPH 1996).

    Pushed up a pyramid of weighted means, then pulled down again as far as there was no trust; what comes
    from above is `relaxed` so many times towards the mean of its neighbours. Sides must divide by 2 **
    `depth`.
    """
    levels: list[tuple[Tensor, Tensor]] = []
    for _ in range(depth):
        weight = F.avg_pool2d(trust, 2)
        x = F.avg_pool2d(x * trust, 2) / (weight + 1e-12)
        trust = weight * (2 - weight)
        levels.append((x, trust))
    for finer, trust in reversed(levels[:-1]):
        trusted = trust.expand_as(finer)
        x = torch.lerp(F.interpolate(x, scale_factor=2.0, mode="bilinear"), finer, trusted)
        for _ in range(relaxed):
            x = torch.lerp(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), finer, trusted)
    return F.interpolate(x, scale_factor=2.0, mode="bilinear")
