"""`daclip export RUN`: write the graphs that run a model without torch."""

import json
from pathlib import Path

import click

from daclip.cli.terminal import Terminal, options
from daclip.errors import missing_extra


@click.command(name="export")
@click.argument("source", metavar="RUN")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Copy the model into this folder first."
)
@click.option(
    "--calibrate",
    metavar="PHOTOS",
    default="",
    help="Also write a graph in 8-bit integers: clean photos, or pairs, that say in which ranges they lie.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@options
def command(
    source: str,
    output: Path | None,
    calibrate: str,
    as_json: bool,
    quiet: bool,
    verbose: int,
    color: str,
) -> None:
    """Write the graphs of RUN (run folder, model folder, name or hub id), and check them against torch.

    With -o the model is copied, together with its encoder, into a folder that stands alone. With --calibrate
    OpenVINO computes all but the finest level of a DRUNet in 8-bit integers, which is faster.

    \b
    daclip export runs/compact -o mine/
    daclip restore photo.jpg --model mine/
    """
    try:
        from daclip.export import export
    except ModuleNotFoundError as error:
        raise missing_extra(error, "exporting a model") from error
    terminal = Terminal(quiet=quiet, verbosity=verbose, color=color)
    done = export(source, output, photos=calibrate)
    if as_json:
        record = {"folder": str(done.folder), "differences": done.differences, "lost_db": done.lost}
        terminal.result(json.dumps(record))
        return
    for name, difference in done.differences.items():
        terminal.result(f"{done.folder / name}.onnx: within {difference:.1g} of torch")
    if done.lost is not None:
        terminal.result(f"{done.folder}/restorer.int8.onnx: costs {done.lost:.3f} dB")
