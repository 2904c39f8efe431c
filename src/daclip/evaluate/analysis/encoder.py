"""(h): what the encoder says and sees."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float32

from daclip import checkpoints, clip, degradations, detect, image, models
from daclip.errors import DataError, ModelError, UsageError
from daclip.evaluate import classification, plots
from daclip.evaluate.analysis.subject import Study, Subject, read_truth
from daclip.evaluate.tables import (
    Table,
    order,
    share,
)
from daclip.image import Photo
from daclip.restore import mean_of_views
from daclip.vocabulary import CLEAN, DEGRADATIONS


def words(subject: Subject) -> Study:
    """Top-1, confusion and calibration of plain and of controlled embeddings."""
    texts = subject.restorer.folder.texts
    said: dict[str, list[tuple[str, dict[str, float]]]] = {"controlled": [], "plain": []}
    cases = subject.cases("words", texts.names)
    for case in cases:
        photo, _ = read_truth(case)
        both = {"controlled": subject.restorer.encode(photo).degradation, "plain": subject.embed_plain(photo)}
        for name, vectors in both.items():
            known = detect.detect(vectors, texts).probabilities
            said[name].append((case.degradation, dict(zip(texts.names, known.tolist(), strict=True))))
        subject.on_progress("words", case.name, len(cases))
    found = [classification.classify(name, rows) for name, rows in said.items()]
    names = found[0].words
    lines = [
        (one.name, *(share(one.accuracy[name]) for name in names), f"{one.mean_accuracy:.1%}",
         f"{one.calibration_error:.3f}")
        for one in found
    ]  # fmt: skip
    top = Table(head=("embedding", *names, "mean", "calibration error"), lines=tuple(lines), words=1)
    return Study(
        title="What is wrong: plain encoder against controlled",
        words="Top-1 of the likeliest word by cosine with its text, by degradation, as the paper's Figure 1.",
        tables=(top, classification.table(found)),
        figures={f"words-{one.name}": plots.confusion(one) for one in found},
    )


def embeddings(subject: Subject) -> Study:
    """Degradation embeddings, and plain ones, in the plane."""
    names = subject.restorer.folder.texts.names
    rows: dict[str, list[np.ndarray]] = {"degradation embedding": [], "plain embedding": []}
    labels: list[str] = []
    cases = subject.cases("embeddings", names)
    for case in cases:
        photo, _ = read_truth(case)
        rows["degradation embedding"].append(subject.embed(photo).degradation[0])
        rows["plain embedding"].append(mean_of_views(subject.embed_plain(photo))[0])
        labels.append(case.degradation)
        subject.on_progress("embeddings", case.name, len(cases))
    units = {name: detect.unit(np.stack(vectors)) for name, vectors in rows.items()}
    flat = {
        f"{name}, {how}": at(vectors) for name, vectors in units.items() for how, at in _PROJECTIONS.items()
    }
    kinds = np.array(labels)
    sets = {
        name: {word: at[kinds == word] for word in sorted(set(labels), key=order)}
        for name, at in flat.items()
    }
    near = [
        (name, f"{_neighbours_agree(vectors, kinds):.1%}", str(len(labels)))
        for name, vectors in units.items()
    ]
    return Study(
        title="Embeddings in the plane",
        words="Share of photos whose nearest other photo, by cosine, has the same degradation; then points.",
        tables=(Table(head=("embedding", "nearest agrees", "photos"), lines=tuple(near), words=1),),
        figures={"embeddings": plots.points(sets)},
    )


def pca(vectors: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n 2"]:
    """The two directions of largest variance; zeros where there is only one."""
    centred = vectors - vectors.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    flat = (left * sizes)[:, :2]
    return np.pad(flat, ((0, 0), (0, 2 - flat.shape[1]))).astype(np.float32)


def tsne(vectors: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n 2"]:
    """Neighbours kept near (van der Maaten and Hinton 2008), cosine distances, always from the same start."""
    from sklearn.manifold import TSNE

    perplexity = max(min(20.0, (len(vectors) - 1) / 3), 1.0)
    found = TSNE(perplexity=perplexity, init="pca", metric="cosine", random_state=0, n_jobs=1)
    return np.asarray(found.fit_transform(vectors), np.float32)


_PROJECTIONS: dict[str, Callable[[Any], Float32[np.ndarray, "n 2"]]] = {"PCA": pca, "t-SNE": tsne}


def _neighbours_agree(vectors: Float32[np.ndarray, "n d"], labels: np.ndarray) -> float:
    cosine = vectors @ vectors.T
    np.fill_diagonal(cosine, -2)
    return float(np.mean(labels[cosine.argmax(axis=1)] == labels))


def retrieval(subject: Subject) -> Study:
    """Whether a degraded photo still finds its captions, by controlled and by plain content embeddings."""
    if subject.captions is None:
        raise UsageError("the study retrieval without captions", hint="--captions FILE.csv")
    tower = _text_tower(subject)
    photos = read_captions(subject.captions)
    texts = [text for _, own in photos for text in own]
    owner = np.array([number for number, (_, own) in enumerate(photos) for _ in own])
    gallery = detect.unit(_encode_texts(tower, texts))
    lines: list[tuple[str, ...]] = []
    names, chosen = (CLEAN, *DEGRADATIONS), photos[: subject.limit]
    for name in names:
        hits: dict[str, list[tuple[bool, bool]]] = {"controlled": [], "plain": []}
        for position, (path, _) in enumerate(chosen):
            photo = _degraded(path, name, subject)
            both = {
                "controlled": subject.embed_content(photo),
                "plain": mean_of_views(subject.embed_plain(photo)),
            }
            for kind, vector in both.items():
                ranked = owner[np.argsort(-(detect.unit(vector) @ gallery.T)[0])]
                hits[kind].append((bool(ranked[0] == position), bool((ranked[:10] == position).any())))
            subject.on_progress("retrieval", f"{name}: {path.name}", len(names) * len(chosen))
        figures = [share(fmean(hit[at] for hit in hits[kind])) for at in (0, 1) for kind in hits]
        lines.append((name, *figures))
    head = ("photo", "controlled R@1", "plain R@1", "controlled R@10", "plain R@10")
    told = (
        f"A photo finds one of its own captions among the {len(texts)} of {len(photos)} photos: first (R@1), "
        f"or among the first ten (R@10). {len(chosen)} photos for each line, severity "
        f"{subject.severity:g}."
    )
    return Study(
        title="Content: degraded photos and their captions",
        words=told,
        tables=(Table(head=head, lines=tuple(lines), words=1),),
    )


def _text_tower(subject: Subject) -> clip.DaClip:
    folder = subject.restorer.folder if subject.backbone is None else models.find(subject.backbone)
    daclip = checkpoints.load(folder).daclip
    if daclip.text_tower is None:
        raise ModelError(
            f"{folder.path}: no text tower, so captions have no embeddings",
            hint="--backbone names a folder with one, as `daclip train compact-backbone` leaves it",
        )
    return daclip


def _encode_texts(daclip: clip.DaClip, texts: Sequence[str]) -> Float32[np.ndarray, "n d"]:
    parts: list[torch.Tensor] = []
    tower = daclip.text_tower
    assert tower is not None
    with torch.inference_mode():
        for start in range(0, len(texts), 64):
            tokens = tower.tokenize(list(texts[start : start + 64]))
            if isinstance(tower, clip.MiniLmText):  # it knows padding from text, so short ones are cheap
                tokens = tokens[:, : int((tokens != 0).sum(dim=1).max())]
            parts.append(daclip.encode_text(tokens))
    return torch.cat(parts).float().numpy()


def read_captions(path: Path) -> list[tuple[Path, list[str]]]:
    """Photos with their captions: those of the split `val` where the CSV has splits, all of them else."""
    import csv

    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})", hint="name a file of captions") from error
    chosen = [row for row in rows if row.get("split", "val") == "val"]
    found = [
        (
            path.parent / row["file"],
            [text for name, text in row.items() if name.startswith("caption") and text],
        )
        for row in chosen
        if "file" in row
    ]
    if not found or not all(own for _, own in found):
        raise DataError(f"{path}: no photos with captions", hint="the columns are file, split, caption1, ...")
    return found


def _degraded(path: Path, name: str, subject: Subject) -> Photo:
    photo = image.read(path)
    if name == CLEAN:
        return photo
    rng = np.random.default_rng([subject.seed, crc32(f"{name}/{path.name}".encode())])
    made = degradations.degrade(
        photo.crop(0, 0, photo.height, photo.width), name, severity=subject.severity, rng=rng
    )
    return image.from_array(np.rint(made.pixels * 255).astype(np.uint8))
