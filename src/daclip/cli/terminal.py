"""What people see: results on stdout, all else on stderr; progress, colours, and the list of failures."""

import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from threading import RLock
from typing import Any

import click

_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags every working command has: -q, -v, --color."""
    for option in (
        click.option(
            "--color",
            type=click.Choice(["auto", "always", "never"]),
            default="auto",
            help="Colour on stderr.",
        ),
        click.option("-v", "--verbose", count=True, help="Say more; twice shows tracebacks."),
        click.option("-q", "--quiet", is_flag=True, help="Errors only."),
    ):
        command = option(command)
    return command


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where a model runs, for the commands that run one: --device, --engine."""
    engines = click.Choice(["auto", "onnx", "openvino", "torch"])
    for option in (
        click.option("--engine", type=engines, default="auto", help="Who computes."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps."),
    ):
        command = option(command)
    return command


class Terminal:
    """Where a command speaks. Thread-safe; a progress bar steps aside for each line."""

    def __init__(self, *, quiet: bool = False, verbosity: int = 0, color: str = "auto") -> None:
        self.quiet = quiet
        self.verbosity = verbosity
        self._colours = _wants_colour(color)
        self._lock = RLock()
        self._bar: Progress | None = None
        self._failed: list[str] = []

    def result(self, line: str, *, to_stderr: bool = False) -> None:
        """One line of results on stdout."""
        self._write(line, sys.stderr if to_stderr else sys.stdout)

    def note(self, text: str) -> None:
        """Something worth knowing."""
        self._say("note", text)

    def warning(self, text: str) -> None:
        """Something that may not be as expected."""
        self._say("warning", text)

    def detail(self, text: str) -> None:
        """Settings and times, with -v."""
        if self.verbosity:
            self._write(text, sys.stderr)

    def fail(self, message: str, *, exit_code: int = 1, error: BaseException | None = None) -> int:
        """One line for an error; with -vv its traceback before it. The exit code comes back."""
        if error is not None and self.verbosity > 1:
            self._write("".join(traceback.format_exception(error)).rstrip(), sys.stderr)
        self._say("error", message)
        self._failed.append(message)
        return exit_code

    def end(self, total: int) -> int:
        """The failures of a run once more, at its end, and the exit code."""
        if self._failed and total > 1:
            self._write(f"{len(self._failed)} of {total} failed:", sys.stderr)
            for message in self._failed:
                self._write(f"  {message}", sys.stderr)
        return 1 if self._failed else 0

    def progress(self, photos: int) -> "Progress":
        """A bar on a terminal, now and then a line elsewhere, nothing with --quiet."""
        self._bar = Progress(photos, self._lock, is_shown=not self.quiet)
        return self._bar

    def _say(self, kind: str, text: str) -> None:
        if self.quiet and kind != "error":
            return
        head = click.style(f"{kind}:", fg=_COLOURS[kind], bold=True) if self._colours else f"{kind}:"
        self._write(f"{head} {text}", sys.stderr)

    def _write(self, line: str, stream: Any) -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.hide()
            stream.write(line + "\n")
            stream.flush()
            if self._bar is not None:
                self._bar.show()


class Progress:
    """How far a run has come, and how long it will take, by the seconds per megapixel of the last minute."""

    def __init__(self, photos: int, lock: RLock, *, is_shown: bool) -> None:
        self._photos, self._lock, self._is_shown = photos, lock, is_shown
        self._current: dict[object, tuple[float, float]] = {}  # photo -> (megapixels, fraction done)
        self._finished, self._finished_megapixels = 0, 0.0
        self._samples: deque[tuple[float, float]] = deque([(time.monotonic(), 0.0)], maxlen=200)
        self._told_at, self._told_part = time.monotonic(), 0.0
        self._rich: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        if self._is_shown and sys.stderr.isatty():
            self._start_bar()
        return self

    def __exit__(self, *_: object) -> None:
        self.hide()
        self._rich = None

    def count(self, done: int, total: int) -> None:
        """So many of so many are done, all of one size: for jobs that know their number after the start."""
        with self._lock:
            self._photos = total
            self._finished, self._finished_megapixels = done, float(done)
            self._tell()

    def update(self, photo: object, megapixels: float, fraction: float) -> None:
        """A photo has come so far."""
        with self._lock:
            self._current[photo] = (megapixels, fraction)
            self._tell()

    def finish(self, photo: object) -> None:
        """A photo is done, or given up."""
        with self._lock:
            megapixels, _ = self._current.pop(photo, (0.0, 0.0))
            self._finished += 1
            self._finished_megapixels += megapixels
            self._tell()

    def show(self) -> None:
        """Draw the bar again after a line was written."""
        if self._rich is not None:
            self._rich.start()

    def hide(self) -> None:
        """Clear the bar, so that a line can be written."""
        if self._rich is not None:
            self._rich.stop()

    @property
    def part(self) -> float:
        """Part of the run that is done, 0 to 1."""
        inside = sum(fraction for _, fraction in self._current.values())
        return min((self._finished + inside) / max(self._photos, 1), 1.0)

    def seconds_left(self) -> float | None:
        """An estimate, once there is something to go by; photos not yet seen count as the mean of others."""
        done = self._finished_megapixels + sum(size * fraction for size, fraction in self._current.values())
        self._samples.append((time.monotonic(), done))
        while len(self._samples) > 2 and self._samples[-1][0] - self._samples[0][0] > 60:
            self._samples.popleft()
        (start, before), (now, after) = self._samples[0], self._samples[-1]
        if after <= before:
            return None
        seen = self._finished + len(self._current)
        sizes = self._finished_megapixels + sum(size for size, _ in self._current.values())
        left = sizes - done + (self._photos - seen) * sizes / max(seen, 1)
        return left * (now - start) / (after - before)

    def _tell(self) -> None:
        left, part = self.seconds_left(), self.part
        if self._rich is not None:
            self._rich.update(
                self._task, completed=part, count=f"{self._finished}/{self._photos}", left=_clock(left)
            )
        elif self._is_shown and not sys.stderr.isatty() and self._finished < self._photos:
            self._tell_plainly(part, left)

    def _tell_plainly(self, part: float, left: float | None) -> None:
        """A line every 30 seconds, or every tenth of a run of which a tenth takes 3 seconds and more."""
        waited = time.monotonic() - self._told_at
        if waited < 3 or (waited < 30 and part - self._told_part < 0.1):
            return
        self._told_at, self._told_part = time.monotonic(), part
        about = f", about {_clock(left)} left" if left is not None else ""
        sys.stderr.write(f"progress: {self._finished} of {self._photos} photos, {part:.0%}{about}\n")
        sys.stderr.flush()

    def _start_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        columns = [
            TextColumn("{task.fields[count]}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]} left"),
        ]
        self._rich = Bar(
            *columns,
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._rich.add_task("", total=1.0, count=f"0/{self._photos}", left=_clock(None))
        self._rich.start()


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "--:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _wants_colour(color: str) -> bool:
    if color != "auto":
        return color == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
