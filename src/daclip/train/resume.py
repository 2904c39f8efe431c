"""Checkpoints of a run: written whole or not at all, the last few kept, a damaged one passed over."""

import logging
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from daclip.errors import DataError

_LOG = logging.getLogger("daclip")
_PATTERN = "checkpoint-*.pt"


def save(folder: Path, step: int, state: dict[str, Any], *, keep: int = 2) -> None:
    """Write the state after `step` steps, then drop all but the newest `keep`."""
    target = folder / f"checkpoint-{step:08d}.pt"
    part = target.with_suffix(".part")
    with part.open("wb") as file:
        torch.save({"step": step, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(target)
    for old in sorted(folder.glob(_PATTERN))[:-keep]:
        old.unlink()


def load(folder: Path) -> dict[str, Any] | None:
    """The newest readable state of a run folder, or None where there is none yet.

    Raises DataError when there are checkpoints and none of them can be read.
    """
    found = sorted(folder.glob(_PATTERN), reverse=True)
    for path in found:
        try:
            return _read(path)
        except Exception as error:  # whatever zip, pickle and torch come up with where bytes are wrong
            reason = (str(error) or type(error).__name__).splitlines()[0]
            _LOG.warning("%s: damaged, passed over (%s)", path, reason)
    if found:
        raise DataError(
            f"{folder}: none of its {len(found)} checkpoints can be read", hint="--fresh starts over"
        )
    return None


def _read(path: Path) -> dict[str, Any]:
    """The state in a file. torch itself does not look at the checksums of its zip archive."""
    with zipfile.ZipFile(path) as archive:
        if wrong := archive.testzip():
            raise ValueError(f"{wrong} has another checksum")
        # a part that is marked as a folder torch leaves out: its numbers would be any that are in memory
        if any(part.external_attr for part in archive.infolist()):
            raise ValueError("a part is marked as a folder")
    return torch.load(path, map_location="cpu", weights_only=True)


def forget(folder: Path) -> None:
    """Remove what a run wrote to its folder, so that it starts over; only where one was begun."""
    if not (folder / "run.json").exists():
        return
    for path in [path for pattern in _WRITTEN for path in folder.glob(pattern)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


_WRITTEN = ("checkpoint-*", "log.jsonl", "best", "initial", "model", "pictures", "tracked")
"""What a run writes beside `run.json`."""
