"""`daclip train PRESET`: train a part of a model; the same command again goes on where it stopped."""

import json
from pathlib import Path
from typing import Any

import click

from daclip.cli.terminal import Terminal, options
from daclip.errors import missing_extra


@click.command(name="train")
@click.argument("preset")
@click.argument("overrides", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--data", metavar="PATH", help="Folder of clean photos; for the backbone the captions file.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Run folder [default: runs/PRESET].")
@click.option("--fresh", is_flag=True, help="Start over instead of going on.")
@click.option("--dry-run", is_flag=True, help="Print the settings and stop.")
@options
def command(
    preset: str,
    overrides: tuple[str, ...],
    data: str | None,
    output: Path | None,
    fresh: bool,
    dry_run: bool,
    quiet: bool,
    verbose: int,
    color: str,
) -> None:
    r"""Train PRESET: compact-backbone, compact-controller, compact, or compact-tiny.

    The model is written to RUN/model, the figures to RUN/log.jsonl and to stdout. Killed and started again
    with the same command, a run goes on from its last checkpoint.

    \b
    daclip train compact-tiny encoder=compact-encoder --data photos/
    daclip train compact steps=40000 batch=16 --data photos/ -o runs/mine
    """
    try:
        from dataclasses import asdict

        from daclip import train
    except ModuleNotFoundError as error:
        raise missing_extra(error, "training") from error
    terminal = Terminal(quiet=quiet, verbosity=verbose, color=color)
    if data is not None:
        overrides = (f"{'captions' if preset == 'compact-backbone' else 'data'}={data}", *overrides)
    run = train.preset(preset, overrides)
    if dry_run:
        terminal.result(json.dumps({"preset": preset, **asdict(run)}))
        return

    def log(figures: dict[str, Any]) -> None:
        terminal.result(json.dumps(figures))

    def on_progress(what: str, done: int, total: int) -> None:
        if done % 640 == 0:
            terminal.note(f"{what}: {done} of {total}")

    model = train.train(run, output or Path("runs") / preset, log=log, on_progress=on_progress, fresh=fresh)
    terminal.note(f"the model is in {model}")
