"""One photo, measured: every method's figures against the truth, its words, its seconds."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from daclip import metrics
from daclip.errors import DaclipError, DataError, PhotoError, UsageError
from daclip.evaluate.cases import Case, file_sha256
from daclip.evaluate.peers import Method
from daclip.metrics import PROTOCOLS, Features, Metric, Pixels8


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What is measured.

    Args:
        protocol: its name.
        functions: by metric.
        features: of FID, None without it.
        weights: hash of the weights by metric; PSNR and SSIM have none.
    """

    protocol: str
    functions: Mapping[str, Metric]
    features: Features | None = None
    weights: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The metrics by name."""
        return [*self.functions, *(["fid"] if self.features else [])]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One method on one photo: figures by metric of the input and of the output, against the clean photo.

    Args:
        protocol: under which the figures were taken; empty figures where the photo has no truth.
        probabilities: of the words, None where the method says nothing.
        seconds: of restoring alone.
        seconds_in_all: with reading and scoring; those of the photo count for its first method.
        peak_mb: the most memory that the process or a program it called had held until then.
    """

    method: str
    degradation: str
    photo: str
    protocol: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    probabilities: Mapping[str, float] | None = None
    is_unchanged: bool
    seconds: float
    seconds_in_all: float = 0.0
    peak_mb: int = 0

    @property
    def likeliest(self) -> str | None:
        """The likeliest word, None where the method says nothing."""
        return max(self.probabilities, key=self.probabilities.__getitem__) if self.probabilities else None


def plain(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Figures for JSON, which knows no infinity: the PSNR of equal photos is null."""
    return {name: value if np.isfinite(value) else None for name, value in figures.items()}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One case with everything that was measured.

    Args:
        pictures: input, the methods by name, and truth where there is one.
        features: what FID's network sees in each of the pictures; empty without FID.
        error: of the methods that could not be measured, each by its name; None where all could.
    """

    measurements: list[Measurement]
    pictures: Mapping[str, Pixels8]
    features: Mapping[str, Float32[np.ndarray, "d"]] = field(default_factory=dict)
    error: DataError | None = None


Outcome = Measured | DaclipError


def evaluate(
    cases: Sequence[Case], methods: Sequence[Method], metrics: Metrics
) -> Iterator[tuple[Case, Outcome]]:
    """Each case with what was measured of it, or with the error that kept it from that."""
    for case in cases:
        yield case, attempt(case, methods, metrics)


def attempt(case: Case, methods: Sequence[Method], metrics: Metrics) -> Outcome:
    """What was measured of one case, or the error that kept it from that."""
    try:
        return measure(case, methods, metrics)
    except (PhotoError, DataError) as error:
        return error


def measure(case: Case, methods: Sequence[Method], metrics: Metrics) -> Measured:
    """All methods on one case; one that fails does not keep the others from it.

    Raises PhotoError or DataError where the case itself cannot be read.
    """
    last = time.perf_counter()
    photo, clean = case.read()
    degraded = photo.crop_8bit(0, 0, photo.height, photo.width)
    before = {} if clean is None else scores(degraded, clean, metrics.functions)
    pictures = {"input": degraded} if clean is None else {"input": degraded, "truth": clean}
    see = metrics.features if clean is not None else None
    features = {} if see is None else {name: see(pixels) for name, pixels in pictures.items()}
    measured: list[Measurement] = []
    failed: list[DaclipError] = []
    for method in methods:
        try:
            start = time.perf_counter()
            answer = method.restore(photo, case.degradation)
            seconds = time.perf_counter() - start
            after = {} if clean is None else scores(answer.pixels, clean, metrics.functions)
        except (PhotoError, DataError) as error:
            failed.append(DataError(f"{method.name}: {error.message}", hint=error.hint))
            continue
        pictures[method.name] = answer.pixels
        if see is not None:
            features[method.name] = see(answer.pixels)
        now = time.perf_counter()
        measured.append(
            Measurement(
                method=method.name,
                degradation=case.degradation,
                photo=case.name,
                protocol=metrics.protocol,
                before=before,
                after=after,
                probabilities=answer.probabilities,
                is_unchanged=answer.is_unchanged,
                seconds=seconds,
                seconds_in_all=now - last,
                peak_mb=peak_megabytes(),
            )
        )
        last = now
    error = DataError("; ".join(map(str, failed))) if failed else None
    return Measured(measurements=measured, pictures=pictures, features=features, error=error)


def peak_megabytes() -> int:
    """The most memory this process or a program it ran has held, in MB; 0 where the system does not say."""
    try:
        from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
    except ImportError:  # Windows
        return 0
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return max(getrusage(who).ru_maxrss for who in (RUSAGE_SELF, RUSAGE_CHILDREN)) * unit // 1_000_000


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


def load_metrics(
    names: Sequence[str], *, protocol: str = "rgb", weights: Path | None = None
) -> tuple[Metrics, list[str]]:
    """The metrics asked for, and a line for each that had to be left out for lack of weights.

    Raises UsageError for an unknown metric or protocol.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f'unknown protocol "{protocol}"', hint=f"known: {', '.join(PROTOCOLS)}")
    known: dict[str, Callable[[], Metric]] = {
        "psnr": lambda: partial(metrics.psnr, protocol=PROTOCOLS[protocol]),
        "ssim": lambda: partial(metrics.ssim, protocol=PROTOCOLS[protocol]),
        "lpips": lambda: metrics.load_lpips(weights),
    }
    functions: dict[str, Metric] = {}
    features: Features | None = None
    hashes: dict[str, str] = {}
    left_out: list[str] = []
    for name in names:
        if name not in (*known, "fid"):
            raise UsageError(f'unknown metric "{name}"', hint=f"known: {', '.join(known)}, fid")
        try:
            if name == "fid":
                features = metrics.load_inception(weights)
            else:
                functions[name] = known[name]()
            if files := metrics.weight_files(name, weights):
                hashes[name] = " and ".join(file_sha256(path)[:12] for path in files)
        except DaclipError as error:
            left_out.append(f"no {name}: {error}")
    found = Metrics(protocol=protocol, functions=functions, features=features, weights=hashes)
    return found, left_out
