"""The executor for a cluster: one Ray task for each photo, on whichever machine has a processor free.

All machines need this package, and see the two folders (and a model named as a path) in the same place.
"""

import logging
import os
import pickle
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator
from functools import lru_cache
from typing import Any, cast

import ray
from ray.exceptions import RayError

from daclip.batch.work import ATTEMPTS, Recipe, Record, Task, give_up, work
from daclip.errors import DaclipError, UsageError
from daclip.restore import Restorer


class RayExecutor:
    """See `Executor`. With 0 workers as many photos are in work as the cluster has processors for.

    Args:
        address: of a cluster, `auto` for the one this machine is part of, None for one on this machine alone.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address

    def __call__(
        self, tasks: Iterator[Task | None], recipe: Recipe, *, workers: int
    ) -> Generator[Record, None, None]:
        """Records as the photos are done; when closed, photos in work are dropped."""
        is_ours = not ray.is_initialized()
        if is_ours:
            _connect(self._address, workers * recipe.threads)
        try:
            yield from _run(tasks, recipe, workers)
        finally:
            if is_ours:
                ray.shutdown()


def _connect(address: str | None, processors: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning on machines without GPU
    try:
        if address is not None:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
            return
        ray.init(
            num_cpus=processors or None,
            include_dashboard=False,
            object_store_memory=100_000_000,  # records are small; the default takes a third of the memory
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"no Ray cluster at {address or 'this machine'} ({reason})",
            hint="start one with `ray start --head`, or leave out --address",
        ) from error


def _run(tasks: Iterator[Task | None], recipe: Recipe, workers: int) -> Generator[Record, None, None]:
    """Keep twice as many photos with Ray as can be in work, so that no processor waits for us."""
    # a photo whose machine dies is begun again by us, for only we count how often
    remote = ray.remote(num_cpus=recipe.threads, max_retries=0)(_work)
    recipe_bytes = pickle.dumps(recipe)
    under_way: dict[Any, Task] = {}
    again: deque[Task] = deque()
    deaths: Counter[str] = Counter()
    is_over = False
    while True:
        room = 2 * (workers or _processors() // recipe.threads)
        while again or (not is_over and len(under_way) < max(room, 2)):
            try:
                task = again.popleft() if again else next(tasks)
            except StopIteration:
                is_over = True
                break
            if task is None:
                break
            under_way[remote.remote(recipe_bytes, task)] = task
        if not under_way and is_over:
            return
        for reference in _done(under_way):
            task = under_way.pop(reference)
            try:
                answer = cast("Record | DaclipError", ray.get(reference))
            except RayError as error:  # its worker or its machine died
                deaths[task.name] += 1
                if deaths[task.name] < ATTEMPTS:
                    again.append(task)
                else:
                    yield give_up(task, type(error).__name__)
                continue
            if isinstance(answer, DaclipError):
                raise answer
            yield answer


def _done(under_way: dict[Any, Task]) -> list[Any]:
    """What is done, or has died, after half a second at most."""
    if not under_way:
        time.sleep(0.5)
        return []
    return ray.wait(list(under_way), num_returns=1, timeout=0.5)[0]


def _processors() -> int:
    return int(ray.cluster_resources().get("CPU", 1))


def _work(recipe: bytes, task: Task) -> Record | DaclipError:
    """One photo, on the machine that Ray chose."""
    try:
        restorer, values = _restorer(recipe)
        return work(restorer, values, task)
    except DaclipError as error:
        return error


@lru_cache(maxsize=1)
def _restorer(recipe: bytes) -> tuple[Restorer, Recipe]:
    """The restorer of this process, kept from photo to photo."""
    values: Recipe = pickle.loads(recipe)
    return values.restorer(), values
