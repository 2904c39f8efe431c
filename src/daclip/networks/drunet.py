"""DRUNet and its conditioned forms: from a degraded photo to a clean one, by residual blocks alone.

DRUNet (Zhang et al., Plug-and-Play Image Restoration with Deep Denoiser Prior, TPAMI 2021) has no norm, no
attention and no gate: 3 x 3 convolutions and rectifiers, which processors compute at their full speed. Here
it can work at a part of the resolution, and what DA-CLIP says of the photo modulates each block. Shown a
noisy state of the mean-reverting SDE and its time as well, it is the network of a diffusion.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from daclip.errors import UsageError
from daclip.networks import recompute
from daclip.networks.conditioning import Conditions, Content, Modulation, unit
from daclip.networks.fill import DEPTH, Fill, padded
from daclip.networks.shade import Shade
from daclip.networks.unet import Sinusoid
from daclip.networks.veil import Veil, white


class ResBlock(nn.Module):
    """x + conv(relu(modulated(conv(x)))).

    Args:
        channels: width c of the map.
        size: of the conditioning vector; 0 for the plain block.
        leak: slope of the rectifier below zero. With 0, a channel that is driven below zero for all photos
            never learns again, see `closed`.
    """

    def __init__(self, channels: int, size: int, leak: float) -> None:
        super().__init__()
        self.leak = leak
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = Modulation(channels, size)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(
        self, x: Float[Tensor, "b c h w"], vector: Float[Tensor, "b e"] | None
    ) -> Float[Tensor, "b c h w"]:
        """The map with its residual."""
        return x + self.conv2(F.leaky_relu(self.modulation(self.conv1(x), vector), self.leak))


class Blocks(nn.ModuleList):
    """ResBlocks one after another, all told the same."""

    checkpoint_activations = False

    def __init__(self, count: int, channels: int, size: int, leak: float) -> None:
        super().__init__(ResBlock(channels, size, leak) for _ in range(count))

    def forward(self, x: Tensor, vector: Tensor | None) -> Tensor:
        """The map after all blocks."""
        for block in self:
            x = recompute.run(block, x, vector, recompute=self.checkpoint_activations)
        return x


class DRUNet(nn.Module):
    """DRUNet, plain or told by DA-CLIP; adds its output to the photo, and starts as the identity.

    No layer averages over its input: a tile gives the pixels of the whole photo, but near its border; with
    `fill`, a tile that starts at multiples of `multiple`.

    Args:
        widths: channels of each level, the finest first.
        encoder_blocks: blocks of each level but the coarsest, on the way down.
        middle_blocks: blocks of the coarsest level.
        decoder_blocks: blocks of each level but the coarsest, the finest first.
        context_dim: width of the DA-CLIP embeddings; None for the plain network.
        degradation: modulate every block by the degradation prompt.
        content: how the content embedding is used, see conditioning.Content.
        tone: the content embedding is followed by the tone of the whole photo, see conditioning.ToneVector.
        shade: has a part that finds shadows, see shade.Shade, which sees the whole photo. The network is then
            given what is lit already, see light.Light; it learns by itself.
        fill: what hides the photo is first taken out, see fill.Fill. The blocks still see what it was.
        veil: then the veil of haze is taken off, see veil.Veil, which needs the tone. The same holds.
        shuffle: pixel-unshuffle factor of the stem; 2 works at half resolution.
        leak: slope of the blocks' rectifiers below zero.
        factors: the network gives a factor beside the term for each value of the photo: mu (1 + factor) +
            term. Haze and darkness are undone by factors, which rectifiers can only piece together.
    """

    is_timed = False
    """Whether blocks can be modulated without embeddings, too."""

    def __init__(
        self,
        *,
        widths: Sequence[int] = (64, 128, 256, 512),
        encoder_blocks: Sequence[int] = (4, 4, 4),
        middle_blocks: int = 4,
        decoder_blocks: Sequence[int] = (4, 4, 4),
        context_dim: int | None = None,
        degradation: bool = False,
        content: Content = "none",
        tone: bool = False,
        shade: bool = False,
        fill: bool = False,
        veil: bool = False,
        shuffle: int = 1,
        leak: float = 0.0,
        factors: bool = False,
    ) -> None:
        super().__init__()
        self.shuffle, self.factors = shuffle, factors
        self._halved = shuffle * 2 ** len(encoder_blocks)
        # tiles whose pyramids of `fill` coincide give the same pixels
        self.multiple = max(self._halved, 2**DEPTH if fill else 1)
        self.conditions = Conditions(
            context_dim, 4 * widths[0], degradation=degradation, content=content, tone=tone
        )
        told = context_dim if degradation and context_dim else 0
        self.shade = Shade(widths[0]) if shade else None
        self.fill = Fill(widths[0] // 2, told) if fill else None
        if veil and not (tone and told):
            raise UsageError("the veil is measured against the tone, and told", hint="tone and degradation")
        self.veil = Veil(told) if veil else None
        size, planes = 4 * widths[0] if self.is_timed else self.conditions.size, 3 * shuffle**2
        finer = list(pairwise(widths))
        self.head = nn.Conv2d(planes, widths[0], 3, padding=1)
        self.taken = nn.Conv2d(planes, widths[0], 3, padding=1, bias=False) if fill or veil else None
        self.encoders = nn.ModuleList(
            Blocks(n, c, size, leak) for n, c in zip(encoder_blocks, widths[:-1], strict=True)
        )
        self.downs = nn.ModuleList(nn.Conv2d(c, coarse, 2, stride=2) for c, coarse in finer)
        self.middle = Blocks(middle_blocks, widths[-1], size, leak)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(coarse, c, 2, stride=2) for c, coarse in finer)
        self.decoders = nn.ModuleList(
            Blocks(n, c, size, leak) for n, c in zip(decoder_blocks, widths[:-1], strict=True)
        )
        self.tail = nn.Conv2d(widths[0], 2 * planes if factors else planes, 3, padding=1)
        for layer in (self.tail, *([self.taken] if self.taken is not None else [])):
            for weight in layer.parameters():
                nn.init.zeros_(weight)

    def forward(
        self,
        mu: Float[Tensor, "b 3 h w"],
        content: Float[Tensor, "b k"] | None = None,
        degradation: Float[Tensor, "b d"] | None = None,
        *,
        clean: Float[Tensor, "b 3 h w"] | None = None,
    ) -> Float[Tensor, "b 3 h w"] | tuple[Float[Tensor, "b 3 h w"], list[Float[Tensor, "b"]]]:
        """The clean photo, unclamped. Embeddings un-normalised. Any size: padded, then cropped.

        In training, given the `clean` photo, the errors of `uncovered` beside it.
        """
        vector = self.conditions(content, degradation)
        seen, errors = self.uncovered(mu, content, degradation, clean=clean)
        folded = self._folded(seen)
        first = self.head(folded)
        if self.taken is not None:
            first = first + self.taken(self._folded(mu - seen))
        restored = self._restored(seen, folded, first, vector)
        return restored if clean is None else (restored, errors)

    def uncovered(
        self,
        mu: Float[Tensor, "b 3 h w"],
        content: Float[Tensor, "b k"] | None = None,
        degradation: Float[Tensor, "b d"] | None = None,
        *,
        clean: Float[Tensor, "b 3 h w"] | None = None,
    ) -> tuple[Float[Tensor, "b 3 h w"], list[Float[Tensor, "b"]]]:
        """The photo as the blocks see it: without what hides it, and without its veil.

        Given the `clean` photo, with the error that `fill` learns from. Asked by the blocks, too, it would
        stay where those already manage; so nothing the blocks do teaches it.
        """
        told = None if degradation is None else unit(degradation)
        errors: list[Tensor] = []
        if self.fill is not None:
            if clean is None:
                mu = self.fill(mu, told)
            else:
                filled, error = self.fill.lesson(mu, told, clean)
                mu, errors = filled.detach(), [error]
        if self.veil is not None and told is not None and content is not None:
            mu = self.veil(mu, told, white(content))
        return mu, errors

    def first_parts(self) -> list[nn.Module]:
        """What changes the photo before the blocks see it: those of `shade`, `fill` and `veil` it has."""
        return [part for part in (self.shade, self.fill, self.veil) if part is not None]

    def _folded(self, photo: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p i j"]:
        """The photo padded to a size that halves evenly, at the resolution of the stem."""
        photo = padded(photo, self._halved)
        return F.pixel_unshuffle(photo, self.shuffle) if self.shuffle > 1 else photo

    def _restored(
        self, mu: Float[Tensor, "b 3 h w"], folded: Tensor, x: Tensor, vector: Float[Tensor, "b e"] | None
    ) -> Float[Tensor, "b 3 h w"]:
        """The clean photo, from the first map x."""
        skips: list[Tensor] = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x, vector)
            skips.append(x)
            x = down(x)
        x = self.middle(x, vector)
        for decoder, up in reversed(list(zip(self.decoders, self.ups, strict=True))):
            x = decoder(up(x) + skips.pop(), vector)
        change = self.tail(x)
        if self.factors:
            term, factor = change.chunk(2, dim=1)
            change = torch.addcmul(term, folded, factor)
        if self.shuffle > 1:
            change = F.pixel_shuffle(change, self.shuffle)
        return mu + change[..., : mu.shape[-2], : mu.shape[-1]]


@torch.no_grad()
def closed(network: DRUNet, mu: Float[Tensor, "b 3 h w"], *told: Tensor | None) -> float:
    """Share of the channels of all blocks that no pixel opens: they say the same of every photo.

    Optimisers that make all steps equally long close them where steps are too large for kernels that wide.
    The errors do not tell: what is left goes on learning.

    Args:
        network: of one pass.
        mu: photos.
        told: their content and degradation embeddings.
    """
    opened: list[Tensor] = []

    def look(_: nn.Module, seen: tuple[Tensor, ...]) -> None:
        opened.append((seen[0] > 0).flatten(2).any(2).any(0))

    with ExitStack() as hooks:
        for block in network.modules():
            if isinstance(block, ResBlock):
                hooks.enter_context(block.conv2.register_forward_pre_hook(look))
        network.forward(mu, *told)  # a call would run what is compiled, which has no hooks
    return 1 - float(torch.cat(opened).float().mean())


class DiffusionDRUNet(DRUNet):
    """DRUNet as the network of a diffusion that predicts x0: it also sees a noisy state, and the time.

    What reads them starts at zero, so that it starts as the identity, at any time.

    Args: those of DRUNet.
    """

    is_timed = True

    def __init__(self, *, widths: Sequence[int] = (64, 128, 256, 512), **arguments: Any) -> None:
        super().__init__(widths=widths, **arguments)
        size = 4 * widths[0]
        self.state = nn.Conv2d(3 * self.shuffle**2, widths[0], 3, padding=1)
        self.time = nn.Sequential(
            Sinusoid(widths[0]), nn.Linear(widths[0], size), nn.SiLU(), nn.Linear(size, size)
        )
        last = self.time[-1]
        assert isinstance(last, nn.Linear)
        for weight in (*self.state.parameters(), *last.parameters()):
            nn.init.zeros_(weight)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]: the signature of diffusion networks
        self,
        x: Float[Tensor, "b 3 h w"],
        mu: Float[Tensor, "b 3 h w"],
        t: Float[Tensor, "b"],
        content: Float[Tensor, "b k"] | None = None,
        degradation: Float[Tensor, "b d"] | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """The clean photo, unclamped, seen from the state x of the degraded photo mu at time t."""
        vector = self.conditions(content, degradation)
        with torch.autocast(mu.device.type, enabled=False):
            time = self.time(t.float())
        vector = time if vector is None else vector + time
        folded = self._folded(mu)
        first = self.head(folded) + self.state(self._folded(x - mu))
        return self._restored(mu, folded, first, vector)
