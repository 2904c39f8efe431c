"""`daclip evaluate`: how much better photos get, on data whose clean version is known."""

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource

from daclip.cli.answers import error_line, peak_megabytes
from daclip.cli.terminal import Terminal, options
from daclip.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from daclip.evaluate import Case, Measurement, Method
    from daclip.metrics import Pixels8
    from daclip.restore import Restorer


@click.command(name="evaluate", short_help="Measure models on photos whose clean version is known.")
@click.option("--model", "names", multiple=True, default=["compact"], show_default=True, help="Repeatable.")
@click.option("--data", type=click.Path(path_type=Path), help="Pairs: DATA/<degradation>/{LQ,GT}/<name>.*")
@click.option("--photos", type=click.Path(path_type=Path), help="Clean photos, degraded on the fly.")
@click.option(
    "--only", metavar="NAMES", help="Comma list of degradations; `clean` for photos left as they are."
)
@click.option("--settings", type=click.Choice(["wild", "paper"]), default="wild", help="For --photos.")
@click.option("--severity", type=click.FloatRange(0, 1), default=0.7, show_default=True, help="For --photos.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="For --photos.")
@click.option("--metrics", "metric_names", default="psnr,ssim", show_default=True, help="Also: lpips.")
@click.option("--metric-weights", type=click.Path(path_type=Path), help="Folder with the weights of LPIPS.")
@click.option(
    "--protocol",
    type=click.Choice(["rgb", "rgb-crop4", "y", "y-crop4"]),
    default="rgb",
    show_default=True,
    help="Channels and border of PSNR and SSIM; rgb-crop4: as published.",
)
@click.option(
    "--task",
    type=click.Choice(["auto", "named"]),
    default="auto",
    show_default=True,
    help="named: the model is told the degradation.",
)
@click.option("--limit", type=click.IntRange(1), help="Only the first N photos of each degradation.")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["text", "markdown", "csv", "json"]),
    default="text",
    show_default=True,
)
@click.option(
    "--sheet", type=click.Path(path_type=Path), help="Picture of the first photo of each, before/after."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option(
    "--engine", type=click.Choice(["auto", "onnx", "openvino", "torch"]), default="auto", help="Who computes."
)
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), default="auto")
@options
def command(
    names: tuple[str, ...],
    data: Path | None,
    photos: Path | None,
    only: str | None,
    settings: Literal["wild", "paper"],
    severity: float,
    seed: int,
    metric_names: str,
    metric_weights: Path | None,
    protocol: str,
    task: Literal["auto", "named"],
    limit: int | None,
    layout: str,
    sheet: Path | None,
    device: str,
    engine: str,
    precision: str,
    quiet: bool,
    verbose: int,
    color: str,
) -> int:
    r"""Restore photos whose clean version is known, and print a table of how near to it they came.

    \b
    daclip evaluate --data pairs/ --limit 5
    daclip evaluate --photos cbsd68/ --settings paper --only noisy --format markdown
    daclip evaluate --photos photos/ --only clean
    """
    start = time.monotonic()
    terminal = Terminal(quiet=quiet, verbosity=verbose, color=color)
    from daclip import evaluate
    from daclip.restore import Restorer

    cases = _cases(data, photos, only, settings=settings, severity=severity, seed=seed, limit=limit)
    asked = [name.strip() for name in metric_names.split(",") if name.strip()]
    functions, left_out = evaluate.metric_functions(asked, protocol=protocol, weights=metric_weights)
    for line in left_out:
        terminal.warning(line)
    restorers = [Restorer(name, device=device, engine=engine, precision=precision) for name in names]
    methods = [evaluate.restorer_method(restorer, task=task) for restorer in restorers]
    pictures = _Pictures()
    measurements: list[Measurement] = []
    with terminal.progress(len(cases)) as progress:
        for case, outcome in evaluate.evaluate(cases, methods, functions, on_pixels=pictures.see):
            if isinstance(outcome, list):
                measurements += outcome
            else:
                terminal.fail(error_line(case.name, outcome), error=outcome)
            progress.finish(case)
    if measurements:
        caption = evaluate.Caption(
            protocol=protocol,
            data=_data_line(data, photos, settings, severity, seed),
            data_sha256=evaluate.data_sha256(cases),
            weights=_weights(methods, restorers),
            command=_given(),
            version=_version(),
            seconds=round(time.monotonic() - start, 1),
            peak_mb=peak_megabytes(),
        )
        rows = evaluate.summarise(measurements)
        terminal.result(evaluate.FORMATS[layout](rows, caption, measurements))
        if sheet is not None:
            terminal.note(f"{pictures.write(sheet)} written")
    return terminal.end(len(cases))


def _cases(
    data: Path | None,
    photos: Path | None,
    only: str | None,
    *,
    settings: Literal["wild", "paper"],
    severity: float,
    seed: int,
    limit: int | None,
) -> "list[Case]":
    """The photos to measure on, from pairs or made on the fly."""
    from daclip import evaluate
    from daclip.vocabulary import CLEAN, DEGRADATIONS, degradations

    if (data is None) == (photos is None):
        raise UsageError(
            "nothing to measure on" if data is None else "--data and --photos exclude each other",
            hint="name --data (pairs) or --photos (clean ones)",
        )
    if data is not None:
        return evaluate.pairs(
            data, only=() if only is None else [word.strip() for word in only.split(",")], limit=limit
        )
    assert photos is not None
    from daclip.evaluate import synthetic

    names = DEGRADATIONS if only is None else degradations(only, known=(*DEGRADATIONS, CLEAN))
    return synthetic.degraded(
        photos, names=names, settings=settings, severity=severity, seed=seed, limit=limit
    )


class _Pictures:
    """Keeps the pictures of the first photo of each degradation, for the sheet."""

    def __init__(self) -> None:
        self._first: dict[str, Mapping[str, Pixels8]] = {}

    def see(self, case: "Case", pictures: "Mapping[str, Pixels8]") -> None:
        self._first.setdefault(case.degradation, pictures)

    def write(self, path: Path) -> Path:
        """One panel for each degradation: input, each method, truth."""
        from daclip import evaluate, image

        panels = [
            evaluate.Panel(
                pictures=[
                    (degradation if name == "input" else name, pixels) for name, pixels in pictures.items()
                ]
            )
            for degradation, pictures in self._first.items()
        ]
        pixels = evaluate.draw(panels)
        return image.write(image.from_array(pixels), pixels, path, overwrite=True)


def _data_line(data: Path | None, photos: Path | None, settings: str, severity: float, seed: int) -> str:
    if photos is None:
        return str(data)
    how = settings if settings == "paper" else f"{settings} {severity:g}"
    return f"{photos}, degraded on the fly ({how}, seed {seed})"


def _weights(methods: "Sequence[Method]", restorers: "Sequence[Restorer]") -> dict[str, str]:
    """The weights of each method, and who computed with them."""
    return {
        method.name: f"{method.weights}, {restorer.engine.name} {restorer.engine.precision}"
        for method, restorer in zip(methods, restorers, strict=True)
    }


def _given() -> str:
    """The command line that gives the same table again; what came by variable is written out as a flag."""
    context = click.get_current_context()
    words = ["daclip", "evaluate"]
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in _SPEECH or context.get_parameter_source(name) is ParameterSource.DEFAULT:
            continue
        value: Any = context.params[name]
        for each in value if parameter.multiple else [value]:
            words += [parameter.opts[0], str(each)]
    return shlex.join(words)


_SPEECH = ("quiet", "verbose", "color", "layout", "sheet")
"""Flags that change how a table is told and not what it says."""


def _version() -> str:
    from importlib.metadata import version

    return version("daclip")
