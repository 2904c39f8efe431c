"""`daclip score RESTORED CLEAN`: how near results made elsewhere are to the clean photos."""

import json
import math
from pathlib import Path
from statistics import fmean

import click

from daclip.cli.answers import error_line
from daclip.cli.terminal import Terminal, options
from daclip.errors import DataError, PhotoError, UsageError

SCHEMA = "daclip.score/1"


@click.command(name="score", short_help="Measure results against clean photos.")
@click.argument("restored", type=click.Path(path_type=Path))
@click.argument("clean", type=click.Path(path_type=Path))
@click.option("--metrics", "metric_names", default="psnr,ssim", show_default=True, help="Also: lpips.")
@click.option("--metric-weights", type=click.Path(path_type=Path), help="Folder with the weights of LPIPS.")
@click.option(
    "--protocol",
    type=click.Choice(["rgb", "rgb-crop4", "y", "y-crop4"]),
    default="rgb",
    show_default=True,
    help="Channels and border of PSNR and SSIM; rgb-crop4: as published.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per photo.")
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

    Suffixes may differ, and photo.restored.jpg belongs to photo.jpg. The last line is the mean.

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
    pairs = _pairs(restored, clean)
    scored: list[dict[str, float]] = []
    with terminal.progress(len(pairs)) as progress:
        for path, truth in pairs:
            try:
                if truth is None:
                    raise DataError(f"no photo {_stem(path)}.* in {clean}", hint="a truth is needed")
                own, other = (image.read(one) for one in (path, truth))
                figures = evaluate.scores(
                    own.crop_8bit(0, 0, own.height, own.width),
                    other.crop_8bit(0, 0, other.height, other.width),
                    metrics.functions,
                )
                scored.append(figures)
                terminal.result(_line(str(path), figures, protocol, as_json=as_json))
            except (PhotoError, DataError) as error:
                terminal.fail(error_line(str(path), error), error=error)
            progress.finish(path)
    if len(scored) > 1 and not as_json:
        mean = {name: fmean(figures[name] for figures in scored) for name in scored[0]}
        terminal.result(_line(f"mean of {len(scored)} ({protocol})", mean, protocol, as_json=False))
    return terminal.end(len(pairs))


def _pairs(restored: Path, clean: Path) -> list[tuple[Path, Path | None]]:
    """Each restored photo with its clean one, None where there is none."""
    if restored.is_dir() != clean.is_dir():
        raise UsageError(f"{restored} and {clean} are a folder and a file", hint="give two of a kind")
    if not restored.is_dir():
        return [(restored, clean)]
    # by suffix and not by `find_photos`, which passes over photo.restored.jpg
    truths = {_stem(path): path for path in _files(clean)}
    return [(path, truths.get(_stem(path))) for path in _files(restored)]


def _files(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if not found:
        raise PhotoError("missing", folder, "no photos in this folder")
    return found


def _stem(path: Path) -> str:
    return path.stem.removesuffix(".restored")


def _line(name: str, figures: dict[str, float], protocol: str, *, as_json: bool) -> str:
    if as_json:
        known = {key: value if math.isfinite(value) else None for key, value in figures.items()}
        return json.dumps(
            {"schema": SCHEMA, "photo": name, "protocol": protocol, **known}, ensure_ascii=False
        )
    told = (f"{key} {value:.2f}" if key == "psnr" else f"{key} {value:.4f}" for key, value in figures.items())
    return "\t".join([name, *told])
