"""What became of each photo, as a line or a JSON object."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daclip.cli.naming import Job
from daclip.cli.terminal import Terminal
from daclip.errors import DaclipError, PhotoError, as_record

if TYPE_CHECKING:
    from daclip.image import Photo
    from daclip.restore import Restored, Restorer

SCHEMA = "daclip.restore/1"
"""First field of each JSON object; fields may be added, none changes its meaning."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one photo that did not fail."""

    photo: "Photo"
    action: str
    output: Path | None
    restored: "Restored | None"
    seconds: float


class Answer:
    """Turns outcomes into lines or JSON objects."""

    def __init__(
        self, restorer: "Restorer", sha256: str, terminal: Terminal, *, as_json: bool, to_stderr: bool
    ) -> None:
        self._restorer, self._sha256, self._terminal = restorer, sha256, terminal
        self._as_json, self._to_stderr = as_json, to_stderr

    def give(self, job: Job, outcome: Outcome | Exception) -> None:
        """The line of one photo, its warnings, or its error."""
        if isinstance(outcome, Exception):
            self._terminal.fail(error_line(job.name, outcome), error=outcome)
        else:
            self._remark(job, outcome)
        if self._as_json:
            record = self._record(job, outcome)
            self._terminal.result(json.dumps(record, ensure_ascii=False), to_stderr=self._to_stderr)
        elif isinstance(outcome, Outcome):
            self._terminal.result(self._line(outcome), to_stderr=self._to_stderr)

    def _remark(self, job: Job, outcome: Outcome) -> None:
        for text in outcome.photo.warnings:
            self._terminal.warning(f"{job.name}: {text}")
        if outcome.restored is None:
            return
        for text in outcome.restored.notes:
            self._terminal.note(f"{job.name}: {text}")
        if outcome.action == "unchanged":
            self._terminal.note(f"{job.name}: {outcome.restored.reason}; copied unchanged")

    def _line(self, outcome: Outcome) -> str:
        restored = outcome.restored
        if restored is None:
            what = outcome.action
        elif restored.action == "unchanged":
            what = f"unchanged: {restored.reason}"
        else:
            what = ", ".join(f"{name} {restored.probability(name):.2f}" for name in restored.applied)
        return f"{outcome.output or '-'}\t{what}\t{outcome.seconds:.1f} s"

    def _record(self, job: Job, outcome: Outcome | Exception) -> dict[str, Any]:
        engine, folder = self._restorer.engine, self._restorer.folder
        record: dict[str, Any] = {"schema": SCHEMA, "input": job.name, "output": None, "action": "failed"}
        model = {"name": folder.name, "sha256": self._sha256}
        used = {
            "model": model,
            "engine": engine.name,
            "precision": engine.precision,
            "peak_mb": peak_megabytes(),
        }
        if isinstance(outcome, Exception):
            return record | used | {"warnings": [], "error": as_record(outcome)}
        photo, restored = outcome.photo, outcome.restored
        record |= {
            "output": str(outcome.output or "-"),
            "action": outcome.action,
            "width": photo.width,
            "height": photo.height,
            "bits": photo.bits,
        }
        record |= {"detected": [], "applied": [], "warnings": [*photo.warnings]}
        if restored is not None:
            record |= restored.record()
        record |= used
        return record | {"seconds": round(outcome.seconds, 3), "error": None}


def error_line(name: str, error: Exception) -> str:
    """What failed, where, and what to do, in one line."""
    if isinstance(error, PhotoError):
        return f"{error.path or name}: {error}"
    if isinstance(error, DaclipError):
        return f"{name}: {error}"
    reason = " ".join(str(error).split()) or "no reason given"
    return f"{name}: unexpected {type(error).__name__} ({reason}); please report it with the output of -vv"


def peak_megabytes() -> int:
    """The most memory the process has held, in MB; 0 where the system does not say."""
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return getrusage(RUSAGE_SELF).ru_maxrss * unit // 1_000_000
