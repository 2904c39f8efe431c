"""`daclip models list|info|convert`: the models at hand, one of them in full, published files made ours."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daclip.errors import missing_extra

if TYPE_CHECKING:
    from daclip.models import Description, ModelFolder


@click.group(name="models", short_help="List, describe and convert models.")
def command() -> None:
    """List, describe and convert models."""


@command.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per model.")
def list_(as_json: bool) -> None:
    """Models in this package and in the cache of the hub: name, kind, size, licence, where from."""
    from daclip import models

    folders = [*models.bundled(), *models.cached()]
    rows = [(folder, models.describe(folder)) for folder in folders]
    if as_json:
        for folder, described in rows:
            click.echo(json.dumps(_record(folder, described)))
        return
    table = [
        (folder.name, folder.config.kind, _megabytes(described), described.licence, folder.source)
        for folder, described in rows
    ]
    for line in _aligned([("NAME", "KIND", "SIZE", "LICENCE", "FROM"), *table]):
        click.echo(line)
    if not rows:
        click.echo("no models here; --model takes a folder or a hub id owner/name", err=True)


@command.command()
@click.argument("name")
@click.option("--offline", is_flag=True, help="Never ask the hub.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def info(name: str, offline: bool, as_json: bool) -> None:
    """The card, the hash and the settings of the model NAME: a bundled name, a folder or a hub id."""
    from daclip import models

    folder = models.find(name, offline=offline)
    described = models.describe(folder)
    if as_json:
        config = asdict(folder.config) | {"texts": list(folder.texts.names)}
        click.echo(json.dumps(_record(folder, described) | {"config": config, "card": described.card}))
        return
    facts = {
        "name": folder.name,
        "folder": str(folder.path),
        "from": folder.source,
        "kind": folder.config.kind,
        "encoder": str(folder.encoder_path),
        **({"goes on from": str(folder.initial)} if folder.initial else {}),
        "words": ", ".join(folder.texts.names),
        "runs without torch": "yes" if folder.is_exported else "no, `daclip export` writes the graphs",
        "size": _megabytes(described),
        "licence": described.licence,
        "sha256": described.weights_sha256,
    }
    for line in _aligned([(fact + ":", value) for fact, value in facts.items()]):
        click.echo(line)
    if described.card:
        click.echo("\n" + described.card.rstrip())


@command.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--push", metavar="OWNER/NAME", help="Also upload the folder to the hub, with HF_TOKEN.")
@click.option("-v", "--verbose", count=True, expose_value=False, help="Name every weight that does not fit.")
def convert(files: tuple[Path, ...], output: Path, push: str | None) -> None:
    """Make a model folder of published FILEs: a controller (daclip_*.pt) and its restorer (*.pth)."""
    try:
        from daclip import checkpoints
    except ModuleNotFoundError as error:
        raise missing_extra(error, "`daclip models convert`") from error

    folder = checkpoints.convert(files, output)
    click.echo(str(folder))
    if push:
        click.echo(checkpoints.push_to_hub(folder, push))


def _record(folder: "ModelFolder", described: "Description") -> dict[str, Any]:
    return {
        "schema": "daclip.models/1",
        "name": folder.name,
        "kind": folder.config.kind,
        "from": folder.source,
        "folder": str(folder.path),
        "size_bytes": described.size_bytes,
        "licence": described.licence,
        "sha256": described.weights_sha256,
    }


def _megabytes(described: "Description") -> str:
    return f"{described.size_bytes / 1e6:.1f} MB"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
