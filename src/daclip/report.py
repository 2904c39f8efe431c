"""Trust report of one photo: what was detected, what changed where, how far seeds differ, with what model.

One HTML file that stands alone, nothing runs in it, nothing is fetched; its figures are inside as JSON too.
A few words of it go into the XMP of the photo, see `notes`.
"""

import json
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, Num, UInt8

from daclip import image
from daclip.image import Photo
from daclip.restore import Pixels, Restored, Restorer

SCHEMA = "daclip.report/1"
"""First field of the JSON; fields may be added, none changes its meaning."""

Picture = UInt8[np.ndarray, "rows columns 3"]
Measure = Callable[[int, int], Float32[np.ndarray, "h w"]]
"""Rows top to top + height of a photo -> a difference of each pixel, in levels of 1/255."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far photos lie apart, in levels of 1/255, each pixel by the mean of its three colours.

    Args:
        cells: means over squares of `cell_side` pixels, the map.
        mean, p99, largest: over all pixels: the mean, what 99 of 100 stay below, the most.
        part_seen: part of the pixels that differ by more than 2 levels, about what an eye can notice.
    """

    cells: Float32[np.ndarray, "rows columns"]
    cell_side: int
    mean: float
    p99: float
    largest: float
    part_seen: float


@dataclass(frozen=True, kw_only=True)
class Place:
    """A part of the photo at its own size, before and after."""

    top: int
    left: int
    before: Picture
    after: Picture


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that the page shows. `record` is the JSON; the rest is None or empty for a photo left alone."""

    record: Mapping[str, Any]
    before: Picture
    after: Picture | None = None
    change: Difference | None = None
    spread: Difference | None = None
    places: Sequence[Place] = ()


def make(
    restored: Restored,
    restorer: Restorer,
    *,
    name: str,
    sha256: str,
    again: Callable[[int], Restored] | None = None,
    runs: int = 4,
) -> Report:
    """The report of a run.

    Args:
        restored: the run, with its pixels.
        restorer: who ran it.
        name: what the page calls the photo.
        sha256: of the weights, see `models.weights_sha256`.
        again: the same run with another seed; called for diffusion models only, whose answer hangs on it.
        runs: how many seeds are compared, the run itself among them.
    """
    photo, cell = restored.photo, _cell_side(restored.photo)
    before = shrunk(photo, None, cell)
    if restored.action == "unchanged":
        return Report(record=_record(restored, restorer, name, sha256, None, None, 1), before=before)
    pixels = restored.pixels
    white = np.float32(np.iinfo(pixels.dtype).max)

    def changed(top: int, height: int) -> Float32[np.ndarray, "h w"]:
        mu = photo.crop(top, 0, height, photo.width)
        return 255 * np.abs(pixels[top : top + height] / white - mu).mean(axis=2)

    change, spread = _difference(photo, cell, changed), None
    if again is None or restored.sampler is None:
        runs = 1
    else:
        others = [again(restored.seed + number).pixels for number in range(1, runs)]
        spread = _difference(photo, cell, _deviation([pixels, *others]))
    return Report(
        record=_record(restored, restorer, name, sha256, change, spread, runs),
        before=before,
        after=shrunk(photo, pixels, cell),
        change=change,
        spread=spread,
        places=_places(photo, pixels, change),
    )


def notes(restored: Restored, restorer: Restorer, *, sha256: str) -> dict[str, str]:
    """The short form for `image.with_notes`: a few words that a reader of the photo's XMP understands."""
    found, engine = restored.detection, restorer.engine
    written = {
        "Software": f"daclip {version('daclip')}",
        "Model": restorer.folder.name,
        "ModelSHA256": sha256,
        "Engine": f"{engine.name} {engine.precision}",
        "Detected": ", ".join(f"{word} {found.probability(word):.2f}" for word in found.found)
        if found
        else "",
        "Treated": ", ".join(f"{word} {strength:g}" for word, strength in restored.applied.items()),
        "Strength": f"{restored.strength:g}",
    }
    if restored.sampler is not None:
        written |= {
            "Sampler": f"{restored.sampler}, {restored.steps} steps",
            "Seed": str(restored.seed),
        }
    return written


def to_html(report: Report) -> str:
    """The page."""
    record = report.record
    title = f"Trust report: {record['input']}"
    parts = [f"<h1>{escape(title)}</h1>", f"<p>{escape(_sentence(record))}</p>", _pictures(report)]
    parts += [_found(record), _places_html(report.places), _settings(record)]
    # no tag inside the JSON may end or open an element
    data = json.dumps(record, ensure_ascii=False, indent=1).replace("<", "\\u003c")
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style></head>\n<body>\n{body}\n"
        f'<script type="application/json" id="report">{data}</script>\n</body>\n</html>\n'
    )


def _cell_side(photo: Photo) -> int:
    return -(-max(photo.width, photo.height) // _MAP_SIDE)


def _difference(photo: Photo, cell: int, measure: Measure) -> Difference:
    """A measure over the whole photo, by strips, so that no float copy of it exists."""
    counts = np.zeros(255 * _BINS_PER_LEVEL + 1, np.int64)
    bands: list[np.ndarray] = []
    for top, height in _strips(photo, cell):
        levels = measure(top, height)
        bands.append(_means(levels[:, :, None], cell)[:, :, 0])
        binned = np.rint(levels * _BINS_PER_LEVEL).astype(np.int64).clip(0, len(counts) - 1)
        counts += np.bincount(binned.ravel(), minlength=len(counts))
    return Difference(cells=np.concatenate(bands), cell_side=cell, **_summary(counts))


def _summary(counts: Int64[np.ndarray, "bins"]) -> dict[str, float]:
    levels = np.arange(len(counts)) / _BINS_PER_LEVEL
    total = int(counts.sum())
    return {
        "mean": float((levels * counts).sum() / total),
        "p99": float(levels[np.searchsorted(counts.cumsum(), 0.99 * total)]),
        "largest": float(levels[np.flatnonzero(counts)[-1]]),
        "part_seen": float(counts[levels > 2].sum() / total),
    }


def _deviation(runs: Sequence[Pixels]) -> Measure:
    """The standard deviation of each sample over the runs."""
    white = np.float32(np.iinfo(runs[0].dtype).max)

    def measure(top: int, height: int) -> Float32[np.ndarray, "h w"]:
        strips = np.stack([run[top : top + height] for run in runs]) / white
        return 255 * strips.std(axis=0, ddof=1).mean(axis=2)

    return measure


def _strips(photo: Photo, cell: int) -> list[tuple[int, int]]:
    """Top and height of strips of about a megapixel, whole cells each but for the last."""
    rows = cell * max(1, 1_000_000 // (photo.width * cell))
    return [(top, min(rows, photo.height - top)) for top in range(0, photo.height, rows)]


def _means(values: Float32[np.ndarray, "h w c"], side: int) -> Float32[np.ndarray, "rows columns c"]:
    """Means over squares; those at the right and lower edge hold what is left."""
    rows, columns = np.arange(0, values.shape[0], side), np.arange(0, values.shape[1], side)
    sums = np.add.reduceat(np.add.reduceat(values, rows, axis=0), columns, axis=1)
    heights = np.minimum(side, values.shape[0] - rows)[:, None, None]
    widths = np.minimum(side, values.shape[1] - columns)[:, None]
    return (sums / (heights * widths)).astype(np.float32)


def shrunk(photo: Photo, pixels: Pixels | None, cell: int) -> Picture:
    """The photo, or a result of it, with one pixel for each cell."""
    bands: list[np.ndarray] = []
    for top, height in _strips(photo, cell):
        if pixels is None:
            strip = photo.crop(top, 0, height, photo.width)
        else:
            strip = pixels[top : top + height] / np.float32(np.iinfo(pixels.dtype).max)
        bands.append(_means(strip, cell))
    return _eight_bits(np.concatenate(bands))


def _eight_bits(unit: Num[np.ndarray, "rows columns 3"]) -> Picture:
    return np.rint(255 * unit).clip(0, 255).astype(np.uint8)


def _places(photo: Photo, pixels: Pixels, change: Difference) -> list[Place]:
    """Where most has changed; none for a photo so small that the pictures above show each pixel."""
    if change.cell_side == 1:
        return []
    step = max(1, _PLACE_SIDE // change.cell_side)
    side = step * change.cell_side
    means = _means(change.cells[:, :, None], step)[:, :, 0]
    white = np.iinfo(pixels.dtype).max
    places: list[Place] = []
    for index in np.argsort(-means, axis=None, kind="stable")[:_PLACES]:
        row, column = divmod(int(index), means.shape[1])
        # the last square is moved in, so that all have one size
        top, left = (
            max(0, min(row * side, photo.height - side)),
            max(0, min(column * side, photo.width - side)),
        )
        height, width = min(side, photo.height), min(side, photo.width)
        after = pixels[top : top + height, left : left + width] / white
        before = photo.crop(top, left, height, width)
        places.append(Place(top=top, left=left, before=_eight_bits(before), after=_eight_bits(after)))
    return places


def _record(
    restored: Restored,
    restorer: Restorer,
    name: str,
    sha256: str,
    change: Difference | None,
    spread: Difference | None,
    runs: int,
) -> dict[str, Any]:
    found, engine = restored.detection, restorer.engine
    return {
        "schema": SCHEMA,
        "input": name,
        "reason": restored.reason,
        "format": restored.photo.format,
        "probabilities": {word: round(p, 4) for word, p in found.ranked()} if found else {},
        "strength": restored.strength,
        **restored.record(),
        "change": _figures(change),
        "seeds": None if spread is None else {"runs": runs, **(_figures(spread) or {})},
        "model": {
            "name": restorer.folder.name,
            "kind": restorer.folder.config.kind,
            "sha256": sha256,
        },
        "software": f"daclip {version('daclip')}",
        "engine": engine.name,
        "device": engine.device,
        "precision": engine.precision,
    }


def _figures(difference: Difference | None) -> dict[str, float] | None:
    """In levels of 1/255; `part_seen` is a part of the pixels."""
    if difference is None:
        return None
    return {
        "mean": round(difference.mean, 3),
        "p99": round(difference.p99, 2),
        "largest": round(difference.largest, 2),
        "part_seen": round(difference.part_seen, 4),
    }


def _sentence(record: Mapping[str, Any]) -> str:
    """The whole report in two lines."""
    if record["action"] == "unchanged":
        return f"Left as it was: {record['reason']}."
    treated = ", ".join(f"{one['name']} at strength {one['strength']:g}" for one in record["applied"])
    change = record["change"]
    told = (
        f"Treated: {treated}. {change['part_seen']:.0%} of the pixels changed by more than 2 of 255 levels; "
        f"the mean change is {change['mean']:.1f} levels, 99 of 100 pixels changed by less than "
        f"{change['p99']:.0f}."
    )
    if record["seeds"] is None:
        return f"{told} The model has one answer to a photo; no seed takes part in it."
    seeds = record["seeds"]
    return (
        f"{told} Over {seeds['runs']} seeds the answers differ by {seeds['mean']:.1f} levels (standard "
        "deviation): where the second map is bright, the detail was made up."
    )


def _pictures(report: Report) -> str:
    figures = [_figure(report.before, "before")]
    if report.after is not None:
        figures.append(_figure(report.after, "after"))
    if report.change is not None:
        figures.append(_heat(report.change, "how far each place changed"))
    if report.spread is not None:
        figures.append(_heat(report.spread, "how far the seeds differ"))
    return f"<div>{''.join(figures)}</div>"


def _heat(difference: Difference, caption: str) -> str:
    """The map in colours, and the scale under it."""
    top = max(4.0, float(np.ceil(np.percentile(difference.cells, 99.5))))
    stops = np.linspace(0, 1, len(_HEAT))
    unit = (difference.cells / top).clip(0, 1)
    colours = np.stack([np.interp(unit, stops, [one[band] for one in _HEAT]) for band in range(3)], axis=2)
    ramp = ", ".join(f"rgb{one}" for one in _HEAT)
    scale = (
        f'<span class="scale" style="background: linear-gradient(to right, {ramp})"></span>'
        f"0 to {top:g} of 255 levels"
    )
    return _figure(np.rint(colours).astype(np.uint8), caption, after=scale)


def _figure(pixels: Picture, caption: str, *, after: str = "") -> str:
    data = b64encode(image.to_bytes(image.from_array(pixels), pixels, format="webp", quality=92)).decode()
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/webp;base64,{data}">'
        f"<figcaption>{escape(caption)} {after}</figcaption></figure>"
    )


def _found(record: Mapping[str, Any]) -> str:
    if not record["probabilities"]:
        return ""
    detected = [one["name"] for one in record["detected"]]
    rows = "".join(
        f"<tr{' class=strong' if word in detected else ''}><td>{escape(word)}</td><td>{p:.2f}</td>"
        f'<td><span class="bar" style="width: {100 * p:.0f}px"></span></td></tr>'
        for word, p in record["probabilities"].items()
    )
    return f"<h2>What was detected</h2><table>{rows}</table>"


def _places_html(places: Sequence[Place]) -> str:
    if not places:
        return ""
    pairs = "".join(
        f"<div>{_figure(place.before, f'before, {place.left} across, {place.top} down')}"
        f"{_figure(place.after, 'after')}</div>"
        for place in places
    )
    return f"<h2>Where most has changed, at full size</h2>{pairs}"


def _settings(record: Mapping[str, Any]) -> str:
    model = record["model"]
    lines = {
        "photo": f"{record['width']} x {record['height']} pixels, {record['bits']} bits, {record['format']}",
        "model": f"{model['name']} ({model['kind']})",
        "sha256 of its weights": model["sha256"],
        "software": record["software"],
        "engine": f"{record['engine']} {record['precision']} on {record['device']}",
        "strength": f"{record['strength']:g}",
    }
    if record["sampler"]:
        lines["sampler"] = f"{record['sampler']}, {record['steps']} steps, seed {record['seed']}"
    if record["warnings"]:
        lines["warnings"] = "; ".join(record["warnings"])
    rows = "".join(f"<tr><td>{escape(key)}</td><td>{escape(text)}</td></tr>" for key, text in lines.items())
    return f"<h2>Settings</h2><table>{rows}</table>"


_MAP_SIDE = 480
_PLACE_SIDE = 224
_PLACES = 3
_BINS_PER_LEVEL = 8
_HEAT = ((0, 0, 4), (74, 18, 107), (182, 54, 85), (244, 133, 24), (252, 246, 170))

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
figure { display: inline-block; margin: 0.4rem; vertical-align: top; }
figcaption { font-size: 13px; color: #555; }
img { max-width: 100%; }
table { border-collapse: collapse; font-size: 14px; }
td { padding: 2px 10px; border-bottom: 1px solid #ddd; overflow-wrap: anywhere; }
tr.strong td { font-weight: 600; }
.bar { display: inline-block; height: 9px; background: #4a126b; }
.scale { display: inline-block; width: 90px; height: 9px; margin: 0 0.5em; }
""".strip()
