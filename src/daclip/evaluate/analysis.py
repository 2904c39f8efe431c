"""The paper's discussion as measurements: what contexts are worth, what the encoder sees, how samplers do.

Every study is a function of a subject (a model and photos, or run folders) and gives tables and figures
(extras [torch], [data], [plots]). `contexts` asks one network with other contexts than its own; networks
trained without them are compared by `curves`. PAPER 8.
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float32
from matplotlib.figure import Figure

from daclip import checkpoints, clip, degradations, detect, image, metrics, models, sampling, tiling
from daclip.detect import Embeddings
from daclip.diffusion import IRSDE
from daclip.errors import DataError, ModelError, UsageError
from daclip.evaluate import classification, plots, synthetic
from daclip.evaluate.cases import Case, files_sha256
from daclip.evaluate.joined import Joined, join
from daclip.evaluate.measure import Metrics, load_metrics, peak_megabytes, scores
from daclip.evaluate.peers import restorer_method
from daclip.evaluate.run import MEASUREMENTS
from daclip.evaluate.tables import (
    Caption,
    Table,
    between,
    bootstrap,
    number,
    order,
    share,
    summarise,
    table,
)
from daclip.image import Photo
from daclip.metrics import Pixels8
from daclip.restore import Restorer
from daclip.vocabulary import CLEAN, DEGRADATIONS

One = Embeddings[Float32[np.ndarray, "1 d"]]
"""The embeddings of one photo, its views already averaged."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a study found: a heading, what is compared, tables, and figures by file name."""

    title: str
    words: str
    tables: tuple[Table, ...]
    figures: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(kw_only=True)
class Subject:
    """The model and the photos that a study looks at.

    Args:
        model: name or folder.
        photos: folder of clean photos, None for studies that need none.
        limit: photos of each degradation.
        severity, seed: of the degradations.
        captions: CSV of photos with captions, for `retrieval`.
        backbone: folder of a DA-CLIP with a text tower of the same space; None for the model's own.
        runs: folders of training runs, for `curves`, and of finished `daclip evaluate` runs, for `results`.
        calls: numbers of network calls, for `samplers`.
        metric_weights: folder with the weights of LPIPS, for `samplers`; without it there is none.
        on_progress: told after every photo of a study: study, photo, photos of the study.
    """

    model: str = "compact"
    photos: Path | None = None
    limit: int = 8
    severity: float = 0.7
    seed: int = 0
    captions: Path | None = None
    backbone: str | None = None
    runs: tuple[Path, ...] = ()
    calls: tuple[int, ...] = (5, 10, 20, 50, 100)
    metric_weights: Path | None = None
    device: str = "auto"
    engine: str = "auto"
    precision: str = "auto"
    on_progress: Callable[[str, str, int], object] = lambda study, photo, photos: None

    @cached_property
    def restorer(self) -> Restorer:
        """The model, ready to restore."""
        return Restorer(self.model, device=self.device, engine=self.engine, precision=self.precision)

    @cached_property
    def torch_model(self) -> checkpoints.Model:
        """The model in torch, for what no graph computes. Raises ModelError without weights."""
        return checkpoints.load(self.restorer.folder)

    @cached_property
    def metrics(self) -> Metrics:
        """PSNR, and LPIPS where there are weights. Raises DataError for a folder without them."""
        names = ("psnr",) if self.metric_weights is None else ("psnr", "lpips")
        found, left_out = load_metrics(names, weights=self.metric_weights)
        if left_out:
            raise DataError(left_out[0])
        return found

    @cached_property
    def joined(self) -> Joined:
        """Those of the runs that have measured photos, as one."""
        return join([run for run in self.runs if not _is_training(run)], command="")

    @property
    def trained(self) -> list[Path]:
        """Those of the runs that have trained a network."""
        return [run for run in self.runs if _is_training(run)]

    def cases(self, study: str, names: Sequence[str], *, severity: float | None = None) -> list[Case]:
        """Photos degraded on the fly."""
        if self.photos is None:
            raise UsageError(
                f"the study {study} without photos", hint="name a folder of clean ones by --photos"
            )
        chosen = self.severity if severity is None else severity
        return synthetic.degraded(self.photos, names=names, severity=chosen, seed=self.seed, limit=self.limit)

    def embed(self, photo: Photo) -> One:
        """The embeddings of a photo as the restorer uses them."""
        return self.restorer.condition(self.restorer.encode(photo))

    def embed_content(self, photo: Photo) -> Float32[np.ndarray, "1 d"]:
        """The content embedding of a photo, under control."""
        return _one(self.restorer.encode(photo).content)

    def embed_plain(self, photo: Photo) -> Float32[np.ndarray, "n d"]:
        """Embeddings of the photo's views by the frozen tower without control, un-normalised."""
        config = self.restorer.folder.encoder_config
        views = tiling.views(photo, config.view_side)
        normalised = (views - np.array(config.mean, np.float32)) / np.array(config.std, np.float32)
        pixels = torch.from_numpy(np.ascontiguousarray(normalised.transpose(0, 3, 1, 2)))
        with torch.inference_mode():
            return self.torch_model.daclip.encode_plain(pixels).float().numpy()

    def restore(self, photo: Photo, context: One, *, restorer: Restorer | None = None) -> Pixels8:
        """The photo restored with the context given, in one piece, whatever is found in it."""
        chosen = restorer or self.restorer
        mu = _planes(photo)
        if chosen.folder.config.kind == "one-pass":
            clean = chosen.engine.predict_clean(mu, context.content, context.degradation)
        else:
            name, steps = _shipped(chosen)
            clean = self.sampled(chosen.begun(mu, context), context, name, steps, restorer=chosen)
        return _eight_bit(clean)

    def sampled(
        self,
        mu: Float32[np.ndarray, "1 3 h w"],
        context: One,
        name: str,
        steps: int | Sequence[int],
        *,
        restorer: Restorer | None = None,
    ) -> Float32[np.ndarray, "1 3 h w"]:
        """What a diffusion model makes of `mu` by a sampler of _SAMPLERS, not clamped."""
        chosen = restorer or self.restorer
        config = chosen.folder.config
        sde = IRSDE(**(config.sde or {}))
        predict = chosen.predictor(sde, mu, context.content, context.degradation)
        # as Restorer does it
        unbias = config.objective == "published" and name.startswith("mrs")
        return _SAMPLERS[name](sde, predict, mu, _noise(mu, self.seed), steps=steps, unbias=unbias)

    def word(self, name: str, *, like: One) -> Float32[np.ndarray, "1 d"]:
        """The text embedding of a word the model knows, as long as the degradation embedding given."""
        texts = self.restorer.folder.texts
        row = detect.unit(texts.embeddings[[texts.names.index(name)]])
        return (row * np.linalg.norm(like.degradation)).astype(np.float32)


def _is_training(run: Path) -> bool:
    """Whether a run folder is not one of `daclip evaluate`; what is neither is named when its log is read."""
    return not (run / MEASUREMENTS).is_file()


def _shipped(restorer: Restorer) -> tuple[str, int | list[int]]:
    """The sampler of a diffusion model, by its name in _SAMPLERS, and its calls or times."""
    config = restorer.folder.config
    return _OWN_SAMPLERS[config.sampler or "mrs"], [*config.times, 0] if config.times else config.steps


def _one(vectors: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "1 d"]:
    """The mean in direction and length, as `restore` takes it."""
    mean = vectors.mean(axis=0, keepdims=True)
    wanted = np.linalg.norm(vectors, axis=1).mean()
    return (mean * (wanted / max(float(np.linalg.norm(mean)), 1e-12))).astype(np.float32)


def _planes(photo: Photo) -> Float32[np.ndarray, "1 3 h w"]:
    pixels = photo.crop(0, 0, photo.height, photo.width)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def _eight_bit(planes: Float32[np.ndarray, "1 3 h w"]) -> Pixels8:
    return np.rint(planes[0].transpose(1, 2, 0).clip(0, 1) * 255).astype(np.uint8)


def _noise(mu: Float32[np.ndarray, "1 3 h w"], seed: int) -> Callable[[int], Float32[np.ndarray, "1 3 h w"]]:
    tile = tiling.Tile(top=0, left=0, height=mu.shape[2], width=mu.shape[3])
    return lambda step: np.ascontiguousarray(tiling.noise_field(tile, seed, step).transpose(2, 0, 1)[None])


def _gain(restored: Pixels8, photo: Photo, clean: Pixels8) -> float:
    degraded = photo.crop_8bit(0, 0, photo.height, photo.width)
    return min(metrics.psnr(restored, clean), 100.0) - min(metrics.psnr(degraded, clean), 100.0)


def _truth(case: Case) -> tuple[Photo, Pixels8]:
    photo, clean = case.read()
    assert clean is not None, "photos made here have a truth"
    return photo, clean


# ---- (c), (e), (f), (g): what the contexts are worth


def contexts(subject: Subject) -> Study:
    """Gain with each context taken away, replaced or made wrong; the network stays the same."""
    known = [name for name in subject.restorer.folder.texts.names if name != CLEAN]
    seen = [
        (case, *_truth(case)) for case in subject.cases("contexts", [n for n in DEGRADATIONS if n in known])
    ]
    found = [subject.embed(photo) for _, photo, _ in seen]
    middle: One = Embeddings(
        content=np.stack([one.content for one in found]).mean(axis=0),
        degradation=np.stack([one.degradation for one in found]).mean(axis=0),
    )
    gains: dict[str, dict[str, list[float]]] = {}
    off = _without_prompt(subject)
    for (case, photo, clean), own in zip(seen, found, strict=True):
        for name, context in _contexts_of(
            subject, case.degradation, photo, clean, own, middle, known
        ).items():
            restored = subject.restore(photo, context)
            gains.setdefault(name, {}).setdefault(case.degradation, []).append(_gain(restored, photo, clean))
        if off is not None:
            restored = subject.restore(photo, own, restorer=off)
            row = gains.setdefault("prompt module off", {})
            row.setdefault(case.degradation, []).append(_gain(restored, photo, clean))
        subject.on_progress("contexts", case.name, len(seen))
    words = (
        "Gain in PSNR, dB. `none`: both embeddings replaced by their mean over all photos here, which tells "
        "nothing of the photo; `content only` and `degradation only` keep one. `text oracle`: the true "
        "word's text embedding as degradation embedding; `wrong word`: that of another word. `plain "
        "content`: content embedding of the frozen tower without control; `content of the clean photo`: what "
        "the controller is trained to give. `prompt module off`: the softmax over the learned prompt made "
        "uniform. "
        "All with the network as trained: contexts withheld in use, not networks trained without them."
    )
    figure = _bars_of({name: _means(row) for name, row in gains.items()})
    return Study(
        title="Contexts: none, content, degradation, both",
        words=words,
        tables=(_gain_table("context", gains),),
        figures={"contexts": figure},
    )


def _contexts_of(
    subject: Subject,
    degradation: str,
    photo: Photo,
    clean: Pixels8,
    own: One,
    middle: One,
    known: Sequence[str],
) -> dict[str, One]:
    """The contexts to compare for one photo, by name."""
    wrong = known[(known.index(degradation) + 3) % len(known)]
    found = {
        "none": middle,
        "content only": replace(own, degradation=middle.degradation),
        "degradation only": replace(own, content=middle.content),
        "both": own,
        "text oracle": replace(own, degradation=subject.word(degradation, like=own)),
        "wrong word": replace(own, degradation=subject.word(wrong, like=own)),
    }
    if _has_weights(subject):
        plain = _one(subject.embed_plain(photo))
        of_clean = _one(subject.embed_plain(image.from_array(clean)))
        tone = own.content[:, plain.shape[1] :]  # what some networks are told besides, see Restorer.condition
        found["plain content"] = replace(own, content=np.concatenate([plain, tone], axis=1))
        found["content of the clean photo"] = replace(own, content=np.concatenate([of_clean, tone], axis=1))
    return found


def _has_weights(subject: Subject) -> bool:
    return (subject.restorer.folder.encoder_path / checkpoints.WEIGHTS).is_file()


def _without_prompt(subject: Subject) -> Restorer | None:
    """The model with its prompt's softmax made uniform; None for one without weights or prompt."""
    folder = subject.restorer.folder
    if not (folder.path / checkpoints.WEIGHTS).is_file() or not _has_weights(subject):
        return None
    model = checkpoints.load(folder)
    # the last layer before the softmax: text_mlp.2, wherever the network keeps it
    last = {n: p for n, p in model.network.named_parameters() if "text_mlp.2." in n} if model.network else {}
    if not last:
        return None
    for parameter in last.values():
        torch.nn.init.zeros_(parameter)
    config = replace(folder.config, encoder=folder.encoder_config.encoder, texts=folder.texts)
    with tempfile.TemporaryDirectory(prefix="daclip-") as place:
        path = checkpoints.save_pretrained(replace(model, config=config), Path(place) / folder.path.name)
        return Restorer(path, engine="torch", device=subject.device)


def _means(rows: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: fmean(values) for name, values in rows.items()}


def _gain_table(first: str, gains: Mapping[str, Mapping[str, Sequence[float]]]) -> Table:
    """A line for each setting, a column for each degradation, their mean and its interval."""
    names = sorted({name for row in gains.values() for name in row}, key=order)
    lines: list[tuple[str, ...]] = []
    for setting, row in gains.items():
        interval = bootstrap(list(row.values()))
        between = "-" if interval is None else f"{interval[0]:+.2f} to {interval[1]:+.2f}"
        mean = fmean(fmean(values) for values in row.values())
        cells = [f"{fmean(row[name]):+.2f}" if name in row else "-" for name in names]
        lines.append((setting, *cells, f"{mean:+.2f}", between))
    return Table(head=(first, *names, "mean", "95 %"), lines=tuple(lines), words=1)


def _bars_of(series: Mapping[str, Mapping[str, float]]) -> Figure:
    """The mean gain of each setting as a bar."""
    figure = Figure(figsize=(6, 0.6 + 0.32 * len(series)), layout="constrained")
    axes = figure.add_subplot()
    names = list(series)[::-1]
    axes.barh(names, [fmean(series[name].values()) for name in names], color="#4477aa")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("mean gain in PSNR, dB")
    return figure


# ---- (h): what the encoder says and sees


def words(subject: Subject) -> Study:
    """Top-1, confusion and calibration of plain and of controlled embeddings."""
    texts = subject.restorer.folder.texts
    said: dict[str, list[tuple[str, dict[str, float]]]] = {"controlled": [], "plain": []}
    cases = subject.cases("words", texts.names)
    for case in cases:
        photo, _ = _truth(case)
        both = {"controlled": subject.restorer.encode(photo).degradation, "plain": subject.embed_plain(photo)}
        for name, vectors in both.items():
            mean = detect.probabilities(vectors, texts).mean(axis=0)
            said[name].append((case.degradation, dict(zip(texts.names, mean.tolist(), strict=True))))
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
        photo, _ = _truth(case)
        rows["degradation embedding"].append(subject.embed(photo).degradation[0])
        rows["plain embedding"].append(_one(subject.embed_plain(photo))[0])
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
            both = {"controlled": subject.embed_content(photo), "plain": _one(subject.embed_plain(photo))}
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


# ---- what was not trained for


def severities(subject: Subject) -> Study:
    """Gain, naming and content from hardly visible to as heavy as the benchmarks."""
    known = [name for name in DEGRADATIONS if name in subject.restorer.folder.texts.names]
    lines: list[tuple[str, ...]] = []
    curves: dict[str, tuple[list[float], list[float]]] = {"controlled": ([], []), "plain": ([], [])}
    clean_content: dict[str, Any] = {}
    for severity in _SEVERITIES:
        gains: list[float] = []
        named: list[float] = []
        alone: list[float] = []
        cosines: dict[str, list[float]] = {"controlled": [], "plain": []}
        cases = subject.cases("severities", known, severity=severity)
        for case in cases:
            photo, clean = _truth(case)
            done = subject.restorer.restore(photo)
            assert done.detection is not None
            gains.append(_gain(np.asarray(done.pixels, np.uint8), photo, clean))
            named.append(float(done.detection.ranked()[0][0] == case.degradation))
            alone.append(float(done.action == "unchanged"))
            if _has_weights(subject):
                key = case.files[0].name
                if key not in clean_content:
                    clean_content[key] = detect.unit(_one(subject.embed_plain(image.from_array(clean))))
                own = {"controlled": subject.embed_content(photo), "plain": _one(subject.embed_plain(photo))}
                for kind, vector in own.items():
                    cosines[kind].append(float((detect.unit(vector) * clean_content[key]).sum()))
            subject.on_progress("severities", case.name, len(_SEVERITIES) * len(cases))
        for kind, values in cosines.items():
            if values:
                curves[kind][0].append(severity)
                curves[kind][1].append(fmean(values))
        told = [number(fmean(values), 3) if values else "-" for values in cosines.values()]
        seen = "" if degradations.SEVERITIES[0] <= severity <= degradations.SEVERITIES[1] else " (unseen)"
        cells = (f"{fmean(gains):+.2f}", share(fmean(named)), share(fmean(alone)))
        lines.append((f"{severity:g}{seen}", *cells, *told))
    head = ("severity", "gain, dB", "named", "left alone", "content cosine", "plain cosine")
    figures = {"severities": plots.curves(curves, x="severity", y="cosine with the clean photo's content")}
    return Study(
        title="Severities, seen and unseen in training",
        words="All degradations together. `named`: the likeliest word is right. The cosines are between the "
        "content embedding of the degraded photo and the plain one of the clean photo.",
        tables=(Table(head=head, lines=tuple(lines), words=1),),
        figures=figures if curves["plain"][0] else {},
    )


_SEVERITIES = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)

_MIXTURES = (
    ("hazy", "noisy"),
    ("low-light", "noisy"),
    ("rainy", "hazy"),
    ("motion-blurry", "noisy"),
    ("noisy", "jpeg-compressed"),
    ("shadowed", "low-light"),
)


def mixtures(subject: Subject) -> Study:
    """Two degradations at once: found, and restored by what was found, by both words, by one."""
    known = subject.restorer.folder.texts.names
    lines: list[tuple[str, ...]] = []
    pairs = [pair for pair in _MIXTURES if set(pair) <= set(known)]
    cases = subject.cases("mixtures", [CLEAN])
    for pair in pairs:
        both, one = [], []
        gains: dict[str, list[float]] = {"auto": [], "both": [], "first": []}
        for case in cases:
            _, clean = _truth(case)
            photo = _mixed(clean, pair, case.name, subject)
            auto = subject.restorer.restore(photo)
            assert auto.detection is not None
            hits = set(pair) & set(auto.detection.found)
            both.append(float(len(hits) == 2))
            one.append(float(len(hits) >= 1))
            done = {"auto": auto, "both": subject.restorer.restore(photo, task=pair)}
            done["first"] = subject.restorer.restore(photo, task=pair[:1])
            for name, restored in done.items():
                gains[name].append(_gain(np.asarray(restored.pixels, np.uint8), photo, clean))
            subject.on_progress("mixtures", f"{', '.join(pair)}: {case.name}", len(pairs) * len(cases))
        cells = [f"{fmean(values):+.2f}" for values in gains.values()]
        lines.append((", ".join(pair), share(fmean(both)), share(fmean(one)), *cells))
    head = ("mixture", "both found", "one found", "gain by what was found", "told both", "told the first")
    return Study(
        title="Mixtures",
        words=f"Two degradations of severity {_MIXED_SEVERITY:g} in the order given; gain in PSNR, dB.",
        tables=(Table(head=head, lines=tuple(lines), words=1),),
    )


_MIXED_SEVERITY = 0.5


def _mixed(clean: Pixels8, pair: Sequence[str], name: str, subject: Subject) -> Photo:
    rng = np.random.default_rng([subject.seed, crc32(f"{pair}/{name}".encode())])
    unit = clean.astype(np.float32) / np.float32(255)
    made = degradations.degrade(unit, pair, severity=_MIXED_SEVERITY, rng=rng)
    return image.from_array(np.rint(made.pixels * 255).astype(np.uint8))


# ---- samplers


_SAMPLERS: dict[str, Callable[..., Any]] = {
    "posterior": sampling.posterior,
    "sde (Euler)": sampling.sde,
    "ode (Euler)": sampling.ode,
    "mrs, order 1": lambda *given, **options: sampling.mrs(*given, order=1, **options),
    "mrs, order 2": lambda *given, **options: sampling.mrs(*given, order=2, **options),
    "mrs, order 3": lambda *given, **options: sampling.mrs(*given, order=3, **options),
}

_OWN_SAMPLERS = {"posterior": "posterior", "sde": "sde (Euler)", "ode": "ode (Euler)", "mrs": "mrs, order 2"}
"""What `sampling.SAMPLERS` are called here."""


@dataclass(kw_only=True)
class _Sampled:
    """One sampler with so many calls: figures by metric and degradation, seconds of each photo."""

    name: str
    sampler: str
    calls: int
    steps: int | list[int]
    figures: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def mean(self, metric: str) -> float:
        return fmean(fmean(values) for values in self.figures[metric].values())

    def line(self) -> tuple[str, ...]:
        cells = [self.name, str(self.calls)]
        for metric, groups in self.figures.items():
            digits = 2 if metric == "psnr" else 4
            cells += [number(self.mean(metric), digits), between(bootstrap(list(groups.values())), digits)]
        return (*cells, f"{fmean(self.seconds):.2f}")


def samplers(subject: Subject) -> Study:
    """Quality against network calls, for every sampler, and for the model as it is shipped."""
    config = subject.restorer.folder.config
    if config.kind != "diffusion":
        raise UsageError(
            f"{subject.restorer.folder.name} restores in one pass", hint="samplers need a diffusion model"
        )
    process = IRSDE(**(config.sde or {}))
    calls = [count for count in subject.calls if count <= process.steps]
    tried = [
        _Sampled(name=name, sampler=name, calls=count, steps=count) for name in _SAMPLERS for count in calls
    ]
    own, steps = _shipped(subject.restorer)
    times = f", times {' '.join(map(str, config.times))}" if config.times else ""
    count = steps if isinstance(steps, int) else len(config.times)
    shipped = _Sampled(name=f"as shipped: {own}{times}", sampler=own, calls=count, steps=steps)
    known = [name for name in DEGRADATIONS if name in subject.restorer.folder.texts.names]
    cases = subject.cases("samplers", known)
    for case in cases:
        photo, clean = _truth(case)
        context = subject.embed(photo)
        mu = subject.restorer.begun(_planes(photo), context)
        for one in (*tried, shipped):
            start = time.perf_counter()
            restored = _eight_bit(subject.sampled(mu, context, one.sampler, one.steps))
            one.seconds.append(time.perf_counter() - start)
            for metric, figure in scores(restored, clean, subject.metrics.functions).items():
                one.figures.setdefault(metric, {}).setdefault(case.degradation, []).append(figure)
        subject.on_progress("samplers", case.name, len(cases))
    head = [cell for metric in subject.metrics.names for cell in (metric.upper(), f"{metric.upper()} 95 %")]
    lines = tuple(one.line() for one in (*tried, shipped))
    figures = {
        metric: plots.curves(
            {name: (calls, [one.mean(metric) for one in tried if one.name == name]) for name in _SAMPLERS},
            x="network calls",
            y=plots.UNITS[metric],
            log_x=True,
        )
        for metric in subject.metrics.names
    }
    return Study(
        title="Samplers: quality against network calls",
        words="PSNR in dB, means over the photos; one seed. `posterior`, `sde` and `ode` as published. "
        "Seconds are of the sampler alone. `as shipped`: the sampler, calls and times of the model's folder.",
        tables=(Table(head=("sampler", "calls", *head, "s/photo"), lines=lines, words=1),),
        figures={f"samplers-{metric}": figure for metric, figure in figures.items()},
    )


# ---- what `daclip evaluate` has measured


def results(subject: Subject) -> Study:
    """Tables, bars, radar plots and confusion matrices of finished runs of `daclip evaluate`."""
    if len(subject.trained) == len(subject.runs):
        raise UsageError("the study results without runs", hint="name --output folders of daclip evaluate")
    found = subject.joined.findings
    rows = summarise(found.measurements, found.features)
    said = classification.of_measurements(found.measurements)
    return Study(
        title="Restorers, degradation by degradation",
        words="From the measurements of finished runs. `gain` is of PSNR, in dB.",
        tables=(table(rows), *([classification.table(said)] if said else [])),
        figures={f"results-{name}": figure for name, figure in plots.of_results(rows, said).items()},
    )


# ---- (a), (b), (c): training curves


def curves(subject: Subject) -> Study:
    """Loss and validation figures of training runs against their steps."""
    if not subject.trained:
        raise UsageError("the study curves without runs", hint="name folders of training runs")
    names = _short_names(subject.trained)
    logs = {names[run]: read_log(run / "log.jsonl") for run in subject.trained}
    lines: list[tuple[str, ...]] = []
    drawn: dict[str, dict[str, plots.Curve]] = {}
    for name, log in logs.items():
        losses = [(line["step"], line["loss"]) for line in log if "loss" in line]
        drawn.setdefault("loss", {})[name] = _smooth(losses)
        checks = [(line["step"], line["val"]) for line in log if "val" in line and "step" in line]
        for key in {key for _, found in checks for key in found if "/" not in key}:
            points = [(step, found[key]) for step, found in checks if key in found]
            drawn.setdefault(key, {})[name] = ([p[0] for p in points], [p[1] for p in points])
        last = max((line["step"] for line in log if "step" in line), default=0)
        final = {key: value for key, value in (checks[-1][1] if checks else {}).items() if "/" not in key}
        told = ", ".join(f"{key} {value:.3f}" for key, value in sorted(final.items())) or "-"
        lines.append((name, str(last), f"{losses[-1][1]:.3f}" if losses else "-", told))
    head = ("run", "steps", "last loss", "last validation")
    return Study(
        title="Training curves",
        words="From the logs of training runs; losses averaged over 20 lines. Another loss shows as a jump. "
        "Validations compare between runs of the same data, seed and `validate_regions`.",
        tables=(Table(head=head, lines=tuple(lines), words=1), *_last_gains(logs)),
        figures={
            f"curves-{key}": plots.curves(found, x="step", y=key) for key, found in sorted(drawn.items())
        },
    )


def _last_gains(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[Table, ...]:
    """What restorers won at their last validation, by degradation; no table where none was trained."""
    last = {name: [line["val"] for line in log if "val" in line][-1:] for name, log in logs.items()}
    known = {name: found[0] for name, found in last.items() if found and "gain" in found[0]}
    pairs = {name: [key[6:] for key in found if key.startswith("input/")] for name, found in known.items()}
    names = sorted({word for words in pairs.values() for word in words if word != CLEAN}, key=order)
    if not names:
        return ()
    lines = [
        (
            name,
            *(
                f"{found[f'psnr/{word}'] - found[f'input/{word}']:+.2f}" if word in pairs[name] else "-"
                for word in names
            ),
            f"{found['gain']:+.2f}",
        )
        for name, found in known.items()
    ]
    title = "Gain in PSNR at the last validation, dB"
    return (Table(title=title, head=("run", *names, "mean"), lines=tuple(lines), words=1),)


def _short_names(runs: Sequence[Path]) -> dict[Path, str]:
    names = [run.resolve().name for run in runs]
    return {run: name if names.count(name) == 1 else str(run) for run, name in zip(runs, names, strict=True)}


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a training log; steps done again after an interruption count once, the later ones."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror})",
            hint="name folders of `daclip train` or `daclip evaluate`",
        ) from error
    found: dict[tuple[Any, bool], dict[str, Any]] = {}
    for line in lines:
        try:
            figures: Any = json.loads(line)
        except ValueError:  # a full disk may have cut it
            continue
        found[figures.get("step"), "val" in figures] = figures
    return list(found.values())


def _smooth(pairs: Sequence[tuple[int | float, int | float]], *, over: int = 20) -> plots.Curve:
    values = [value for _, value in pairs]
    return [step for step, _ in pairs], [
        fmean(values[max(0, position - over + 1) : position + 1]) for position in range(len(values))
    ]


# ---- where figures are from


_PROTOCOLS = {
    "words": "top-1 of the words",
    "embeddings": "cosine",
    "retrieval": "recall by cosine",
    "curves": "as in the logs",
}
"""Of the studies that do not compare photos."""


def caption(subject: Subject, study: str, *, command: str, seconds: float) -> Caption:
    """Where the figures of a study are from, after it was made."""
    if study == "results":
        return replace(subject.joined.caption, command=command)
    data, files = _data(subject, study)
    weights: dict[str, str] = {}
    if study != "curves":
        method = restorer_method(subject.restorer)
        weights[method.name] = method.weights
    if study == "retrieval" and subject.backbone is not None:
        weights["backbone"] = models.weights_sha256(models.find(subject.backbone))[:12]
    return Caption(
        protocol=_PROTOCOLS.get(study, "rgb"),
        data=data,
        data_sha256=files_sha256(files),
        weights=weights,
        metric_weights=subject.metrics.weights if study == "samplers" else {},
        command=command,
        version=version("daclip"),
        seconds=round(seconds, 1),
        peak_mb=peak_megabytes(),
    )


def _data(subject: Subject, study: str) -> tuple[str, list[tuple[str, Path]]]:
    """The data of a study in words, and its files."""
    if study == "curves":
        logs = [("log", run / "log.jsonl") for run in subject.trained]
        return ", ".join(map(str, subject.trained)), logs
    severity = "" if study in ("severities", "mixtures") else f" {subject.severity:g}"
    if study == "retrieval":
        assert subject.captions is not None
        found = [path for path, _ in read_captions(subject.captions)][: subject.limit]
        source, files = subject.captions, [("captions", subject.captions)]
    else:
        assert subject.photos is not None
        found = image.find_photos([subject.photos])[: subject.limit]
        source, files = subject.photos, []
    how = f"{len(found)} photos, degraded on the fly (wild{severity}, seed {subject.seed})"
    return f"{source}, {how}", [*files, *(("photo", path) for path in found)]


STUDIES: dict[str, Callable[[Subject], Study]] = {
    "contexts": contexts,
    "words": words,
    "embeddings": embeddings,
    "retrieval": retrieval,
    "severities": severities,
    "mixtures": mixtures,
    "samplers": samplers,
    "results": results,
    "curves": curves,
}
"""Every study by name, in the order of the page."""


def possible(subject: Subject) -> list[str]:
    """The studies for which the subject has what they need."""
    has_photos = subject.photos is not None
    needs = {
        "retrieval": subject.captions is not None,
        "samplers": has_photos and subject.restorer.folder.config.kind == "diffusion",
        "results": len(subject.trained) < len(subject.runs),
        "curves": bool(subject.trained),
    }
    return [name for name in STUDIES if needs.get(name, has_photos)]
