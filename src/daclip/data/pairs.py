"""Degraded / clean pairs: drawn balanced by word as in the paper, and found in the published layout."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from daclip.data.files import PhotoCache, Pixels8, Split, Stored, list_photos, side, size_in_header
from daclip.data.sample import Sample, grey
from daclip.errors import DataError
from daclip.vocabulary import CLEAN, DEGRADATIONS


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A degraded photo and its clean one, where they lie; the word of what is wrong; a caption.

    A mixture has the words of its parts joined by commas; the word "clean" stands for nothing wrong.
    """

    degraded: Stored
    clean: Stored
    word: str
    caption: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The degradations of the word: one, several, or none."""
        return () if self.word == CLEAN else tuple(part.strip() for part in self.word.split(","))


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs drawn balanced by word (PAPER 1.4) with the paper's augmentation (PAPER 2.4).

    Args:
        pairs: what is drawn from.
        region: side of the square cut out of both photos; smaller photos are mirrored at their edges.
        seed: of all draws.
        flips: horizontal flip, vertical flip and transposition, each in half of the draws.
        grey_share: share of pairs turned grey (wild-IR has 0.2).
        cache_bytes: decoded photos kept in memory, in each worker.
    """

    pairs: Sequence[Pair]
    region: int = 256
    seed: int = 0
    flips: bool = True
    grey_share: float = 0.0
    cache_bytes: int = 256 << 20

    @cached_property
    def by_word(self) -> dict[str, list[Pair]]:
        """The pairs of each word, words in the paper's order and then by name."""
        found: dict[str, list[Pair]] = {}
        for pair in self.pairs:
            found.setdefault(pair.word, []).append(pair)
        return {word: found[word] for word in in_order(found)}

    def draw(self, index: int) -> Sample:
        """Index modulo the number of words picks the word; the pair is drawn uniformly among its pairs."""
        rng = np.random.default_rng([self.seed, index])
        word = list(self.by_word)[index % len(self.by_word)]
        pair = self.by_word[word][int(rng.integers(len(self.by_word[word])))]
        degraded, clean = self._cache.read(pair.degraded), self._cache.read(pair.clean)
        _check_sizes(pair, degraded.shape[1::-1], clean.shape[1::-1])
        top, left = (int(rng.integers(max(size - self.region, 0) + 1)) for size in clean.shape[:2])
        turns = rng.random(3) < 0.5 if self.flips else np.zeros(3, bool)
        degraded, clean = (self._patch(photo, top, left, turns) for photo in (degraded, clean))
        if self.grey_share and rng.random() < self.grey_share:
            degraded, clean = grey(degraded), grey(clean)
        return Sample(degraded=degraded, clean=clean, names=pair.names, caption=pair.caption)

    @cached_property
    def _cache(self) -> PhotoCache:
        return PhotoCache(self.cache_bytes)

    def _patch(
        self, photo: Pixels8, top: int, left: int, turns: Bool[np.ndarray, "3"]
    ) -> UInt8[np.ndarray, "s s 3"]:
        """The square at this place, mirrored, upside down and transposed as `turns` has it."""
        patch = photo[top : top + self.region, left : left + self.region]
        missing = [self.region - size for size in patch.shape[:2]]
        if any(missing):  # published: such photos give ragged batches, which cannot be stacked
            patch = np.pad(patch, [(m // 2, m - m // 2) for m in missing] + [(0, 0)], mode="symmetric")
        patch = patch[:, ::-1] if turns[0] else patch
        patch = patch[::-1] if turns[1] else patch
        return np.ascontiguousarray(patch.swapaxes(0, 1) if turns[2] else patch)


PAPER_COUNTS: dict[Split, dict[str, int]] = {
    "train": dict(
        zip(DEGRADATIONS, (2103, 6000, 3550, 485, 3550, 861, 1800, 2680, 1872, 29900), strict=True)
    ),
    "val": dict(zip(DEGRADATIONS, (1111, 1000, 29, 15, 68, 58, 100, 408, 601, 100), strict=True)),
}
"""Pairs of each word in the paper's data set (DA-CLIP, Table 1)."""


def in_order(words: Iterable[str]) -> list[str]:
    """Words in the paper's order, then all others by name."""
    given = set(words)
    return [word for word in DEGRADATIONS if word in given] + sorted(given - set(DEGRADATIONS))


def check_headers(pairs: Sequence[Pair], on_progress: Callable[[int, int], object]) -> None:
    """Raise DataError where the files of a pair differ in size, PhotoError where one is no photo.

    Only headers are read, so a photo that ends early is found when it is drawn.

    Args:
        pairs: all of a data set.
        on_progress: told (pairs seen, of how many).
    """
    for done, pair in enumerate(pairs, 1):
        degraded, clean = size_in_header(pair.degraded), size_in_header(pair.clean)
        if degraded is not None and clean is not None:
            _check_sizes(pair, degraded, clean)
        on_progress(done, len(pairs))


def _check_sizes(pair: Pair, degraded: tuple[int, int], clean: tuple[int, int]) -> None:
    if degraded != clean:
        raise DataError(
            f"{pair.degraded}: {_text(degraded)} pixels, but its clean photo has {_text(clean)}",
            hint="`daclip data check` lists all such pairs",
        )


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


# ---- the published layout


def word_folders(root: Path) -> dict[str, Path]:
    """The folders `root/<word>` that hold LQ and GT, by word in the paper's order."""
    found = {path.parent.name: path.parent for path in root.glob("*/LQ") if path.is_dir()}
    return {word: found[word] for word in in_order(found)}


def split_folders(root: Path) -> dict[str, Path]:
    """Where the words of each split lie: `root/train` and `root/val`, or `root` itself under ""."""
    found = {name: root / name for name in ("train", "val") if word_folders(root / name)}
    if not found and word_folders(root):
        return {"": root}
    return found


def published_layout(root: Path, wanted: Split = "train") -> list[Pair]:
    """The pairs of `root/{train,val}/<word>/{LQ,GT}`, or one side of `root/<word>/{LQ,GT}`.

    Where there is one split only, photos are held out of it by the hash of the clean photo's name, in all
    words the same. Raises DataError when there are none, or a word's folders do not match.
    """
    folders = split_folders(root)
    if not folders:
        raise DataError(f"{root}: no <word>/LQ and <word>/GT folders in it")
    if wanted in folders and len(folders) == 2:
        return _of_words(folders[wanted])
    pairs = [pair for folder in folders.values() for pair in _of_words(folder)]
    return side(pairs, wanted, name=lambda pair: pair.clean.name, source=root)


def _of_words(folder: Path) -> list[Pair]:
    return [
        Pair(degraded=degraded, clean=clean, word=word)
        for word, inner in word_folders(folder).items()
        for degraded, clean in matched(inner)
    ]


def matched(folder: Path) -> list[tuple[Path, Path]]:
    """The (degraded, clean) files of `folder/{LQ,GT}`, see `match`."""
    return match(list_photos(folder / "LQ"), list_photos(folder / "GT"), source=folder)


def match(degraded: Sequence[Path], clean: Sequence[Path], *, source: object) -> list[tuple[Path, Path]]:
    """Photos and their clean ones: by name, or by the numbers in their names.

    Raises DataError where a photo has no partner.
    """
    by_name = {path.stem: path for path in clean}
    names = {path.stem for path in degraded}
    if alone := sorted(names ^ set(by_name)):
        # published: pairs by sorted file name, so rain-1 is paired with norain-10x2
        both = [sorted(paths, key=lambda path: (_numbers(path), path.stem)) for paths in (degraded, clean)]
        if len(degraded) == len(clean) and all(map(_belong, *both)):
            return list(zip(*both, strict=True))
        raise DataError(
            f"{source}: {len(alone)} photos have no partner ({alone[0]}, ...)",
            hint="each degraded photo needs its clean one under the same name",
        )
    return [(path, by_name[path.stem]) for path in degraded]


def _numbers(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.stem)]


def _belong(degraded: Path, clean: Path) -> bool:
    """Whether two names can be those of one pair: the numbers of one begin with those of the other."""
    first, second = _numbers(degraded), _numbers(clean)
    shared = min(len(first), len(second))
    if not shared:
        return degraded.stem.split("_")[0] == clean.stem.split("_")[0]
    return first[:shared] == second[:shared]
