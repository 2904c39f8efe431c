"""`daclip score RESTORED CLEAN`: how near results made elsewhere are to the clean photos."""

import json
import math
import shlex
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daclip.cli.answers import error_line
from daclip.cli.evaluate import given
from daclip.cli.terminal import Terminal, options
from daclip.errors import DataError, PhotoError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from daclip.evaluate import Caption, Measurement, Metrics, Row

SCHEMA = "daclip.score/1"


@click.command(name="score", short_help="Measure results against clean photos.")
@click.argument("restored", type=click.Path(path_type=Path))
@click.argument("clean", type=click.Path(path_type=Path))
@click.option("--metrics", "metric_names", default="psnr,ssim", show_default=True, help="Also: lpips, fid.")
@click.option(
    "--metric-weights", type=click.Path(path_type=Path), help="Folder with the weights of LPIPS and FID."
)
@click.option(
    "--protocol",
    type=click.Choice(["rgb", "rgb-crop4", "y", "y-crop4"]),
    default="rgb",
    show_default=True,
    help="Channels and border of PSNR and SSIM; rgb-crop4: as published.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per photo, then the mean.")
@options
def command(
    restored: Path,
    clean: Path,
    metric_names: str,
    metric_weights: Path | None,
    protocol: str,
    as_json: bool,
    quiet: bool,
    verbose: int,
    color: str,
) -> int:
    """Measure the photo RESTORED against CLEAN, or each photo of one folder against that of its name.

    Suffixes may differ, and photo.restored.jpg belongs to photo.jpg. The mean stands
    below, with its 95 % interval, then where the figures are from. A photo equal to its clean one has no PSNR
    and is left out of that mean. FID is of the whole folder.

    \b
    daclip score result.png clean.png
    daclip score results/ clean/ --protocol rgb-crop4
    """
    terminal = Terminal(quiet=quiet, verbosity=verbose, color=color)
    from daclip import evaluate, image

    asked = [name.strip() for name in metric_names.split(",") if name.strip()]
    metrics, left_out = evaluate.load_metrics(asked, protocol=protocol, weights=metric_weights)
    for line in left_out:
        terminal.warning(line)
    start = time.monotonic()
    pairs = _pairs(restored, clean, terminal)
    scored: list[Measurement] = []
    features: dict[tuple[str, str], Any] = {}
    with terminal.progress(len(pairs)) as progress:
        for path, truth in pairs:
            try:
                if truth is None:
                    raise DataError(f"no photo {_stem(path)}.* in {clean}", hint="a truth is needed")
                own, other = (image.read(one) for one in (path, truth))
                mine, true = (one.crop_8bit(0, 0, one.height, one.width) for one in (own, other))
                figures = evaluate.scores(mine, true, metrics.functions)
                scored.append(_measurement(str(path), figures, protocol))
                if metrics.features is not None:
                    features[_METHOD, str(path)] = metrics.features(mine)
                    features["truth", str(path)] = metrics.features(true)
                terminal.result(_line(str(path), figures, protocol, as_json=as_json))
            except (PhotoError, DataError) as error:
                terminal.fail(error_line(str(path), error), error=error)
            progress.finish(path)
    if equal := sum(not math.isfinite(one.after.get("psnr", 0)) for one in scored):
        terminal.note(f"{equal} of {len(scored)} photos equal their clean ones and have no PSNR")
    if metrics.features is not None and len(scored) < 2:
        terminal.warning("no fid: it compares two photos and more")
    caption = _caption(restored, clean, pairs, metrics, seconds=time.monotonic() - start)
    if len(scored) > 1:
        row = evaluate.summarise(scored, features)[0]
        terminal.result(_mean_record(row, caption) if as_json else _mean_line(row))
    if scored and not as_json:
        terminal.result("\n".join(caption.lines()))
    return terminal.end(len(pairs))


def _pairs(restored: Path, clean: Path, terminal: Terminal) -> list[tuple[Path, Path | None]]:
    """Each restored photo with its clean one, None where there is none; what is no photo is named."""
    from daclip import image

    if restored.is_dir() != clean.is_dir():
        raise UsageError(f"{restored} and {clean} are a folder and a file", hint="give two of a kind")
    if not restored.is_dir():
        return [(restored, clean)]
    # by suffix and not by `find_photos`, which passes over photo.restored.jpg
    truths = {_stem(path): path for path in _files(clean) if image.is_photo(path)}
    found = _files(restored)
    photos = [path for path in found if image.is_photo(path)]
    if not photos:
        raise PhotoError("missing", restored, "no photos in this folder")
    if others := [path.name for path in found if path not in photos]:
        terminal.note(f"no photos and left out: {', '.join(others)}")
    return [(path, truths.get(_stem(path))) for path in photos]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _stem(path: Path) -> str:
    return path.stem.removesuffix(".restored")


_METHOD = "restored"


def _measurement(photo: str, figures: "Mapping[str, float]", protocol: str) -> "Measurement":
    """One photo as `daclip evaluate` has it, so that both take their means alike."""
    from daclip.evaluate import Measurement

    return Measurement(
        method=_METHOD,
        degradation="unknown",
        photo=photo,
        protocol=protocol,
        before=figures,
        after=figures,
        is_unchanged=False,
        seconds=0.0,
    )


def _caption(
    restored: Path,
    clean: Path,
    pairs: "Sequence[tuple[Path, Path | None]]",
    metrics: "Metrics",
    *,
    seconds: float,
) -> "Caption":
    from daclip import evaluate

    files = [(word, path) for pair in pairs for word, path in zip(("restored", "clean"), pair, strict=True)]
    return evaluate.Caption(
        protocol=metrics.protocol,
        data=f"{restored} against {clean}",
        data_sha256=evaluate.files_sha256((word, path) for word, path in files if path is not None),
        weights={},
        metric_weights=metrics.weights,
        command=shlex.join(given("score", leave_out=("as_json",))),
        version=version("daclip"),
        seconds=round(seconds, 1),
        peak_mb=evaluate.peak_megabytes(),
    )


def _mean_record(row: "Row", caption: "Caption") -> str:
    """The mean as a JSON object, with its intervals and where it is from."""
    intervals = {name: interval for name, interval in row.intervals.items() if name in row.after}
    mean = {"schema": SCHEMA, "photo": None, "mean_of": row.photos, **row.after, "intervals": intervals}
    return json.dumps(mean | asdict(caption), ensure_ascii=False)


def _mean_line(row: "Row") -> str:
    told: list[str] = []
    for name, value in row.after.items():
        interval = row.intervals.get(name)
        between = "" if interval is None else f" ({' to '.join(_figure(name, end) for end in interval)})"
        told.append(f"{name} {_figure(name, value)}{between}")
    return "\t".join([f"mean of {row.photos} ({row.protocol})", *told])


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if name in ("psnr", "fid") else f"{value:.4f}"


def _line(name: str, figures: dict[str, float], protocol: str, *, as_json: bool) -> str:
    if as_json:
        known = {key: value if math.isfinite(value) else None for key, value in figures.items()}
        return json.dumps(
            {"schema": SCHEMA, "photo": name, "protocol": protocol, **known}, ensure_ascii=False
        )
    return "\t".join([name, *(f"{key} {_figure(key, value)}" for key, value in figures.items())])
