"""The paper's discussion as measurements: what contexts are worth, what the encoder sees, how samplers do.

Every study is a function of a subject (a model and photos, or run folders) and gives tables and figures
(extras [torch], [data], [plots]). `contexts` asks one network with other contexts than its own; networks
trained without them are compared by `curves`. PAPER 8.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from daclip import image, models
from daclip.evaluate.analysis.context import contexts
from daclip.evaluate.analysis.encoder import embeddings, read_captions, retrieval, words
from daclip.evaluate.analysis.measured import results
from daclip.evaluate.analysis.sampler import samplers
from daclip.evaluate.analysis.subject import Study, Subject
from daclip.evaluate.analysis.training import curves
from daclip.evaluate.analysis.unseen import mixtures, severities
from daclip.evaluate.cases import files_sha256
from daclip.evaluate.measure import peak_megabytes
from daclip.evaluate.peers import restorer_method
from daclip.evaluate.tables import Caption

__all__ = ["STUDIES", "Study", "Subject", "caption", "possible"]

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
