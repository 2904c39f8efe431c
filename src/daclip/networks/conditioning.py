"""How DA-CLIP's embeddings reach the blocks of a one-pass network: a vector for a photo, which modulates."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from daclip.errors import UsageError

Content = Literal["none", "vector"]
"""How the content embedding is used. Attention to it is no choice here: to one token it is a vector, too."""


class Conditions(nn.Module):
    """The embeddings of a photo as the vector that all blocks read.

    Args:
        context_dim: width of the embeddings; None for a plain network.
        size: of the vector, when there is one.
        degradation: use the degradation embedding, through the learned prompt.
        content: use the content embedding, see Content.
        tone: the content embedding is followed by the tone of the photo, see ToneVector.
    """

    def __init__(
        self, context_dim: int | None, size: int, *, degradation: bool, content: Content, tone: bool = False
    ) -> None:
        super().__init__()
        used = degradation or content == "vector"
        if used and context_dim is None:
            raise UsageError("conditioning needs the width of the embeddings", hint="pass context_dim=")
        self.size = size if used else 0
        self.prompt = DegradationPrompt(context_dim, size) if degradation and context_dim else None
        self.content = ContentVector(context_dim, size) if content == "vector" and context_dim else None
        if tone and self.content is None:
            raise UsageError("the tone follows the content embedding", hint='content="vector"')
        self.tone = ToneVector(size) if tone else None

    def forward(
        self, content: Float[Tensor, "b k"] | None, degradation: Float[Tensor, "b d"] | None
    ) -> Float[Tensor, "b e"] | None:
        """The vector of un-normalised embeddings; None when no embedding that is used was given."""
        if self.tone is None or content is None:
            return conditioning_vector(self.prompt, degradation, self.content, content)
        content, tone = content[:, :-TONES], content[:, -TONES:]
        vector = conditioning_vector(self.prompt, degradation, self.content, content)
        assert vector is not None, "a network told the tone is told the content"
        return vector + self.tone(tone)


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


def conditioning_vector(
    prompt: "DegradationPrompt | None",
    degradation: Float[Tensor, "b d"] | None,
    content_vector: "ContentVector | None",
    content: Float[Tensor, "b d"] | None,
) -> Float[Tensor, "b e"] | None:
    """The sum of what each embedding says, where the network reads it and it was given; None of neither."""
    given = degradation if degradation is not None else content
    if given is None:
        return None
    parts: list[Tensor] = []
    # a few numbers, so in full; torch 2.15 cannot compile the bfloat16 gradients of the two last biases
    with torch.autocast(given.device.type, enabled=False):
        if prompt is not None and degradation is not None:
            parts.append(prompt(degradation))
        if content_vector is not None and content is not None:
            parts.append(content_vector(content))
        return torch.stack(parts).sum(0) if parts else None


class DegradationPrompt(nn.Module):
    """The learned prompt weighted by the degradation embedding (DA-CLIP section 3.3).

    p = Linear(e * softmax(mlp(e_d)) * prompt): the published form times its size e, so that the weights are
    1 on average and the prompt is felt from the first step. Read as it is, an embedding some 30 long soon
    makes the softmax choose one feature of 160; so only its direction is read, where nothing else is asked.
    """

    def __init__(
        self,
        context_dim: int,
        size: int,
        *,
        reads: Literal["direction", "embedding"] = "direction",
    ) -> None:
        super().__init__()
        self.reads = reads
        self.text_mlp = nn.Sequential(nn.Linear(context_dim, size), nn.SiLU(), nn.Linear(size, size))
        self.weights = nn.Parameter(torch.rand(1, size))
        self.prompt_mlp = nn.Linear(size, size)

    def forward(self, degradation: Float[Tensor, "b d"]) -> Float[Tensor, "b e"]:
        """The conditioning vector of degradation embeddings."""
        read = unit(degradation) if self.reads == "direction" else degradation
        chosen = self.text_mlp(read).softmax(dim=1) * self.weights.shape[1]
        return self.prompt_mlp(chosen * self.weights)


_LONGEST = 0.6
"""A conditioning vector of content, in the square mean: of 600 views the longest has 0.47, most have 0.13."""


class ContentVector(nn.Module):
    """The content embedding as a conditioning vector, from its direction alone; starts at zero.

    A view unlike all others would give one of 1.8, which modulates block after block, and the photo would
    come out as 1e12: it is shortened to `_LONGEST`.
    """

    def __init__(self, context_dim: int, size: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(context_dim, size)
        self.out = nn.Linear(size, size)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, content: Float[Tensor, "b d"]) -> Float[Tensor, "b e"]:
        """The conditioning vector of content embeddings."""
        vector = self.out(F.silu(self.hidden(unit(content))))
        longest = _LONGEST * vector.shape[1] ** 0.5
        length = torch.linalg.vector_norm(vector.float(), dim=1, keepdim=True)
        return vector * (longest / length.clamp(min=longest))


TONES = 18
"""Numbers in the tone of a photo, tiling.tone: five quantiles and the mean of three colours."""


class ToneVector(nn.Module):
    """How light the whole photo is as a conditioning vector; starts at zero."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * TONES, size), nn.SiLU(), nn.Linear(size, size), nn.SiLU(), nn.Linear(size, size)
        )
        _start_at_zero(self.layers[-1])

    def forward(self, tone: Float[Tensor, "b n"]) -> Float[Tensor, "b e"]:
        """The conditioning vector of tones in [0, 1]."""
        with torch.autocast(tone.device.type, enabled=False):
            return self.layers(_read(tone))


def _read(tone: Float[Tensor, "b n"]) -> Float[Tensor, "b 2*n"]:
    """Tones as they are and as logarithms, because darkness and haze are factors.

    Both are about 0 in the mean and 1 in the spread over photos.
    """
    light = tone.float().clamp(0, 1)
    return torch.cat([4 * light - 2, 0.8 * (light + 0.01).log() + 1.2], dim=1)


def _start_at_zero(layer: nn.Module) -> None:
    """A last layer that says nothing yet."""
    for weight in layer.parameters():
        nn.init.zeros_(weight)


def unit(embedding: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """The direction of an embedding, its numbers 1 in the square mean."""
    return F.normalize(embedding, dim=1) * embedding.shape[1] ** 0.5
