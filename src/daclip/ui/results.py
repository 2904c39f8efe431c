"""Visitors of the page and what became of their photos: on disk, so that many do not fill the memory."""

import math
import shutil
import tempfile
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from daclip import image, report
from daclip.errors import PhotoError
from daclip.image import Photo
from daclip.restore import Restored, Restorer


@dataclass(frozen=True, kw_only=True)
class Result:
    """One photo at full strength: `restored` for the file, `preview` the same run on few pixels."""

    name: str
    folder: Path
    restorer: Restorer
    restored: Restored
    preview: Restored


@dataclass(kw_only=True)
class Session:
    """One open tab: a folder of its own, its results by title, where its slider stands, a way to stop."""

    folder: Path
    results: dict[str, Result] = field(default_factory=dict[str, Result])
    strength: float = 1.0
    stop: threading.Event = field(default_factory=threading.Event)
    pictures: int = 0


class Sessions:
    """All open tabs, by Gradio's key; the oldest go when there are too many. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._open: dict[str, Session] = {}

    def of(self, key: str) -> Session:
        """The tab's session, a new one where there is none."""
        with self._lock:
            if key not in self._open:
                while len(self._open) >= _SESSIONS:
                    self._drop(next(iter(self._open)))
                self._open[key] = Session(folder=Path(tempfile.mkdtemp(dir=self._folder)))
            return self._open[key]

    def end(self, key: str) -> None:
        """Stop what runs for the tab, and delete its photos."""
        with self._lock:
            self._drop(key)

    def end_all(self) -> None:
        """The same for every tab."""
        with self._lock:
            for key in list(self._open):
                self._drop(key)

    def _drop(self, key: str) -> None:
        session = self._open.pop(key, None)
        if session is not None:
            session.stop.set()
            # a moment later: what is on its way to the browser still arrives
            later = threading.Timer(_SECONDS_KEPT, shutil.rmtree, (session.folder,), {"ignore_errors": True})
            later.daemon = True
            later.start()


def receive(uploaded: Path, folder: Path) -> Photo:
    """The photo, copied into a folder of ours: Gradio deletes uploads after a while."""
    if not uploaded.is_file():
        raise PhotoError("missing", None, "is no longer on the server", hint="drop it again")
    folder.mkdir()
    return image.read(Path(shutil.copyfile(uploaded, folder / uploaded.name)))


def keep(name: str, folder: Path, restorer: Restorer, restored: Restored) -> Result:
    """The result of a run at full strength, its pixels written into the folder."""
    photo, full = restored.photo, restored.full
    cell = math.ceil(math.sqrt(photo.width * photo.height / _PREVIEW_PIXELS))
    few = image.from_array(report.shrunk(photo, None, cell))
    small = None if full is None else report.shrunk(photo, full, cell)
    preview = replace(restored, photo=few, full=small)
    if full is not None:
        np.save(folder / "full.npy", full)
        full = np.load(folder / "full.npy", mmap_mode="r")
    kept = replace(_undecoded(restored), full=full)
    return Result(name=name, folder=folder, restorer=restorer, restored=kept, preview=preview)


def draw(result: Result, strength: float, number: int, *, every_pixel: bool) -> tuple[Path, Path]:
    """Before and after at a strength as lossless pictures; of those that were drawn before, a few stay."""
    one = (_undecoded(result.restored) if every_pixel else result.preview).at(strength)
    before = result.folder / f"before-{'all' if every_pixel else 'few'}.png"
    if not before.exists():
        _write_png(replace(one, action="unchanged"), before)
    after = result.folder / f"after-{number}.png"
    _write_png(one, after)
    (result.folder / f"after-{number - _PICTURES_KEPT}.png").unlink(missing_ok=True)
    return before, after


def write(result: Result, strength: float, *, sha256: str) -> tuple[Path, Path]:
    """The photo to take home, in its own format and depth and with its metadata; and its trust report."""
    one = _undecoded(result.restored).at(strength)
    name = Path(result.name)
    path = one.save(result.folder / "result" / f"{name.stem}.restored{name.suffix}", overwrite=True)
    told = report.make(one, result.restorer, name=result.name, sha256=sha256)
    page = result.folder / f"{path.name}.report.html"
    page.write_text(report.to_html(told), encoding="utf-8")
    return path, page


def written(session: Session) -> list[Path]:
    """The photos to take home, of all results."""
    return [path for one in session.results.values() for path in (one.folder / "result").iterdir()]


def line(result: Result) -> str:
    """What was found and done, and what should be known of it."""
    restored = result.restored
    if restored.action == "unchanged":
        what = f"left as it is, {restored.reason}"
    else:
        what = ", ".join(f"{word} {restored.probability(word):.2f}" for word in restored.applied)
    return "; ".join([f"{result.name}: {what}", *restored.photo.warnings, *restored.notes])


def _undecoded(restored: Restored) -> Restored:
    """The same with its photo not yet decoded: pixels and warnings of what follows stay apart."""
    return replace(restored, photo=replace(restored.photo, warnings=[*restored.photo.warnings]))


def _write_png(one: Restored, path: Path) -> None:
    pixels = one.pixels
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels / np.float32(257)).astype(np.uint8)
    path.write_bytes(image.to_bytes(image.from_array(pixels), pixels, format="png"))


_PREVIEW_PIXELS = 4_000_000
"""Above, the page shows the photo smaller: 20 megapixels are blended in 0.1 s then, not in 0.6."""
_PICTURES_KEPT = 8
_SECONDS_KEPT = 10.0
_SESSIONS = 32
