"""Processes that decode and degrade photos."""

import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import cv2


def pool(workers: int) -> ProcessPoolExecutor:
    """So many processes, of one thread each; Ctrl-C is the parent's to answer.

    They are spawned: a forked libvips hangs, since its threads are not copied.
    """
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start)


def start_method() -> Literal["fork", "spawn"]:
    """How processes that read photos can start here: forked in no time, or anew.

    A fork has none of its parent's threads, and would wait for those of libvips for ever. libvips ends them
    15 s after the last photo that was decoded.
    """
    if sys.platform != "linux":
        return "spawn"
    for name in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # that thread has just ended
            if name.read_text().startswith("libvips"):
                return "spawn"
    return "fork"


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
