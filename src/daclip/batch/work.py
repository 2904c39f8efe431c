"""One photo of a batch, as every executor does it: hash, restore, write, and a record of it."""

import hashlib
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from daclip import image
from daclip.errors import DaclipError, PhotoError, as_record
from daclip.image import Photo
from daclip.restore import Pixels, Restored, Restorer, Strength

Record = dict[str, Any]
"""What became of a photo, as JSON values: one line of the manifest."""


ATTEMPTS = 3
"""How often a photo is begun whose worker dies, before it is given up."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is done to every photo. Arguments as of `Restorer`, `Restorer.restore` and `Restored.save`.

    `memory_bytes` and `threads` are those of one worker.
    """

    model: str = "compact"
    task: str = "auto"
    strength: Strength = 1.0
    sampler: str | None = None
    steps: int | None = None
    seed: int = 0
    views: Literal["many", "centre"] = "many"
    tile: int | None = None
    device: str = "auto"
    engine: str = "auto"
    precision: str = "auto"
    format: image.Format | None = None
    quality: int | None = None
    strip_metadata: bool = False
    limits: image.Limits = field(default_factory=image.Limits)
    memory_bytes: int = 2_000_000_000
    threads: int = 1

    def settings(self) -> dict[str, Any]:
        """What results depend on, as JSON values, but for the model: it has its hash."""
        others = ("model", "memory_bytes", "threads")
        return {name: value for name, value in asdict(self).items() if name not in others}

    def restorer(self) -> Restorer:
        """The restorer of one worker."""
        image.use_threads(self.threads)
        return Restorer(
            self.model,
            device=self.device,
            memory=self.memory_bytes,
            threads=self.threads,
            engine=self.engine,
            precision=self.precision,
        )

    def restored(self, restorer: Restorer, photo: Photo | Pixels) -> Restored:
        """What a restorer makes of a photo, or of a frame."""
        return restorer.restore(
            photo,
            task=self.task,
            strength=self.strength,
            sampler=self.sampler,
            steps=self.steps,
            seed=self.seed,
            views=self.views,
            tile=self.tile,
        )


@dataclass(frozen=True, kw_only=True)
class Task:
    """One photo to be done.

    Args:
        name: its path below the input folder, with "/"; its name in the manifest.
        source: the photo.
        target: where its result goes; the suffix may change, see `image.output_path`.
        claimed: a file in that place is a result of this batch, and is replaced.
    """

    name: str
    source: Path
    target: Path
    claimed: bool = False


def work(restorer: Restorer, recipe: Recipe, task: Task) -> Record:
    """Restore one photo and write it; what is wrong with it is in the record.

    Raises what is wrong with flags or the model, which the next photo would say again (exit code 2).
    """
    start = time.monotonic()
    size, modified = stamp(task.source)
    record: Record = {"input": task.name, "output": None, "action": "failed"}
    record |= {"bytes": size, "modified_ns": modified}
    try:
        record |= _restore(restorer, recipe, task)
        if stamp(task.source) != (size, modified):
            raise PhotoError("unreadable", task.source, "changed while it was read", hint="run again")
    except Exception as error:  # a defect of ours in one photo must not take the others along
        if isinstance(error, DaclipError) and error.exit_code == 2:
            raise
        record |= {"output": None, "action": "failed", "error": as_record(error)}
    return record | {"seconds": round(time.monotonic() - start, 3)}


def _restore(restorer: Restorer, recipe: Recipe, task: Task) -> Record:
    photo = image.read(task.source, limits=recipe.limits)
    target = image.output_path(photo, task.target, format=recipe.format)
    if not task.claimed and target.exists():  # said before the work, not after it
        raise PhotoError("exists", target, "already there", hint="use --overwrite or another output folder")
    restored = recipe.restored(restorer, photo)
    written = restored.save(
        target,
        format=recipe.format,
        quality=recipe.quality,
        strip_metadata=recipe.strip_metadata,
        overwrite=task.claimed,
    )
    return {
        "output": task.name[: -len(Path(task.name).name)] + written.name,
        "sha256": sha256(task.source),
        "output_bytes": written.stat().st_size,
        "output_sha256": sha256(written),
        **restored.record(),
        "error": None,
    }


def stamp(path: Path) -> tuple[int, int]:
    """Size in bytes, time of change in nanoseconds; (0, 0) for a file that `image.read` will complain of."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def give_up(task: Task, reason: str) -> Record:
    """The record of a photo whose worker died each time."""
    error = PhotoError(
        "internal",
        task.source,
        f"its worker died {ATTEMPTS} times ({reason})",
        hint="use fewer --jobs, or more --memory",
    )
    size, modified = stamp(task.source)
    record = {"input": task.name, "output": None, "action": "failed"}
    return record | {"bytes": size, "modified_ns": modified, "error": as_record(error), "seconds": 0.0}


def sha256(path: Path) -> str:
    """The hash of a file's content, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
