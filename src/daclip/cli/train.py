"""`daclip train PRESET`: train a part of a model; the same command again goes on where it stopped."""

import json
import sys
from pathlib import Path

import click


@click.command(name="train")
@click.argument("preset")
@click.argument("overrides", nargs=-1, metavar="[NAME=VALUE]...")
@click.option(
    "--data", type=click.Path(path_type=Path), help="Folder of clean photos (or the captions file)."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Run folder [default: runs/PRESET].")
@click.option("--dry-run", is_flag=True, help="Print the settings and stop.")
def command(
    preset: str, overrides: tuple[str, ...], data: Path | None, output: Path | None, dry_run: bool
) -> None:
    """Train PRESET: compact-backbone, compact-controller, compact, or compact-tiny.

    Settings are changed by NAME=VALUE, for example steps=2000 batch=16. Killed and started again with the same
    command, a run goes on from its last checkpoint.
    """
    from daclip.errors import missing_extra

    try:
        from daclip.train import run_named
    except ModuleNotFoundError as error:
        raise missing_extra(error, "training") from error

    def log(figures: dict[str, object]) -> None:
        click.echo(json.dumps(figures))
        sys.stdout.flush()

    def progress(what: str, done: int, total: int) -> None:
        if done % 640 == 0:
            click.echo(f"{what} {done}/{total}", err=True)

    run_named(
        preset,
        overrides,
        data=data,
        folder=output or Path("runs") / preset,
        dry_run=dry_run,
        log=log,
        on_progress=progress,
    )
