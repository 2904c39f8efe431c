"""The queue of a server: a bounded number of waiting jobs, few worker threads, one engine for all of them."""

import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal

from daclip.errors import DaclipError

State = Literal["waiting", "working", "done", "failed", "cancelled"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a job gives: a picture (or none) and the record of what was done."""

    record: Mapping[str, Any]
    picture: bytes = b""
    media_type: str = ""


class Full(DaclipError):
    """The queue takes no more; `seconds` is when to try again."""

    def __init__(self, waiting: int, seconds: int) -> None:
        super().__init__(f"{waiting} jobs are waiting already", hint=f"try again in {seconds} s")
        self.seconds = seconds


class Stopping(DaclipError):
    """The server is about to end."""

    def __init__(self) -> None:
        super().__init__("the server is stopping", hint="try again soon")


class Cancelled(DaclipError):
    """Somebody does not want the job any more."""

    def __init__(self) -> None:
        super().__init__("cancelled")


class TimedOut(DaclipError):
    """The job took longer than a job may."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"took longer than {seconds:g} s", hint="send a smaller photo, or take fewer steps")


class Job:
    """One piece of work from submission to its end."""

    def __init__(self, timeout: float) -> None:
        self.id = secrets.token_urlsafe(16)
        self.state: State = "waiting"
        self.part = 0.0
        self.answer: Answer | None = None
        self.error: Exception | None = None
        self.ended_at = float("inf")
        self.future: Future[None] = Future()
        self._timeout, self._deadline = timeout, float("inf")
        self._is_cancelled = False

    def tell(self, done: int, total: int) -> None:
        """Note how far the work is; raises Cancelled or TimedOut where it should end."""
        self.part = done / max(total, 1)
        if self._is_cancelled:
            raise Cancelled
        if time.monotonic() > self._deadline:
            raise TimedOut(self._timeout)

    def cancel(self) -> None:
        """Ask the work to end; it does at its next tile or step, and at once where it waits."""
        self._is_cancelled = True

    def run(self, work: Callable[["Job"], Answer]) -> None:
        """Do the work and keep what comes of it; raises nothing."""
        try:
            self.state, self._deadline = "working", time.monotonic() + self._timeout
            self.tell(0, 1)
            self.answer = work(self)
            self.part, self.state = 1.0, "done"
        except Cancelled as error:
            self.error, self.state = error, "cancelled"
        except Exception as error:  # whoever asks for the job gets it
            self.error, self.state = error, "failed"
        finally:
            self.ended_at = time.monotonic()


class Jobs:
    """Runs jobs in the order they came. Thread-safe.

    Args:
        workers: jobs at once.
        waiting: jobs that may wait beside them.
        timeout: seconds a job may work.
        keep_seconds: how long a finished job that was asked for by its id is kept.
        keep_bytes: of pictures of finished jobs; the oldest go first.
    """

    def __init__(
        self,
        *,
        workers: int,
        waiting: int,
        timeout: float,
        keep_seconds: float = 600.0,
        keep_bytes: int = 200_000_000,
    ) -> None:
        self._workers, self._waiting_limit, self._timeout = workers, waiting, timeout
        self._keep_seconds, self._keep_bytes = keep_seconds, keep_bytes
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="daclip")
        self._lock = Lock()
        self._open: list[Job] = []
        self._kept: dict[str, Job] = {}
        self._seconds: deque[float] = deque([1.0], maxlen=20)
        self._is_stopping = False

    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        return sum(job.state == "waiting" for job in self._open)

    @property
    def working(self) -> int:
        """Jobs in work."""
        return sum(job.state == "working" for job in self._open)

    @property
    def is_stopping(self) -> bool:
        """True once the server ends."""
        return self._is_stopping

    def check_room(self) -> None:
        """Raise Full or Stopping where another job would be refused."""
        if self._is_stopping:
            raise Stopping
        if len(self._open) >= self._workers + self._waiting_limit:
            mean = sum(self._seconds) / len(self._seconds)
            raise Full(self.waiting, max(1, round(mean * len(self._open) / self._workers)))

    def submit(self, work: Callable[[Job], Answer], *, keep: bool = False) -> Job:
        """A job for the work; with `keep` it can be found by its id. Raises Full or Stopping."""
        with self._lock:
            self.check_room()
            job = Job(self._timeout)
            self._open.append(job)
            if keep:
                self._kept[job.id] = job
            self._forget()
            self._pool.submit(self._run, job, work)
        return job

    def find(self, job_id: str) -> Job | None:
        """A job that was submitted with `keep`, until it is forgotten."""
        with self._lock:
            self._forget()
            return self._kept.get(job_id)

    def drop(self, job: Job) -> None:
        """Cancel the job where it is not over, and forget it."""
        job.cancel()
        with self._lock:
            self._kept.pop(job.id, None)

    def close(self) -> None:
        """Finish what is in work, cancel what waits."""
        self._is_stopping = True
        with self._lock:
            for job in self._open:
                if job.state == "waiting":
                    job.cancel()
        self._pool.shutdown(wait=True)

    def _run(self, job: Job, work: Callable[[Job], Answer]) -> None:
        start = time.monotonic()
        job.run(work)
        with self._lock:
            self._open.remove(job)
            self._seconds.append(time.monotonic() - start)
        job.future.set_result(None)

    def _forget(self) -> None:
        """Drop finished jobs that are too old, or too many bytes together."""
        now, total = time.monotonic(), 0
        for job in sorted(self._kept.values(), key=lambda job: -job.ended_at):
            total += len(job.answer.picture) + 2_000 if job.answer else 2_000
            if job.ended_at != float("inf") and (
                now - job.ended_at > self._keep_seconds or total > self._keep_bytes
            ):
                del self._kept[job.id]
