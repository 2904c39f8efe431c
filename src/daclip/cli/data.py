"""`daclip data check|make|shard`: data sets to train on, looked over, made and packed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from daclip.cli.terminal import Terminal, options
from daclip.errors import missing_extra

if TYPE_CHECKING:
    from daclip.data_check import Report

SCHEMA = "daclip.data/1"
SHOWN = 20
"""Findings of one kind and place that are printed; --json has them all."""


@click.group(name="data", short_help="Check, make and pack data sets to train on.")
def command() -> None:
    """Check, make and pack data sets to train on."""


def workers_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flag --workers."""
    return click.option(
        "--workers",
        "-j",
        type=click.IntRange(1),
        default=os.cpu_count() or 1,
        show_default="cores",
        help="Processes.",
    )(command)


@command.command()
@click.argument("root", type=click.Path(path_type=Path))
@click.option(
    "--distance", type=click.IntRange(0, 64), default=6, show_default=True, help="Of leaks, in bits."
)
@click.option("--strict", is_flag=True, help="Warnings count as errors.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@workers_option
@options
def check(
    root: Path,
    distance: int,
    strict: bool,
    as_json: bool,
    workers: int,
    quiet: bool,
    verbose: int,
    color: str,
) -> int:
    """Look at every photo of ROOT/{train,val}/<degradation>/{LQ,GT}; exit code 1 when something is wrong.

    Errors: photos without a partner, of unequal size or unreadable, clean photos of train in val. Warnings:
    the same photo twice, a single degradation, words the published weights do not know.
    """
    try:
        from daclip import data_check
    except ModuleNotFoundError as error:
        raise missing_extra(error, "`daclip data check`") from error
    terminal = Terminal(quiet=quiet, verbosity=verbose, color=color)
    with terminal.progress(0) as progress:
        report = data_check.check(root, distance=distance, workers=workers, on_progress=progress.count)
    if as_json:
        terminal.result(json.dumps(_record(report), ensure_ascii=False))
    else:
        _tell(report, terminal, everything=bool(verbose))
    return 1 if report.errors or (strict and report.findings) else 0


@command.command()
@click.argument("root", type=click.Path(path_type=Path))
@click.option("--photos", type=click.Path(path_type=Path), help="Folder of clean photos: a synthetic set.")
@click.option("--raw", type=click.Path(path_type=Path), help="Folder of downloads: the paper's set.")
@click.option(
    "--as",
    "words",
    metavar="NAMES",
    help='Comma list, also "clean", and "wild-ir": its random degradation [default: the ten].',
)
@click.option(
    "--settings",
    type=click.Choice(["wild", "paper"]),
    help="Physical models, or the paper's protocol [default: wild for --photos, paper for --raw].",
)
@click.option(
    "--severity",
    type=(click.FloatRange(0, 1), click.FloatRange(0, 1)),
    metavar="LOW HIGH",
    help="Range of the wild settings [default: 0.12 1].",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Same seed, same pixels.")
@click.option(
    "--held-out", type=click.IntRange(2), default=20, show_default=True, help="One photo in N is val."
)
@click.option("--dry-run", is_flag=True, help="Say what would be made, and what is missing.")
@workers_option
@options
def make(
    root: Path,
    photos: Path | None,
    raw: Path | None,
    words: str | None,
    settings: Literal["wild", "paper"] | None,
    severity: tuple[float, float] | None,
    seed: int,
    held_out: int,
    dry_run: bool,
    workers: int,
    quiet: bool,
    verbose: int,
    color: str,
) -> int:
    """Make the data set ROOT/{train,val}/<degradation>/{LQ,GT}, of photos or of raw downloads.

    The same command again goes on where it was stopped. Clean photos are hard links where that is possible.

    \b
    daclip data make sets/mine --photos photos/
    daclip data make sets/universal --raw downloads/
    """
    from daclip.errors import UsageError
    from daclip.vocabulary import CLEAN, DEGRADATIONS, WILD_IR, degradations

    if (photos is None) == (raw is None):
        raise UsageError("name either --photos or --raw")
    try:
        from daclip import data_make
        from daclip.degradations import SEVERITIES
    except ModuleNotFoundError as error:
        raise missing_extra(error, "`daclip data make`") from error
    terminal = Terminal(quiet=quiet, verbosity=verbose, color=color)
    names = degradations(words, known=(*DEGRADATIONS, CLEAN, WILD_IR)) if words else DEGRADATIONS
    problems: list[str] = []
    if photos is not None:
        items = data_make.synthetic.plan(photos, words=names, held_out=held_out)
    else:
        assert raw is not None
        plan = data_make.raw.plan(raw, words=names)
        items, problems = plan.items, plan.problems
    if dry_run:
        terminal.result(f"{root}\t{len(items):,} pairs")
    else:
        recipe = data_make.Recipe(
            settings=settings or ("wild" if photos else "paper"), severity=severity or SEVERITIES, seed=seed
        )
        with terminal.progress(len(items)) as progress:
            built = data_make.build(items, root, recipe, workers=workers, on_progress=progress.count)
        terminal.result(f"{root}\t{built.made:,} pairs made\t{built.kept:,} were there")
        problems += built.failed
    for problem in problems:
        terminal.fail(problem)
    return 1 if problems else 0


@command.command()
@click.argument("source", metavar="ROOT")
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--size", type=click.IntRange(1), default=256, show_default=True, help="Of a shard, in MiB.")
@click.option("--overwrite", is_flag=True, help="Replace shards that are already there.")
@options
def shard(
    source: str, output: Path, size: int, overwrite: bool, quiet: bool, verbose: int, color: str
) -> None:
    """Write the data set ROOT as WebDataset shards OUT/train-000000.tar, OUT/val-000000.tar, ...

    ROOT is anything `daclip train --data` takes. The same data gives the same bytes.
    """
    try:
        from daclip import data_make
    except ModuleNotFoundError as error:
        raise missing_extra(error, "`daclip data shard`") from error
    terminal = Terminal(quiet=quiet, verbosity=verbose, color=color)
    splits: tuple[Literal["train", "val"], ...] = ("train", "val")
    for split in splits:
        with terminal.progress(0) as progress:
            written = data_make.shard(
                source,
                output,
                split=split,
                shard_bytes=size * 2**20,
                overwrite=overwrite,
                on_progress=progress.count,
            )
        for path in written:
            terminal.result(f"{path}\t{path.stat().st_size / 1e6:.1f} MB")


# ---- the answer of `check`


def _record(report: "Report") -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "root": str(report.root),
        "classes": [vars(each) for each in report.classes],
        "findings": [
            {
                "kind": finding.kind,
                "level": "error" if finding.is_error else "warning",
                "where": finding.where,
                "message": finding.message,
            }
            for finding in report.findings
        ],
        "errors": len(report.errors),
        "warnings": len(report.findings) - len(report.errors),
    }


def _tell(report: "Report", terminal: Terminal, *, everything: bool) -> None:
    """The table of classes on stdout, the findings on stderr."""
    rows = [("SPLIT", "DEGRADATION", "PAIRS", "PAPER", "ERRORS", "WARNINGS")]
    rows += [
        (
            each.split or "-",
            each.word,
            f"{each.pairs:,}",
            f"{each.paper:,}" if each.paper else "-",
            str(each.errors),
            str(each.warnings),
        )
        for each in report.classes
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        terminal.result("  ".join(cells).rstrip())
    shown: dict[str, int] = {}
    for finding in report.findings:
        shown[finding.kind] = shown.get(finding.kind, 0) + 1
        if everything or shown[finding.kind] <= SHOWN:
            say = terminal.fail if finding.is_error else terminal.warning
            say(f"{finding.where}: {finding.message}")
    for kind, count in shown.items():
        if count > SHOWN and not everything:
            terminal.note(f"{count - SHOWN:,} more of the kind {kind}; -v shows all")
