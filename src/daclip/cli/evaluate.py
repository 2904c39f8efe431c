"""`daclip evaluate`: how much better photos get, on data whose clean version is known."""

import shlex
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource

from daclip.cli.answers import error_line
from daclip.cli.terminal import Terminal, engine_options, options
from daclip.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from daclip.evaluate import Caption, Findings, Joined, Panel, Plan, Run

PAPER_TABLES = ("unified", "rain100h", "lol", "gopro", "reside6k")

HELP = """Restore photos whose clean version is known, and print a table of how near to it they came.

Photos without a clean version are restored and timed, and --format json has what was said of each. With
--output a run that was stopped goes on where it was. Finished runs RUN... are not measured again but joined:
their methods, or degradations, in one table; runs whose figures do not belong together are refused.

\b
daclip evaluate --data pairs/ --limit 5
daclip evaluate --photos cbsd68/ --settings paper --only noisy --format markdown
daclip evaluate --photos photos/ --only clean
daclip evaluate --data pairs/ --peer classics --peer SCUNet.pth --output run/ --workers 2
daclip evaluate --data rain/ --only rainy --table rain100h --metrics psnr,ssim,lpips
daclip evaluate --data pairs/ --output run/ --format html > report.html
daclip evaluate runs/rain runs/haze --table unified --plots plots/
"""


@click.command(
    name="evaluate", short_help="Measure models on photos whose clean version is known.", help=HELP
)
@click.argument("runs", metavar="[RUN]...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--model", "names", multiple=True, default=["compact"], show_default=True, help="Repeatable.")
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="[NAME=]FILE",
    help="Another project's weight file, or identity, classics, ...",
)
@click.option(
    "--command",
    "commands",
    multiple=True,
    metavar='"[NAME=]TOOL {in} {out}"',
    help="A program as a peer.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=600,
    show_default=True,
    help="Seconds a --command may take for a photo.",
)
@click.option("--data", type=click.Path(path_type=Path), help="Pairs: DATA/<degradation>/{LQ,GT}/<name>.*")
@click.option("--photos", type=click.Path(path_type=Path), help="Clean photos, degraded on the fly.")
@click.option(
    "--only", metavar="NAMES", help="Comma list of degradations; `clean` for photos left as they are."
)
@click.option("--settings", type=click.Choice(["wild", "paper"]), default="wild", help="For --photos.")
@click.option("--severity", type=click.FloatRange(0, 1), default=0.7, show_default=True, help="For --photos.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="For --photos.")
@click.option("--metrics", "metric_names", default="psnr,ssim", show_default=True, help="Also: lpips, fid.")
@click.option(
    "--metric-weights", type=click.Path(path_type=Path), help="Folder with the weights of LPIPS and FID."
)
@click.option(
    "--protocol",
    type=click.Choice(["rgb", "rgb-crop4", "y", "y-crop4"]),
    help="Channels and border of PSNR and SSIM; rgb-crop4: as published.  [default: rgb]",
)
@click.option(
    "--task",
    type=click.Choice(["auto", "named"]),
    default="auto",
    show_default=True,
    help="named: the model is told the degradation.",
)
@click.option("--sampler", type=click.Choice(["posterior", "sde", "ode", "mrs"]), help="Of diffusion models.")
@click.option("--steps", type=click.IntRange(1), help="Network calls of diffusion models.")
@click.option("--limit", type=click.IntRange(1), help="Only the first N photos of each degradation.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the run, to go on from.")
@click.option("--keep", is_flag=True, help="Keep all restored photos in --output.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@click.option(
    "--table",
    "shown",
    type=click.Choice(["rows", "words", *PAPER_TABLES]),
    default="rows",
    show_default=True,
    help="words: what was said of the photos; others: the paper's table, published and measured.",
)
@click.option(
    "--format",
    "layout",
    type=click.Choice(["text", "markdown", "csv", "json", "latex", "html"]),
    default="text",
    show_default=True,
)
@click.option(
    "--plots", type=click.Path(path_type=Path), help="Folder for bars, radar plots, confusion matrices."
)
@click.option("--sheet", type=click.Path(path_type=Path), help="Picture: first photo of each, with details.")
@click.option(
    "--spread",
    is_flag=True,
    help="--sheet shows best, median and worst of each by PSNR; of runs made with --keep.",
)
@engine_options
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16", "int8"]), default="auto")
@options
def command(
    runs: tuple[Path, ...],
    names: tuple[str, ...],
    peers: tuple[str, ...],
    commands: tuple[str, ...],
    timeout: float,
    data: Path | None,
    photos: Path | None,
    only: str | None,
    settings: Literal["wild", "paper"],
    severity: float,
    seed: int,
    metric_names: str,
    metric_weights: Path | None,
    protocol: str | None,
    task: Literal["auto", "named"],
    sampler: str | None,
    steps: int | None,
    limit: int | None,
    output: Path | None,
    keep: bool,
    workers: int,
    shown: str,
    layout: str,
    plots: Path | None,
    sheet: Path | None,
    spread: bool,
    device: str,
    engine: str,
    precision: str,
    quiet: bool,
    verbose: int,
    color: str,
) -> int:
    """What HELP says; here are only words: the plan, the run, the telling."""
    terminal = Terminal(quiet=quiet, verbosity=verbose, color=color)
    if keep and output is None:
        raise UsageError("--keep without --output", hint="name a folder for the photos")
    if spread and (sheet is None or not (keep or runs)):
        raise UsageError("--spread without --sheet and kept photos", hint="add --sheet PICTURE and --keep")
    from daclip import evaluate

    tell = partial(_tell, terminal, shown=shown, layout=layout, plots=plots, sheet=sheet, spread=spread)
    if runs:
        _refuse_measuring()
        joined = evaluate.join(runs, command=shlex.join(given("evaluate", leave_out=_TELLING)))
        tell(joined.findings, joined.caption, partial(_joined_panels, joined))
        return 0
    plan = evaluate.Plan(
        models=names,
        peers=peers,
        commands=commands,
        timeout=timeout,
        data=None if data is None else str(data),
        photos=None if photos is None else str(photos),
        only=_words(only, is_known=photos is not None),
        limit=limit,
        settings=settings,
        severity=severity,
        seed=seed,
        metrics=tuple(name.strip() for name in metric_names.split(",") if name.strip()),
        metric_weights=None if metric_weights is None else str(metric_weights),
        protocol=protocol or ("rgb-crop4" if shown in PAPER_TABLES else "rgb"),
        task=task,
        sampler=sampler,
        steps=steps,
        device=device,
        engine=engine,
        precision=precision,
    )
    with tempfile.TemporaryDirectory(prefix="daclip-") as temporary:
        run = evaluate.Run(plan, output or Path(temporary), workers=workers, keep=keep)
        _carry_out(run, terminal)
        if run.findings.measurements:
            caption = _caption(run)
            run.conclude(caption)
            tell(run.findings, caption, partial(_panels, run))
            if all(not one.after for one in run.findings.measurements):
                where = "no folder: name --output to keep them" if output is None else output / "photos"
                terminal.note(
                    f"no photo has a clean version, so there are no scores; the restored ones are in {where}"
                )
        else:
            terminal.note(
                "nothing was measured, so there is no table" + ("" if sheet is None else f" and no {sheet}")
            )
    return terminal.end(len(run.cases))


def _words(only: str | None, *, is_known: bool) -> tuple[str, ...]:
    """The degradations asked for: folders of any name in --data, known ones for --photos."""
    from daclip.vocabulary import CLEAN, DEGRADATIONS, degradations

    if only is None:
        return ()
    if is_known:
        return degradations(only, known=(*DEGRADATIONS, CLEAN))
    return tuple(word.strip() for word in only.split(",") if word.strip())


def _carry_out(run: "Run", terminal: Terminal) -> None:
    """Do what is left of a run."""
    for line in run.left_out:
        terminal.warning(line)
    if known := len(run.cases) - len(run.tasks):
        terminal.note(f"{known} of {len(run.cases)} photos were measured before")
    with terminal.progress(len(run.tasks)) as progress:
        for case, megapixels, error in run.carry_out():
            if error is not None:
                terminal.fail(error_line(case.name, error), error=error)
            progress.update(case, megapixels, 1.0)
            progress.finish(case)


def _tell(
    terminal: Terminal,
    findings: "Findings",
    caption: "Caption",
    pictures: "Callable[[Mapping[str, str] | None], list[Panel]]",
    *,
    shown: str,
    layout: str,
    plots: Path | None,
    sheet: Path | None,
    spread: bool,
) -> None:
    """The table on stdout; plots and pictures where they are wanted."""
    from daclip import evaluate

    chosen = None
    if spread:
        chosen = evaluate.best_median_worst(findings.measurements, method=next(iter(caption.weights)))
    panels = pictures(chosen) if sheet is not None or layout == "html" else []
    found = evaluate.results(findings.measurements, findings.features, caption, shown=shown, panels=panels)
    terminal.result(evaluate.FORMATS[layout](found))
    if plots is not None:
        for path in evaluate.write_plots(found, plots):
            terminal.note(f"{path} written")
    if sheet is not None and panels:
        _write_sheet(panels, sheet, spread=spread)
        terminal.note(f"{sheet} written")
    elif sheet is not None:
        terminal.note(f"no pictures to show, so no {sheet}")


def _panels(run: "Run", chosen: "Mapping[str, str] | None") -> "list[Panel]":
    """Input, peers, our models and truth of photos, with their words.

    Args:
        run: measured.
        chosen: photos with their words; by default the first measured one of each degradation.
    """
    from daclip import evaluate

    names, models = [*run.weights], len(run.plan.models)
    names = [*names[models:], *names[:models]]
    shown = {case.name: case.degradation for case in run.shown()} if chosen is None else chosen
    return _panels_of(shown, names, partial(evaluate.picture_path, run.folder))


def _joined_panels(joined: "Joined", chosen: "Mapping[str, str] | None") -> "list[Panel]":
    """The same of finished runs: the pictures that they have kept."""
    shown = joined.shown if chosen is None else chosen
    return _panels_of(shown, list(joined.caption.weights), joined.picture)


def _panels_of(
    shown: "Mapping[str, str]", names: "Sequence[str]", place: "Callable[[str, str], Path]"
) -> "list[Panel]":
    """A panel for each photo, with its words, of the pictures that are at their places."""
    from daclip import evaluate, image

    panels: list[Panel] = []
    for name, words in shown.items():
        pictures: list[tuple[str, Any]] = []
        for picture in ("input", *names, "truth"):
            path = place(picture, name)
            if path.is_file():
                photo = image.read(path)
                pictures.append((picture, photo.crop_8bit(0, 0, photo.height, photo.width)))
        if pictures:
            pictures[0] = (words, pictures[0][1])
            panels.append(evaluate.Panel(pictures=pictures, title=name))
    return panels


def _write_sheet(panels: "list[Panel]", path: Path, *, spread: bool) -> None:
    from daclip import evaluate, image

    most = max(len(panel.pictures) for panel in panels)
    panels = [panel for panel in panels if len(panel.pictures) == most]
    # three of each degradation: small, side by side
    form: dict[str, Any] = {"columns": 3, "tile": (160, 240)} if spread else {"zoom": True}
    pixels = evaluate.draw(panels, **form)
    image.write(image.from_array(pixels), pixels, path, quality=85, overwrite=True)


def _caption(run: "Run") -> "Caption":
    from daclip import evaluate

    return evaluate.Caption(
        protocol=run.metrics.protocol,
        data=_data_line(run.plan),
        data_sha256=evaluate.data_sha256(run.cases),
        weights=run.weights,
        metric_weights=run.metrics.weights,
        command=shlex.join(given("evaluate", leave_out=_TELLING)),
        version=_version(),
        seconds=round(run.findings.seconds, 1),
        peak_mb=run.findings.peak_mb,
    )


def _data_line(plan: "Plan") -> str:
    if plan.photos is None:
        return str(plan.data)
    how = plan.settings if plan.settings == "paper" else f"{plan.settings} {plan.severity:g}"
    return f"{plan.photos}, degraded on the fly ({how}, seed {plan.seed})"


def given(name: str, *, leave_out: "Sequence[str]") -> list[str]:
    """The words that give the same again; what came by variable is written out as a flag."""
    context = click.get_current_context()
    words = ["daclip", name]
    for parameter in context.command.params:
        key = parameter.name or ""
        if key in (*leave_out, *_SPEECH) or context.get_parameter_source(key) is ParameterSource.DEFAULT:
            continue
        value: Any = context.params[key]
        flag = [] if isinstance(parameter, click.Argument) else [parameter.opts[0]]
        if isinstance(value, bool):
            words += flag * value
            continue
        for each in value if parameter.multiple or parameter.nargs == -1 else [value]:
            words += [*flag, str(each)]
    return words


def _refuse_measuring() -> None:
    """Raise UsageError for a flag that measures beside runs that are finished."""
    context = click.get_current_context()
    for parameter in context.command.params:
        key = parameter.name or ""
        is_given = context.get_parameter_source(key) is ParameterSource.COMMANDLINE
        if is_given and key not in ("runs", "shown", *_DRAWING, *_SPEECH):
            raise UsageError(
                f"{parameter.opts[0]} beside finished runs",
                hint="they are shown as they were measured; leave RUN... out to measure",
            )


_SPEECH = ("quiet", "verbose", "color")
_DRAWING = ("layout", "sheet", "spread", "plots")
_TELLING = (*_DRAWING, "output", "keep", "workers")
"""Flags that change how a table is told or made, and not what it says."""


def _version() -> str:
    from importlib.metadata import version

    return version("daclip")
