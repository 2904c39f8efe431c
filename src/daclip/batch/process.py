"""The executor for one machine: processes with one engine each, fed one photo at a time."""

import contextlib
import signal
from collections import Counter, deque
from collections.abc import Generator, Iterator
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection

from daclip.batch.work import ATTEMPTS, Recipe, Record, Task, give_up, work
from daclip.errors import DaclipError


def run(tasks: Iterator[Task | None], recipe: Recipe, *, workers: int) -> Generator[Record, None, None]:
    """Records as the photos are done, see `Executor`. No more processes start than there is work for.

    When the generator is closed, photos in work are dropped and their processes ended.
    """
    idle: list[_Worker] = []
    busy: list[_Worker] = []
    again: deque[Task] = deque()
    deaths: Counter[str] = Counter()
    is_over = False
    try:
        while True:
            while len(busy) < workers:
                task, is_over = _next(again, tasks, is_over=is_over)
                if task is None:
                    break
                worker = idle.pop() if idle else _Worker(recipe)
                worker.give(task)
                busy.append(worker)
            if not busy and is_over:
                return
            for worker in _ready(busy, seconds=None if is_over else 0.5):
                busy.remove(worker)
                task, answer = worker.take()
                if isinstance(answer, str):
                    deaths[task.name] += 1
                    if deaths[task.name] < ATTEMPTS:
                        again.append(task)
                        continue
                    yield give_up(task, answer)
                else:
                    idle.append(worker)
                    yield answer
    finally:
        for worker in (*idle, *busy):
            worker.end()


def _next(again: deque[Task], tasks: Iterator[Task | None], *, is_over: bool) -> tuple[Task | None, bool]:
    """The next task, if there is one now, and whether no more will come."""
    if again:
        return again.popleft(), is_over
    if is_over:
        return None, True
    try:
        return next(tasks), False
    except StopIteration:
        return None, True


class _Worker:
    """A process with a model ready to restore, and the photo it has in hand."""

    def __init__(self, recipe: Recipe) -> None:
        # spawned: a forked libvips hangs, since its threads are not copied
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, recipe), daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        self._task: Task | None = None

    def give(self, task: Task) -> None:
        """Hand a photo over."""
        self._task = task
        with contextlib.suppress(OSError):  # it is dead, which `take` will say
            self.connection.send(task)

    def take(self) -> tuple[Task, Record | str]:
        """The photo in hand and its record, or how the process died.

        Raises DaclipError that concerns all photos: the model cannot be loaded, a flag cannot mean anything.
        """
        assert self._task is not None
        try:
            answer: Record | DaclipError = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode or 0
            return self._task, f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        if isinstance(answer, DaclipError):
            raise answer
        return self._task, answer

    def end(self) -> None:
        """End the process; a photo in work is dropped, its temporary file removed by the process itself."""
        self.connection.close()
        self._process.terminate()
        self._process.join(timeout=10)
        self._process.kill()
        self._process.join()
        self._process.close()


def _ready(busy: list[_Worker], *, seconds: float | None) -> list[_Worker]:
    """The workers that have answered or died, after so many seconds at most."""
    ready = connection.wait([worker.connection for worker in busy], seconds)
    return [worker for worker in busy if worker.connection in ready]


def _serve(tasks: Connection, recipe: Recipe) -> None:
    """What a worker does: load the model, then photo after photo until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    signal.signal(signal.SIGTERM, _leave)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        try:
            restorer = recipe.restorer()
            while True:
                tasks.send(work(restorer, recipe, tasks.recv()))
        except DaclipError as error:
            tasks.send(error)


def _leave(_signal: int, _frame: object) -> None:
    # as an exception, so that temporary files are removed on the way out
    raise SystemExit(143)
