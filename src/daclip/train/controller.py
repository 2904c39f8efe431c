"""Stage 1: the controller. Degraded photos in; out of it, what is wrong and the clean photo's content.

Degradation: one sigmoid per word against the embedding of the word (PAPER 1.2 (c)), so mixtures are natural
and a clean photo has a word of its own. Content: L1 between unit embeddings of the degraded photo under
control and of the clean photo without (the wild variant, caption-free).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from daclip import clip
from daclip.train.batch import Batch, draw_views, normalised, planes
from daclip.train.presets import ControllerRun
from daclip.vocabulary import CLEAN, DEGRADATIONS

WORDS = (*DEGRADATIONS, CLEAN)


class ControllerJob(nn.Module):
    """The controller in training: the model, the texts of the words, and how cosines become probabilities.

    Args:
        run: its settings.
        model: a DA-CLIP; only its controller learns.
        words: text embeddings of WORDS.
        mean, std: normalisation of what the image towers see.
    """

    def __init__(
        self,
        run: ControllerRun,
        model: clip.DaClip,
        words: Float[Tensor, "k d"],
        *,
        mean: Sequence[float] = clip.COMPACT_MEAN,
        std: Sequence[float] = clip.COMPACT_STD,
    ) -> None:
        super().__init__()
        self.run = run
        self.model = model.requires_grad_(False)
        self.model.controller.requires_grad_(True)
        self.mean, self.std = mean, std
        self.words: Tensor
        self.register_buffer("words", F.normalize(words, dim=-1))
        self.scale = nn.Parameter(torch.tensor(2.3))
        self.bias = nn.Parameter(torch.tensor(-2.0))

    def learning(self) -> nn.ModuleDict:
        """What is trained, averaged and saved."""
        rule = nn.ParameterList([self.scale, self.bias])
        return nn.ModuleDict({"controller": self.model.controller, "rule": rule})

    def logits(self, degradation: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """One logit per word."""
        return self.scale.exp() * F.normalize(degradation, dim=-1) @ self.words.T + self.bias

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, and figures for the log."""
        degraded, clean = self._views(batch, generator)
        embeddings = self.model.encode(degraded)
        with torch.no_grad():
            wanted = F.normalize(self.model.encode_plain(clean).float(), dim=-1)
        content = F.normalize(embeddings.content.float(), dim=-1)
        logits, truth = self.logits(embeddings.degradation.float()), targets(batch.names)
        said = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(1).mean()
        shown = (content - wanted).abs().sum(1).mean() / content.shape[1] ** 0.5
        single = torch.tensor([len(parts) <= 1 for parts in batch.names])
        hits = (logits.argmax(1) == truth.argmax(1))[single].float()
        figures = {"said": said.item(), "shown": shown.item()}
        if len(hits):  # a small batch may hold mixtures only
            figures["accuracy"] = hits.mean().item()
        return said + self.run.content_weight * shown, figures

    @torch.no_grad()
    def validate(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Top-1 accuracy per word, over photos with at most one; cosine of content to the clean photo's."""
        hits: dict[str, list[float]] = {word: [] for word in WORDS}
        controlled: list[Tensor] = []
        plain: list[Tensor] = []
        for number, batch in enumerate(batches):
            degraded, clean = self._views(batch, torch.Generator().manual_seed(number))
            embeddings = self.model.encode(degraded)
            wanted = self.model.encode_plain(clean).float()
            controlled.append(F.cosine_similarity(embeddings.content.float(), wanted))
            plain.append(F.cosine_similarity(self.model.encode_plain(degraded).float(), wanted))
            best = self.logits(embeddings.degradation.float()).argmax(1)
            for parts, word in zip(batch.names, best.tolist(), strict=True):
                if len(parts) <= 1:
                    truth = parts[0] if parts else CLEAN
                    hits[truth].append(float(WORDS[word] == truth))
        figures = {f"accuracy/{word}": sum(h) / len(h) for word, h in hits.items() if h}
        if figures:
            figures["accuracy"] = sum(figures.values()) / len(figures)
        figures["content"] = float(torch.cat(controlled).mean())
        figures["content_plain"] = float(torch.cat(plain).mean())
        return figures

    def _views(self, batch: Batch, generator: torch.Generator) -> list[Tensor]:
        """One normalised view of each degraded region, and the same view of the clean one."""
        views = draw_views([planes(batch.degraded), planes(batch.clean)], self.run.view, generator)
        return [normalised(view, self.mean, self.std) for view in views]


def targets(names: Sequence[tuple[str, ...]]) -> Float[Tensor, "b k"]:
    """1 for each word that is true of a photo; "clean" where none is."""
    rows = [[float(word in (parts or (CLEAN,))) for word in WORDS] for parts in names]
    return torch.tensor(rows)
