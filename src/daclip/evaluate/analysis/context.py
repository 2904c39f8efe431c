"""(c), (e), (f), (g): what the contexts are worth."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from matplotlib.figure import Figure

from daclip import checkpoints, image
from daclip.detect import Embeddings
from daclip.evaluate.analysis.subject import One, Study, Subject, gain_over, has_weights, read_truth
from daclip.evaluate.tables import (
    Table,
    bootstrap,
    order,
)
from daclip.image import Photo
from daclip.metrics import Pixels8
from daclip.restore import Restorer, mean_of_views
from daclip.vocabulary import CLEAN, DEGRADATIONS


def contexts(subject: Subject) -> Study:
    """Gain with each context taken away, replaced or made wrong; the network stays the same."""
    known = [name for name in subject.restorer.folder.texts.names if name != CLEAN]
    seen = [
        (case, *read_truth(case))
        for case in subject.cases("contexts", [n for n in DEGRADATIONS if n in known])
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
            gains.setdefault(name, {}).setdefault(case.degradation, []).append(
                gain_over(restored, photo, clean)
            )
        if off is not None:
            restored = subject.restore(photo, own, restorer=off)
            row = gains.setdefault("prompt module off", {})
            row.setdefault(case.degradation, []).append(gain_over(restored, photo, clean))
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
    if has_weights(subject):
        plain = mean_of_views(subject.embed_plain(photo))
        of_clean = mean_of_views(subject.embed_plain(image.from_array(clean)))
        tone = own.content[:, plain.shape[1] :]  # what some networks are told besides, see Restorer.condition
        found["plain content"] = replace(own, content=np.concatenate([plain, tone], axis=1))
        found["content of the clean photo"] = replace(own, content=np.concatenate([of_clean, tone], axis=1))
    return found


def _without_prompt(subject: Subject) -> Restorer | None:
    """The model with its prompt's softmax made uniform; None for one without weights or prompt."""
    folder = subject.restorer.folder
    if not (folder.path / checkpoints.WEIGHTS).is_file() or not has_weights(subject):
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
