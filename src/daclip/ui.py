"""The web page of `daclip ui`: photos in, what is wrong with them, before and after, results to take home.

Gradio draws the page. Photos go in and out as files, past its own reading and writing of pictures.
"""

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.themes import Default

from daclip import detect as detection
from daclip import image, models, report
from daclip.errors import DaclipError, PhotoError, UsageError
from daclip.image import Photo
from daclip.restore import Restored, Restorer
from daclip.vocabulary import CLEAN

KINDS = {"one-pass": "faithful", "diffusion": "realistic"}
"""What people call the two kinds of restorer."""

Answer = dict[Any, Any]
"""New values of some components of the page."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One photo of a visitor, done: `restored` for the file, `preview` the same run on few pixels."""

    name: str
    folder: Path
    restorer: Restorer
    restored: Restored
    preview: Restored


@dataclass(kw_only=True)
class Session:
    """What one open tab has on the server: a folder of its own, its results by title, and a way to stop."""

    folder: Path
    results: dict[str, Result] = field(default_factory=dict[str, Result])
    stop: threading.Event = field(default_factory=threading.Event)
    pictures: int = 0


class _Stopped(Exception):
    """The visitor pressed Stop."""


class Page:
    """The page and its visitors. One run at a time; blending and downloads go beside it.

    Args:
        restorers: who restores, one or several; the visitor chooses.
        folder: where photos and results lie while a tab is open.
    """

    def __init__(self, restorers: Sequence[Restorer], folder: Path) -> None:
        self._restorers = {_title(one): one for one in restorers}
        self._folder = folder
        self._hashes = {title: models.weights_sha256(one.folder) for title, one in self._restorers.items()}
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        self.blocks = self._build()

    def launch(self, *, host: str, port: int | None, open_browser: bool) -> str:
        """Serve the page until `close`, at the address that comes back. Raises UsageError if none is free."""
        self.blocks.queue(max_size=_QUEUE)
        try:
            _, address, _ = self.blocks.launch(
                server_name=host,
                server_port=port,
                inbrowser=open_browser,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                show_error=False,
                max_file_size=image.DEFAULT_LIMITS.max_bytes,
                allowed_paths=[],
                footer_links=[],
                ssr_mode=False,
                enable_monitoring=False,
                theme=Default(font=_FONTS, font_mono=["monospace"]),
                css=_STYLE,
            )
        except OSError as error:
            raise UsageError(
                f"nothing can listen at {host}:{port or 'any port'} ({error})", hint="try another --port"
            ) from error
        return address

    def close(self) -> None:
        """Stop serving, and stop what runs."""
        for session in list(self._sessions.values()):
            session.stop.set()
        self.blocks.close(verbose=False)

    def _build(self) -> gr.Blocks:
        """All components, and which function answers which of them."""
        with gr.Blocks(title="daclip", analytics_enabled=False, delete_cache=(600, _KEEP_SECONDS)) as blocks:
            gr.Markdown(
                "# daclip\nSays what is wrong with a photo, and mends it. Photos stay on this machine."
            )
            with gr.Row():
                with gr.Column(scale=1, min_width=320):
                    self._draw_settings()
                with gr.Column(scale=3, min_width=480):
                    self._draw_results()
            self._connect(blocks)
        return blocks

    def _draw_settings(self) -> None:
        titles = list(self._restorers)
        words = dict.fromkeys(
            word for one in self._restorers.values() for word in one.folder.texts.names if word != CLEAN
        )
        self.photos = gr.File(label="Photos", file_count="multiple", height=150, elem_id="photos")
        self.examples = gr.Gallery(
            [(str(path), path.stem) for path in sorted(_EXAMPLES.glob("*.jpg"))],
            label="Examples",
            columns=5,
            height=150,
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="examples",
        )
        self.strength = gr.Slider(
            0,
            1,
            1,
            step=0.01,
            label="Strength",
            info="How far to go; blends again at once.",
            elem_id="strength",
        )
        self.kind = gr.Radio(
            titles, value=titles[0], label="How", info=_choice(self._restorers.values()), elem_id="kind"
        )
        self.task = gr.CheckboxGroup(
            list(words), label="Treat", info="By hand; nothing ticked treats what is found.", elem_id="task"
        )
        is_random = any(one.folder.config.kind == "diffusion" for one in self._restorers.values())
        self.seed = gr.Number(
            0,
            precision=0,
            minimum=0,
            label="Seed",
            info="Of the realistic way: same seed, same pixels.",
            interactive=is_random,
            elem_id="seed",
        )
        with gr.Row():
            self.again = gr.Button("Restore", variant="primary", elem_id="again")
            self.stop = gr.Button("Stop", variant="stop", elem_id="stop")

    def _draw_results(self) -> None:
        self.shown = gr.Dropdown([], label="Photo", visible=False, interactive=True, elem_id="shown")
        self.slider = gr.ImageSlider(
            type="filepath",
            format="png",
            label="Before and after; the wheel zooms",
            interactive=False,
            buttons=["fullscreen"],
            max_height=640,
            elem_id="slider",
        )
        self.every_pixel = gr.Checkbox(
            False,
            label="Every pixel",
            info="Photos above 4 megapixels are shown smaller; this shows all of them, and takes its time.",
            elem_id="every-pixel",
        )
        with gr.Row():
            self.download = gr.DownloadButton(
                "Download", interactive=False, variant="primary", elem_id="download"
            )
            self.trust = gr.DownloadButton("Trust report", interactive=False, elem_id="trust")
        with gr.Row():
            self.words = gr.Label(label="What is wrong", num_top_classes=5, elem_id="words")
            self.told = gr.Textbox(
                label="What happened", lines=6, max_lines=12, interactive=False, elem_id="told"
            )
        self.files = gr.File(
            label="All results", file_count="multiple", interactive=False, visible=False, elem_id="files"
        )

    def _connect(self, blocks: gr.Blocks) -> None:
        results = [self.shown, self.slider, self.words, self.told, self.download, self.trust, self.files]
        settings = [self.kind, self.task, self.strength, self.seed, self.every_pixel]
        view = [self.shown, self.strength, self.every_pixel]
        picture = [self.slider, self.words, self.download, self.trust]
        written = [self.download, self.trust, self.files]
        for trigger in (self.photos.upload, self.again.click):
            trigger(
                self._run,
                [self.photos, *settings],
                results,
                show_progress_on=[self.told],
                trigger_mode="once",
                concurrency_id="run",
                concurrency_limit=1,
                api_visibility="private",
            )
        self.examples.select(
            self._run_example,
            settings,
            results,
            show_progress_on=[self.told],
            concurrency_id="run",
            concurrency_limit=1,
            api_visibility="private",
        )
        for trigger in (self.strength.change, self.shown.input, self.every_pixel.input):
            trigger(
                self._show,
                view,
                picture,
                show_progress="hidden",
                trigger_mode="always_last",
                concurrency_id="show",
                concurrency_limit=4,
                api_visibility="private",
            ).then(
                self._write,
                [self.shown, self.strength],
                written,
                show_progress="hidden",
                concurrency_id="write",
                concurrency_limit=2,
                api_visibility="private",
            )
        self.stop.click(self._stop, queue=False, api_visibility="private")
        blocks.unload(self._forget)

    def _run_example(
        self,
        kind: str,
        task: list[str],
        strength: float,
        seed: int,
        every_pixel: bool,
        chosen: gr.SelectData,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008, Gradio's way to hand one in
    ) -> Iterator[Answer]:
        path = sorted(_EXAMPLES.glob("*.jpg"))[chosen.index]
        yield from self._run([str(path)], kind, task, strength, seed, every_pixel, request, progress)

    def _run(
        self,
        paths: list[str] | None,
        kind: str,
        task: list[str],
        strength: float,
        seed: int,
        every_pixel: bool,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[Answer]:
        """Photo after photo: what is wrong at once, then the result; each line as soon as it is known."""
        session, lines = self._start(request), list[str]()
        if not paths:
            yield {self.told: "Drop a photo first, or choose an example."}
            return
        yield self._emptied("Looking ...")
        for number, path in enumerate(paths):
            name = Path(path).name
            heading = f"{name} ({number + 1} of {len(paths)})" if len(paths) > 1 else name
            try:
                start = time.monotonic()
                photo = _received(Path(path), session.folder / str(number))
                restorer = self._restorers[kind]
                embeddings = restorer.encode(photo)
                found = detection.detect(embeddings.degradation, restorer.folder.texts)
                yield {self.words: dict(found.ranked()), self.told: "\n".join([*lines, f"{name}: restoring"])}

                def tell(done: int, total: int, heading: str = heading) -> None:
                    if session.stop.is_set():
                        raise _Stopped
                    progress((done, total), desc=heading, unit="steps")

                tell(0, 1)
                # at full strength, so that the slider can go anywhere afterwards
                restored = restorer.restore(
                    photo, task=task or "auto", seed=int(seed), embeddings=embeddings, on_progress=tell
                )
                result = _kept(name, session.folder / str(number), restorer, restored)
            except _Stopped:
                lines.append(f"{name}: stopped")
                yield {
                    self.told: "\n".join(
                        [*lines, *(f"{Path(one).name}: not begun" for one in paths[number + 1 :])]
                    )
                }
                return
            except DaclipError as error:
                lines.append(f"{name}: {error}")
                yield {self.told: "\n".join(lines)}
                continue
            title = name if name not in session.results else f"{name} ({number + 1})"
            session.results[title] = result
            lines.append(f"{_line(result)}, {time.monotonic() - start:.1f} s")
            answer = self._show(title, strength, every_pixel, request) | {self.told: "\n".join(lines)}
            titles = list(session.results)
            answer[self.shown] = gr.Dropdown(titles, value=title, visible=len(titles) > 1)
            yield answer | self._write(title, strength, request)

    def _show(self, title: str | None, strength: float, every_pixel: bool, request: gr.Request) -> Answer:
        """Before and after at this strength, and the words; the download waits for its file."""
        session = self._session(request)
        result = session.results.get(title or "")
        if result is None:
            return {self.slider: None}
        session.pictures += 1
        one = (_again(result.restored) if every_pixel else result.preview).at(strength)
        before = result.folder / f"before-{'all' if every_pixel else 'few'}.png"
        if not before.exists():
            _draw(replace(one, action="unchanged"), before)
        after = result.folder / f"after-{session.pictures}.png"
        _draw(one, after)
        found = result.restored.detection
        return {
            self.slider: (str(before), str(after)),
            self.words: dict(found.ranked()) if found else None,
            self.download: gr.DownloadButton(interactive=False),
            self.trust: gr.DownloadButton(interactive=False),
        }

    def _write(self, title: str | None, strength: float, request: gr.Request) -> Answer:
        """The file to take home, in the photo's own format and depth, with its metadata; and the report."""
        session = self._session(request)
        result = session.results.get(title or "")
        if result is None or title is None:
            return {self.download: gr.DownloadButton(interactive=False)}
        one = _again(result.restored).at(strength)
        path = one.save(result.folder / "result" / _result_name(result.name), overwrite=True)
        told = report.make(
            one, result.restorer, name=result.name, sha256=self._hashes[_title(result.restorer)]
        )
        page = path.with_name(f"{path.name}.report.html")
        page.write_text(report.to_html(told), encoding="utf-8")
        files = [str(file) for each in session.results.values() for file in _results_of(each)]
        return {
            self.download: gr.DownloadButton(value=str(path), interactive=True),
            self.trust: gr.DownloadButton(value=str(page), interactive=True),
            self.files: gr.File(value=files, visible=len(session.results) > 1),
        }

    def _stop(self, request: gr.Request) -> None:
        self._session(request).stop.set()

    def _emptied(self, told: str) -> Answer:
        return {
            self.told: told,
            self.slider: None,
            self.words: None,
            self.shown: gr.Dropdown([], value=None, visible=False),
            self.download: gr.DownloadButton(value=None, interactive=False),
            self.trust: gr.DownloadButton(value=None, interactive=False),
            self.files: gr.File(value=None, visible=False),
        }

    def _start(self, request: gr.Request) -> Session:
        """The visitor's session, emptied for a new run."""
        self._forget(request)
        return self._session(request)

    def _session(self, request: gr.Request) -> Session:
        key = str(request.session_hash)
        with self._lock:
            if key not in self._sessions:
                while len(self._sessions) >= _SESSIONS:
                    self._drop(next(iter(self._sessions)))
                self._sessions[key] = Session(folder=Path(tempfile.mkdtemp(dir=self._folder)))
            return self._sessions[key]

    def _forget(self, request: gr.Request) -> None:
        """The tab was closed, or starts anew: stop what runs for it, delete its photos."""
        with self._lock:
            self._drop(str(request.session_hash))

    def _drop(self, key: str) -> None:
        session = self._sessions.pop(key, None)
        if session is not None:
            session.stop.set()
            shutil.rmtree(session.folder, ignore_errors=True)


def _title(restorer: Restorer) -> str:
    return f"{KINDS[restorer.folder.config.kind]} ({restorer.folder.name})"


def _choice(restorers: Any) -> str:
    kinds = {one.folder.config.kind for one in restorers}
    if len(kinds) == 2:
        return "Faithful keeps to what is there, in one pass; realistic draws detail, in several steps."
    other = "realistic" if "one-pass" in kinds else "faithful"
    return f"For the {other} way start the page with `--model` and a model of that kind too."


def _received(uploaded: Path, folder: Path) -> Photo:
    """The photo, in a folder of ours: Gradio deletes uploads after a while."""
    if not uploaded.is_file():
        raise PhotoError("missing", None, "is no longer on the server", hint="drop it again")
    folder.mkdir(parents=True)
    return image.read(Path(shutil.copyfile(uploaded, folder / uploaded.name)))


def _kept(name: str, folder: Path, restorer: Restorer, restored: Restored) -> Result:
    """The result with its pixels on disk, so that many photos in a row do not fill the memory."""
    photo, full = restored.photo, restored.full
    cell = int(np.ceil(np.sqrt(photo.width * photo.height / _PREVIEW_PIXELS)))
    few = image.from_array(report.shrunk(photo, None, cell))
    small = None if full is None else report.shrunk(photo, full, cell)
    preview = replace(restored, photo=few, full=small)
    if full is not None:
        np.save(folder / "full.npy", full)
        full = np.load(folder / "full.npy", mmap_mode="r")
    kept = replace(_again(restored), full=full)
    return Result(name=name, folder=folder, restorer=restorer, restored=kept, preview=preview)


def _again(restored: Restored) -> Restored:
    """The same with its photo not yet decoded: pixels and warnings of what follows stay apart."""
    return replace(restored, photo=replace(restored.photo, warnings=[*restored.photo.warnings]))


def _draw(one: Restored, path: Path) -> None:
    pixels = one.pixels
    if pixels.dtype != np.uint8:
        pixels = (pixels >> 8).astype(np.uint8)
    path.write_bytes(image.to_bytes(image.from_array(pixels), pixels, format="png"))


def _result_name(name: str) -> str:
    path = Path(name)
    return f"{path.stem}.restored{path.suffix}"


def _results_of(result: Result) -> list[Path]:
    return [path for path in (result.folder / "result").iterdir() if path.suffix != ".html"]


def _line(result: Result) -> str:
    """What was found and done, and what should be known of it."""
    restored = result.restored
    found = restored.detection
    if restored.action == "unchanged":
        what = f"left as it is, {restored.reason}"
    else:
        what = ", ".join(f"{word} {found.probability(word):.2f}" for word in restored.applied if found)
    return "; ".join([f"{result.name}: {what}", *restored.photo.warnings, *restored.notes])


_EXAMPLES = Path(__file__).parent / "photos"
_PREVIEW_PIXELS = 4_000_000
"""Above, the page shows the photo smaller: blending and sending it then takes 0.2 s and not a second."""
_SESSIONS = 32
_QUEUE = 64
_KEEP_SECONDS = 86_400
_FONTS = ["system-ui", "sans-serif"]
_STYLE = "footer { display: none !important; }"
