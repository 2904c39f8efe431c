"""What stands on the page, and which function answers which part of it.

Gradio draws the page. Photos go in and out as files, past its own reading and writing of pictures.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes import Default
from starlette.middleware import Middleware

from daclip import image, models
from daclip.errors import DaclipError, UsageError
from daclip.restore import Restorer
from daclip.ui import results
from daclip.ui.only_here import OnlyHere
from daclip.ui.results import Session, Sessions
from daclip.vocabulary import CLEAN

KINDS = {"one-pass": "faithful", "diffusion": "realistic"}
"""What people call the two kinds of restorer."""

Answer = dict[Any, Any]
"""New values of some components of the page."""


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
        self._sessions = Sessions(folder)
        self._hashes = {title: models.weights_sha256(one.folder) for title, one in self._restorers.items()}
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
                app_kwargs={"middleware": [Middleware(OnlyHere)]},
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
        # what is being sent at this moment fails, and nobody needs to hear of it
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self._sessions.end_all()
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
            columns=3,
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
                concurrency_limit=1,  # so that the last to be asked for is the last to be written
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
        if not paths:
            yield {self.told: "Drop a photo first, or choose an example."}
            return
        self._forget(request)
        session, lines = self._session(request), list[str]()
        session.strength = strength
        yield self._emptied("Looking ...")
        for number, path in enumerate(paths):
            name = Path(path).name
            heading = f"{name} ({number + 1} of {len(paths)})" if len(paths) > 1 else name

            def tell(done: int, total: int, heading: str = heading) -> None:
                if session.stop.is_set():
                    raise _Stopped
                progress((done, total), desc=heading, unit="steps")

            try:
                start = time.monotonic()
                tell(0, 1)
                folder, restorer = session.folder / str(number), self._restorers[kind]
                photo = results.receive(Path(path), folder)
                embeddings = restorer.encode(photo)
                found = restorer.detect(photo, embeddings=embeddings)
                yield {self.words: dict(found.ranked()), self.told: "\n".join([*lines, f"{name}: restoring"])}
                # at full strength, so that the slider can go anywhere afterwards
                restored = restorer.restore(
                    photo, task=task or "auto", seed=seed, embeddings=embeddings, on_progress=tell
                )
                result = results.keep(name, folder, restorer, restored)
            except _Stopped:
                waiting = [f"{Path(one).name}: not begun" for one in paths[number + 1 :]]
                yield {self.told: "\n".join([*lines, f"{name}: stopped", *waiting])}
                return
            except DaclipError as error:
                lines.append(f"{name}: {error}")
                yield {self.told: "\n".join(lines)}
                continue
            title = name if name not in session.results else f"{name} ({number + 1})"
            session.results[title] = result
            lines.append(f"{results.line(result)}, {time.monotonic() - start:.1f} s")
            yield self._new(title, session, every_pixel, request) | {self.told: "\n".join(lines)}

    def _new(self, title: str, session: Session, every_pixel: bool, request: gr.Request) -> Answer:
        """All that shows a result which was not there before."""
        shown = self._show(title, session.strength, every_pixel, request)
        titles = list(session.results)
        choice = {self.shown: gr.Dropdown(titles, value=title, visible=len(titles) > 1)}
        return shown | choice | self._write(title, session.strength, request)

    def _show(self, title: str | None, strength: float, every_pixel: bool, request: gr.Request) -> Answer:
        """Before and after at this strength, and the words; the download waits for its file."""
        session = self._session(request)
        session.strength = strength
        result = session.results.get(title or "")
        if result is None:
            return {self.slider: None}
        session.pictures += 1
        before, after = results.draw(result, strength, session.pictures, every_pixel=every_pixel)
        found = result.restored.detection
        return {
            self.slider: (str(before), str(after)),
            self.words: dict(found.ranked()) if found else None,
            self.download: gr.DownloadButton(interactive=False),
            self.trust: gr.DownloadButton(interactive=False),
        }

    def _write(self, title: str | None, strength: float, request: gr.Request) -> Answer:
        """The file to take home, unless the slider has moved on: then the next call brings it."""
        session = self._session(request)
        result = session.results.get(title or "")
        if result is None:
            return {self.download: gr.DownloadButton(interactive=False)}
        sha256 = self._hashes[_title(result.restorer)]
        path, report = results.write(result, strength, sha256=sha256)
        if strength != session.strength:
            return {self.download: gr.DownloadButton(interactive=False)}
        files = [str(one) for one in results.written(session)]
        return {
            self.download: gr.DownloadButton(value=str(path), interactive=True),
            self.trust: gr.DownloadButton(value=str(report), interactive=True),
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

    def _session(self, request: gr.Request) -> Session:
        return self._sessions.of(str(request.session_hash))

    def _forget(self, request: gr.Request) -> None:
        """The tab was closed, or starts anew."""
        self._sessions.end(str(request.session_hash))


def _title(restorer: Restorer) -> str:
    return f"{KINDS[restorer.folder.config.kind]} ({restorer.folder.name})"


def _choice(restorers: Iterable[Restorer]) -> str:
    kinds = {one.folder.config.kind for one in restorers}
    if len(kinds) == 2:
        return "Faithful keeps to what is there, in one pass; realistic draws detail, in several steps."
    other = "realistic" if "one-pass" in kinds else "faithful"
    return f"For the {other} way start the page with `--model` and a model of that kind too."


_EXAMPLES = Path(__file__).parent.parent / "photos"
_QUEUE = 64
_KEEP_SECONDS = 86_400
_FONTS = ["system-ui", "sans-serif"]
_STYLE = "footer { display: none !important; }"
