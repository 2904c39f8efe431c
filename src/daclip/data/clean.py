"""Clean photos, degraded on the fly (extra [data])."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from daclip import degradations
from daclip.data.files import PhotoCache, Pixels8, Stored, eight_bit
from daclip.data.sample import Sample, grey
from daclip.vocabulary import CLEAN, DEGRADATIONS, WILD_IR

_MIXTURE = "mixture"

_KEEPS_ITS_TONE = ("low-light", _MIXTURE)
"""Kinds of draws whose truth is a photo as it is: in them, a dark or flat photo shows what is wrong."""

_STORED = (0.01, 0.11)
"""Severities of `jpeg-compressed` (quality 97 to 72) at which photos are stored and passed on."""

_NEVER_STORED = ("low-light", "jpeg-compressed")


@dataclass(frozen=True, kw_only=True)
class CleanPhotos:
    """Clean photos, degraded on the fly.

    Args:
        photos: clean photos.
        captions: of each photo; None where nobody captioned them.
        region: side in pixels of the square cut out, degraded as a whole.
        seed: of all draws.
        names, weights: degradations to draw, and their relative shares.
        degrade: `ten`: by the names; `wild-ir`: by the random degradation of wild-IR, named by what it drew.
        alike: draws in a row that have one kind of degradation: the same name, clean, or a mixture.
        clean_share, mixture_share: shares of untouched photos and of mixtures of two or three.
        paper_share: share of single degradations made by the paper's fixed protocol.
        shrink_share: share of regions shrunk from a larger one, for other scales of the same content.
        grey_share: share of regions turned grey before they are degraded (wild-IR has 0.1).
        tone_share: share of regions that are flat, pale or dark by nature, see `toned`: clean ones and those
            with one degradation but darkness. Under haze, where a flat truth could not be told from a veil,
            twice as many get the black, the white and another brightness of a whole photo, see `levelled`.
        stored_share: share of photos with one degradation that were stored as JPEG afterwards, as most photos
            are that people have; it is not named. Never in the dark, of which little would be left.
        cache_bytes: decoded photos kept in memory, in each worker.
    """

    photos: Sequence[Stored]
    captions: Sequence[str | None] | None = None
    region: int = 256
    seed: int = 0
    names: tuple[str, ...] = DEGRADATIONS
    weights: tuple[float, ...] | None = None
    degrade: Literal["ten", "wild-ir"] = "ten"
    alike: int = 1
    clean_share: float = 0.1
    mixture_share: float = 0.2
    paper_share: float = 0.2
    shrink_share: float = 0.3
    grey_share: float = 0.0
    tone_share: float = 0.0
    stored_share: float = 0.0
    cache_bytes: int = 256 << 20

    def draw(self, index: int) -> Sample:
        """The sample of an index: photo, cut, flips and degradation all follow from (seed, index)."""
        rng = np.random.default_rng([self.seed, index])
        number = int(rng.integers(len(self.photos)))
        clean = self._region(self._cache.read(self.photos[number]), rng)
        if self.grey_share and rng.random() < self.grey_share:
            clean = grey(clean)
        kind = self._kind(index)
        if self.tone_share and kind not in _KEEPS_ITS_TONE:
            changed, share = (levelled, 2 * self.tone_share) if kind == "hazy" else (toned, self.tone_share)
            if rng.random() < share:
                clean = changed(clean, rng)
        done = self._degraded(clean.astype(np.float32) / 255, kind, rng)
        degraded, names = done.pixels, tuple(done.record["names"])
        is_storable = kind in self.names and kind not in _NEVER_STORED
        if self.stored_share and is_storable and rng.random() < self.stored_share:
            severity = rng.uniform(*_STORED)
            degraded = degradations.degrade(degraded, "jpeg-compressed", severity=severity, rng=rng).pixels
        caption = self.captions[number] if self.captions else None
        return Sample(degraded=eight_bit(degraded), clean=clean, names=names, caption=caption)

    def _kind(self, index: int) -> str:
        """What is wrong with the draws around an index: one degradation, a mixture, or nothing."""
        common = np.random.default_rng([self.seed, index // self.alike, 1])
        kind = float(common.random())
        if kind < self.clean_share:
            return CLEAN
        if self.degrade == WILD_IR:
            return WILD_IR
        if kind < self.clean_share + self.mixture_share:
            return _MIXTURE
        return str(common.choice(self.names, p=self._shares()))

    def _degraded(
        self, pixels: Float32[np.ndarray, "s s 3"], kind: str, rng: np.random.Generator
    ) -> degradations.Degraded:
        """The pixels with a degradation of a kind."""
        if kind == CLEAN:
            return degradations.wild(pixels, rng, clean_share=1.0)
        if kind == WILD_IR:
            return degradations.wild_ir(pixels, rng)
        if kind == _MIXTURE:
            return degradations.mixture(pixels, rng=rng, names=self.names, weights=self.weights)
        if rng.random() < self.paper_share:
            return degradations.degrade(pixels, kind, severity=1.0, rng=rng, settings="paper")
        return degradations.wild(pixels, rng, clean_share=0.0, mixture_share=0.0, names=(kind,))

    @cached_property
    def _cache(self) -> PhotoCache:
        return PhotoCache(self.cache_bytes)

    def _shares(self) -> list[float] | None:
        return [w / sum(self.weights) for w in self.weights] if self.weights else None

    def _region(self, photo: Pixels8, rng: np.random.Generator) -> UInt8[np.ndarray, "s s 3"]:
        height, width = photo.shape[:2]
        side = self.region
        if rng.random() < self.shrink_share:
            side = int(side * rng.uniform(1.0, 2.0))
        side = min(side, height, width)
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        cut = photo[top : top + side, left : left + side]
        if side != self.region:
            cut = cv2.resize(cut, (self.region, self.region), interpolation=cv2.INTER_AREA)
        # seldom turned and never upside down by a flip: rain falls, haze lies above
        if rng.random() < 0.5:
            cut = cut[:, ::-1]
        if rng.random() < 0.1:
            cut = np.rot90(cut, int(rng.integers(1, 4)))
        return np.ascontiguousarray(cut)


def toned(pixels: Pixels8, rng: np.random.Generator) -> Pixels8:
    """A photo of flatter, darker, lighter or paler things, as asphalt in the sun is, or of a night.

    Without such photos a network takes low contrast for haze, and stretches a street that has none.
    """
    values = pixels.astype(np.float32) / 255
    luma = cv2.cvtColor(values, cv2.COLOR_RGB2GRAY)[..., None]
    values = np.clip(luma + np.float32(rng.uniform(0.1, 1.2)) * (values - luma), 0, 1)
    low, high = rng.uniform(0, 0.35), rng.uniform(0.55, 1)
    return dimmed(eight_bit(low + (high - low) * values), rng)


def levelled(pixels: Pixels8, rng: np.random.Generator) -> Pixels8:
    """A cut-out with the black and the white of a whole photo, lighter or darker.

    Most whole photos hold both, cut-outs do not. A network that has learnt from these leaves a part of the
    haze, as if it were in the nature of the photo.
    """
    values = pixels.astype(np.float32) / 255
    low, high = np.quantile(values, [0.005, 0.995])
    values = (values - np.float32(low)) / np.float32(max(high - low, 0.25))
    return dimmed(eight_bit(values * np.float32(rng.uniform(0.9, 1))), rng)


def dimmed(pixels: Pixels8, rng: np.random.Generator) -> Pixels8:
    """A photo of lighter or darker things: another exponent for its values; black stays black."""
    return eight_bit((pixels.astype(np.float32) / 255) ** np.float32(2 ** rng.uniform(-0.7, 1.2)))
