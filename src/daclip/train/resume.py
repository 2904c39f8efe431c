"""Checkpoints of a run: written whole or not at all, the last few kept, a damaged one passed over."""

import logging
import os
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
        if _is_whole(path):
            return torch.load(path, map_location="cpu", weights_only=True)
        _LOG.warning("%s: damaged, passed over", path)
    if found:
        raise DataError(
            f"{folder}: none of its {len(found)} checkpoints can be read", hint="--fresh starts over"
        )
    return None


def _is_whole(path: Path) -> bool:
    """True when every part of a checkpoint, which is a zip archive, has its checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def forget(folder: Path) -> None:
    """Remove the checkpoints and the log of a run, so that it starts over."""
    for path in [*folder.glob("checkpoint-*"), folder / "log.jsonl"]:
        path.unlink(missing_ok=True)
