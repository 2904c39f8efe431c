"""Batches: a tree of photos mirrored into another, by workers on this machine or on a cluster.

The manifest is written here alone, by the one process that shares out the work; workers only answer.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from daclip import image
from daclip.batch.manifest import NAME as MANIFEST
from daclip.batch.manifest import Manifest, opened
from daclip.batch.work import Recipe, Record, Task, sha256, stamp
from daclip.errors import PhotoError, UsageError, as_record
from daclip.image import Format

__all__ = [
    "MANIFEST",
    "Executor",
    "Manifest",
    "Plan",
    "Recipe",
    "Record",
    "Task",
    "check_disk",
    "opened",
    "plan",
    "run",
    "sha256",
    "unfinished",
    "watch",
]


@runtime_checkable
class Executor(Protocol):
    """Who shares out the work: takes tasks as workers get free, gives records as they are done.

    A None among the tasks means that there is nothing to do now, and that asking again in a second may help.
    The task of a worker that dies goes to another one; the third time, it has failed.
    """

    def __call__(
        self, tasks: Iterator[Task | None], recipe: Recipe, *, workers: int
    ) -> Generator[Record, None, None]:
        """Records in the order in which they are done. Closing it drops the photos in work."""
        ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The photos of an input folder.

    Args:
        tasks: to be done, in order.
        refused: records of those that cannot be, such as two that would become one file.
    """

    tasks: list[Task]
    refused: list[Record]


def plan(source: Path, output: Path, *, format: Format | None = None) -> Plan:
    """All photos below the source folder, each with its place below the output folder.

    Results of other runs, hidden files and the output folder itself are left out. Raises UsageError when the
    source is no folder, or the output the same one.
    """
    if not source.is_dir():
        raise UsageError(f"{source} is not a folder", hint="`daclip restore` takes files")
    root, own = source.resolve(), output.resolve()
    if root == own:
        raise UsageError(f"{source} is input and output", hint="name another output folder")
    tasks: list[Task] = []
    refused: list[Record] = []
    for photo in image.find_photos([source], recursive=True):
        real, name = photo.resolve(), photo.relative_to(source)
        task = Task(name=name.as_posix(), source=photo, target=output / name)
        if real.is_relative_to(root) and not real.is_relative_to(own):
            tasks.append(task)
        elif not real.is_relative_to(own):
            error = PhotoError("unreadable", photo, "links to a place outside the folder", hint="copy it in")
            refused.append(refusal(task, error))
    kept, rivals = _distinct(tasks, format)
    return Plan(tasks=kept, refused=[*refused, *rivals])


def _distinct(tasks: list[Task], format: Format | None) -> tuple[list[Task], list[Record]]:
    """Tasks of which no two can have one result, and records of the others; who keeps its name goes first."""
    taken: dict[Path, Task] = {}
    refused: list[Record] = []
    for task in sorted(tasks, key=lambda task: len(_places(task, format))):
        places = _places(task, format)
        rival = next((taken[place] for place in places if place in taken), None)
        if rival is None:
            taken.update(dict.fromkeys(places, task))
        else:
            what = f"its result would take the place of that of {rival.name}"
            refused.append(refusal(task, PhotoError("exists", task.source, what, hint="rename one of them")))
    kept = {task.name for task in taken.values()}
    return [task for task in tasks if task.name in kept], refused


def _places(task: Task, format: Format | None) -> list[Path]:
    return image.possible_paths(task.target, format=format)


def refusal(task: Task, error: Exception) -> Record:
    """The record of a photo that was not worked on."""
    return {"input": task.name, "output": None, "action": "failed", "error": as_record(error)}


def unfinished(tasks: Iterable[Task], manifest: Manifest, *, retry_failed: bool = False) -> list[Task]:
    """The tasks that are still to be done."""
    return [task for task in tasks if not manifest.is_done(task.name, task.source, retry_failed=retry_failed)]


def check_disk(tasks: Iterable[Task], output: Path, *, format: Format | None = None) -> None:
    """Raise PhotoError `no-space` where the results would not fit the disk, by the size of the photos.

    A guess on the safe side: a JPEG at quality 92 can be twice the original, a PNG of a JPEG twelve times.
    """
    needed = 0
    for task in tasks:
        with contextlib.suppress(OSError):
            needed += task.source.stat().st_size * _growth(task, format)
    place = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        sizes = f"needs about {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB free"
        hint = "make room, name another disk, or add --no-check-disk"
        raise PhotoError("no-space", output, f"no space left ({sizes}); nothing was written", hint=hint)


def _growth(task: Task, format: Format | None) -> int:
    lossless = (".png", ".tif", ".tiff")
    result = _places(task, format)[0].suffix.lower()
    return 12 if result in lossless and task.source.suffix.lower() not in lossless else 2


def run(
    tasks: Iterable[Task | None],
    recipe: Recipe,
    manifest: Manifest,
    executor: Executor,
    *,
    workers: int,
    overwrite: bool = False,
) -> Generator[Record, None, None]:
    """Do the tasks, each noted in the manifest before its record is given.

    A result that is there is replaced where this batch wrote it, or with `overwrite`; else the photo fails.
    A full disk ends the run after its record, since no other photo would fit.
    """
    output = manifest.path.parent
    _sweep({(output / name).parent for name in manifest.begun()})
    folders: set[Path] = set()

    def claimed() -> Iterator[Task | None]:
        for task in tasks:
            if task:
                folders.add((output / task.name).parent)
            yield task and _claim(task, recipe, manifest, overwrite=overwrite)

    records = executor(claimed(), recipe, workers=workers)
    with contextlib.closing(records):
        for record in records:
            manifest.add(record)
            yield record
            if record["action"] == "failed" and record["error"]["kind"] == "no-space":
                break
    _sweep(folders)  # a machine that was lost left what it had half-written


def _claim(task: Task, recipe: Recipe, manifest: Manifest, *, overwrite: bool) -> Task:
    """The task, noted as begun where nothing of others can be in its place."""
    is_free = not any(place.exists() for place in _places(task, recipe.format))
    if is_free or manifest.is_ours(task.name):
        manifest.start(task.name)
        return replace(task, claimed=True)
    return replace(task, claimed=overwrite)


def _sweep(folders: Iterable[Path]) -> None:
    """Remove what was left half-written in folders where no one is at work any more."""
    for leftover in (path for folder in folders for path in folder.glob(image.TEMPORARY_FILES)):
        leftover.unlink(missing_ok=True)


def watch(
    source: Path,
    output: Path,
    manifest: Manifest,
    *,
    begun: Iterable[Task],
    format: Format | None = None,
    on_refused: Callable[[Record], object] = lambda _: None,
    seconds: float = 2.0,
) -> Iterator[Task | None]:
    """Photos as they come into the source folder, without end; None when there is none now.

    A photo is taken once two looks, so many seconds apart, found it unchanged: it was copied to its end.
    """
    given = {task.name: stamp(task.source) for task in begun}
    seen: dict[str, tuple[int, int]] = {}
    told: set[str] = set()
    looked = time.monotonic()
    while True:
        yield None
        if time.monotonic() - looked < seconds:
            continue
        found, looked = plan(source, output, format=format), time.monotonic()
        for record in found.refused:
            if record["input"] not in told:
                told.add(record["input"])
                on_refused(record)
        for task in found.tasks:
            now = stamp(task.source)
            if given.get(task.name) != now and seen.get(task.name) == now:
                given[task.name] = now
                if not manifest.is_done(task.name, task.source):
                    yield task
            seen[task.name] = now
