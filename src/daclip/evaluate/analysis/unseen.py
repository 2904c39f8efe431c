"""What was not trained for: severities and mixtures."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any
from zlib import crc32

import numpy as np

from daclip import degradations, detect, image
from daclip.evaluate import plots
from daclip.evaluate.analysis.subject import Study, Subject, gain_over, has_weights, read_truth
from daclip.evaluate.tables import (
    Table,
    number,
    share,
)
from daclip.image import Photo
from daclip.metrics import Pixels8
from daclip.restore import mean_of_views
from daclip.vocabulary import CLEAN, DEGRADATIONS


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
            photo, clean = read_truth(case)
            done = subject.restorer.restore(photo)
            assert done.detection is not None
            gains.append(gain_over(np.asarray(done.pixels, np.uint8), photo, clean))
            named.append(float(done.detection.ranked()[0][0] == case.degradation))
            alone.append(float(done.action == "unchanged"))
            if has_weights(subject):
                key = case.files[0].name
                if key not in clean_content:
                    clean_content[key] = detect.unit(
                        mean_of_views(subject.embed_plain(image.from_array(clean)))
                    )
                own = {
                    "controlled": subject.embed_content(photo),
                    "plain": mean_of_views(subject.embed_plain(photo)),
                }
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
            _, clean = read_truth(case)
            photo = _mixed(clean, pair, case.name, subject)
            auto = subject.restorer.restore(photo)
            assert auto.detection is not None
            hits = set(pair) & set(auto.detection.found)
            both.append(float(len(hits) == 2))
            one.append(float(len(hits) >= 1))
            done = {"auto": auto, "both": subject.restorer.restore(photo, task=pair)}
            done["first"] = subject.restorer.restore(photo, task=pair[:1])
            for name, restored in done.items():
                gains[name].append(gain_over(np.asarray(restored.pixels, np.uint8), photo, clean))
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
