"""Processes that decode and degrade photos."""

import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import cv2


def pool(workers: int) -> ProcessPoolExecutor:
    """So many processes, of one thread each; Ctrl-C is the parent's to answer.

    They are spawned: a forked libvips hangs, since its threads are not copied.
    """
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start)


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
