"""Stage 1: the controller. Degraded photos in; out of it, the words for what is wrong and the clean photo's content.

Degradation: one sigmoid per word against the embedding of the word (PAPER 1.2 (c)), so mixtures are natural and a
clean photo has a word of its own. Content: L1 between unit embeddings of the degraded photo under control and of the
clean photo without (the wild variant, caption-free).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from daclip import clip
from daclip.train.presets import ControllerRun
from daclip.vocabulary import CLEAN, DEGRADATIONS

WORDS = (*DEGRADATIONS, CLEAN)


def normalised(
    pixels: Float[Tensor, "b 3 h w"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "b 3 h w"]:
    """Pixels in [0, 1] as the encoder wants them."""
    return (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]


def draw_views(
    regions: Sequence[Float[Tensor, "b 3 h w"]], side: int, generator: torch.Generator
) -> list[Float[Tensor, "b 3 s s"]]:
    """One view of each region, the same cut in each tensor given: at native scale, or the whole region resized.

    These are the two kinds of view the encoder is given at use (tiling.views).
    """
    count, _, height, width = regions[0].shape
    kinds = torch.rand(count, generator=generator) < 0.3
    tops = torch.randint(max(1, height - side + 1), (count,), generator=generator).tolist()
    lefts = torch.randint(max(1, width - side + 1), (count,), generator=generator).tolist()

    def view(pixels: Tensor, i: int) -> Tensor:
        if bool(kinds[i]) or min(height, width) < side:
            return F.interpolate(pixels[i : i + 1], (side, side), mode="bicubic", antialias=True)
        return pixels[i : i + 1, :, tops[i] : tops[i] + side, lefts[i] : lefts[i] + side]

    return [torch.cat([view(pixels, i) for i in range(count)]) for pixels in regions]


def targets(names: Sequence[tuple[str, ...]]) -> Float[Tensor, "b k"]:
    """1 for each word that is true of a photo; "clean" where none is."""
    rows = [[float(word in (parts or (CLEAN,))) for word in WORDS] for parts in names]
    return torch.tensor(rows)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Regions as they come from the loader."""

    degraded: UInt8[Tensor, "b h w 3"]
    clean: UInt8[Tensor, "b h w 3"]
    names: list[tuple[str, ...]]


def planes(pixels: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """8-bit regions as float planes in [0, 1]."""
    return pixels.permute(0, 3, 1, 2).float() / 255


class ControllerJob(nn.Module):
    """The controller in training: the model, the texts of the words, and how cosines become probabilities."""

    def __init__(self, run: ControllerRun, model: clip.DaClip, words: Float[Tensor, "k d"]) -> None:
        super().__init__()
        self.run = run
        self.model = model.requires_grad_(False)
        self.model.controller.requires_grad_(True)
        self.register_buffer("words", F.normalize(words, dim=-1))
        self.words: Tensor
        self.scale = nn.Parameter(torch.tensor(2.3))
        self.bias = nn.Parameter(torch.tensor(-2.0))

    def logits(self, degradation: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """One logit per word."""
        return self.scale.exp() * F.normalize(degradation, dim=-1) @ self.words.T + self.bias

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, and figures for the log."""
        views = draw_views([planes(batch.degraded), planes(batch.clean)], self.run.view, generator)
        degraded, clean = (normalised(view, clip.COMPACT_MEAN, clip.COMPACT_STD) for view in views)
        embeddings = self.model.encode(degraded)
        with torch.no_grad():
            wanted = F.normalize(self.model.encode_plain(clean).float(), dim=-1)
        content = F.normalize(embeddings.content.float(), dim=-1)
        logits, truth = self.logits(embeddings.degradation.float()), targets(batch.names)
        said = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(1).mean()
        shown = (content - wanted).abs().sum(1).mean() / content.shape[1] ** 0.5
        single = torch.tensor([len(parts) <= 1 for parts in batch.names])
        hits = (logits.argmax(1) == truth.argmax(1))[single].float().mean()
        figures = {"said": said.item(), "shown": shown.item(), "accuracy": hits.item()}
        return said + self.run.content_weight * shown, figures

    @torch.no_grad()
    def validate(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Top-1 accuracy per word over photos with at most one degradation, and cosine of content to the clean one's."""
        hits: dict[str, list[float]] = {word: [] for word in WORDS}
        controlled: list[Tensor] = []
        plain: list[Tensor] = []
        for number, batch in enumerate(batches):
            generator = torch.Generator().manual_seed(number)
            views = draw_views([planes(batch.degraded), planes(batch.clean)], self.run.view, generator)
            degraded, clean = (normalised(view, clip.COMPACT_MEAN, clip.COMPACT_STD) for view in views)
            embeddings = self.model.encode(degraded)
            wanted = self.model.encode_plain(clean)
            controlled.append(F.cosine_similarity(embeddings.content.float(), wanted.float()))
            plain.append(F.cosine_similarity(self.model.encode_plain(degraded).float(), wanted.float()))
            best = self.logits(embeddings.degradation.float()).argmax(1)
            for parts, word in zip(batch.names, best.tolist(), strict=True):
                if len(parts) <= 1:
                    truth = parts[0] if parts else CLEAN
                    hits[truth].append(float(WORDS[word] == truth))
        figures = {f"accuracy/{word}": sum(h) / len(h) for word, h in hits.items() if h}
        figures["accuracy"] = sum(figures.values()) / len(figures)
        figures["content"] = float(torch.cat(controlled).mean())
        figures["content_plain"] = float(torch.cat(plain).mean())
        return figures
