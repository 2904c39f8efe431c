"""Stage 1: the controller. Degraded photos in; out of it, what is wrong and the clean photo's content.

Two losses are added: one on the degradation embedding, one on the content embedding (DA-CLIP section 3.1).
Both have several forms, the published one among them; docs/decisions.md compares them.
"""

import copy
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from daclip import clip
from daclip.detect import ClassTexts, Embeddings
from daclip.errors import DataError
from daclip.train.batch import Batch, draw_views, normalised, planes
from daclip.train.contrast import attainable_floor, contrastive, gathered
from daclip.train.depthwise import quicken
from daclip.train.optim import learning_rate
from daclip.train.presets import CONTRASTS, ControllerRun
from daclip.vocabulary import CLEAN, DEGRADATIONS

WORDS = (*DEGRADATIONS, CLEAN)

_VISIBLE = 1 / 255
"""A view that is nearer to the clean one, on average, shows nothing of what was done to the photo."""

_MAX_LOGIT_SCALE = 4.6052  # ln 100

_KEPT = 20.0
"""Of the distance to the embeddings before training, beside the other losses, where only some words learn."""


class ControllerJob(nn.Module):
    """The controller in training: the model, the texts of the words, and how cosines become probabilities.

    Args:
        run: its settings.
        model: a DA-CLIP; only its controller and its temperature learn.
        texts: text embeddings of the words.
        words: what can be wrong, and "clean".
        mean, std: normalisation of what the image towers see.
    """

    def __init__(
        self,
        run: ControllerRun,
        model: clip.DaClip,
        texts: Float[Tensor, "k d"],
        *,
        words: Sequence[str] = WORDS,
        mean: Sequence[float] = clip.COMPACT_MEAN,
        std: Sequence[float] = clip.COMPACT_STD,
    ) -> None:
        super().__init__()
        if run.content in CONTRASTS and model.text_tower is None:
            raise DataError(
                f"content={run.content} compares with captions, and {run.encoder} has no text tower",
                hint="content=clean needs none",
            )
        self.run = run
        self.model = model.requires_grad_(False)
        quicken(self.model)
        self.model.controller.requires_grad_(True)
        self.model.logit_scale.requires_grad_(True)
        self.words = tuple(words)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        self.texts: Tensor
        self.register_buffer("texts", F.normalize(texts, dim=-1))
        self.scale = nn.Parameter(torch.tensor(2.3))
        self.bias = nn.Parameter(torch.tensor(-2.0))
        self.before = copy.deepcopy(self.model).requires_grad_(False).eval() if run.anew else None

    def train(self, mode: bool = True) -> "ControllerJob":
        """The model to its training mode; what it was before only looks on."""
        super().train(mode)
        if self.before is not None:
            self.before.eval()
        return self

    def say_as(self, texts: ClassTexts) -> None:
        """Begin with the scale and bias of texts, those that the controller was trained with."""
        with torch.no_grad():
            self.scale.fill_(math.log(texts.scale))
            self.bias.fill_(texts.bias)

    def learning(self) -> nn.ModuleDict:
        """What is trained, averaged and saved."""
        rule = nn.ParameterList([self.scale, self.bias, self.model.logit_scale])
        return nn.ModuleDict({"controller": self.model.controller, "rule": rule})

    def networks(self) -> list[nn.Module]:
        """What `compile` compiles."""
        return [self.model.controller]

    def learning_rate(self, step: int) -> float:
        """At a step."""
        return learning_rate(self.run.loop, step)

    def separate(self, weights: Sequence[Tensor]) -> list[list[Tensor]]:
        """All weights in one part: the losses share them."""
        return [list(weights)]

    def after_step(self) -> None:
        """Keep the temperature where CLIP keeps it: logit_scale in [0, ln 100]."""
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, _MAX_LOGIT_SCALE)

    def logits(self, degradation: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """One logit per word."""
        cosines = F.normalize(degradation, dim=-1) @ self.texts.T
        if self.run.degradation == "sigmoid":
            return self.scale.exp() * cosines + self.bias
        return self.model.logit_scale.exp() * cosines

    def targets(self, names: Sequence[tuple[str, ...]]) -> Float[Tensor, "b k"]:
        """1 for each word that is true of a photo; "clean" where none is."""
        rows = [[float(word in (parts or (CLEAN,))) for word in self.words] for parts in names]
        return torch.tensor(rows, device=self.texts.device)

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, and figures for the log: each part, and the least it could be."""
        degraded, clean, names = self._views(batch)
        embeddings = self.model.encode(degraded)
        truth = self.targets(names)
        content = F.normalize(embeddings.content.float(), dim=-1)
        shown, shown_floor = CONTENT_LOSSES[self.run.content](self, content, clean, batch.captions)
        with torch.autocast(truth.device.type, enabled=False):
            found = F.normalize(embeddings.degradation.float(), dim=-1)
            said, floor = DEGRADATION_LOSSES[self.run.degradation](self, found, truth)
        figures = {
            "said": said.item(),
            "said_floor": floor,
            "shown": shown.item(),
            "shown_floor": shown_floor,
        }
        single = torch.tensor([len(parts) <= 1 for parts in names], device=truth.device)
        hits = (self.logits(found).argmax(1) == truth.argmax(1))[single].float()
        if len(hits):  # a small batch may hold mixtures only
            figures["accuracy"] = hits.mean().item()
        loss = said + self.run.content_weight * shown
        if self.before is not None:
            moved = self._moved(embeddings, degraded, names)
            figures["moved"] = moved.item()
            loss = loss + _KEPT * moved
        return loss, figures

    def _moved(
        self,
        embeddings: Embeddings[Tensor],
        degraded: Float[Tensor, "b 3 s s"],
        names: Sequence[tuple[str, ...]],
    ) -> Tensor:
        """How far the embeddings of photos with damage, none of it in `anew`, are from those before training.

        The mean squared distance of both, by the squared length before: learning without forgetting (Li &
        Hoiem, 2016). Whatever was trained with the old encoder then needs no training with the new one.
        """
        assert self.before is not None
        rows = [i for i, parts in enumerate(names) if parts and not {*parts} & {*self.run.anew}]
        if not rows:
            return degraded.new_zeros(())
        with torch.no_grad():
            old = self.before.encode(degraded[rows])
        pairs = ((embeddings.content, old.content), (embeddings.degradation, old.degradation))
        squares = [
            ((now[rows].float() - then.float()).square(), then.float().square()) for now, then in pairs
        ]
        return torch.stack([far.sum(1) / size.sum(1) for far, size in squares]).sum(0).mean()

    @torch.no_grad()
    def validate(self, batches: Sequence[Batch], device: torch.device) -> tuple[dict[str, float], None]:
        """Top-1 accuracy per word, over photos with at most one; how near content is to what it should be.

        `content` is its mean cosine to the embedding of the clean photo, `content_r1` how often the own clean
        photo is the nearest of all; the same for the plain tower, `content_plain`. Where all photos have
        captions, and there is a text tower, also `caption`: any caption of the same words is the right one.
        """
        hits: dict[str, list[float]] = {word: [] for word in self.words}
        controlled: list[Tensor] = []
        plain: list[Tensor] = []
        wanted: list[Tensor] = []
        captions: list[str | None] = []
        for batch in batches:
            degraded, clean, names = self._views(batch.to(device))
            embeddings = self.model.encode(degraded)
            controlled.append(F.normalize(embeddings.content.float(), dim=-1))
            plain.append(F.normalize(self.model.encode_plain(degraded).float(), dim=-1))
            wanted.append(F.normalize(self.model.encode_plain(clean).float(), dim=-1))
            captions += batch.captions
            best = self.logits(embeddings.degradation.float()).argmax(1)
            for parts, word in zip(names, best.tolist(), strict=True):
                if len(parts) <= 1:
                    truth = parts[0] if parts else CLEAN
                    hits[truth].append(float(self.words[word] == truth))
        figures = {f"accuracy/{word}": sum(h) / len(h) for word, h in hits.items() if h}
        if figures:
            figures["accuracy"] = sum(figures.values()) / len(figures)
        seen = {"": torch.cat(controlled), "_plain": torch.cat(plain)}
        figures |= _retrieval("content", seen, torch.cat(wanted), [*range(len(captions))])
        if self.run.content in CONTRASTS or (self.model.text_tower is not None and all(captions)):
            figures |= _retrieval("caption", seen, self.captions(captions), captions)
        return figures, None

    def goal(self, figures: dict[str, float]) -> float:
        """What the best weights have most of."""
        content = figures["caption" if self.run.content in CONTRASTS else "content"]
        return figures.get("accuracy", 0.0) + content

    @torch.no_grad()
    def captions(self, captions: Sequence[str | None]) -> Float[Tensor, "b d"]:
        """Unit embeddings of captions. Raises DataError where a photo has none."""
        known = [caption for caption in captions if caption]
        if len(known) < len(captions):
            raise DataError(
                f"{len(captions) - len(known)} of {len(captions)} photos have no caption",
                hint="content=clean needs none",
            )
        return self.model.encode_text(known, normalize=True).float()

    def _views(
        self, batch: Batch
    ) -> tuple[Float[Tensor, "b 3 s s"], Float[Tensor, "b 3 s s"], list[tuple[str, ...]]]:
        """Normalised views of the degraded regions, the same of the clean ones, and what each view shows.

        A view that missed the drop, the mask or the shadow shows a clean photo.
        """
        regions = [planes(batch.degraded), planes(batch.clean)]
        degraded, clean = draw_views(regions, self.run.view, batch.generators(self.run.loop.seed))
        is_changed = ((degraded - clean).abs().mean((1, 2, 3)) > _VISIBLE).tolist()
        names = [parts if seen else () for parts, seen in zip(batch.names, is_changed, strict=True)]
        return normalised(degraded, self.mean, self.std), normalised(clean, self.mean, self.std), names


def _retrieval(
    name: str, seen: dict[str, Tensor], truth: Float[Tensor, "n d"], owners: Sequence[object]
) -> dict[str, float]:
    """Mean cosine to the own truth, and how often the nearest truth is the own or an equal one."""
    figures: dict[str, float] = {}
    for tower, content in seen.items():
        similarity = content @ truth.T
        hits = [owners[best] == own for best, own in zip(similarity.argmax(1).tolist(), owners, strict=True)]
        figures[name + tower] = float(similarity.diagonal().mean())
        figures[f"{name}{tower}_r1"] = sum(hits) / len(hits)
    return figures


# ---- losses of the degradation embedding: loss, and the least it could be


def _sigmoid(
    job: ControllerJob, found: Float[Tensor, "b d"], truth: Float[Tensor, "b k"]
) -> tuple[Tensor, float]:
    """One sigmoid per word against its text (PAPER 1.2 (c)): mixtures are natural, "clean" is a word."""
    logits = job.scale.exp() * found @ job.texts.T + job.bias
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(1).mean(), 0.0


def _softmax(
    job: ControllerJob, found: Float[Tensor, "b d"], truth: Float[Tensor, "b k"]
) -> tuple[Tensor, float]:
    """Cross-entropy against the texts of the words; the parts of a mixture share the target."""
    share = truth / truth.sum(1, keepdim=True)
    entropy = -(share * share.clamp(min=1e-9).log()).sum(1).mean()
    return F.cross_entropy(job.model.logit_scale.exp() * found @ job.texts.T, share), entropy.item()


def _published(
    job: ControllerJob, found: Float[Tensor, "b d"], truth: Float[Tensor, "b k"]
) -> tuple[Tensor, float]:
    """Published: contrast with the texts in the batch. Items of one word are negatives of each other."""
    return _contrast(job, found, F.normalize(truth @ job.texts, dim=-1), masked=False)


def _masked(
    job: ControllerJob, found: Float[Tensor, "b d"], truth: Float[Tensor, "b k"]
) -> tuple[Tensor, float]:
    """The same, but items of one word are not each other's negatives (PAPER 1.2 (a))."""
    return _contrast(job, found, F.normalize(truth @ job.texts, dim=-1), masked=True)


DegradationLoss = Callable[[ControllerJob, Tensor, Tensor], tuple[Tensor, float]]
DEGRADATION_LOSSES: dict[str, DegradationLoss] = {
    "sigmoid": _sigmoid,
    "softmax": _softmax,
    "published": _published,
    "masked": _masked,
}


# ---- losses of the content embedding: loss, and the least it could be


Captions = Sequence[str | None]


def _to_clean(
    job: ControllerJob, content: Float[Tensor, "b d"], clean: Float[Tensor, "b 3 s s"], captions: Captions
) -> tuple[Tensor, float]:
    """The wild variant, caption-free: L1 to the clean photo's embedding in the plain tower."""
    with torch.no_grad():
        wanted = F.normalize(job.model.encode_plain(clean).float(), dim=-1)
    return (content - wanted).abs().sum(1).mean() / content.shape[1] ** 0.5, 0.0


def _to_captions(
    job: ControllerJob, content: Float[Tensor, "b d"], clean: Float[Tensor, "b 3 s s"], captions: Captions
) -> tuple[Tensor, float]:
    """Published: contrast with the captions in the batch. Photos with one caption are negatives, too."""
    return _contrast(job, content, job.captions(captions), masked=False)


def _to_other_captions(
    job: ControllerJob, content: Float[Tensor, "b d"], clean: Float[Tensor, "b 3 s s"], captions: Captions
) -> tuple[Tensor, float]:
    """The same, but photos with one caption are not each other's negatives."""
    return _contrast(job, content, job.captions(captions), masked=True)


def _nothing(
    job: ControllerJob, content: Float[Tensor, "b d"], clean: Float[Tensor, "b 3 s s"], captions: Captions
) -> tuple[Tensor, float]:
    """No loss on the content."""
    return content.sum() * 0, 0.0


ContentLoss = Callable[[ControllerJob, Tensor, Tensor, Captions], tuple[Tensor, float]]
CONTENT_LOSSES: dict[str, ContentLoss] = {
    "clean": _to_clean,
    "published": _to_captions,
    "masked": _to_other_captions,
    "none": _nothing,
}


# ---- contrast


def _contrast(
    job: ControllerJob, photos: Float[Tensor, "b d"], texts: Float[Tensor, "b d"], *, masked: bool
) -> tuple[Tensor, float]:
    """CLIP's symmetric loss over the batch of all processes, and the least it could be."""
    photos, texts = gathered(photos), gathered(texts)
    # in half precision a text is not equal to itself
    with torch.autocast(texts.device.type, enabled=False):
        same = texts @ texts.T > 1 - 1e-5
        logits = job.model.logit_scale.exp() * photos @ texts.T
    loss = contrastive(logits, same if masked else None)
    return loss, 0.0 if masked else attainable_floor(same)
