"""`daclip batch IN_DIR OUT_DIR`: a tree of photos, resumable; or raw frames from stdin to stdout."""

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daclip.cli import restore
from daclip.cli.terminal import Progress, Terminal, options
from daclip.errors import UsageError

if TYPE_CHECKING:
    from daclip.batch import Executor, Manifest, Plan, Recipe, Record, Task

SHARED = (
    *("model", "faithful", "task", "strength", "sampler", "steps", "seed", "views", "memory", "tile"),
    *("device", "engine", "precision", "suffix", "quality", "strip_metadata", "allow_truncated"),
    *("max_pixels", "limit", "offline"),
)
"""What a batch takes from `daclip restore` as it is."""


@click.command(name="batch", short_help="Restore a whole tree of photos, resumable.")
@click.argument("source", metavar="IN_DIR", required=False, type=click.Path(path_type=Path))
@click.argument("output", metavar="OUT_DIR", required=False, type=click.Path(path_type=Path))
@click.option("-j", "--jobs", type=click.IntRange(1), help="Photos at once. [default: the processors]")
@click.option("--retry-failed", is_flag=True, help="Try photos again that failed before.")
@click.option("--overwrite", is_flag=True, help="Do all anew, and replace what is there.")
@click.option("--watch", is_flag=True, help="Go on with photos that come, until Ctrl-C.")
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per photo.")
@click.option("--check-disk/--no-check-disk", default=True, help="Refuse to begin what would not fit.")
@click.option(
    "--executor", type=click.Choice(["process", "ray"]), default="process", help="This machine, or a cluster."
)
@click.option("--address", metavar="A", help="Of a Ray cluster, or auto. [default: one on this machine]")
@click.option("--raw", metavar="WxH", help="Frames of rgb24 from stdin to stdout, instead of folders.")
@options
def command(
    source: Path | None,
    output: Path | None,
    jobs: int | None,
    retry_failed: bool,
    overwrite: bool,
    watch: bool,
    dry_run: bool,
    as_json: bool,
    check_disk: bool,
    executor: str,
    address: str | None,
    raw: str | None,
    model: str | None,
    faithful: bool,
    task: str,
    strength: str,
    sampler: str | None,
    steps: int | None,
    seed: int,
    views: Any,
    memory: str | None,
    tile: int | None,
    device: str,
    engine: str,
    precision: str,
    suffix: str | None,
    quality: int | None,
    strip_metadata: bool,
    allow_truncated: bool,
    max_pixels: str,
    limit: int | None,
    offline: bool,
    quiet: bool,
    verbose: int,
    color: str,
) -> int:
    """Restore every photo below IN_DIR into the same place below OUT_DIR.

    OUT_DIR/daclip-manifest.jsonl says what became of each photo; the same command again goes on where a
    stopped one was. Photos that are done are left out until they change.
    """
    terminal = Terminal(quiet=quiet, verbosity=verbose, color=color)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = jobs or (1 if raw else cores)
    here = min(workers, cores)  # how many share this machine
    with terminal.progress(1):  # a sign of life before the libraries are there
        from daclip import batch, image, models
        from daclip.restore import default_memory, parse_strength
    folder = models.find(model or ("compact" if faithful else "compact-sde"), offline=offline)
    budget = restore.parse_memory(memory) // (1 if raw else here)
    recipe = batch.Recipe(
        model=folder.name if folder.source == "bundled" else str(folder.path.resolve()),
        task=task,
        strength=parse_strength(strength),
        sampler=sampler,
        steps=steps,
        seed=seed,
        views=views,
        tile=tile,
        device=device,
        engine=engine,
        precision=precision,
        format=restore.FORMATS[suffix] if suffix else None,  # pyright: ignore[reportArgumentType]
        quality=quality,
        strip_metadata=strip_metadata,
        limits=image.Limits(max_pixels=restore.parse_pixels(max_pixels), allow_truncated=allow_truncated),
        memory_bytes=default_memory(folder, budget=budget) if memory is None else budget,
        threads=max(1, cores // here),
    )
    if raw is not None:
        return _frames(raw, source, recipe, terminal, workers=workers)
    if source is None or output is None:
        raise UsageError("two folders are needed", hint="daclip batch IN_DIR OUT_DIR")
    found = batch.plan(source, output, format=recipe.format)
    path = output / batch.MANIFEST
    if dry_run:
        known = batch.Manifest(path, writable=False) if path.exists() and not overwrite else None
        todo = batch.unfinished(found.tasks, known, retry_failed=retry_failed) if known else found.tasks
        return _say_plan(found, todo[:limit], terminal, as_json=as_json)
    identity = {"name": folder.name, "sha256": models.weights_sha256(folder)}
    with batch.opened(output, recipe.settings(), identity, anew=overwrite) as manifest:
        job = _Job(found, manifest, terminal, as_json=as_json)
        todo = batch.unfinished(found.tasks, manifest, retry_failed=retry_failed)[:limit]
        job.say_what_is_done(todo, retry_failed=retry_failed)
        if check_disk:
            batch.check_disk(todo, output, format=recipe.format)
        tasks: Iterator[Task | None] = iter(todo)
        if watch:
            coming = batch.watch(
                source, output, manifest, begun=todo, format=recipe.format, on_refused=job.tell
            )
            tasks = chain(tasks, coming)
        terminal.detail(f"{len(todo)} photos, {workers} {executor} workers of {recipe.threads} threads")
        workers = workers if executor == "process" else jobs or 0  # 0: all the cluster has
        with closing(
            batch.run(
                tasks, recipe, manifest, _executor(executor, address), workers=workers, overwrite=overwrite
            )
        ) as records:
            return job.follow(records, len(todo), is_endless=watch)


command.params += [parameter for parameter in restore.command.params if parameter.name in SHARED]


def _executor(name: str, address: str | None) -> "Executor":
    if name == "process":
        from daclip.batch import process

        return process.run
    from daclip.batch.ray import RayExecutor

    return RayExecutor(address)


class _Job:
    """Tells what becomes of the photos of one run."""

    def __init__(self, plan: "Plan", manifest: "Manifest", terminal: Terminal, *, as_json: bool) -> None:
        self._plan, self._manifest, self._terminal, self._as_json = plan, manifest, terminal, as_json
        self._told = 0

    def say_what_is_done(self, todo: "list[Task]", *, retry_failed: bool) -> None:
        """How many are done, and the errors of photos that are not tried."""
        for record in self._plan.refused:
            self.tell(record)
        left = {task.name for task in todo}
        earlier = [self._manifest.get(task.name) for task in self._plan.tasks if task.name not in left]
        failed = [record for record in earlier if record and record["action"] == "failed"]
        for record in failed:
            self.tell(record)
        if failed:
            self._terminal.note(f"{len(failed)} failed before; --retry-failed tries them again")
        if done := sum(record is not None for record in earlier) - len(failed):
            self._terminal.note(f"{done} of {len(self._plan.tasks)} photos were done before")

    def follow(self, records: "Iterator[Record]", total: int, *, is_endless: bool = False) -> int:
        """Tell every record as it comes; the exit code."""
        try:
            with self._terminal.progress(total) as progress:
                for record in records:
                    self._advance(progress, record)
                    self.tell(record)
        except KeyboardInterrupt:
            of_all = "" if is_endless else f" of {total}"
            self._terminal.warning(f"stopped: {self._told}{of_all} photos done; the same command goes on")
            raise
        return self._terminal.end(len(self._plan.tasks) + len(self._plan.refused))

    def _advance(self, progress: Progress, record: "Record") -> None:
        megapixels = record.get("width", 0) * record.get("height", 0) / 1e6
        progress.update(record["input"], megapixels, 1.0)
        progress.finish(record["input"])
        self._told += 1

    def tell(self, record: "Record") -> None:
        """The line of one photo, its warnings, or its error."""
        name, error = record["input"], record["error"]
        if error is not None:
            hint = f"; {error['hint']}" if error["hint"] else ""
            self._terminal.fail(f"{name}: {error['message']}{hint}")
        for text in record.get("warnings", ()):
            self._terminal.warning(f"{name}: {text}")
        if self._as_json:
            answer = {"schema": "daclip.batch/1", **record}
            self._terminal.result(json.dumps(answer, ensure_ascii=False))
        elif error is None:
            found = ", ".join(f"{one['name']} {one['probability']:.2f}" for one in record["detected"])
            what = found if record["action"] == "restored" else record["action"]
            self._terminal.result(f"{record['output']}\t{what}\t{record['seconds']:.1f} s")


def _say_plan(plan: "Plan", todo: "list[Task]", terminal: Terminal, *, as_json: bool) -> int:
    left = {task.name for task in todo}
    for task in plan.tasks:
        action = "planned" if task.name in left else "skipped"
        record = {"schema": "daclip.batch/1", "input": task.name, "output": None, "action": action}
        terminal.result(json.dumps(record, ensure_ascii=False) if as_json else f"{task.name}\t{action}")
    for record in plan.refused:
        terminal.fail(f"{record['input']}: {record['error']['message']}")
    return terminal.end(len(plan.tasks) + len(plan.refused))


def _frames(raw: str, source: Path | None, recipe: "Recipe", terminal: Terminal, *, workers: int) -> int:
    from daclip.batch import frames

    if source is not None:
        raise UsageError("--raw reads stdin and writes stdout, without folders", hint="leave the folders out")
    if not (size := re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", raw)):
        raise UsageError(f'"{raw}" is no size of frames', hint="write --raw 1280x720")
    if sys.stdout.isatty():
        raise UsageError("frames do not go to a terminal", hint="send stdout to ffmpeg or to a file")
    with terminal.progress(0) as progress:
        count = frames.restore(
            sys.stdin.buffer,
            sys.stdout.buffer,
            recipe,
            width=int(size[1]),
            height=int(size[2]),
            workers=workers,
            on_progress=lambda done: progress.count(done, 0),
        )
    terminal.detail(f"{count} frames")
    return 0
