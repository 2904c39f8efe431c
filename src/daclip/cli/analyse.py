"""`daclip analyse`: why it works, as the paper's discussion asks."""

import itertools
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from daclip.cli.evaluate import given
from daclip.cli.terminal import Terminal, engine_options, options
from daclip.errors import UsageError

if TYPE_CHECKING:
    from daclip.evaluate import Caption
    from daclip.evaluate.analysis import Study, Subject

HELP = """Study a model, and finished runs RUN..., as the paper's discussion does; print a page in Markdown.

RUN is a folder of `daclip train`, for its curves, or the --output folder of `daclip evaluate`, for tables,
bars, radar plots and confusion matrices of what it has measured; several of a kind are compared.

With --output each study goes into that page, in the place of its last version, and its figures into a
folder of the page's name.

\b
daclip analyse --photos photos/ --limit 4 --output analysis.md
daclip analyse --photos photos/ --studies contexts,words
daclip analyse runs/compact runs/compact-controller --output curves.md
daclip analyse runs/evaluate-rain runs/evaluate-haze --output analysis.md
daclip analyse --captions captions.csv --backbone runs/compact-backbone/model
"""

STUDIES = (
    "contexts",
    "words",
    "embeddings",
    "retrieval",
    "severities",
    "mixtures",
    "samplers",
    "results",
    "curves",
)


@click.command(name="analyse", short_help="Show what contexts, words and samplers are worth.", help=HELP)
@click.argument("runs", metavar="[RUN]...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--model", default="compact", show_default=True, help="Name, folder or hub id.")
@click.option("--photos", type=click.Path(path_type=Path), help="Clean photos, degraded on the fly.")
@click.option(
    "--captions", type=click.Path(path_type=Path), help="CSV with the columns file, split, caption1, ..."
)
@click.option("--backbone", help="Model with the text tower for --captions, if --model has none.")
@click.option("--studies", metavar="NAMES", help=f"Of {', '.join(STUDIES)}  [default: all that can be done]")
@click.option(
    "--limit", type=click.IntRange(1), default=8, show_default=True, help="Photos of each degradation."
)
@click.option("--severity", type=click.FloatRange(0, 1), default=0.7, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--metric-weights",
    type=click.Path(path_type=Path),
    help="Folder with the weights of LPIPS, for samplers.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Markdown file; its figures go beside it.")
@engine_options
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16", "int8"]), default="auto")
@options
def command(
    runs: tuple[Path, ...],
    model: str,
    photos: Path | None,
    captions: Path | None,
    backbone: str | None,
    studies: str | None,
    limit: int,
    severity: float,
    seed: int,
    metric_weights: Path | None,
    output: Path | None,
    device: str,
    engine: str,
    precision: str,
    quiet: bool,
    verbose: int,
    color: str,
) -> int:
    """What HELP says; here are only words: the subject, the studies, the page."""
    terminal = Terminal(quiet=quiet, verbosity=verbose, color=color)
    if not (runs or photos or captions):
        raise UsageError("nothing to study", hint="name --photos, --captions or folders of runs")
    asked = None if studies is None else [name.strip() for name in studies.split(",") if name.strip()]
    if unknown := sorted(set(asked or ()) - set(STUDIES)):
        raise UsageError(f'no study "{unknown[0]}"', hint=f"known: {', '.join(STUDIES)}")
    if output is not None and (output.is_dir() or not output.suffix):
        raise UsageError(f"--output {output}: a Markdown file, not a folder", hint=f"--output {output}.md")
    from daclip.evaluate import analysis

    subject = analysis.Subject(
        model=model,
        photos=photos,
        limit=limit,
        severity=severity,
        seed=seed,
        captions=captions,
        backbone=backbone,
        runs=runs,
        metric_weights=metric_weights,
        device=device,
        engine=engine,
        precision=precision,
    )
    said = [*given("analyse", leave_out=("studies", "output"))]
    sections: list[str] = []
    for name in analysis.possible(subject) if asked is None else asked:
        terminal.detail(f"study {name}")
        start = time.monotonic()
        found = _studied(name, subject, terminal)
        line = shlex.join([*said, "--studies", name])
        caption = analysis.caption(subject, name, command=line, seconds=time.monotonic() - start)
        sections.append(_section(found, caption, None if output is None else output.with_suffix("")))
    if not sections:
        raise UsageError("nothing to study", hint="these studies need --photos")
    if output is None:
        terminal.result("\n\n".join(sections))
    else:
        _write(output, sections)
        terminal.result(str(output))
    return 0


def _studied(name: str, subject: "Subject", terminal: Terminal) -> "Study":
    """A study, with its progress on stderr."""
    from daclip.evaluate import analysis

    done = itertools.count(1)
    with terminal.progress(0) as progress:

        def tell(study: str, photo: str, photos: int) -> None:
            terminal.detail(f"{study}: {photo}")
            progress.count(next(done), photos)

        subject.on_progress = tell
        return analysis.STUDIES[name](subject)


def _section(study: "Study", caption: "Caption", folder: Path | None) -> str:
    """A study as Markdown; its figures are written where there is a folder for them."""
    from daclip.evaluate import plots, tables

    has_intervals = any(table.has_intervals for table in study.tables)
    facts = ". ".join(caption.lines(intervals=has_intervals)[:-1])
    parts = [f"## {study.title}", study.words, f"{facts}.", f"`{caption.command}`"]
    for table in study.tables:
        parts += [table.title] if table.title else []
        parts.append(tables.markdown(table, ()))
        parts += [". ".join(table.notes) + "."] if table.notes else []
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in study.figures.items():
            path = plots.write(figure, folder / f"{name}.svg")
            parts.append(f"![{name}]({folder.name}/{path.name})")
    return "\n\n".join(parts)


def _write(path: Path, sections: list[str]) -> None:
    """The sections into the file: each in the place of the one of its heading, new ones at the end."""
    text = path.read_text(encoding="utf-8") if path.is_file() else "# Analysis\n"
    head, *old = text.split("\n## ")
    kept = {body.partition("\n")[0]: f"## {body.strip()}" for body in old}
    kept |= {body.removeprefix("## ").partition("\n")[0]: body for body in sections}
    path.write_text("\n\n".join([head.strip(), *kept.values()]) + "\n", encoding="utf-8")
