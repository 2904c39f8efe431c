"""`daclip train PRESET`: train a part of a model; the same command again goes on where it stopped."""

import json
import os
from pathlib import Path
from typing import Any

import click

from daclip.cli.terminal import Terminal, options
from daclip.errors import DaclipError, UsageError, missing_extra


@click.command(name="train")
@click.argument("preset", required=False)
@click.argument("overrides", nargs=-1, metavar="[NAME=VALUE]...")
@click.option(
    "--data", metavar="SOURCE", help="Photos, pairs, caption file, shards or hf:owner/name; see docs/data.md."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Run folder [default: runs/PRESET].")
@click.option(
    "--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with the run in a folder."
)
@click.option("--fresh", is_flag=True, help="Start over, and remove what the old run wrote.")
@click.option("--dry-run", is_flag=True, help="Print the settings, and what they will take, and stop.")
@options
def command(
    preset: str | None,
    overrides: tuple[str, ...],
    data: str | None,
    output: Path | None,
    resume: Path | None,
    fresh: bool,
    dry_run: bool,
    quiet: bool,
    verbose: int,
    color: str,
) -> None:
    """Train PRESET, one of the paper's or a small one; without PRESET all are listed.

    The model is written to RUN/model, the best so far to RUN/best, figures to RUN/log.jsonl and to stdout.
    Killed and started again with the same command, a run goes on from its last checkpoint.

    \b
    daclip train compact-tiny encoder=compact-encoder --data photos/
    daclip train compact steps=40000 batch=16 --data photos/ -o runs/mine
    daclip train --resume runs/mine
    python -m torch.distributed.run --nproc-per-node 4 -m daclip train universal-ir --data datasets/universal
    """
    try:
        from dataclasses import asdict

        from daclip import train
    except ModuleNotFoundError as error:
        raise missing_extra(error, "training") from error
    terminal = Terminal(quiet=quiet, verbosity=verbose, color=color)
    if resume is not None:
        if preset or fresh:
            raise UsageError("--resume takes the settings of its folder", hint="leave PRESET and --fresh out")
        run, output = train.resumed(resume), resume
    elif preset is None:
        for name, make in train.PRESETS.items():
            terminal.result(f"{name:20} {(make.__doc__ or '').splitlines()[0]}")
        return
    else:
        if data is not None:
            overrides = (f"{'captions' if preset == 'compact-backbone' else 'data'}={data}", *overrides)
        run = train.preset(preset, overrides)
    if dry_run:
        terminal.result(json.dumps({"preset": preset or "", **asdict(run)}))
    if os.environ.get("RANK", "0") == "0":
        try:
            terminal.note(train.estimate(run).line())
        except DaclipError as error:
            if not dry_run:
                raise
            terminal.warning(f"no estimate: {error}")
    if dry_run:
        return

    def log(figures: dict[str, Any]) -> None:
        terminal.result(json.dumps(figures))

    def on_progress(what: str, done: int, total: int) -> None:
        if done % 640 == 0:
            terminal.note(f"{what}: {done} of {total}")

    model = train.train(
        run, output or Path("runs") / str(preset), log=log, on_progress=on_progress, fresh=fresh
    )
    terminal.note(f"the model is in {model}")
