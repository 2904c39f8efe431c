"""Stage 0: the compact backbone. Projection heads join a frozen image tower and a frozen sentence encoder.

Only the two projections learn, by CLIP's symmetric contrastive loss on captioned photos; the features of both frozen
towers are computed once. Afterwards everything is frozen and plays CLIP's part.
"""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from daclip import clip
from daclip.data import read_pixels
from daclip.errors import DataError
from daclip.train.controller import normalised
from daclip.train.optim import cosine
from daclip.train.presets import BackboneRun

Progress = Callable[[str, int, int], None]


def read_captions(path: Path) -> dict[str, list[tuple[Path, list[str]]]]:
    """Photos with their captions by split, from a CSV with the columns file, split, caption1, caption2, ..."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns = [name for name in reader.fieldnames or [] if name.startswith("caption")]
        if not columns or "file" not in (reader.fieldnames or []):
            raise DataError(f"{path}: needs the columns file, split, caption1, caption2, ...")
        splits: dict[str, list[tuple[Path, list[str]]]] = {}
        for row in reader:
            captions = [row[name] for name in columns if row[name]]
            splits.setdefault(row.get("split", "train"), []).append((path.parent / row["file"], captions))
    return splits


def train_backbone(run: BackboneRun, on_progress: Progress) -> tuple[clip.DaClip, dict[str, float]]:
    """A compact DA-CLIP whose frozen halves are joined, and its retrieval figures on the captions' val split."""
    torch.manual_seed(run.seed)
    model = clip.compact(run.embed_dim, text=True)
    splits = read_captions(Path(run.captions))
    features = {name: _features(model, rows, on_progress) for name, rows in splits.items()}
    image_head, text_head = model.image_tower.head.projection, model.text_tower.projection
    _fit_heads(run, image_head, text_head, *features["train"])
    photos, sentences = features["val"]
    figures = retrieval(
        image_head(photos), text_head(sentences.flatten(0, 1)).unflatten(0, sentences.shape[:2])
    )
    model.controller = clip.Controller(model.image_tower)
    return model, figures


@torch.no_grad()
def _features(
    model: clip.DaClip, rows: Sequence[tuple[Path, list[str]]], on_progress: Progress
) -> tuple[Float[Tensor, "n f"], Float[Tensor, "n m g"]]:
    """What the two heads see: pooled image features, and sentence features of every caption."""
    head, tower, text = model.image_tower.head, model.image_tower, model.text_tower
    count = min(len(captions) for _, captions in rows)
    photos: list[Tensor] = []
    sentences: list[Tensor] = []
    for start in range(0, len(rows), 32):
        on_progress("features", start, len(rows))
        part = rows[start : start + 32]
        pixels = torch.from_numpy(np.stack([read_pixels(path) for path, _ in part])).permute(0, 3, 1, 2) / 255
        state = tower.stem(normalised(pixels, clip.COMPACT_MEAN, clip.COMPACT_STD))
        for block in tower.blocks:
            state = block(state)
        photos.append(head.activation(head.conv(state)).mean((2, 3)))
        tokens = text.tokenize([caption for _, captions in part for caption in captions[:count]])
        tokens = tokens[:, : int((tokens != 0).sum(1).max())]
        sentences.append(text.sentences(tokens).unflatten(0, (len(part), count)))
    return torch.cat(photos), torch.cat(sentences)


def _fit_heads(
    run: BackboneRun,
    image_head: nn.Module,
    text_head: nn.Module,
    photos: Float[Tensor, "n f"],
    sentences: Float[Tensor, "n m g"],
) -> None:
    """Train both projections: one random caption per photo and epoch."""
    scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))
    weights = [*image_head.parameters(), *text_head.parameters()]
    for weight in weights:
        weight.requires_grad_(True)
    optimiser = torch.optim.AdamW(
        [{"params": weights, "weight_decay": run.weight_decay}, {"params": [scale], "weight_decay": 0.0}],
        lr=run.learning_rate,
    )
    generator = torch.Generator().manual_seed(run.seed)
    steps_per_epoch = len(photos) // run.batch
    for epoch in range(run.epochs):
        order = torch.randperm(len(photos), generator=generator)
        chosen = torch.randint(sentences.shape[1], (len(photos),), generator=generator)
        for i in range(steps_per_epoch):
            step = epoch * steps_per_epoch + i
            for group in optimiser.param_groups:
                group["lr"] = run.learning_rate * cosine(step, run.epochs * steps_per_epoch, warmup=50)
            rows = order[i * run.batch : (i + 1) * run.batch]
            x = F.dropout(photos[rows], run.dropout)
            y = F.dropout(sentences[rows, chosen[rows]], run.dropout)
            x, y = F.normalize(image_head(x), dim=-1), F.normalize(text_head(y), dim=-1)
            logits = scale.exp().clamp(max=100) * x @ y.T
            target = torch.arange(len(rows))
            loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    for weight in weights:
        weight.requires_grad_(False)


@torch.no_grad()
def retrieval(photos: Float[Tensor, "n d"], captions: Float[Tensor, "n m d"]) -> dict[str, float]:
    """Recall at 1 and 10: each caption finds its photo, each photo finds any of its captions."""
    x, y = F.normalize(photos, dim=-1), F.normalize(captions, dim=-1).flatten(0, 1)
    similarity = y @ x.T
    owner = torch.arange(len(y)) // captions.shape[1]
    figures: dict[str, float] = {}
    for k in (1, 10):
        found = similarity.topk(k, dim=1).indices == owner[:, None]
        figures[f"text_to_photo_r{k}"] = float(found.any(1).float().mean())
        found = owner[similarity.T.topk(k, dim=1).indices] == torch.arange(len(x))[:, None]
        figures[f"photo_to_text_r{k}"] = float(found.any(1).float().mean())
    return figures
