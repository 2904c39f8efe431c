"""AirNet: a restorer guided by an encoder that learnt, by contrast, to tell degradations apart.

AirNet (Li et al., CVPR 2022), and its form conditioned by DA-CLIP. `E` is the contrastive encoder (CBDE), `R`
the restorer it guides (DGRN). Module names are the published ones, so checkpoints load as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from daclip.errors import ModelError
from daclip.networks import recompute
from daclip.networks.conditioning import Conditions, Content, Modulation


class AirNet(nn.Module):
    """`network(mu)` is the clean photo itself, not a change of the photo; `contrast` is for training.

    Args:
        width: channels w of the restorer and of the map that guides it; the encoder goes on to 4 w.
        groups, blocks: groups of blocks, and blocks of each.
        queue: keys of earlier photos that a query is told apart from; published: 256 times the batch.
        context_dim, degradation, content: see Conditions; the vector has 4 w numbers and modulates what the
            two guided convolutions of each block read.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        groups: int = 5,
        blocks: int = 5,
        queue: int = 5 * 256,
        context_dim: int | None = None,
        degradation: bool = False,
        content: Content = "none",
    ) -> None:
        super().__init__()
        self.multiple = 1
        self.conditions = Conditions(context_dim, 4 * width, degradation=degradation, content=content)
        self.R = GuidedRestorer(width, groups=groups, blocks=blocks, embedding=self.conditions.size)
        self.E = nn.ModuleDict({"E": MomentumContrast(width, queue=queue)})

    def forward(
        self,
        mu: Float[Tensor, "b 3 h w"],
        content: Float[Tensor, "b d"] | None = None,
        degradation: Float[Tensor, "b d"] | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """The clean photo, unclamped. Embeddings un-normalised. Any size."""
        # only this first block of the encoder is read; what follows it serves the contrast alone
        guide = self._contrast.encoder_q.E_pre(mu)
        return self.R(mu, guide, self.conditions(content, degradation))

    def contrast(
        self, query: Float[Tensor, "b 3 h w"], key: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b k"], Int[Tensor, "b"]]:
        """Logits and labels for a cross-entropy: whose degradation is it, the key's or one in the queue?

        Query and key are two cuts of the same degraded photos. Once a training step: it moves the key encoder
        after the query encoder, and puts the keys in the queue.
        """
        return self._contrast(query, key)

    @property
    def encoder(self) -> nn.Module:
        """What learns in the first phase."""
        return self._contrast.encoder_q

    @property
    def _contrast(self) -> "MomentumContrast":
        return cast("MomentumContrast", self.E["E"])


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What AirNet learns from at a moment of its training.

    loss = L1(restored, clean), where `restores`, + contrast_weight * cross_entropy(*contrast(query, key)).
    """

    restores: bool
    contrast_weight: float
    learning_rate: float


HIGHEST_RATE = 1e-3
"""Where the rates of the phases start."""


def phase(progress: float) -> Phase:
    """The phase at a share of the training, 0 to 1: a tenth for the encoder alone, then all.

    The rates are those of the published 1,000 epochs: 1e-3, a tenth of it after 60; from 100 on 1e-4, halved
    every 125.
    """
    epoch = int(1000 * progress + 1e-6)
    if epoch < 100:
        rate = HIGHEST_RATE * 0.1 ** (epoch // 60)
        return Phase(restores=False, contrast_weight=1.0, learning_rate=rate)
    rate = 0.1 * HIGHEST_RATE * 0.5 ** ((epoch - 100) // 125)
    return Phase(restores=True, contrast_weight=0.1, learning_rate=rate)


# ---- E: which degradation


class MomentumContrast(nn.Module):
    """Two encoders, the second following the first slowly, and a queue of what the second said (MoCo).

    Args:
        width: see DegradationEncoder.
        queue: length K.
        momentum: share of the key encoder that stays, a step.
        temperature: of the logits.
    """

    queue: Tensor
    queue_ptr: Tensor

    def __init__(self, width: int, *, queue: int, momentum: float = 0.999, temperature: float = 0.07) -> None:
        super().__init__()
        self.momentum, self.temperature = momentum, temperature
        self.encoder_q, self.encoder_k = DegradationEncoder(width), DegradationEncoder(width)
        self.encoder_k.load_state_dict(self.encoder_q.state_dict())
        self.encoder_k.requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(4 * width, queue), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def forward(
        self, query: Float[Tensor, "b 3 h w"], key: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b k"], Int[Tensor, "b"]]:
        """See AirNet.contrast: the right answer is always the first of the 1 + K."""
        q = F.normalize(self.encoder_q(query), dim=1)
        with torch.no_grad():
            self._follow()
            k = F.normalize(self.encoder_k(key), dim=1)
        same = (q * k).sum(dim=1, keepdim=True)
        # the queue changes before the backward pass reads it
        logits = torch.cat([same, q @ self.queue.to(q.dtype, copy=True)], dim=1) / self.temperature
        self._enqueue(k)
        return logits, torch.zeros(len(q), dtype=torch.long, device=q.device)

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the key encoder; published: its batch norms keep their own averages."""
        for ours, theirs in zip(self.encoder_k.parameters(), self.encoder_q.parameters(), strict=True):
            ours.mul_(self.momentum).add_(theirs, alpha=1 - self.momentum)

    @torch.no_grad()
    def _enqueue(self, keys: Float[Tensor, "b d"]) -> None:
        """Put keys in the place of the oldest."""
        length = self.queue.shape[1]
        places = (self.queue_ptr + torch.arange(len(keys), device=keys.device)) % length
        self.queue[:, places] = keys.T.to(self.queue.dtype)
        self.queue_ptr.add_(len(keys)).remainder_(length)


class DegradationEncoder(nn.Module):
    """A photo as 4 w numbers about its degradation.

    Args:
        width: channels w of the first block, E_pre, whose map guides the restorer.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.E_pre = ResBlock(3, width)
        self.E = nn.Sequential(
            ResBlock(width, 2 * width, stride=2),
            ResBlock(2 * width, 4 * width, stride=2),
            nn.AdaptiveAvgPool2d(1),
        )
        self.mlp = nn.Sequential(
            nn.Linear(4 * width, 4 * width), nn.LeakyReLU(0.1), nn.Linear(4 * width, 4 * width)
        )

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """The projection that is contrasted, un-normalised."""
        return self.mlp(self.E(self.E_pre(x)).flatten(1))


class ResBlock(nn.Module):
    """Two 3x3 convolutions and a 1x1 shortcut, each with batch norm."""

    def __init__(self, inside: int, outside: int, *, stride: int = 1) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outside),
            nn.LeakyReLU(0.1),
            nn.Conv2d(outside, outside, 3, padding=1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(inside, outside, 1, stride=stride, bias=False), nn.BatchNorm2d(outside)
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Tensor:
        """LeakyReLU(backbone(x) + shortcut(x))."""
        return F.leaky_relu(self.backbone(x) + self.shortcut(x), 0.1)


# ---- R: the restorer


class GuidedRestorer(nn.Module):
    """Residual groups of blocks, each guided by the map of the degradation (DGRN)."""

    def __init__(self, width: int, *, groups: int, blocks: int, embedding: int) -> None:
        super().__init__()
        self.head = nn.Sequential(conv3(3, width))
        self.body = nn.ModuleList(GuidedGroup(width, blocks, embedding) for _ in range(groups))
        self.body.append(conv3(width, width))
        self.tail = nn.Sequential(conv3(width, 3))

    def forward(
        self,
        mu: Float[Tensor, "b 3 h w"],
        guide: Float[Tensor, "b c h w"],
        vector: Float[Tensor, "b e"] | None,
    ) -> Float[Tensor, "b 3 h w"]:
        """The clean photo."""
        x = self.head(mu)
        *groups, last = self.body
        y = x
        for group in groups:
            y = group(y, guide, vector)
        return self.tail(last(y) + x)


class GuidedGroup(nn.Module):
    """Blocks, a 3x3 convolution, and a skip around them all (DGG)."""

    checkpoint_activations = False

    def __init__(self, width: int, blocks: int, embedding: int) -> None:
        super().__init__()
        self.body = nn.ModuleList(GuidedBlock(width, embedding) for _ in range(blocks))
        self.body.append(conv3(width, width))

    def forward(
        self, x: Float[Tensor, "b c h w"], guide: Float[Tensor, "b c h w"], vector: Tensor | None
    ) -> Float[Tensor, "b c h w"]:
        """The map after the group."""
        *blocks, last = self.body
        y = x
        for block in blocks:
            y = recompute.run(block, y, guide, vector, recompute=self.checkpoint_activations)
        return last(y) + x


class GuidedBlock(nn.Module):
    """Guided and plain convolutions in turn, two of each, and a skip (DGB)."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.dgm1, self.dgm2 = Guided(width), Guided(width)
        self.conv1, self.conv2 = conv3(width, width), conv3(width, width)
        self.modulation1, self.modulation2 = Modulation(width, embedding), Modulation(width, embedding)

    def forward(
        self, x: Float[Tensor, "b c h w"], guide: Float[Tensor, "b c h w"], vector: Tensor | None
    ) -> Float[Tensor, "b c h w"]:
        """The map after the block."""
        y = F.leaky_relu(self.dgm1(self.modulation1(x, vector), guide), 0.1)
        y = F.leaky_relu(self.conv1(y), 0.1)
        y = F.leaky_relu(self.dgm2(self.modulation2(y, vector), guide), 0.1)
        return self.conv2(y) + x


class Guided(nn.Module):
    """x + deformed convolution of x + gamma x + beta, all steered by the guide (DGM)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dcn = DeformedConv(width)
        self.sft = nn.ModuleDict({"conv_gamma": pointwise(width), "conv_beta": pointwise(width)})

    def forward(
        self, x: Float[Tensor, "b c h w"], guide: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """The map after the two."""
        gamma, beta = self.sft["conv_gamma"](guide), self.sft["conv_beta"](guide)
        return x + self.dcn(x, guide) + torch.addcmul(beta, x, gamma)


class DeformedConv(nn.Module):
    """A 3x3 convolution whose nine places are moved and weighted at each pixel; at the start not moved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width, 3, 3).uniform_(-1, 1) / (9 * width) ** 0.5)
        self.conv_offset_mask = conv3(2 * width, 3 * 9)
        nn.init.zeros_(self.conv_offset_mask.weight)
        assert self.conv_offset_mask.bias is not None
        nn.init.zeros_(self.conv_offset_mask.bias)

    def forward(
        self, x: Float[Tensor, "b c h w"], guide: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """The convolution, places and weights from x and the guide."""
        found = self.conv_offset_mask(torch.cat([x, guide], dim=1))
        offset, mask = found[:, :18].unflatten(1, (9, 2)), found[:, 18:].sigmoid()
        # nine moved copies of the map, kept for the gradient, would be most of the memory of a training step
        return recompute.run(deformed, x, self.weight, offset, mask, recompute=True)


def deformed(
    x: Float[Tensor, "b c h w"],
    weight: Float[Tensor, "d c 3 3"],
    offset: Float[Tensor, "b 9 2 h w"],
    mask: Float[Tensor, "b 9 h w"],
) -> Float[Tensor, "b d h w"]:
    """sum_k W_k mask_k x(p + p_k + offset_k), x between pixels bilinear and 0 outside.

    The modulated deformable convolution of torchvision and mmcv. By grid sampling, which any engine has: on a
    CPU a training step takes a quarter of the time of torchvision's.
    """
    height, width = x.shape[-2:]
    kind = torch.promote_types(x.dtype, torch.float32)  # bfloat16 cannot count pixels beyond 256
    rows = torch.arange(height, device=x.device)[:, None] + offset[:, :, 0].to(kind)
    columns = torch.arange(width, device=x.device) + offset[:, :, 1].to(kind)
    total = torch.zeros((), device=x.device)
    for k in range(9):
        # grid_sample counts from -1 to 1, from edge to edge
        across = (2 * (columns[:, k] + k % 3) - 1) / width - 1
        along = (2 * (rows[:, k] + k // 3) - 1) / height - 1
        moved = F.grid_sample(x.to(kind), torch.stack([across, along], dim=3), align_corners=False)
        weighted = (moved * mask[:, k : k + 1]).to(x.dtype)
        total = total + F.conv2d(weighted, weight[:, :, k // 3, k % 3, None, None])
    return total


def conv3(inside: int, outside: int) -> nn.Conv2d:
    """A 3x3 convolution with bias."""
    return nn.Conv2d(inside, outside, 3, padding=1)


def pointwise(width: int) -> nn.Sequential:
    """Two 1x1 convolutions without bias."""
    return nn.Sequential(
        nn.Conv2d(width, width, 1, bias=False), nn.LeakyReLU(0.1), nn.Conv2d(width, width, 1, bias=False)
    )


def arguments_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `AirNet` that fit published weights, read from their names and shapes.

    Raises ModelError when they are not those of an AirNet.
    """
    try:
        return {
            "width": state["R.head.0.weight"].shape[0],
            "groups": sum(name.endswith(".body.0.conv1.weight") for name in state),
            "blocks": sum(
                name.startswith("R.body.0.body.") and name.endswith(".conv1.weight") for name in state
            ),
            "queue": state["E.E.queue"].shape[1],
        }
    except KeyError as error:
        raise ModelError(f"not the weights of AirNet: {error} is missing") from error
