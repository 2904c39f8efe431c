"""Checkpoints of a run: written whole or not at all, the last few kept, a damaged one named and passed over."""

import logging
import os
from pathlib import Path
from typing import Any

import torch

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
    """The newest readable state of a run folder, or None where there is none yet."""
    for path in sorted(folder.glob(_PATTERN), reverse=True):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError) as error:
            _LOG.warning("%s: damaged (%s); the one before it is used", path, error)
    return None
