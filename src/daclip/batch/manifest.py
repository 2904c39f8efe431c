"""The ledger of a batch: `daclip-manifest.jsonl` in the output folder, from which any stopped run goes on.

The first line holds the settings, each further line one photo; a later line of a photo replaces an earlier.
A photo gets a line `started` before it is touched, so that what a killed run was working on is known as ours.
"""

import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from daclip.batch.work import Record, sha256
from daclip.errors import DataError, UsageError
from daclip.image import new_file

NAME = "daclip-manifest.jsonl"
SCHEMA = "daclip.batch/1"


class Manifest:
    """What has become of each photo of an output folder.

    Only the place of each photo's last line is held in memory, about 200 bytes for a photo. Without
    `writable` the file stays as it is, and need not be locked.
    """

    def __init__(self, path: Path, *, writable: bool = True) -> None:
        self.path = path
        self.header, self._places, self._lines, end = _scan(path)
        if writable:  # a kill may have torn the last line: the next one must start on its own
            os.truncate(path, end)
        self._file = path.open("a+b" if writable else "rb")

    def start(self, name: str) -> None:
        """Note that a photo is about to be worked on."""
        self._append({"input": name, "action": "started"})

    def add(self, record: Record) -> None:
        """Note what became of a photo, on disk before anybody is told."""
        self._append(record)
        os.fsync(self._file.fileno())

    def get(self, name: str) -> Record | None:
        """The last line of a photo."""
        if name not in self._places:
            return None
        self._file.seek(self._places[name])
        return json.loads(self._file.readline())

    def is_done(self, name: str, source: Path, *, retry_failed: bool = False) -> bool:
        """True when the photo as it is now was done, and its result is there as it was written.

        Contents are compared by size and time, and by hash where only the time differs. A photo that failed
        is done as well, until it changes or failures are to be tried again.
        """
        record = self.get(name)
        if record is None or record["action"] == "started":
            return False
        try:
            if record["action"] == "failed":
                return not retry_failed and _is_same(record, source)
            written = (self.path.parent / record["output"]).stat().st_size
            return written == record["output_bytes"] and _is_same(record, source)
        except OSError:
            return False

    def is_ours(self, name: str) -> bool:
        """True when a result of this photo that may be there was begun or written by this batch."""
        record = self.get(name)
        return record is not None and record["action"] != "failed"

    def begun(self) -> list[str]:
        """The photos whose last line is `started`: what a killed run was working on."""
        return [name for name in self._places if (self.get(name) or {})["action"] == "started"]

    def close(self, *, tidy: bool) -> None:
        """End writing; `tidy` leaves one line of each photo."""
        if tidy and self._lines != len(self._places):
            kept = sorted(self._places.values())
            with new_file(self.path, overwrite=True) as descriptor:
                os.write(descriptor, _line(self.header))
                with os.fdopen(descriptor, "wb", closefd=False) as file:
                    file.writelines(self._line_at(place) for place in kept)
        self._file.close()

    def _line_at(self, place: int) -> bytes:
        self._file.seek(place)
        return self._file.readline()

    def _append(self, record: Record) -> None:
        self._places[record["input"]] = self._file.seek(0, os.SEEK_END)
        self._lines += 1
        self._file.write(_line(record))
        self._file.flush()


@contextmanager
def opened(folder: Path, settings: Record, model: Record, *, anew: bool = False) -> Generator[Manifest]:
    """The manifest of the output folder, which is locked meanwhile, and made where it is not there.

    Args:
        folder: of the results.
        settings: JSON values; those of the lines that are there must be the same.
        model: likewise.
        anew: forget the lines that are there.

    Raises UsageError for other settings or another model, DataError when another batch writes into the folder
    or the file is not a manifest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    header = json.loads(json.dumps({"schema": SCHEMA, "model": model, "settings": settings}))
    with _locked(folder):
        if anew or not path.exists():
            with new_file(path, overwrite=True) as descriptor:
                os.write(descriptor, _line(header))
        manifest = Manifest(path)
        try:
            _check_same(path, manifest.header, header)
            yield manifest
        except BaseException:
            manifest.close(tidy=False)
            raise
        manifest.close(tidy=True)


def _scan(path: Path) -> tuple[Record, dict[str, int], int, int]:
    """Header, place of each photo's last line in bytes, number of lines, end of the last whole one."""
    header, places, place, lines = {}, dict[str, int](), 0, 0
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if not line.endswith(b"\n"):
                break
            try:
                record: Any = json.loads(line)
                if number == 0:
                    header = _checked(path, record)
                else:
                    places[record["input"]] = place
                    lines += 1
            except (ValueError, KeyError, TypeError) as error:
                hint = "remove the line, or name another output folder"
                raise DataError(f"{path}: line {number + 1} is no line of a manifest", hint=hint) from error
            place += len(line)
    if not header:
        raise DataError(f"{path}: is not a manifest", hint="remove it, or name another output folder")
    return header, places, lines, place


def _checked(path: Path, header: Any) -> Record:
    if header["schema"] != SCHEMA:
        raise DataError(f"{path}: is {header['schema']}, this daclip reads {SCHEMA}", hint="update daclip")
    return header


def _check_same(path: Path, found: Record, wanted: Record) -> None:
    """Raise UsageError that names what differs."""
    old, new = ({"model": one["model"], **one["settings"]} for one in (found, wanted))
    if changed := [name.replace("_", "-") for name in new if old.get(name) != new[name]]:
        raise UsageError(
            f"{path.parent} was begun with another {', '.join(changed)}",
            hint="use the same again, another folder, or --overwrite to do all anew",
        )


def _is_same(record: Record, source: Path) -> bool:
    status = source.stat()
    if status.st_size != record["bytes"]:
        return False
    return status.st_mtime_ns == record["modified_ns"] or sha256(source) == record.get("sha256")


def _line(record: Record) -> bytes:
    # names that are not UTF-8 come as lone surrogates, for which the replacement is JSON's own escape
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Keep a second batch out of the folder; the lock ends with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows cannot lock a folder
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            hint = "wait for it, or name another folder"
            raise DataError(f"{folder}: another batch is writing here", hint=hint) from error
        yield
    finally:
        os.close(descriptor)
