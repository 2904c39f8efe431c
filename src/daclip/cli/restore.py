"""`daclip restore IN... [OUT]`: flags to values, photo after photo, a line or a JSON object for each."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import click

from daclip.cli.answers import SCHEMA, Answer, Outcome, error_line
from daclip.cli.naming import Job, plan
from daclip.cli.terminal import Progress, Terminal, engine_options, options
from daclip.errors import DaclipError, PhotoError, UsageError

if TYPE_CHECKING:
    from daclip.image import Limits, Photo
    from daclip.restore import Restored, Restorer, Strength

SAMPLERS = ["posterior", "sde", "ode", "mrs"]
FORMATS = {
    "jpg": "jpeg",
    "jpeg": "jpeg",
    "png": "png",
    "tif": "tiff",
    "tiff": "tiff",
    "webp": "webp",
    "avif": "avif",
}


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the flags say of every photo."""

    task: str
    strength: "Strength"
    sampler: str | None
    steps: int | None
    seed: int
    tile: int | None
    views: Any
    mask: "Photo | None"
    format: Any
    quality: int | None
    overwrite: bool
    skip_existing: bool
    strip_metadata: bool
    limits: "Limits"
    report: bool = False
    report_xmp: bool = True
    sha256: str = ""


def _complete_models(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from daclip import models

    return [name for name in models.bundled_names() if name.startswith(incomplete)]


def _complete_tasks(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from daclip.vocabulary import DEGRADATIONS

    before, comma, word = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in ("auto", *DEGRADATIONS) if name.startswith(word)]


@click.command(name="restore", short_help="Make photos better.")
@click.argument("inputs", nargs=-1, required=True, metavar="IN... [OUT]")
@click.option(
    "-o", "--output", metavar="OUT", help="File, folder, or - for stdout. [default: beside the photo]"
)
@click.option("-r", "--recursive", is_flag=True, help="Folders with the folders inside them.")
@click.option(
    "--model", shell_complete=_complete_models, help="Bundled name, folder, or hub id. [default: compact]"
)
@click.option(
    "--faithful/--realistic", default=True, help="compact in one pass, or compact-sde by diffusion."
)
@click.option(
    "--task",
    default="auto",
    show_default=True,
    shell_complete=_complete_tasks,
    help="auto, or rainy,noisy,...",
)
@click.option("--strength", default="1", show_default=True, help="0 to 1, or noisy=0.4,rainy=1.")
@click.option("--mask", type=click.Path(path_type=Path), help="Photo that is white where to fill.")
@click.option(
    "--sampler", type=click.Choice(SAMPLERS), help="Of a diffusion model: mrs is quick, posterior published."
)
@click.option("--steps", type=int, help="Network calls of a diffusion model. [default: the model's]")
@click.option("--seed", default=0, show_default=True, help="Same seed, same pixels.")
@click.option("--views", type=click.Choice(["many", "centre"]), default="many", help="centre: as published.")
@click.option(
    "--memory",
    help="Limit for the whole process. [default: half of what is free, at most 2GB, more for a large model]",
)
@click.option("--tile", type=click.IntRange(16), help="Side of a tile in pixels. [default: by memory]")
@engine_options
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16", "int8"]),
    default="auto",
    help="Of the numbers.",
)
@click.option("-j", "--jobs", type=click.IntRange(1), default=1, show_default=True, help="Photos at once.")
@click.option(
    "--format", "suffix", type=click.Choice(list(FORMATS)), help="Of the results. [default: as the photo]"
)
@click.option(
    "--quality", type=click.IntRange(1, 100), help="Of JPEG, WebP, AVIF. [default: 92, or the photo's]"
)
@click.option("--overwrite", is_flag=True, help="Replace what is there, inputs too.")
@click.option("--skip-existing", is_flag=True, help="Leave out photos whose result is there.")
@click.option(
    "--strip-metadata", is_flag=True, help="Drop EXIF (with GPS), XMP, IPTC; keep the colour profile."
)
@click.option("--allow-truncated", is_flag=True, help="Restore what is there of a file that ends early.")
@click.option("--max-pixels", default="250MP", show_default=True, help="Refuse larger photos.")
@click.option(
    "--report", is_flag=True, help="Beside each result a page on what was found and what changed where."
)
@click.option(
    "--report-xmp/--no-report-xmp", default=True, help="A few words of the report into the result's XMP."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per photo.")
@click.option("--dry-run", is_flag=True, help="Say what would be written.")
@click.option("--fail-fast", is_flag=True, help="Stop at the first failure.")
@click.option("--limit", type=click.IntRange(1), help="Only the first N photos.")
@click.option("--offline", is_flag=True, help="Never ask the hub.")
@options
def command(
    inputs: tuple[str, ...],
    output: str | None,
    recursive: bool,
    model: str | None,
    faithful: bool,
    task: str,
    strength: str,
    mask: Path | None,
    sampler: str | None,
    steps: int | None,
    seed: int,
    views: str,
    memory: str | None,
    tile: int | None,
    device: str,
    engine: str,
    precision: str,
    jobs: int,
    suffix: str | None,
    quality: int | None,
    overwrite: bool,
    skip_existing: bool,
    strip_metadata: bool,
    allow_truncated: bool,
    max_pixels: str,
    report: bool,
    report_xmp: bool,
    as_json: bool,
    dry_run: bool,
    fail_fast: bool,
    limit: int | None,
    offline: bool,
    quiet: bool,
    verbose: int,
    color: str,
) -> int:
    """Make photos better: photo.jpg becomes photo.restored.jpg, a folder a folder.

    IN are photos, folders, patterns, or - for stdin. OUT is a folder, a new file, or - for stdout; an
    existing file as last argument is one more photo. A photo in which nothing is found is copied as it is.
    """
    terminal = Terminal(quiet=quiet, verbosity=verbose, color=color)
    with terminal.progress(1):  # a sign of life before the libraries are there
        from daclip import image, models
        from daclip.restore import Restorer, default_memory, parse_strength

    format_ = FORMATS[suffix] if suffix else None
    work = plan(inputs, output, recursive=recursive, format=format_)[:limit]
    to_stdout = any(job.target is None for job in work)
    if to_stdout and sys.stdout.isatty():
        raise UsageError(
            "a picture does not go to a terminal", hint="name an output, or send stdout to a file"
        )
    if to_stdout and report:
        raise UsageError("a report lies beside a file, stdout has no place for it", hint="name an output")
    limits = image.Limits(max_pixels=parse_pixels(max_pixels), allow_truncated=allow_truncated)
    wishes = Wishes(
        task=task,
        strength=parse_strength(strength),
        sampler=sampler,
        steps=steps,
        seed=seed,
        tile=tile,
        views=views,
        mask=None if mask is None else image.read(mask, limits=limits),
        format=format_,
        quality=quality,
        overwrite=overwrite,
        skip_existing=skip_existing,
        strip_metadata=strip_metadata,
        limits=limits,
    )
    if dry_run:
        return _dry_run(work, wishes, terminal, as_json=as_json)
    folder = models.find(model or ("compact" if faithful else "compact-sde"), offline=offline)
    budget = parse_memory(memory) // jobs
    if memory is None:
        budget = default_memory(folder, budget=budget)
    threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else 0
    restorer = Restorer(
        folder, device=device, memory=budget, threads=threads, engine=engine, precision=precision
    )
    chosen = restorer.engine
    terminal.detail(
        f"model {folder.name}, engine {chosen.name} {chosen.precision} on {chosen.device}, {budget >> 20} MiB"
    )
    sha256 = models.weights_sha256(folder) if as_json or report else ""
    wishes = replace(wishes, report=report, report_xmp=report_xmp and not strip_metadata, sha256=sha256)
    answer = Answer(restorer, sha256, terminal, as_json=as_json, to_stderr=to_stdout)
    done = 0
    try:
        with terminal.progress(len(work)) as progress:
            for job, outcome in _run_all(work, restorer, wishes, progress, jobs=jobs):
                answer.give(job, outcome)
                done += 1
                if fail_fast and isinstance(outcome, Exception):
                    break
    except KeyboardInterrupt:
        terminal.warning(f"stopped: {done} of {len(work)} photos done")
        raise
    return terminal.end(len(work))


def _run_all(
    work: list[Job], restorer: "Restorer", wishes: Wishes, progress: Progress, *, jobs: int
) -> Iterator[tuple[Job, Outcome | Exception]]:
    """Outcomes in the order of the jobs, several photos at once where asked."""
    stop = Event()
    taken: dict[Path, Job] = {}

    def one(job: Job) -> Outcome | Exception:
        try:
            return restore_one(job, restorer, wishes, progress, stop, taken)
        except DaclipError as error:
            if error.exit_code == 2:  # a flag or the model is wrong: the next photo would say the same
                raise
            return error
        except Exception as error:  # a defect of ours in one photo must not take the others along
            return error
        finally:
            progress.finish(job)

    if jobs == 1:
        yield from ((job, one(job)) for job in work)
        return
    with ThreadPoolExecutor(jobs) as pool:
        try:
            yield from zip(work, pool.map(one, work), strict=True)
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def restore_one(
    job: Job,
    restorer: "Restorer",
    wishes: Wishes,
    progress: Progress,
    stop: Event,
    taken: dict[Path, Job],
) -> Outcome:
    """Read, restore, write one photo, unless its target is `taken` by another. Raises PhotoError."""
    from daclip import image

    start = time.monotonic()
    source = sys.stdin.buffer.read() if job.source is None else job.source
    photo = image.read(source, limits=wishes.limits)
    target = None if job.target is None else image.output_path(photo, job.target, format=wishes.format)
    # only now: a.heic and a.jpg have one target, for HEIC is not written
    if target is not None and (first := taken.setdefault(target, job)) is not job:
        raise PhotoError("exists", target, f"is the result of {first.name} already", hint="name a --format")
    if target is not None and target.exists() and not wishes.overwrite:
        if not wishes.skip_existing:
            hint = "use --overwrite, --skip-existing or another output"
            raise PhotoError("exists", target, "already there", hint=hint)
        return Outcome(photo=replace(photo), action="skipped", output=target, restored=None, seconds=0.0)
    if wishes.mask is not None and (wishes.mask.width, wishes.mask.height) != (photo.width, photo.height):
        sizes = f"{wishes.mask.width} x {wishes.mask.height}, the photo {photo.width} x {photo.height}"
        raise PhotoError(
            "unsupported", job.source, f"the mask has {sizes} pixels", hint="make them the same size"
        )
    megapixels = photo.width * photo.height / 1e6
    progress.update(job, megapixels, 0.0)

    def tell(done: int, total: int) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        progress.update(job, megapixels, done / total)

    def run(seed: int) -> "Restored":
        return restorer.restore(
            photo,
            task=wishes.task,
            strength=wishes.strength,
            sampler=wishes.sampler,
            steps=wishes.steps,
            seed=seed,
            views=wishes.views,
            mask=wishes.mask,
            tile=wishes.tile,
            on_progress=tell,
        )

    restored = run(wishes.seed)
    if wishes.report and target is not None:
        restored = _report(restored, restorer, job, target, wishes, again=run)
    _keep(restored, job, source, target, wishes)
    # without the pixels, which would pile up: what follows only tells what was done
    header = replace(photo)
    return Outcome(
        photo=header,
        action=restored.action,
        output=target,
        restored=replace(restored, photo=header, full=None),
        seconds=time.monotonic() - start,
    )


def _report(
    restored: "Restored",
    restorer: "Restorer",
    job: Job,
    target: Path,
    wishes: Wishes,
    *,
    again: Callable[[int], "Restored"],
) -> "Restored":
    """Write the page beside the result; what comes back says in its XMP how it came about."""
    from daclip import image, report

    page = report.make(restored, restorer, name=job.name, sha256=wishes.sha256, again=again)
    path = target.with_name(f"{target.name}.report.html")
    # an older page belongs to a photo that is replaced now
    with (
        image.new_file(path, overwrite=True) as descriptor,
        os.fdopen(descriptor, "wb", closefd=False) as file,
    ):
        file.write(report.to_html(page).encode())
    if not wishes.report_xmp or restored.action == "unchanged":
        return restored
    words = report.notes(restored, restorer, sha256=wishes.sha256)
    return replace(restored, photo=image.with_notes(restored.photo, words))


def _keep(restored: "Restored", job: Job, source: Path | bytes, target: Path | None, wishes: Wishes) -> None:
    """Write the result to its file or to stdout."""
    from daclip import image

    photo = restored.photo
    if target is not None:
        is_in_place = restored.action == "unchanged" and job.source is not None and target == job.source
        if not is_in_place or wishes.strip_metadata:
            restored.save(
                target,
                format=wishes.format,
                quality=wishes.quality,
                strip_metadata=wishes.strip_metadata,
                overwrite=wishes.overwrite,
            )
        return
    is_as_it_came = wishes.format in (None, photo.format) and not wishes.strip_metadata
    if restored.action == "unchanged" and is_as_it_came:
        data = source if isinstance(source, bytes) else source.read_bytes()
    else:
        data = image.to_bytes(
            photo,
            restored.pixels,
            format=wishes.format,
            quality=wishes.quality,
            strip_metadata=wishes.strip_metadata,
        )
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _dry_run(work: list[Job], wishes: Wishes, terminal: Terminal, *, as_json: bool) -> int:
    from daclip import image

    for job in work:
        if job.source is None:
            terminal.result(f"stdin\t{job.target or '-'}")
            continue
        try:
            photo = image.read(job.source, limits=wishes.limits)
        except PhotoError as error:
            terminal.fail(error_line(job.name, error), error=error)
            continue
        target = None if job.target is None else image.output_path(photo, job.target, format=wishes.format)
        is_there = target is not None and target.exists()
        if is_there and not (wishes.overwrite or wishes.skip_existing):
            error = PhotoError("exists", target, "already there", hint="use --overwrite or --skip-existing")
            terminal.fail(error_line(job.name, error))
            continue
        action = "skipped" if is_there and wishes.skip_existing else "planned"
        size = {"width": photo.width, "height": photo.height, "bits": photo.bits}
        record = {"schema": SCHEMA, "input": job.name, "output": str(target or "-"), "action": action, **size}
        line = f"{job.name}\t{target or '-'}\t{action}\t{photo.width} x {photo.height}"
        terminal.result(json.dumps(record, ensure_ascii=False) if as_json else line)
    return terminal.end(len(work))


def parse_pixels(text: str) -> int:
    """`250MP`, or a plain number of pixels."""
    number, unit = (text[:-2], 1_000_000) if text.upper().endswith("MP") else (text, 1)
    try:
        return int(float(number) * unit)
    except ValueError as error:
        raise UsageError(f'"{text}" is no number of pixels', hint="write 250MP") from error


def parse_memory(text: str | None) -> int:
    """The memory named, or 2 GB halved until it is at most half of what is free.

    In halves, so that the same photo is cut into the same tiles from one day to the next.
    """
    from daclip.restore import parse_bytes

    if text is not None:
        return parse_bytes(text)
    budget = 2_000_000_000
    while budget > max(free_memory() // 2, 500_000_000):
        budget //= 2
    return budget


def free_memory() -> int:
    """Bytes of memory free to this process; where the system does not say, enough."""
    free = [4_000_000_000]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = [int(line.split()[1]) * 1024]
        # a container's own limit
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit.isdigit():
            free.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return min(free)
