"""`daclip degrade IN OUT`: damage clean photos on purpose, by the words of the paper."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zlib import crc32

import click

if TYPE_CHECKING:
    from daclip.degradations import Degraded
    from daclip.image import Photo


@click.command(name="degrade")
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--as", "words", metavar="NAMES", help="Comma list, in order of application [default: drawn].")
@click.option("--severity", type=click.FloatRange(0, 1), default=0.6, show_default=True, help="0 to 1.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Same seed, same pixels.")
@click.option(
    "--settings",
    type=click.Choice(["wild", "paper"]),
    default="wild",
    show_default=True,
    help="Physical models, or the paper's protocol (which has one severity).",
)
@click.option("--record", "record_file", type=click.Path(path_type=Path), help="JSON file for what was done.")
@click.option("-r", "--recursive", is_flag=True, help="Folders inside IN too.")
@click.option("--overwrite", is_flag=True, help="Replace files that are already there.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per photo on stdout.")
def command(
    source: Path,
    target: Path,
    words: str | None,
    severity: float,
    seed: int,
    settings: Literal["wild", "paper"],
    record_file: Path | None,
    recursive: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    r"""Degrade the photo IN, or every photo of the folder IN, and write OUT.

    In a folder OUT the photos become PNG files of the same name, so that writing adds no damage of its own.

    \b
    daclip degrade photo.jpg rainy.png --as rainy,noisy --severity 0.6 --seed 3
    daclip degrade photos/ degraded/ --settings paper --as jpeg
    """
    from daclip.errors import PhotoError, UsageError
    from daclip.image import find_photos
    from daclip.vocabulary import degradations as named

    names = None if words is None else named(words)
    if names is None and settings == "paper":
        raise UsageError("the paper's protocol needs a degradation", hint="name one with --as")
    photos = find_photos([source], recursive=recursive)
    if not photos:
        raise PhotoError("missing", source, "no photos in this folder")
    done: list[dict[str, Any]] = []
    failed: list[str] = []
    for path in photos:
        # in a folder each photo draws for itself, whatever else lies there
        own = (crc32(path.relative_to(source).as_posix().encode()),) if source.is_dir() else ()
        try:
            done.append(
                _degrade_file(
                    path,
                    _place(path, source, target),
                    names,
                    severity=severity,
                    seed=(seed, *own),
                    settings=settings,
                    overwrite=overwrite,
                )
            )
        except PhotoError as error:
            failed.append(f"{error.path or path}: {error}")
            click.echo(f"error: {failed[-1]}", err=True)
            continue
        click.echo(json.dumps(done[-1]) if as_json else f"{done[-1]['output']}\t{_told(done[-1])}")
    if record_file is not None:
        record_file.write_text(json.dumps(done if source.is_dir() else done[-1:], indent=1) + "\n", "utf-8")
    if failed and len(photos) > 1:
        click.echo("\n".join([f"{len(failed)} of {len(photos)} failed:", *failed]), err=True)
    if failed:
        sys.exit(1)


def _place(path: Path, source: Path, target: Path) -> Path:
    """Where the degraded photo goes: OUT itself, or a PNG of the same name in it, the tree mirrored."""
    if source.is_dir():
        return target / path.relative_to(source).with_suffix(".png")
    return target / f"{path.stem}.png" if target.is_dir() else target


def _degrade_file(
    path: Path,
    place: Path,
    names: tuple[str, ...] | None,
    *,
    severity: float,
    seed: tuple[int, ...],
    settings: Literal["wild", "paper"],
    overwrite: bool,
) -> dict[str, Any]:
    """Read, degrade (by chance where no names are given) and write one photo; what was done, for JSON."""
    from daclip.errors import missing_extra

    try:
        from daclip import degradations
    except ModuleNotFoundError as error:
        raise missing_extra(error, "degrading photos") from error
    import numpy as np

    from daclip.image import read

    photo = read(path)
    pixels = photo.crop(0, 0, photo.height, photo.width)
    rng = np.random.default_rng(seed)
    if names is None:
        degraded = degradations.wild(pixels, rng, clean_share=0)
    else:
        degraded = degradations.degrade(pixels, names, severity=severity, rng=rng, settings=settings)
    output = _written(photo, degraded, place, overwrite=overwrite)
    return {
        "schema": "daclip.degrade/1",
        "input": str(path),
        "output": str(output),
        "record": degraded.record,
    }


def _written(photo: "Photo", degraded: "Degraded", place: Path, *, overwrite: bool) -> Path:
    """Write the degraded pixels as the photo they were made from."""
    import numpy as np

    from daclip.image import write

    white = 255 if photo.dtype == np.uint8 else 65535
    values = (degraded.pixels.astype(np.float64) * white + 0.5).astype(photo.dtype)
    place.parent.mkdir(parents=True, exist_ok=True)
    return write(photo, values, place, overwrite=overwrite)


def _told(line: dict[str, Any]) -> str:
    """What was done, for people: each part with its severity."""
    parts = line["record"]["parts"]
    return ", ".join(f"{part['name']} {part['severity']:.2f}" for part in parts)
