"""`daclip caption FOLDER`: describe clean photos in words, for training."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from daclip.cli.terminal import Terminal, options
from daclip.errors import MissingExtra, UsageError, missing_extra

if TYPE_CHECKING:
    from daclip.captions import Captioner

COST = (
    "without captions the text half of the content loss falls away: content is learnt from the embedding of "
    "the clean photo alone (as in wild-IR), and how well photos find their captions cannot be measured; what "
    "is wrong with a photo is learnt as before"
)


@click.command(name="caption")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Caption file [default: in FOLDER].")
@click.option("--model", help="Image-to-text model: a folder or a hub name, such as BLIP.")
@click.option("--captions", type=click.Path(path_type=Path), help="Caption file, such as Flickr8k's.")
@click.option("--tags", is_flag=True, help="The photos' own keywords, or PHOTO.txt beside them.")
@click.option("--none", "nothing", is_flag=True, help="No captions; says what that costs.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Photos at a time.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@options
def command(
    folder: Path,
    output: Path | None,
    model: str | None,
    captions: Path | None,
    tags: bool,
    nothing: bool,
    batch: int,
    device: str,
    quiet: bool,
    verbose: int,
    color: str,
) -> None:
    """Write a caption for each clean photo of FOLDER, where `daclip train --data` finds it.

    For FOLDER/{train,val}/<degradation>/{LQ,GT} the files are FOLDER/daclip_train.csv and daclip_val.csv; for
    any other folder of photos FOLDER/captions.csv. The same command again goes on where it was stopped.

    \b
    daclip caption sets/mine --model Salesforce/blip-image-captioning-large
    daclip caption photos/ --captions Flickr8k.token.txt -o photos.csv
    """
    chosen = [name for name, value in _choices(model, captions, tags, nothing).items() if value]
    if len(chosen) != 1:
        raise UsageError(
            f"{' and '.join(chosen) or 'no captioner'} named",
            hint="one of --model, --captions, --tags, --none",
        )
    try:
        from daclip import captions as captioning

        captioner = _captioner(model, captions, device, tags=tags)
    except ModuleNotFoundError as error:
        raise missing_extra(error, "`daclip caption`") from error
    terminal = Terminal(quiet=quiet, verbosity=verbose, color=color)
    if nothing:
        terminal.note(COST)
    for target in captioning.targets(folder, output):
        with terminal.progress(0) as progress:
            written = captioning.write(target, captioner, batch=batch, on_progress=progress.count)
        rows = f"{written.written:,} rows written, {written.kept:,} were there"
        terminal.result(f"{target.file}\t{rows}")
        if written.without and not nothing:
            terminal.warning(f"{target.file}: {written.without:,} photos have no caption")


def _choices(model: str | None, captions: Path | None, tags: bool, nothing: bool) -> dict[str, object]:
    return {"--model": model, "--captions": captions, "--tags": tags, "--none": nothing}


def _captioner(model: str | None, captions: Path | None, device: str, *, tags: bool) -> "Captioner":
    from daclip import captions as captioning

    if model is not None:
        try:
            import transformers

            from daclip.captions.image_to_text import captioner
        except ModuleNotFoundError as error:
            raise MissingExtra("captions", "`daclip caption --model`") from error
        # its bars would stand between our lines
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        return captioner(model, device=device)
    if captions is not None:
        return captioning.from_file(captions)
    return captioning.from_tags if tags else captioning.nothing
