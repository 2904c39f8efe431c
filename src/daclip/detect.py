"""Embeddings and what they say is wrong with a photo: class probabilities, or "leave it alone".

Step c of the path of a photo. DA-CLIP section 3.1: the degradation embedding is classified by its cosine
with the texts' embeddings.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from jaxtyping import Float, Float32

from daclip.light import Light
from daclip.vocabulary import CLEAN, SHADOWED

Array = TypeVar("Array")


@dataclass(frozen=True, kw_only=True)
class Embeddings(Generic[Array]):
    """What the encoder says of b photos or views, both un-normalised, both of shape b d (numpy or torch).

    `tone` is how light the photo is, see tiling.tone, and `light` what its shadows lack, where a photo was
    seen by a model that finds them.
    """

    content: Array
    degradation: Array
    tone: Array | None = None
    light: Light | None = None


@dataclass(frozen=True, kw_only=True)
class ClassTexts:
    """The words a model knows and their text embeddings, with the rule that turns cosines into probabilities.

    `softmax`: one degradation at a time, p = softmax(scale * cosine), as published (scale 100).
    `sigmoid`: one independent answer per word, p = sigmoid(scale * cosine + bias), for mixtures.
    """

    names: tuple[str, ...]
    embeddings: Float[np.ndarray, "k d"]
    rule: Literal["softmax", "sigmoid"] = "softmax"
    scale: float = 100.0
    bias: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Detection:
    """Probability of each word a model knows, and which of them are to be treated (none: leave it alone).

    `doubtful` are those that are heard, but not surely enough to be treated, see `detect`.
    """

    names: tuple[str, ...]
    probabilities: Float[np.ndarray, "k"]
    found: tuple[str, ...]
    doubtful: tuple[str, ...] = ()

    @property
    def is_clean(self) -> bool:
        """True when no degradation was found."""
        return not self.found

    def ranked(self) -> list[tuple[str, float]]:
        """All words with their probabilities, most likely first."""
        order = np.argsort(-self.probabilities, kind="stable")
        return [(self.names[i], float(self.probabilities[i])) for i in order]

    def record(self) -> list[dict[str, Any]]:
        """What was found, most likely first, as JSON values."""
        return [{"name": name, "probability": round(self.probability(name), 4)} for name in self.found]

    def probability(self, name: str) -> float:
        """The probability of one word; 0 for a word the model does not know."""
        return float(self.probabilities[self.names.index(name)]) if name in self.names else 0.0


def unit(vectors: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
    """The vectors divided by their Euclidean length."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def probabilities(degradation: Float[np.ndarray, "b d"], texts: ClassTexts) -> Float32[np.ndarray, "b k"]:
    """Class probabilities of degradation embeddings, by the rule of the texts."""
    logits = texts.scale * (
        unit(degradation.astype(np.float64)) @ unit(texts.embeddings.astype(np.float64)).T
    )
    if texts.rule == "sigmoid":
        return (1 / (1 + np.exp(-(logits + texts.bias)))).astype(np.float32)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def detect(
    degradation: Float[np.ndarray, "n d"],
    texts: ClassTexts,
    *,
    threshold: float = 0.5,
    shadow: float | None = None,
) -> Detection:
    """What is wrong with one photo, from the degradation embeddings of its n views.

    Probabilities are averaged over the views; where the model has a word for clean, those of words in
    `_LOCAL` over the two views that say them surest, and all means are made surer, see `_surer`. A
    degradation is found when its probability reaches the threshold and exceeds that of "clean" in the same
    views; where none reaches it and the model has no word for clean, the most likely one counts. Where it
    has, darkness and haze must be surer: a photo that is dark by nature is no reason to make it twice as
    bright, and one taken in too little light leaves no doubt. What is dark in a photo that may have had too
    little light is no shadow.

    Where what looks for shadows in the pixels was asked, too, `shadow` is its answer: the logit that there is
    one, see light.Light. Both then decide, and the word needs no more than the threshold.
    """
    each = probabilities(degradation, texts)
    known = each.mean(axis=0)
    sure, clean = {}, dict.fromkeys(texts.names, 0.0)
    if CLEAN in texts.names:
        said = each[:, texts.names.index(CLEAN)]
        known = _surer(each)
        sure, clean = _SURE | _LOCAL, dict.fromkeys(texts.names, float(_surer(said)))
        for name in _LOCAL.keys() & set(texts.names):
            own = each[:, texts.names.index(name)]
            surest = np.argsort(-own, kind="stable")[:_VIEWS]
            known[texts.names.index(name)] = _surer(own[surest])
            clean[name] = float(_surer(said[surest]))
    if shadow is not None and SHADOWED in texts.names:
        place = texts.names.index(SHADOWED)
        known[place] = _together(float(known[place]), shadow)
        clean[SHADOWED] = sure[SHADOWED] = 0.0
    by_name = dict(zip(texts.names, known.tolist(), strict=True))
    least = {name: max(threshold, clean[name], sure.get(name, 0.0)) for name in by_name}
    heard = [name for name, p in _HEARD.items() if CLEAN in by_name and by_name.get(name, 0.0) >= p]
    found = [name for name, p in by_name.items() if name != CLEAN and p >= least[name]]
    found = [name for name in found if not (name == SHADOWED and _DARK in heard)]
    if not found and CLEAN not in by_name:
        found = [max(by_name, key=by_name.__getitem__)]
    found.sort(key=lambda name: -by_name[name])
    doubtful = tuple(name for name in heard if name not in found)
    return Detection(names=texts.names, probabilities=known, found=tuple(found), doubtful=doubtful)


def _surer(views: Float[np.ndarray, "n *k"]) -> Float[np.ndarray, "*k"]:
    """The mean of probabilities over the views, as sure as it is right.

    As it is it says less, since a view in doubt draws it to the middle; a temperature after the mean mends
    that (Rahaman & Thiery, Uncertainty Quantification and Deep Ensembles, NeurIPS 2021).
    """
    mean = np.asarray(views.mean(axis=0)).clip(1e-6, 1 - 1e-6)
    return np.asarray(1 / (1 + (1 / mean - 1) ** _SURER))


_SURER = 1.6
"""Factor of the logits of means. Of 688 held-out training photos, and of those of severity .7 beside as many
clean ones as docs/results.md has, it is within .001 and .0005 of the best likelihood."""

_LOCAL = {"raindrop": 0.5, "shadowed": 0.8, "uncompleted": 0.5}
"""Least probabilities of words for what may lie in one corner of a photo, most views of which then are clean.
Photos with shadows of their own are many."""

_VIEWS = 2
"""Views that are asked for such a word. One alone errs too often."""

_DARK = "low-light"

_SURE = {_DARK: 0.92, "hazy": 0.73}
"""Least probabilities of words whose cure changes the light of the whole photo."""

_HEARD = {_DARK: 0.08, "hazy": 0.5}
"""From here on networks hear such a word in the embedding, too, although it is not found."""


def _together(probability: float, logit: float) -> float:
    """The probability of a word that a second witness speaks of, too, from its probability and his logit."""
    own = math.log(max(probability, 1e-6) / max(1 - probability, 1e-6))
    both = _WORD_COUNTS * own + _SURER * (logit - _IN_RETURN)
    return 1 / (1 + math.exp(-min(max(both, -60.0), 60.0)))


_WORD_COUNTS, _IN_RETURN = 0.5, 3.0
"""How much the word counts beside its witness, and what both must bring. Of 128 held-out training photos with
a shadow 78 are found by it, of 64 without none, of 256 cuts of those one: small things have shades, too."""


AnyEmbeddings = Embeddings[Any]


def of_words(names: Sequence[str], texts: ClassTexts, *, length: float) -> Float32[np.ndarray, "1 d"]:
    """A degradation embedding that words stand for: the mean of their unit text embeddings, made so long."""
    rows = _directions(names, texts)
    return (unit(rows.mean(axis=0, keepdims=True)) * length).astype(np.float32)


def _directions(names: Sequence[str], texts: ClassTexts) -> Float32[np.ndarray, "n d"]:
    """Unit text embeddings of words."""
    return unit(texts.embeddings[[texts.names.index(name) for name in names]])


def silenced(
    own: Float32[np.ndarray, "1 d"], names: Sequence[str], texts: ClassTexts
) -> Float32[np.ndarray, "1 d"]:
    """A degradation embedding that says some words no more: their cosines fall to that of probability 0.02.

    What lies across those words keeps its direction, and the whole its length; for texts with the rule
    `sigmoid`.
    """
    direction = unit(own.astype(np.float64))[0]
    most = (math.log(_SILENT / (1 - _SILENT)) - texts.bias) / texts.scale
    rows = _directions(names, texts).astype(np.float64)
    loud, without = np.zeros(len(rows), bool), direction
    for _ in names:  # what was silent can rise as another falls
        loud |= rows @ without > most + 1e-6
        if not loud.any():
            break
        solved = np.linalg.pinv(rows[loud])
        along = solved @ np.full(int(loud.sum()), most)
        across = direction - solved @ (rows[loud] @ direction)
        across /= max(float(np.linalg.norm(across)), 1e-12)  # 0 where nothing else is said
        without = along + across * max(0.0, 1 - along @ along) ** 0.5
    return (without * np.linalg.norm(own))[None].astype(np.float32)


_SILENT = 0.02


def voiced(
    own: Float32[np.ndarray, "1 d"], found: Detection, texts: ClassTexts
) -> Float32[np.ndarray, "1 d"]:
    """A degradation embedding that says what was found, also where the mean of all views lost it.

    Turned towards such a word, in its own length, until it says it as surely as it was found; for texts with
    the rule `sigmoid`.
    """
    length = np.linalg.norm(own)
    for name in found.found:
        if detect(own, texts).probability(name) >= _LOST:
            continue
        direction, word = unit(own.astype(np.float64))[0], _directions([name], texts)[0].astype(np.float64)
        surely = min(found.probability(name), 1 - 1e-6)
        logit = math.log(surely / (1 - surely)) / (_SURER if CLEAN in texts.names else 1.0)
        cosine = min((logit - texts.bias) / texts.scale, 1.0)
        across = direction - (direction @ word) * word
        across /= max(float(np.linalg.norm(across)), 1e-12)
        own = (length * (cosine * word + (1 - cosine**2) ** 0.5 * across))[None].astype(np.float32)
    return own


_LOST = 0.5
"""Probability below which a word that was found is lost."""


def turned(
    own: Float32[np.ndarray, "1 d"], words: Float32[np.ndarray, "1 d"], *, share: float
) -> Float32[np.ndarray, "1 d"]:
    """A degradation embedding turned towards that of words by a share of the way, in its own length."""
    direction = unit((1 - share) * unit(own) + share * unit(words))
    return (direction * np.linalg.norm(own)).astype(np.float32)
