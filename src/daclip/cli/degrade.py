"""`daclip degrade IN OUT`: make photos worse on purpose, to test or to train."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zlib import crc32

import click

from daclip.cli.terminal import Terminal, options

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
    help="Physical models, or the paper's protocol, which has one severity.",
)
@click.option("--record", type=click.Path(path_type=Path), help="JSON file for what was done.")
@click.option("-r", "--recursive", is_flag=True, help="Folders inside IN too.")
@click.option("--overwrite", is_flag=True, help="Replace files that are already there.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per photo on stdout.")
@options
def command(
    source: Path,
    target: Path,
    words: str | None,
    severity: float,
    seed: int,
    settings: Literal["wild", "paper"],
    record: Path | None,
    recursive: bool,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
    color: str,
) -> int:
    """Degrade the photo IN, or every photo of the folder IN, and write OUT.

    In a folder OUT the photos become PNG files of the same name, so that writing adds no damage of its own.

    \b
    daclip degrade photo.jpg rainy.png --as rainy,noisy --severity 0.6 --seed 3
    daclip degrade photos/ degraded/ --settings paper --as jpeg
    """
    from daclip.errors import PhotoError, UsageError
    from daclip.image import find_photos
    from daclip.vocabulary import degradations

    terminal = Terminal(quiet=quiet, verbosity=verbose, color=color)
    names = None if words is None else degradations(words)
    if names is None and settings == "paper":
        raise UsageError("the paper's protocol needs a degradation", hint="name one with --as")
    photos = find_photos([source], recursive=recursive)
    if not photos:
        raise PhotoError("missing", source, "no photos in this folder")
    done: list[dict[str, Any]] = []
    with terminal.progress(len(photos)) as progress:
        for path in photos:
            place, own_seed = _place(path, source, target), _seed(seed, path, source)
            try:
                photo, degraded = _degraded(path, names, severity=severity, seed=own_seed, settings=settings)
                output = _written(photo, degraded, place, overwrite=overwrite)
            except PhotoError as error:
                terminal.fail(f"{error.path or path}: {error}", error=error)
                continue
            finally:
                progress.finish(path)
            line = {"schema": "daclip.degrade/1", "input": str(path), "output": str(output)}
            done.append({**line, "record": degraded.record})
            terminal.result(json.dumps(done[-1]) if as_json else f"{output}\t{_told(degraded)}")
    if record is not None:
        record.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    return terminal.end(len(photos))


def _place(path: Path, source: Path, target: Path) -> Path:
    """Where the degraded photo goes: OUT itself, or a PNG of the same name in it, the tree mirrored."""
    if source.is_dir():
        return target / path.relative_to(source).with_suffix(".png")
    return target / f"{path.stem}.png" if target.is_dir() else target


def _seed(seed: int, path: Path, source: Path) -> list[int]:
    """The seed of one photo; in a folder each draws by its name, whatever else lies there."""
    return [seed, crc32(path.relative_to(source).as_posix().encode())] if source.is_dir() else [seed]


def _degraded(
    path: Path,
    names: tuple[str, ...] | None,
    *,
    severity: float,
    seed: list[int],
    settings: Literal["wild", "paper"],
) -> "tuple[Photo, Degraded]":
    """One photo read and degraded: as asked, or, without names, as chance has it."""
    import numpy as np

    from daclip.degradations import degrade, wild
    from daclip.image import read

    photo = read(path)
    pixels = photo.crop(0, 0, photo.height, photo.width)
    rng = np.random.default_rng(seed)
    if names is None:
        return photo, wild(pixels, rng, clean_share=0)
    return photo, degrade(pixels, names, severity=severity, rng=rng, settings=settings)


def _written(photo: "Photo", degraded: "Degraded", place: Path, *, overwrite: bool) -> Path:
    """Write the degraded pixels in the photo's depth, colours and bands, with its metadata."""
    import numpy as np

    from daclip.image import write

    white = 255 if photo.dtype == np.uint8 else 65535
    values = (degraded.pixels.astype(np.float64) * white + 0.5).astype(photo.dtype)
    place.parent.mkdir(parents=True, exist_ok=True)
    return write(photo, values, place, overwrite=overwrite)


def _told(degraded: "Degraded") -> str:
    """What was done, for people: each part with its severity."""
    return ", ".join(f"{part['name']} {part['severity']:.2f}" for part in degraded.record["parts"])
