"""Measurements as tables: means for each degradation with intervals, and their unweighted mean."""

import csv
import io
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
from jaxtyping import Float, Float32

from daclip.errors import UsageError
from daclip.evaluate.cases import UNKNOWN
from daclip.evaluate.measure import Measurement
from daclip.metrics import PROTOCOLS, frechet
from daclip.vocabulary import CLEAN, DEGRADATIONS

AVERAGE, IDENTITY = "average", "identity"

Interval = tuple[float, float]
FeatureTable = Mapping[tuple[str, str], Float32[np.ndarray, "d"]]
"""What FID's network sees, by name of the picture (input, truth, a method) and of the photo."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Means of one method over the photos of one degradation; None where there is nothing to say.

    Args:
        scored: how many of the photos have a truth.
        before, after: figures by metric, of the input and of the output.
        intervals: 95 % of the means of `after`, and of `gain`, over resampled photos lie in them.
        gain: dB of PSNR won over the input.
        named: share of photos whose likeliest word is the degradation, where that is known.
        left_alone: share of photos that came back unchanged.
        seconds: for a photo.
    """

    method: str
    degradation: str
    protocol: str
    photos: int
    scored: int
    before: Mapping[str, float | None]
    after: Mapping[str, float | None]
    intervals: Mapping[str, Interval | None]
    gain: float | None
    named: float | None
    left_alone: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Caption:
    """Where figures are from: protocol, data and hash, weights by method and by metric, command, cost.

    The seconds are those of all photos, added over processes and over all calls of a run. `parts` are the
    captions of joined runs by their folders.
    """

    protocol: str
    data: str
    data_sha256: str
    weights: Mapping[str, str]
    metric_weights: Mapping[str, str]
    command: str
    version: str
    seconds: float
    peak_mb: int
    parts: Mapping[str, "Caption"] = field(default_factory=dict[str, "Caption"])

    def lines(self, *, intervals: bool = True) -> list[str]:
        """The caption for people, of a table with intervals or without; the command is the last line."""
        sources = dict.fromkeys(
            f"{one.data} (sha256 {one.data_sha256[:12]})" for one in self.parts.values() or [self]
        )
        depth = ", 8 bits" if self.protocol in PROTOCOLS else ""
        facts = [f"protocol {self.protocol}{depth}", f"data {' and '.join(sources)}"]
        hashes = {**self.weights, **self.metric_weights}
        return [
            "; ".join([*facts, *(f"{name} weights {sha}" for name, sha in hashes.items())]),
            *(f"{folder}: `{one.command}`" for folder, one in self.parts.items()),
            f"{'95 % intervals: bootstrap over photos; ' if intervals else ''}daclip {self.version}; "
            f"{self.seconds:.0f} s in all, peak {self.peak_mb} MB",
            f"made by: {self.command}",
        ]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as people read them; `strong` are the lines to stand out, `words` the columns that hold text."""

    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    strong: frozenset[int] = frozenset()
    words: int = 2
    notes: tuple[str, ...] = ()
    title: str = ""

    @property
    def has_intervals(self) -> bool:
        """Whether a column holds intervals."""
        return any("95 %" in name for name in self.head)


# ---- means


def summarise(measurements: Sequence[Measurement], features: FeatureTable | None = None) -> list[Row]:
    """A row for each method and degradation, then the method's average; the identity's average at the end.

    The average weighs degradations alike, however many photos they have (PAPER 2.6), and leaves out "clean".
    A photo equal to its truth has no PSNR and is left out of that mean: for "clean", PSNR tells of the photos
    that were altered. Raises UsageError for measurements of two protocols.
    """
    protocols = sorted({one.protocol for one in measurements})
    if len(protocols) > 1:
        raise UsageError(
            f"figures of the protocols {' and '.join(protocols)} in one table", hint="measure all with one"
        )
    rows: list[Row] = []
    for method in dict.fromkeys(one.method for one in measurements):
        own = [one for one in measurements if one.method == method]
        named = sorted({one.degradation for one in own}, key=order)
        groups = [[one for one in own if one.degradation == name] for name in named]
        parts = [_row(group, features or {}) for group in groups]
        rows += [*parts, *_average(parts, groups)]
    firsts = {row.degradation: row for row in reversed(rows) if row.scored}
    parts = [row for name, row in firsts.items() if name not in (AVERAGE, CLEAN)]
    has_identity = any(row.method == IDENTITY for row in rows)
    return [*rows, *([_identity(parts)] if parts and not has_identity else [])]


def order(name: str) -> tuple[int, str]:
    """Sorts degradations as the paper does, then "clean", then others."""
    known = (*DEGRADATIONS, CLEAN)
    return (known.index(name) if name in known else len(known), name)


def _row(own: Sequence[Measurement], features: FeatureTable) -> Row:
    scored = [one for one in own if one.after]
    metrics = list(scored[0].after) if scored else []
    before = {metric: _mean(one.before[metric] for one in scored) for metric in metrics}
    after = {metric: _mean(one.after[metric] for one in scored) for metric in metrics}
    answered = [
        float(one.likeliest == one.degradation)
        for one in own
        if one.likeliest is not None and one.degradation != UNKNOWN
    ]
    gains = _gains(scored)
    intervals = {metric: bootstrap([_finite(one.after[metric] for one in scored)]) for metric in metrics}
    if (fid := _fid(own[0].method, own, features)) is not None:
        before["fid"], after["fid"] = _fid("input", own, features), fid
    return Row(
        method=own[0].method,
        degradation=own[0].degradation,
        protocol=own[0].protocol,
        photos=len(own),
        scored=len(scored),
        before=before,
        after=after,
        intervals=intervals | ({"gain": bootstrap([gains])} if gains else {}),
        gain=_gain(before, after),
        named=_mean(answered),
        left_alone=fmean(one.is_unchanged for one in own),
        seconds=fmean(one.seconds for one in own),
    )


def _average(parts: Sequence[Row], groups: Sequence[Sequence[Measurement]]) -> list[Row]:
    chosen = [(row, group) for row, group in zip(parts, groups, strict=True) if row.degradation != CLEAN]
    if not chosen:
        return []
    rows, groups = [row for row, _ in chosen], [group for _, group in chosen]
    metrics = dict.fromkeys(metric for row in rows for metric in row.after)
    before = {metric: _mean(row.before.get(metric) for row in rows) for metric in metrics}
    after = {metric: _mean(row.after.get(metric) for row in rows) for metric in metrics}
    intervals = {
        metric: bootstrap([_finite(one.after[metric] for one in group if one.after) for group in groups])
        for metric in metrics
        if metric != "fid"
    }
    gains = [_gains([one for one in group if one.after]) for group in groups]
    return [
        Row(
            method=rows[0].method,
            degradation=AVERAGE,
            protocol=rows[0].protocol,
            photos=sum(row.photos for row in rows),
            scored=sum(row.scored for row in rows),
            before=before,
            after=after,
            intervals=intervals | ({"gain": bootstrap(gains)} if any(gains) else {}),
            gain=_gain(before, after),
            named=_mean(row.named for row in rows),
            left_alone=fmean(row.left_alone for row in rows),
            seconds=fmean(row.seconds for row in rows),
        )
    ]


def _identity(parts: Sequence[Row]) -> Row:
    """What leaving every photo alone would give, by a row of each degradation."""
    metrics = dict.fromkeys(metric for row in parts for metric in row.before)
    before = {metric: _mean(row.before.get(metric) for row in parts) for metric in metrics}
    return Row(
        method=IDENTITY,
        degradation=AVERAGE,
        protocol=parts[0].protocol,
        photos=sum(row.photos for row in parts),
        scored=sum(row.scored for row in parts),
        before=before,
        after=before,
        intervals={},
        gain=_gain(before, before),
        named=None,
        left_alone=1.0,
        seconds=0.0,
    )


def _fid(picture: str, own: Sequence[Measurement], features: FeatureTable) -> float | None:
    photos = [
        one.photo for one in own if (picture, one.photo) in features and ("truth", one.photo) in features
    ]
    if len(photos) < 2:
        return None
    made, true = (np.stack([features[name, photo] for photo in photos]) for name in (picture, "truth"))
    return frechet(made, true)


def _gain(before: Mapping[str, float | None], after: Mapping[str, float | None]) -> float | None:
    first, last = before.get("psnr"), after.get("psnr")
    return None if first is None or last is None else last - first


def _gains(scored: Sequence[Measurement]) -> list[float]:
    return _finite(one.after["psnr"] - one.before["psnr"] for one in scored if "psnr" in one.after)


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are finite numbers; None without any."""
    finite = _finite(value for value in values if value is not None)
    return fmean(finite) if finite else None


def bootstrap(
    groups: Sequence[Sequence[float]], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval | None:
    """Percentile interval of the mean of the groups' means, photos drawn again within each group.

    None where no group has two values. A group of one photo is taken as if it were certain. The order within
    a group, which is that in which several processes finished, changes nothing.

    >>> low, high = bootstrap([[1.0, 2.0, 3.0]])
    >>> (low, high)
    (1.0, 3.0)
    """
    known = [np.sort(np.asarray(group, np.float64)) for group in groups if len(group)]
    if not any(len(group) > 1 for group in known):
        return None
    rng = np.random.default_rng(seed)
    means = np.mean([_resampled(group, resamples, rng) for group in known], axis=0)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled(
    values: Float[np.ndarray, "n"], resamples: int, rng: np.random.Generator
) -> Float[np.ndarray, "r"]:
    return values[rng.integers(len(values), size=(resamples, len(values)))].mean(axis=1)


# ---- cells


_DIGITS = {"psnr": 2, "ssim": 4, "lpips": 4, "fid": 2}


def table(rows: Sequence[Row]) -> Table:
    """All rows; a column that would be empty throughout is left out."""
    metrics = dict.fromkeys(metric for row in rows for metric in row.after)
    cells = [_cells(row, list(metrics)) for row in rows]
    head = [name for name in cells[0] if any(line[name] != "-" for line in cells)]
    return Table(
        head=tuple(head),
        lines=tuple(tuple(line[name] for name in head) for line in cells),
        strong=frozenset(number for number, row in enumerate(rows) if row.degradation == AVERAGE),
        notes=partial_averages(rows, {row.degradation for row in rows}, "degradations here"),
    )


def partial_averages(rows: Sequence[Row], degradations: Collection[str], named: str) -> tuple[str, ...]:
    """A note for each method whose average lacks some of the degradations."""
    wanted = set(degradations) - {AVERAGE, CLEAN}
    known = {
        method: wanted & {row.degradation for row in rows if row.method == method}
        for method in dict.fromkeys(row.method for row in rows if row.method != IDENTITY)
    }
    return tuple(
        f"{method}: average of {len(own)} of the {len(wanted)} {named}"
        for method, own in known.items()
        if own < wanted
    )


def _cells(row: Row, metrics: Sequence[str]) -> dict[str, str]:
    """One row as people read it, by heading."""
    cells = {"method": row.method, "degradation": row.degradation, "photos": str(row.photos)}
    if row.scored != row.photos:
        cells["photos"] += f" ({row.scored} scored)"
    for metric in metrics:
        digits = _DIGITS.get(metric, 4)
        cells[f"{metric.upper()} in"] = number(row.before.get(metric), digits)
        cells[metric.upper()] = number(row.after.get(metric), digits)
        cells[f"{metric.upper()} 95 %"] = between(row.intervals.get(metric), digits)
        if metric == "psnr":
            cells["gain"] = "-" if row.gain is None else f"{row.gain:+.2f}"
    cells["named"] = share(row.named)
    cells["left alone"] = share(row.left_alone)
    cells["s/photo"] = f"{row.seconds:.2f}"
    return cells


def number(value: float | None, digits: int) -> str:
    """A figure, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def share(value: float | None) -> str:
    """A part of all in percent, or a dash."""
    return "-" if value is None else f"{value:.0%}"


def between(interval: Interval | None, digits: int) -> str:
    """An interval, or a dash."""
    return "-" if interval is None else f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


# ---- layouts


def text(given: Table, caption: Sequence[str]) -> str:
    """Columns under each other, for a terminal."""
    lines = [given.head, *given.lines]
    widths = [max(len(line[column]) for line in lines) for column in range(len(given.head))]
    aligned = [
        "  ".join(
            cell.ljust(width) if column < given.words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*caption, *given.notes, "", *([given.title, ""] if given.title else []), *aligned])


def markdown(given: Table, caption: Sequence[str]) -> str:
    """A table for a document, its strong lines in bold, the caption under it."""
    lines = [_piped(given.head), _piped(["---"] * given.words + ["---:"] * (len(given.head) - given.words))]
    for position, line in enumerate(given.lines):
        lines.append(_piped([f"**{cell}**" for cell in line] if position in given.strong else line))
    if not caption:
        return "\n".join(lines)
    *facts, command = caption
    told = ". ".join([*facts, *given.notes]) + "."
    return "\n".join([*lines, "", told, "", f"`{command.removeprefix('made by: ')}`"])


def _piped(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def latex(given: Table, caption: Sequence[str]) -> str:
    """A table for a paper, for the package booktabs; the caption under it and as comments."""
    columns = "l" * given.words + "r" * (len(given.head) - given.words)
    lines = [f"% {line}" for line in caption]
    lines += [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [_joined(given.head), r"\midrule"]
    for position, line in enumerate(given.lines):
        cells = [_escaped(cell) for cell in line]
        lines.append(
            " & ".join(rf"\textbf{{{cell}}}" for cell in cells) + r" \\"
            if position in given.strong
            else _joined(line)
        )
    told = ". ".join(
        _escaped(line) for line in (*([given.title] if given.title else []), *given.notes, *caption[:1])
    )
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", rf"\caption{{{told}.}}", r"\end{table}"])


def _joined(cells: Sequence[str]) -> str:
    return " & ".join(_escaped(cell) for cell in cells) + r" \\"


_LATEX = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "~": r"\~{}",
    "^": r"\^{}",
    "\\": r"\textbackslash{}",
}


def _escaped(cell: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in cell)


def comma_separated(given: Table, caption: Sequence[str]) -> str:
    """CSV of the cells; the last column repeats where they are from."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*given.head, "where from"])
    writer.writerows([*line, "; ".join([*caption, *given.notes])] for line in given.lines)
    return file.getvalue().rstrip("\n")


LAYOUTS: dict[str, Callable[[Table, Sequence[str]], str]] = {
    "text": text,
    "markdown": markdown,
    "latex": latex,
    "csv": comma_separated,
}


def exact_rows(rows: Sequence[Row], caption: Caption) -> str:
    """CSV of rows in full precision; every line carries protocol, data, weights, command and cost."""
    file = io.StringIO()
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.after))
    lines = [_flat(row, caption, metrics) for row in rows]
    writer = csv.DictWriter(file, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue().rstrip("\n")


def _flat(row: Row, caption: Caption, metrics: Sequence[str]) -> dict[str, object]:
    line: dict[str, object] = {
        "method": row.method,
        "degradation": row.degradation,
        "photos": row.photos,
        "scored": row.scored,
    }
    for metric in metrics:
        low, high = row.intervals.get(metric) or (None, None)
        line |= {f"{metric}_in": row.before.get(metric), metric: row.after.get(metric)}
        line |= {f"{metric}_low": low, f"{metric}_high": high}
    low, high = row.intervals.get("gain") or (None, None)
    line |= {"gain": row.gain, "gain_low": low, "gain_high": high}
    line |= {"named": row.named, "left_alone": row.left_alone, "seconds": row.seconds}
    return line | {
        "protocol": row.protocol,
        "data": caption.data,
        "data_sha256": caption.data_sha256,
        "weights": caption.weights.get(row.method),
        "metric_weights": "; ".join(f"{name} {sha}" for name, sha in caption.metric_weights.items()),
        "command": caption.command,
        "seconds_in_all": caption.seconds,
        "peak_mb": caption.peak_mb,
    }
