"""Raw frames through a pipe, so that ffmpeg can send a film through: rgb24 in, rgb24 out."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8

from daclip.batch.work import Recipe
from daclip.errors import PhotoError

Frame = UInt8[np.ndarray, "h w 3"]


def restore(
    source: BinaryIO,
    sink: BinaryIO,
    recipe: Recipe,
    *,
    width: int,
    height: int,
    workers: int = 1,
    on_progress: Callable[[int], object] = lambda _: None,
) -> int:
    """Restore frame after frame until the source ends; how many there were. Order is kept.

    Every frame stands for itself, with the same seed; name a task where what is found would flicker.
    Raises PhotoError `truncated` when the source ends within a frame, after the whole ones are written.
    """
    restorer, done = recipe.restorer(), 0

    def one(frame: Frame) -> Frame:
        return np.asarray(recipe.restored(restorer, frame).pixels, np.uint8)

    with ThreadPoolExecutor(workers) as pool:
        under_way: deque[Future[Frame]] = deque()
        frames = _frames(source, width, height)
        try:
            for frame in frames:
                under_way.append(pool.submit(one, frame))
                while len(under_way) > workers:
                    done += _put(under_way.popleft(), sink)
                    on_progress(done)
        finally:
            while under_way:
                done += _put(under_way.popleft(), sink)
                on_progress(done)
    return done


def _frames(source: BinaryIO, width: int, height: int) -> Iterator[Frame]:
    size, number = width * height * 3, 0
    while data := source.read(size):
        number += 1
        if len(data) < size:
            raise PhotoError(
                "truncated",
                None,
                f"the stream ends within frame {number} ({len(data):,} of {size:,} bytes)",
                hint=f"are its frames {width}x{height} rgb24?",
            )
        yield np.frombuffer(data, np.uint8).reshape(height, width, 3)


def _put(frame: "Future[Frame]", sink: BinaryIO) -> int:
    sink.write(np.ascontiguousarray(frame.result()).data)
    sink.flush()
    return 1
