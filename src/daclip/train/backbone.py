"""Stage 0: the compact backbone. Projections join a frozen image tower and a frozen sentence encoder.

Only the two projections learn, by CLIP's symmetric contrastive loss on captioned photos; the features of
both frozen towers are computed once. Afterwards everything is frozen and plays CLIP's part.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from daclip import clip
from daclip.data import read_pixels
from daclip.errors import DataError
from daclip.train.batch import normalised, planes
from daclip.train.contrast import contrastive
from daclip.train.optim import cosine
from daclip.train.presets import BackboneRun

Progress = Callable[[str, int, int], None]
"""Told what is being done, and how far it is: done, total."""

Captioned = tuple[Path, list[str]]

FEATURE_BATCH = 32
"""Photos seen at once by the frozen towers."""


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """The parts of a compact DA-CLIP that joining is about."""

    tower: clip.ConvTower
    head: clip.MapHead
    text: clip.MiniLmText


def train_backbone(run: BackboneRun, on_progress: Progress) -> tuple[clip.DaClip, dict[str, float]]:
    """A compact DA-CLIP whose frozen halves are joined, and its retrieval figures on the val split."""
    torch.manual_seed(run.seed)
    model = clip.compact(run.embed_dim, text=True)
    parts = _parts(model)
    splits = read_captions(Path(run.captions))
    photos, sentences = _features(parts, splits["train"], on_progress)
    _fit_heads(run, parts, photos, sentences)
    photos, sentences = _features(parts, splits["val"], on_progress)
    with torch.no_grad():
        texts = parts.text.projection(sentences.flatten(0, 1)).unflatten(0, sentences.shape[:2])
        figures = retrieval(parts.head.projection(photos), texts)
    # the controller starts as a copy of the tower as it is now
    model.controller = clip.Controller(parts.tower)
    return model, figures


def _parts(model: clip.DaClip) -> _Parts:
    tower, text = model.image_tower, model.text_tower
    assert isinstance(tower, clip.ConvTower)
    assert isinstance(tower.head, clip.MapHead)
    assert isinstance(text, clip.MiniLmText)
    return _Parts(tower=tower, head=tower.head, text=text)


def read_captions(path: Path) -> dict[str, list[Captioned]]:
    """Photos with their captions by split, from a CSV with the columns file, split, caption1, caption2, ...

    Files are named relative to the CSV. Raises DataError unless both splits, train and val, hold photos that
    all have a caption.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            columns = [name for name in reader.fieldnames or [] if name.startswith("caption")]
            if not columns or not {"file", "split"} <= set(reader.fieldnames or []):
                raise DataError(f"{path}: needs the columns file, split, caption1, caption2, ...")
            splits: dict[str, list[Captioned]] = {"train": [], "val": []}
            for row in reader:
                captions = [row[name] for name in columns if row[name]]
                if not captions:
                    raise DataError(f"{path}: line {reader.line_num} has no caption")
                splits.setdefault(row["split"], []).append((path.parent / row["file"], captions))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})", hint="name a file of captions") from error
    if empty := [name for name in ("train", "val") if not splits[name]]:
        raise DataError(f"{path}: no photos in split {empty[0]}")
    return splits


@torch.no_grad()
def _features(
    parts: _Parts, rows: Sequence[Captioned], on_progress: Progress
) -> tuple[Float[Tensor, "n f"], Float[Tensor, "n m g"]]:
    """What the two heads see: pooled image features, and sentence features of every caption."""
    count = min(len(captions) for _, captions in rows)
    photos: list[Tensor] = []
    sentences: list[Tensor] = []
    for start in range(0, len(rows), FEATURE_BATCH):
        on_progress("features", start, len(rows))
        some = rows[start : start + FEATURE_BATCH]
        pixels = torch.cat([_square(path, clip.COMPACT_SIDE) for path, _ in some])
        state = parts.tower.stem(normalised(pixels, clip.COMPACT_MEAN, clip.COMPACT_STD))
        for block in parts.tower.blocks:
            state = block(state)
        photos.append(parts.head.pooled(state))
        tokens = parts.text.tokenize([caption for _, captions in some for caption in captions[:count]])
        tokens = tokens[:, : int((tokens != 0).sum(1).max())]
        sentences.append(parts.text.sentences(tokens).unflatten(0, (len(some), count)))
    return torch.cat(photos), torch.cat(sentences)


def _square(path: Path, side: int) -> Float[Tensor, "1 3 {side} {side}"]:
    """The middle of a photo, in [0, 1], resized where its shorter side is another."""
    photo = planes(torch.from_numpy(read_pixels(path))[None])
    height, width = photo.shape[-2:]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    middle = photo[..., top : top + short, left : left + short]
    if short == side:
        return middle
    return F.interpolate(middle, (side, side), mode="bicubic", antialias=True).clamp(0, 1)


def _fit_heads(
    run: BackboneRun, parts: _Parts, photos: Float[Tensor, "n f"], sentences: Float[Tensor, "n m g"]
) -> None:
    """Train both projections: one random caption per photo and epoch."""
    image_head, text_head = parts.head.projection, parts.text.projection
    scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))
    weights = [*image_head.parameters(), *text_head.parameters()]
    for weight in weights:
        weight.requires_grad_(True)
    optimiser = torch.optim.AdamW(
        [{"params": weights, "weight_decay": run.weight_decay}, {"params": [scale], "weight_decay": 0.0}],
        lr=run.learning_rate,
    )
    generator = torch.Generator().manual_seed(run.seed)
    batch = min(run.batch, len(photos))
    steps_per_epoch = len(photos) // batch
    for epoch in range(run.epochs):
        order = torch.randperm(len(photos), generator=generator)
        chosen = torch.randint(sentences.shape[1], (len(photos),), generator=generator)
        for i in range(steps_per_epoch):
            step = epoch * steps_per_epoch + i
            for group in optimiser.param_groups:
                group["lr"] = run.learning_rate * cosine(step, run.epochs * steps_per_epoch, warmup=50)
            rows = order[i * batch : (i + 1) * batch]
            x = F.dropout(photos[rows], run.dropout)
            y = F.dropout(sentences[rows, chosen[rows]], run.dropout)
            x, y = F.normalize(image_head(x), dim=-1), F.normalize(text_head(y), dim=-1)
            loss = contrastive(scale.exp().clamp(max=100) * x @ y.T)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    for weight in weights:
        weight.requires_grad_(False)


def retrieval(photos: Float[Tensor, "n d"], captions: Float[Tensor, "n m d"]) -> dict[str, float]:
    """Recall at 1 and 10: each caption finds its photo, each photo finds any of its captions."""
    x, y = F.normalize(photos, dim=-1), F.normalize(captions, dim=-1).flatten(0, 1)
    similarity = y @ x.T
    owner = torch.arange(len(y)) // captions.shape[1]
    figures: dict[str, float] = {}
    for k in (1, 10):
        found = similarity.topk(min(k, len(x)), dim=1).indices == owner[:, None]
        figures[f"text_to_photo_r{k}"] = float(found.any(1).float().mean())
        found = owner[similarity.T.topk(min(k, len(y)), dim=1).indices] == torch.arange(len(x))[:, None]
        figures[f"photo_to_text_r{k}"] = float(found.any(1).float().mean())
    return figures
