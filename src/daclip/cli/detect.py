"""`daclip detect IN...`: what is wrong with each photo, and how probable it is."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daclip.cli.answers import error_line
from daclip.cli.terminal import Terminal, engine_options, options
from daclip.errors import DaclipError, PhotoError, as_record

if TYPE_CHECKING:
    from daclip.detect import Detection

SCHEMA = "daclip.detect/1"


@click.command(name="detect", short_help="Say what is wrong with photos.")
@click.argument("inputs", nargs=-1, required=True, metavar="IN...")
@click.option("-r", "--recursive", is_flag=True, help="Folders with the folders inside them.")
@click.option("--model", default="compact", show_default=True, help="Bundled name, folder, or hub id.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="What counts as found; darkness needs 0.82 or more.",
)
@click.option("--views", type=click.Choice(["many", "centre"]), default="many", help="centre: as published.")
@engine_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object per photo.")
@click.option("--limit", type=click.IntRange(1), help="Only the first N photos.")
@click.option("--offline", is_flag=True, help="Never ask the hub.")
@options
def command(
    inputs: tuple[str, ...],
    recursive: bool,
    model: str,
    threshold: float,
    views: Any,
    device: str,
    engine: str,
    as_json: bool,
    limit: int | None,
    offline: bool,
    quiet: bool,
    verbose: int,
    color: str,
) -> int:
    """Say what is wrong with photos: photo.jpg, then each degradation found with its probability.

    IN are photos, folders, patterns, or - for stdin. With -v every word the model knows is shown.
    """
    terminal = Terminal(quiet=quiet, verbosity=verbose, color=color)
    from daclip import image, models
    from daclip.restore import Restorer

    photos = _sources(inputs, recursive=recursive)[:limit]
    restorer = Restorer(models.find(model, offline=offline), device=device, engine=engine)
    name = restorer.folder.name
    with terminal.progress(len(photos)) as progress:
        for source in photos:
            start = time.monotonic()
            try:
                photo = image.read(sys.stdin.buffer.read() if source is None else source)
                progress.update(source, photo.width * photo.height / 1e6, 0.0)
                found = restorer.detect(photo, threshold=threshold, views=views)
                seconds = time.monotonic() - start
                line = "\t".join([_name(source), *_words(found, every=terminal.verbosity > 0)])
                record = _record(source, found) | {"model": name, "seconds": round(seconds, 3), "error": None}
                terminal.result(json.dumps(record, ensure_ascii=False) if as_json else line)
            except PhotoError as error:
                terminal.fail(error_line(_name(source), error), error=error)
                if as_json:
                    terminal.result(json.dumps(_failure(source, error), ensure_ascii=False))
            progress.finish(source)
    return terminal.end(len(photos))


def _sources(inputs: tuple[str, ...], *, recursive: bool) -> list[Path | None]:
    """The photos; None for stdin."""
    from daclip import image

    named: list[str] = [name for name in inputs if name != "-"]
    photos: list[Path | None] = [*image.find_photos(named, recursive=recursive)]
    if "-" in inputs:
        photos.append(None)
    if not photos:
        raise PhotoError(
            "missing", inputs[0], "no photos in this folder", hint="-r looks into folders inside"
        )
    return photos


def _name(source: Path | None) -> str:
    return "stdin" if source is None else str(source)


def _words(found: "Detection", *, every: bool) -> Iterator[str]:
    """The words found with their probabilities, most likely first; the likeliest word where none was."""
    ranked = found.ranked()
    shown = ranked if every else [pair for pair in ranked if pair[0] in found.found] or ranked[:1]
    return (f"{name} {probability:.2f}" for name, probability in shown)


def _record(source: Path | None, found: "Detection") -> dict[str, Any]:
    probabilities = {name: round(probability, 4) for name, probability in found.ranked()}
    detected = [{"name": name, "probability": probabilities[name]} for name in found.found]
    return {"schema": SCHEMA, "input": _name(source), "detected": detected, "probabilities": probabilities}


def _failure(source: Path | None, error: DaclipError) -> dict[str, Any]:
    return {"schema": SCHEMA, "input": _name(source), "detected": None, "error": as_record(error)}
