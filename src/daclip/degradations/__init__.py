"""Ten degradations: clean pixels in, degraded pixels and a record that reproduces them out (PAPER 1.5).

`wild` settings draw from physical models, mild to heavy; `paper` settings follow the published protocol.
Pixels are float32 sRGB in [0, 1]; light is added, blurred and absorbed in linear light. Sizes in pixels hold
for photos of about 480 rows and for cut-outs of them; larger photos get larger drops, streaks, flakes and
kernels.

A result depends only on pixels, record and the versions of NumPy and OpenCV, never on threads or workers; it
is rounded to 8 bits, as cameras store it, which also hides differences between processors in the last bit of
a float.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
from jaxtyping import Float

from daclip.degradations.common import (
    Degrade,
    Number,
    Parameters,
    Pixels,
    Rng,
    between,
    chance,
    rounded,
    to_linear,
    to_stored,
)
from daclip.degradations.paper import PAPER
from daclip.degradations.ten import DEGRADE
from daclip.degradations.wildir import WILD_IR_NAMES, three_stages
from daclip.errors import UsageError
from daclip.vocabulary import DEGRADATIONS, degradation, mixture_text

__all__ = [
    "DEGRADE",
    "MIXTURE_SEVERITIES",
    "PAPER",
    "PHYSICAL_ORDER",
    "SEVERITIES",
    "WILD_IR_NAMES",
    "Degraded",
    "Part",
    "Record",
    "Settings",
    "degrade",
    "mixture",
    "replay",
    "to_linear",
    "to_stored",
    "wild",
    "wild_ir",
]

Settings = Literal["wild", "paper"]


class Part(TypedDict):
    """One degradation as applied: name, severity, settings and seed reproduce it, parameters describe it."""

    name: str
    severity: float
    settings: str
    seed: int
    parameters: Parameters


class Record(TypedDict):
    """What was done to a photo, ready for JSON: parts in order of application, their names, the text."""

    names: tuple[str, ...]
    text: str
    parts: list[Part]


@dataclass(frozen=True, kw_only=True)
class Degraded:
    """Degraded pixels and the record from which `replay` makes them again."""

    pixels: Pixels
    record: Record


def _applied(pixels: Pixels, part: Part) -> tuple[Pixels, Parameters]:
    """The pixels after one part; untouched at severity 0 of the wild settings. A grey photo stays grey."""
    rng = np.random.Generator(np.random.PCG64(part["seed"]))
    if part["settings"] == "wild" and part["severity"] == 0:
        return pixels, {}
    function = _SETTINGS[part["settings"]][part["name"]]
    degraded, parameters = function(pixels, part["severity"], rng)
    if part["settings"] == "wild" and (pixels == pixels[..., :1]).all():
        degraded = np.repeat(degraded.mean(axis=2, keepdims=True), 3, axis=2)
    return np.clip(degraded, 0, 1), parameters


def _finished(clean: Pixels, pixels: Pixels, parts: list[Part]) -> Degraded:
    """The degraded pixels as they would be stored, with their record; untouched ones keep their depth."""
    names = tuple(name for part in parts for name in part["parameters"].get("names", [part["name"]]))
    stored = clean.copy() if pixels is clean else rounded(pixels)
    return Degraded(pixels=stored, record={"names": names, "text": mixture_text(names), "parts": parts})


def _run(pixels: Pixels, asked: Sequence[tuple[str, float, str, int]]) -> Degraded:
    """All parts (name, severity, settings, seed) in order."""
    parts: list[Part] = []
    degraded = pixels
    for name, severity, settings, seed in asked:
        part: Part = {
            "name": name,
            "severity": severity,
            "settings": settings,
            "seed": seed,
            "parameters": {},
        }
        degraded, parameters = _applied(degraded, part)
        parts.append({**part, "parameters": parameters})
    return _finished(pixels, degraded, parts)


def _seed(rng: Rng) -> int:
    return int(rng.integers(2**63))


def degrade(
    pixels: Pixels, name: str | Sequence[str], *, severity: Number, rng: Rng, settings: Settings = "wild"
) -> Degraded:
    """The pixels with one degradation, or several in the order given.

    Severity goes from 0 (untouched) to 1 (as heavy as the benchmarks have it); `paper` settings follow the
    paper's protocol and have one severity only. Raises UsageError for an unknown name or a severity outside.

    >>> grey = np.full((8, 8, 3), 0.5, np.float32)
    >>> degrade(grey, "noisy", severity=0.5, rng=np.random.default_rng(3)).record["text"]
    'noisy'
    """
    if not 0 <= severity <= 1:
        raise UsageError(f"severity {severity:g} is not between 0 and 1")
    known = tuple(DEGRADE)
    names = [degradation(word, known=known) for word in ([name] if isinstance(name, str) else name)]
    return _run(pixels, [(each, float(severity), settings, _seed(rng)) for each in names])


def replay(pixels: Pixels, record: Record) -> Pixels:
    """The degraded pixels again, from the clean ones and the record."""
    asked = [(part["name"], part["severity"], part["settings"], part["seed"]) for part in record["parts"]]
    return _run(pixels, asked).pixels


SEVERITIES = (0.12, 1.0)
"""Range from which `wild` draws the severity of a single degradation."""

MIXTURE_SEVERITIES = (0.12, 0.7)
"""Range of the severities in a mixture: parts of full severity would leave nothing to restore."""

PHYSICAL_ORDER = (
    *("shadowed", "hazy", "snowy", "rainy", "raindrop"),
    *("motion-blurry", "low-light", "noisy", "jpeg-compressed", "uncompleted"),
)
"""How light meets them: things in the scene, the air, the pane, the camera, the file."""


def _shares(names: Sequence[str], weights: Sequence[Number] | None) -> Float[np.ndarray, "k"]:
    """The weights of the names scaled to sum 1; equal ones where none are given."""
    given = np.ones(len(names)) if weights is None else np.asarray(weights, np.float64)
    return given / given.sum()


def mixture(
    pixels: Pixels,
    *,
    rng: Rng,
    names: Sequence[str] = DEGRADATIONS,
    weights: Sequence[Number] | None = None,
    severity: tuple[Number, Number] = MIXTURE_SEVERITIES,
) -> Degraded:
    """Two or three different degradations, in three of four draws in the order of nature, else in any."""
    shares = _shares(names, weights)
    count = min(2 if chance(rng, 0.65) else 3, int(np.count_nonzero(shares)))
    drawn = [names[int(i)] for i in rng.choice(len(names), size=count, replace=False, p=shares)]
    if chance(rng, 0.75):
        drawn.sort(key=lambda name: PHYSICAL_ORDER.index(name) if name in PHYSICAL_ORDER else -1)
    return _run(pixels, [(name, between(rng, *severity), "wild", _seed(rng)) for name in drawn])


def wild(
    pixels: Pixels,
    rng: Rng,
    *,
    clean_share: Number = 0.1,
    mixture_share: Number = 0.2,
    names: Sequence[str] = DEGRADATIONS,
    weights: Sequence[Number] | None = None,
) -> Degraded:
    """The pixels as the wild has them: left clean, with a mixture, or with one degradation, by the shares."""
    kind = float(rng.random())
    if kind < clean_share:
        return _finished(pixels, pixels, [])
    if kind < clean_share + mixture_share:
        return mixture(pixels, rng=rng, names=names, weights=weights)
    name = names[int(rng.choice(len(names), p=_shares(names, weights)))]
    return degrade(pixels, name, severity=between(rng, *SEVERITIES), rng=rng)


def wild_ir(pixels: Pixels, rng: Rng) -> Degraded:
    """The pixels with the random degradation of wild-IR, never clean, named by what was drawn."""
    return _run(pixels, [("wild-ir", 1.0, "wild-ir", _seed(rng))])


_SETTINGS: dict[str, dict[str, Degrade]] = {
    "wild": DEGRADE,
    "paper": PAPER,
    "wild-ir": {"wild-ir": three_stages},
}
