"""How DA-CLIP's embeddings reach the blocks of a one-pass network: a vector for a photo, which modulates."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daclip.errors import UsageError
from daclip.networks.nafnet import ContentVector, DegradationPrompt

Content = Literal["none", "vector"]
"""How the content embedding is used. Attention to it is no choice here: to one token it is a vector, too."""


class Conditions(nn.Module):
    """The embeddings of a photo as the vector that all blocks read.

    Args:
        context_dim: width of the embeddings; None for a plain network.
        size: of the vector, when there is one.
        degradation: use the degradation embedding, through the learned prompt.
        content: use the content embedding, see Content.
    """

    def __init__(self, context_dim: int | None, size: int, *, degradation: bool, content: Content) -> None:
        super().__init__()
        used = degradation or content == "vector"
        if used and context_dim is None:
            raise UsageError("conditioning needs the width of the embeddings", hint="pass context_dim=")
        self.size = size if used else 0
        self.prompt = DegradationPrompt(context_dim, size) if degradation and context_dim else None
        self.content = ContentVector(context_dim, size) if content == "vector" and context_dim else None

    def forward(
        self, content: Float[Tensor, "b d"] | None, degradation: Float[Tensor, "b d"] | None
    ) -> Float[Tensor, "b e"] | None:
        """The vector of un-normalised embeddings; None when no embedding that is used was given."""
        parts: list[Tensor] = []
        if self.prompt is not None and degradation is not None:
            parts.append(self.prompt(degradation))
        if self.content is not None and content is not None:
            parts.append(self.content(content))
        return torch.stack(parts).sum(0) if parts else None


class Modulation(nn.Module):
    """x (1 + scale) + shift, both linear in the gated vector: nothing at the start of training.

    As in Refusion's blocks. Of size 0 it has no weights and changes nothing ever.
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size // 2, 2 * channels) if size else None
        if self.linear is not None:
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    def forward(
        self, x: Float[Tensor, "b c h w"], vector: Float[Tensor, "b e"] | None
    ) -> Float[Tensor, "b c h w"]:
        """The modulated map; x itself without a vector."""
        if self.linear is None or vector is None:
            return x
        first, second = vector.chunk(2, dim=1)
        shift, scale = self.linear(first * second)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift, x, scale + 1)
