"""Measurements as a table: means for each degradation, their unweighted mean, and where they are from."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from daclip.evaluate.run import Measurement
from daclip.vocabulary import CLEAN, DEGRADATIONS

AVERAGE, IDENTITY = "average", "identity"
SCHEMA = "daclip.evaluate/1"


@dataclass(frozen=True, kw_only=True)
class Row:
    """Means of one method over the photos of one degradation; None where there is nothing to say.

    Args:
        before, after: figures by metric, of the input and of the output.
        gain: dB of PSNR won over the input.
        named: share of photos whose likeliest word is the degradation.
        left_alone: share of photos that came back unchanged.
        seconds: for a photo.
    """

    method: str
    degradation: str
    photos: int
    before: Mapping[str, float | None]
    after: Mapping[str, float | None]
    gain: float | None
    named: float | None
    left_alone: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Caption:
    """Where the figures of a table are from: protocol, data and hash, weights by method, command, cost."""

    protocol: str
    data: str
    data_sha256: str
    weights: Mapping[str, str]
    command: str
    version: str
    seconds: float
    peak_mb: int

    def lines(self) -> list[str]:
        """The caption for people."""
        weights = "; ".join(f"{method} weights {sha}" for method, sha in self.weights.items())
        return [
            f"protocol {self.protocol}, 8 bits; data {self.data} (sha256 {self.data_sha256[:12]}); {weights}",
            f"daclip {self.version}; {self.seconds:.0f} s in all, peak {self.peak_mb} MB",
            f"made by: {self.command}",
        ]


def summarise(measurements: Sequence[Measurement]) -> list[Row]:
    """A row for each method and degradation, then the method's average; the identity's average at the end.

    The average weighs degradations alike, however many photos they have (PAPER 2.6), and leaves out "clean".
    A photo equal to its truth has no PSNR and is left out of that mean: for "clean", PSNR tells of the photos
    that were altered.
    """
    rows: list[Row] = []
    for method in dict.fromkeys(one.method for one in measurements):
        own = [one for one in measurements if one.method == method]
        named = sorted({one.degradation for one in own}, key=_order)
        parts = [_row(method, name, [one for one in own if one.degradation == name]) for name in named]
        rows += [*parts, *_average(method, parts)]
    averages = [row for row in rows if row.degradation == AVERAGE]
    return [*rows, *(_identity(row) for row in averages[:1])]


def _order(name: str) -> tuple[int, str]:
    known = (*DEGRADATIONS, CLEAN)
    return (known.index(name) if name in known else len(known), name)


def _row(method: str, degradation: str, own: Sequence[Measurement]) -> Row:
    before = {metric: _mean(one.before[metric] for one in own) for metric in own[0].before}
    after = {metric: _mean(one.after[metric] for one in own) for metric in own[0].after}
    answered = [float(one.likeliest == degradation) for one in own if one.likeliest is not None]
    return Row(
        method=method,
        degradation=degradation,
        photos=len(own),
        before=before,
        after=after,
        gain=_gain(before, after),
        named=_mean(answered),
        left_alone=fmean(one.is_unchanged for one in own),
        seconds=fmean(one.seconds for one in own),
    )


def _average(method: str, parts: Sequence[Row]) -> list[Row]:
    rows = [row for row in parts if row.degradation != CLEAN]
    if not rows:
        return []
    before = {metric: _mean(row.before[metric] for row in rows) for metric in rows[0].before}
    after = {metric: _mean(row.after[metric] for row in rows) for metric in rows[0].after}
    return [
        Row(
            method=method,
            degradation=AVERAGE,
            photos=sum(row.photos for row in rows),
            before=before,
            after=after,
            gain=_gain(before, after),
            named=_mean(row.named for row in rows),
            left_alone=fmean(row.left_alone for row in rows),
            seconds=fmean(row.seconds for row in rows),
        )
    ]


def _identity(average: Row) -> Row:
    """What leaving every photo alone would give."""
    return Row(
        method=IDENTITY,
        degradation=AVERAGE,
        photos=average.photos,
        before=average.before,
        after=average.before,
        gain=_gain(average.before, average.before),
        named=None,
        left_alone=1.0,
        seconds=0.0,
    )


def _gain(before: Mapping[str, float | None], after: Mapping[str, float | None]) -> float | None:
    first, last = before.get("psnr"), after.get("psnr")
    return None if first is None or last is None else last - first


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are finite numbers; None without any."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(finite) if finite else None


_DIGITS = {"psnr": 2, "ssim": 4, "lpips": 4}


def _cells(row: Row) -> dict[str, str]:
    """One row as people read it, by heading."""
    cells = {"method": row.method, "degradation": row.degradation, "photos": str(row.photos)}
    for metric, value in row.after.items():
        digits = _DIGITS[metric]
        cells[f"{metric.upper()} in"] = _number(row.before[metric], digits)
        cells[metric.upper()] = _number(value, digits)
        if metric == "psnr":
            cells["gain"] = "-" if row.gain is None else f"{row.gain:+.2f}"
    cells["named"] = _share(row.named)
    cells["left alone"] = _share(row.left_alone)
    cells["s/photo"] = f"{row.seconds:.2f}"
    return cells


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def text(rows: Sequence[Row], caption: Caption, _: Sequence[Measurement]) -> str:
    """Columns under each other, for a terminal."""
    lines = [list(_cells(rows[0])), *(list(_cells(row).values()) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    aligned = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*caption.lines(), "", *aligned])


def markdown(rows: Sequence[Row], caption: Caption, _: Sequence[Measurement]) -> str:
    """A table for a document, averages in bold, the caption under it."""
    head = list(_cells(rows[0]))
    lines = [_piped(head), _piped(["---", "---", *["---:"] * (len(head) - 2)])]
    for row in rows:
        cells = list(_cells(row).values())
        lines.append(_piped([f"**{cell}**" for cell in cells] if row.degradation == AVERAGE else cells))
    *facts, command = caption.lines()
    return "\n".join([*lines, "", ". ".join(facts) + ".", "", f"`{command.removeprefix('made by: ')}`"])


def _piped(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def comma_separated(rows: Sequence[Row], caption: Caption, _: Sequence[Measurement]) -> str:
    """CSV in full precision; every line carries protocol, data, weights and command."""
    file = io.StringIO()
    lines = [_flat(row, caption) for row in rows]
    writer = csv.DictWriter(file, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue().rstrip("\n")


def _flat(row: Row, caption: Caption) -> dict[str, object]:
    line: dict[str, object] = {
        "method": row.method,
        "degradation": row.degradation,
        "photos": row.photos,
    }
    for metric, value in row.after.items():
        line |= {f"{metric}_in": row.before[metric], metric: value}
    line |= {"gain": row.gain, "named": row.named, "left_alone": row.left_alone, "seconds": row.seconds}
    return line | {
        "protocol": caption.protocol,
        "data": caption.data,
        "data_sha256": caption.data_sha256,
        "weights": caption.weights.get(row.method),
        "command": caption.command,
    }


def as_json(rows: Sequence[Row], caption: Caption, measurements: Sequence[Measurement]) -> str:
    """Everything, photo by photo too; a PSNR of a photo equal to its truth is null."""
    document = {
        "schema": SCHEMA,
        **asdict(caption),
        "rows": [asdict(row) for row in rows],
        "measurements": [
            asdict(one) | {"before": _finite(one.before), "after": _finite(one.after)} for one in measurements
        ],
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)


def _finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


FORMATS: dict[str, Callable[[Sequence[Row], Caption, Sequence[Measurement]], str]] = {
    "text": text,
    "markdown": markdown,
    "csv": comma_separated,
    "json": as_json,
}
