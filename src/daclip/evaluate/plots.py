"""Figures as the paper has them: radar plot, bars, confusion matrices, curves, points (extra [plots])."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from daclip.evaluate.cases import file_name
from daclip.evaluate.classification import Classification
from daclip.evaluate.tables import AVERAGE, Row, order
from daclip.vocabulary import CLEAN

_LOWER_IS_BETTER = ("lpips", "fid")
UNITS = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "lpips": "LPIPS (lower is better)",
    "fid": "FID (lower is better)",
}

Numbers = Sequence[int | float]
Curve = tuple[Numbers, Numbers]


def of_results(rows: Sequence[Row], classifications: Sequence[Classification]) -> dict[str, Figure]:
    """Bars and radar plot for each metric, a matrix for each method that says what is wrong, by name."""
    metrics = dict.fromkeys(metric for row in rows for metric in row.after)
    figures: dict[str, Figure] = {}
    for metric in metrics:
        figures[f"bars-{metric}"] = bars(rows, metric)
        if len(_spokes(rows, metric)) > 2:
            figures[f"radar-{metric}"] = radar(rows, metric)
    return figures | {f"words-{file_name(one.name)}": confusion(one) for one in classifications}


def _degradations(rows: Sequence[Row]) -> list[str]:
    names = {row.degradation for row in rows} - {AVERAGE, CLEAN}
    return sorted(names, key=order)


def _spokes(rows: Sequence[Row], metric: str) -> list[str]:
    """The degradations on which somebody's metric was measured."""
    known = {row.degradation for row in rows if row.after.get(metric) is not None}
    return [name for name in _degradations(rows) if name in known]


def _by_method(rows: Sequence[Row], metric: str) -> dict[str, list[float]]:
    """Input and methods with the metric for each degradation; nan where it was not measured."""
    names = _degradations(rows)
    found: dict[str, dict[str, float]] = {"input": {}}
    for row in rows:
        if row.degradation in names and row.after.get(metric) is not None:
            found["input"].setdefault(row.degradation, _float(row.before.get(metric)))
            found.setdefault(row.method, {})[row.degradation] = _float(row.after[metric])
    return {method: [known.get(name, np.nan) for name in names] for method, known in found.items()}


def _float(value: float | None) -> float:
    return np.nan if value is None else value


def bars(rows: Sequence[Row], metric: str) -> Figure:
    """Bars of input and methods for each degradation, with their 95 % intervals."""
    names, series = _degradations(rows), _by_method(rows, metric)
    intervals = {(row.method, row.degradation): row.intervals.get(metric) for row in rows}
    figure, axes = _figure(max(5.0, 1.1 * len(names)), 3.4)
    width = 0.8 / max(len(series), 1)
    for place, (method, values) in enumerate(series.items()):
        at = np.arange(len(names)) + (place - (len(series) - 1) / 2) * width
        axes.bar(at, values, width, label=method, color=_colour(place))
        for x, value, name in zip(at, values, names, strict=True):
            if (interval := intervals.get((method, name))) is not None:
                axes.plot([x, x], interval, color="black", linewidth=0.8)
                axes.plot([x], [value], ".", color="black", markersize=2)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_ylabel(UNITS.get(metric, metric))
    figure.legend(fontsize=8, loc="outside upper center", ncols=min(len(series), 4))
    return figure


def radar(rows: Sequence[Row], metric: str) -> Figure:
    """The methods around a circle of degradations; outside is better, each spoke scaled by itself.

    A method's line has a gap where it was not measured; where nobody was, there is no spoke.
    """
    names, everybody = _spokes(rows, metric), _degradations(rows)
    series = _by_method(rows, metric)
    values = np.array(list(series.values()), np.float64)[:, [everybody.index(name) for name in names]]
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    part = (values - low) / np.where(high > low, high - low, 1)
    part = 1 - part if metric in _LOWER_IS_BETTER else part
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes: Any = figure.add_subplot(projection="polar")
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    for place, (method, line) in enumerate(zip(series, part, strict=True)):
        around = [*(0.15 + 0.85 * line), 0.15 + 0.85 * line[0]]
        # the dot shows a figure between two gaps
        axes.plot([*angles, angles[0]], around, ".-", label=method, color=_colour(place))
        if not np.isnan(line).any():
            axes.fill([*angles, angles[0]], around, color=_colour(place), alpha=0.08)
    best = low if metric in _LOWER_IS_BETTER else high
    axes.set_xticks(
        angles, [f"{name}\n{value:.3g}" for name, value in zip(names, best, strict=True)], fontsize=7
    )
    axes.set_yticks([])
    axes.set_ylim(0, 1.05)
    axes.set_title(f"{UNITS.get(metric, metric)}; the best of each is named", fontsize=9)
    axes.legend(fontsize=7, loc="lower right", bbox_to_anchor=(1.25, -0.08))
    return figure


def confusion(one: Classification) -> Figure:
    """Shares of the answers (columns) for each true word (rows)."""
    shares = one.confusion / np.maximum(one.confusion.sum(axis=1, keepdims=True), 1)
    figure, axes = _figure(1.6 + 0.42 * len(one.answers), 1.2 + 0.36 * len(one.words))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(one.answers)), one.answers, rotation=45, ha="right", fontsize=7)
    axes.set_yticks(range(len(one.words)), one.words, fontsize=7)
    for row, column in np.argwhere(shares > 0).tolist():
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(
            column, row, f"{shares[row, column]:.0%}", ha="center", va="center", fontsize=6, color=colour
        )
    axes.set_title(f"{one.name}: top-1 {one.mean_accuracy:.1%}", fontsize=9)
    return figure


def curves(lines: Mapping[str, Curve], *, x: str, y: str, log_x: bool = False) -> Figure:
    """Lines by name over a common axis."""
    figure, axes = _figure(6.8, 3.4)
    for place, (name, (at, values)) in enumerate(lines.items()):
        axes.plot(at, values, marker="." if len(at) < 40 else None, label=name, color=_colour(place))
    if log_x:
        axes.set_xscale("log")
        ticks = sorted({value for at, _ in lines.values() for value in at})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    figure.legend(fontsize=7, loc="outside right upper")
    return figure


def points(sets: Mapping[str, Mapping[str, Float[np.ndarray, "n 2"]]]) -> Figure:
    """Points in the plane, a panel for each set, a colour for each word."""
    figure = Figure(figsize=(4.2 * len(sets), 4.4), layout="constrained")
    words = list(dict.fromkeys(word for known in sets.values() for word in known))
    for column, (title, known) in enumerate(sets.items()):
        axes = figure.add_subplot(1, len(sets), column + 1)
        for word, at in known.items():
            axes.scatter(at[:, 0], at[:, 1], s=9, label=word, color=_colour(words.index(word)))
        axes.set_title(title, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, fontsize=6, markerscale=1.5, loc="outside right upper")
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _colour(place: int) -> Any:
    colours: Any = mpl.colormaps["tab20"]
    # the strong half first
    return colours((2 * place) % 20 + (2 * place) // 20 % 2)


def as_svg(figure: Figure) -> str:
    """The figure as an SVG element, the same bytes for the same figure, naming nothing outside itself."""
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "daclip", "svg.fonttype": "path"}):
        figure.savefig(
            file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = file.getvalue()
    return text[text.index("<svg") :].strip()


def write(figure: Figure, path: Path) -> Path:
    """Write the figure as an SVG file; the path comes back."""
    path.write_text(f'<?xml version="1.0" encoding="utf-8"?>\n{as_svg(figure)}\n', encoding="utf-8")
    return path
