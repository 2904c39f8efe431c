"""Restorers run on photos whose clean version is known; every photo gives one measurement for each method."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt, UInt8

from daclip import image, metrics, models
from daclip.errors import DaclipError, DataError, PhotoError, UsageError
from daclip.image import Photo
from daclip.metrics import PROTOCOLS, Metric, Pixels8
from daclip.restore import Restorer
from daclip.vocabulary import CLEAN


@dataclass(frozen=True, kw_only=True)
class Case:
    """One degraded photo and its truth, read when they are needed.

    Args:
        degradation: what is wrong with it, by the name of its folder; "clean" for nothing.
        name: of the photo, for messages.
        files: what it is read from, for the hash of the data.
        read: the degraded photo and the pixels of the clean one, of the same size; raises PhotoError or
            DataError.
    """

    degradation: str
    name: str
    files: tuple[Path, ...]
    read: Callable[[], tuple[Photo, Pixels8]]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a method makes of a photo: pixels, the likeliest word if it has one, whether it left it alone."""

    pixels: Pixels8
    likeliest: str | None = None
    is_unchanged: bool = False


@dataclass(frozen=True, kw_only=True)
class Method:
    """Anything that restores: a name, the hash of its weights, and a function of photo and degradation."""

    name: str
    weights: str
    restore: Callable[[Photo, str], Answer]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One method on one photo: figures by metric of the input and of the output, against the clean photo."""

    method: str
    degradation: str
    photo: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    likeliest: str | None
    is_unchanged: bool
    seconds: float


Outcome = list[Measurement] | DaclipError
Seen = Callable[[Case, Mapping[str, Pixels8]], object]


def evaluate(
    cases: Sequence[Case],
    methods: Sequence[Method],
    functions: Mapping[str, Metric],
    *,
    on_pixels: Seen | None = None,
) -> Iterator[tuple[Case, Outcome]]:
    """Each case with its measurements, one for each method, or with the error that kept it from them.

    `on_pixels` sees the pictures of each case that went well: input, the methods by name, truth.
    """
    for case in cases:
        try:
            yield case, _measured(case, methods, functions, on_pixels)
        except (PhotoError, DataError) as error:
            yield case, error


def _measured(
    case: Case, methods: Sequence[Method], functions: Mapping[str, Metric], on_pixels: Seen | None
) -> list[Measurement]:
    photo, clean = case.read()
    degraded = photo.crop_8bit(0, 0, photo.height, photo.width)
    before = scores(degraded, clean, functions)
    pictures = {"input": degraded}
    measured: list[Measurement] = []
    for method in methods:
        start = time.perf_counter()
        answer = method.restore(photo, case.degradation)
        seconds = time.perf_counter() - start
        pictures[method.name] = answer.pixels
        measured.append(
            Measurement(
                method=method.name,
                degradation=case.degradation,
                photo=case.name,
                before=before,
                after=scores(answer.pixels, clean, functions),
                likeliest=answer.likeliest,
                is_unchanged=answer.is_unchanged,
                seconds=seconds,
            )
        )
    if on_pixels is not None:
        on_pixels(case, {**pictures, "truth": clean})
    return measured


def scores(
    restored: UInt8[np.ndarray, "_ _ 3"], clean: Pixels8, functions: Mapping[str, Metric]
) -> dict[str, float]:
    """The figures of one photo by metric. Raises DataError when the two differ in size."""
    if restored.shape != clean.shape:
        (height, width), (own_height, own_width) = clean.shape[:2], restored.shape[:2]
        raise DataError(
            f"{own_width} x {own_height} pixels, but its clean photo has {width} x {height}",
            hint="compare photos of one size",
        )
    return {name: function(restored, clean) for name, function in functions.items()}


def metric_functions(
    names: Sequence[str], *, protocol: str = "rgb", weights: Path | None = None
) -> tuple[dict[str, Metric], list[str]]:
    """The metrics asked for, by name, and a line for each that had to be left out for lack of weights.

    Raises UsageError for an unknown metric or protocol.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f'unknown protocol "{protocol}"', hint=f"known: {', '.join(PROTOCOLS)}")
    known = {
        "psnr": lambda: partial(metrics.psnr, protocol=PROTOCOLS[protocol]),
        "ssim": lambda: partial(metrics.ssim, protocol=PROTOCOLS[protocol]),
        "lpips": lambda: metrics.load_lpips(weights or Path()),
    }
    functions: dict[str, Metric] = {}
    left_out: list[str] = []
    for name in names:
        if name not in known:
            raise UsageError(f'unknown metric "{name}"', hint=f"known: {', '.join(known)}")
        try:
            functions[name] = known[name]()
        except DataError as error:
            left_out.append(f"no {name}: {error}")
    return functions, left_out


def pairs(root: Path, *, only: Sequence[str] = (), limit: int | None = None) -> list[Case]:
    """The cases of the published layout `root/<degradation>/{LQ,GT}/<name>.*`; suffixes may differ.

    A degraded photo without truth stands in the list and raises when it is read. `limit` is for each
    degradation. Raises DataError when nothing is found.
    """
    folders = sorted(path.parent for path in root.glob("*/LQ") if path.is_dir())
    if only and (absent := sorted(set(only) - {folder.name for folder in folders})):
        raise DataError(f"{root}: no folder {absent[0]}/LQ", hint="see --only")
    cases: list[Case] = []
    for folder in folders:
        if only and folder.name not in only:
            continue
        truths = {path.stem: path for path in image.find_photos([folder / "GT"])}
        degraded = image.find_photos([folder / "LQ"])[:limit]
        cases += [_pair(folder, path, truths.get(path.stem)) for path in degraded]
    if not cases:
        raise DataError(
            f"{root}: no photos in <degradation>/LQ", hint="name the folder that holds rainy/LQ, rainy/GT ..."
        )
    return cases


def _pair(folder: Path, degraded: Path, truth: Path | None) -> Case:
    def read() -> tuple[Photo, Pixels8]:
        if truth is None:
            raise DataError(f"no photo {degraded.stem}.* in {folder / 'GT'}", hint="a truth is needed")
        photo, clean = image.read(degraded), image.read(truth)
        pixels = clean.crop_8bit(0, 0, clean.height, clean.width)
        if (photo.height, photo.width) != pixels.shape[:2]:
            raise DataError(
                f"{photo.width} x {photo.height} pixels, but {truth} has {clean.width} x {clean.height}",
                hint="compare photos of one size",
            )
        return photo, pixels

    files = (degraded,) if truth is None else (degraded, truth)
    return Case(degradation=folder.name, name=f"{folder.name}/LQ/{degraded.name}", files=files, read=read)


def data_sha256(cases: Sequence[Case]) -> str:
    """A hash that names the data: of degradation, name and size in bytes of every file."""
    digest = hashlib.sha256()
    for case in cases:
        for path in case.files:
            size = path.stat().st_size if path.is_file() else 0
            digest.update(f"{case.degradation}/{path.parent.name}/{path.name} {size}\n".encode())
    return digest.hexdigest()


def restorer_method(restorer: Restorer, *, task: Literal["auto", "named"] = "auto") -> Method:
    """A model as a method. `named` tells it the degradation instead of letting it look."""
    folder = restorer.folder
    weights = models.weights_sha256(folder)[:12]
    if folder.encoder_path != folder.path:
        encoder = models.find(folder.encoder_path)
        weights += f" with encoder {models.weights_sha256(encoder)[:12]}"

    def restore(photo: Photo, degradation: str) -> Answer:
        named = degradation if task == "named" and degradation != CLEAN else "auto"
        done = restorer.restore(photo, task=named)
        found = done.detection
        return Answer(
            pixels=_eight_bit(done.pixels),
            likeliest=None if found is None else found.ranked()[0][0],
            is_unchanged=done.action == "unchanged",
        )

    return Method(name=folder.name, weights=weights, restore=restore)


def _eight_bit(pixels: UInt[np.ndarray, "h w 3"]) -> Pixels8:
    """Pixels of 8 or 16 bits rounded to 8."""
    return pixels if pixels.dtype == np.uint8 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
