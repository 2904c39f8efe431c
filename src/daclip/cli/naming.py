"""The naming rule: which file the result of each photo goes into."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path

from daclip.errors import PhotoError, UsageError


@dataclass(frozen=True, kw_only=True)
class Job:
    """One photo and where its result goes; None stands for stdin and stdout."""

    source: Path | None
    target: Path | None

    @property
    def name(self) -> str:
        """What messages call the photo."""
        return "stdin" if self.source is None else str(self.source)


def plan(inputs: Sequence[str], output: str | None, *, recursive: bool, format: str | None) -> list[Job]:
    """What becomes of which photo, by the naming rule.

    Raises UsageError when two photos would become one file, or a file is named for several; PhotoError for a
    folder without photos.
    """
    from daclip import image

    names, output = _split_output(list(inputs), output)
    if "-" in names:
        if len(names) > 1:
            raise UsageError("stdin is one photo, it goes with no others", hint="leave out - or the files")
        return [Job(source=None, target=None if output in (None, "-") else Path(output))]
    photos = image.find_photos(names, recursive=recursive)
    if not photos:
        raise PhotoError("missing", names[0], "no photos in this folder", hint="-r looks into folders inside")
    if output == "-":
        if len(photos) > 1:
            raise UsageError(f"{len(photos)} photos do not fit into stdout", hint="name a folder")
        return [Job(source=photos[0], target=None)]
    folders = [Path(name).expanduser() for name in names if Path(name).expanduser().is_dir()]
    several = len(photos) > 1 or bool(folders)
    if output is not None and not _is_folder(output, several=several) and several:
        count = f"{len(photos)} photo{'s' * (len(photos) > 1)}"
        hint = f"write {output}/ for a folder; if it was meant as a photo, it is not there"
        raise UsageError(f"{output} is one file for {count}", hint=hint)
    return _distinct(
        [Job(source=one, target=_target(one, output, folders, several)) for one in photos], format
    )


def _split_output(inputs: list[str], output: str | None) -> tuple[list[str], str | None]:
    """The last plain argument is the output if it is a folder, does not exist, or is -."""
    if output is not None or len(inputs) < 2:
        return inputs, output
    last = Path(inputs[-1]).expanduser()
    if last.is_file() or (has_magic(inputs[-1]) and not last.exists()):
        return inputs, None
    return inputs[:-1], inputs[-1]


def _is_folder(output: str, *, several: bool) -> bool:
    path = Path(output)
    return (
        path.is_dir() or output.endswith(("/", os.sep)) or (several and not path.suffix and not path.exists())
    )


def _target(photo: Path, output: str | None, folders: list[Path], several: bool) -> Path:
    if output is None:
        return photo.with_name(f"{photo.stem}.restored{photo.suffix}")
    if not _is_folder(output, several=several):
        return Path(output)
    root = next((folder for folder in folders if photo.is_relative_to(folder)), photo.parent)
    return Path(output) / photo.relative_to(root)


def _distinct(work: list[Job], format: str | None) -> list[Job]:
    """The jobs, if no two have one target; with a format, names that differ in the suffix alone are one."""
    seen: dict[Path, Job] = {}
    for job in work:
        assert job.target is not None
        key = job.target.with_suffix("") if format else job.target
        if key in seen:
            raise UsageError(
                f"{seen[key].name} and {job.name} would both become {job.target}", hint="name a folder, -r"
            )
        seen[key] = job
    return work
