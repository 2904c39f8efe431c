"""The HTTP interface: upload, call the Restorer in a worker thread, answer."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Form, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from starlette.exceptions import HTTPException
from starlette.types import Scope

from daclip import image, models
from daclip.errors import DaclipError, as_record
from daclip.restore import Restorer, parse_strength
from daclip.serve.gate import TITLES, Gate, Problem, problem, problem_of
from daclip.serve.jobs import Answer, Cancelled, Job, Jobs, TimedOut
from daclip.serve.schemas import (
    Detected,
    Error,
    Health,
    JobId,
    JobState,
    ModelInfo,
    Record,
    Upload,
    Wishes,
    wishes_of,
)

PICTURES = {
    "jpeg": "image/jpeg",
    "png": "image/png",
    "tiff": "image/tiff",
    "webp": "image/webp",
    "avif": "image/avif",
}
"""Media type of each format that is read and written."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a server allows.

    Args:
        limits: of a photo; its `formats` are the allow-list.
        max_bytes: of an upload, with its other fields.
        timeout: seconds that a request may take, and a job may work.
        waiting: jobs that may wait.
        workers: jobs at once.
        key: clients must send; empty for none.
        hosts: names the server may be called by; empty for any.
    """

    limits: image.Limits = field(
        default_factory=lambda: image.Limits(max_pixels=100_000_000, formats=("jpeg", "png", "webp", "avif"))
    )
    max_bytes: int = 50_000_000
    timeout: float = 300.0
    waiting: int = 32
    workers: int = 1
    key: str = ""
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "::1")


class Service:
    """The endpoints around one restorer."""

    def __init__(self, restorer: Restorer, settings: Settings) -> None:
        self.settings, self._restorer = settings, restorer
        self.jobs = Jobs(workers=settings.workers, waiting=settings.waiting, timeout=settings.timeout)
        self._model = {
            "name": restorer.folder.name,
            "sha256": models.weights_sha256(restorer.folder),
        }
        self.figures = _Figures(self.jobs)

    async def restore(
        self, request: Request, upload: Upload, wishes: Annotated[Wishes, Depends(wishes_of)]
    ) -> Response:
        """Restore a photo: the picture, or its record with `Accept: application/json`.

        A photo in which nothing is found comes back as it is.
        """
        answer = await self._wait(request, partial(self._restore, await upload.read(), wishes))
        headers = _headers(answer.record)
        if _wants_json(request):
            return JSONResponse(dict(answer.record), headers=headers)
        return Response(answer.picture, media_type=answer.media_type, headers=headers)

    async def detect(
        self,
        request: Request,
        upload: Upload,
        threshold: Annotated[float, Form(ge=0, le=1, description="What counts as found")] = 0.5,
    ) -> Response:
        """Say what is wrong with a photo."""
        answer = await self._wait(request, partial(self._detect, await upload.read(), threshold))
        return JSONResponse(dict(answer.record))

    async def start(self, upload: Upload, wishes: Annotated[Wishes, Depends(wishes_of)]) -> Response:
        """Restore a photo in the background; `Location` says where to ask for it."""
        job = self.jobs.submit(partial(self._restore, await upload.read(), wishes), keep=True)
        headers = {"Location": f"/v1/jobs/{job.id}"}
        return JSONResponse(_state_of(job), status_code=202, headers=headers)

    def state(self, job_id: JobId) -> Response:
        """How far a job is."""
        return JSONResponse(_state_of(self._find(job_id)))

    def result(self, job_id: JobId) -> Response:
        """The picture of a job that is done."""
        job = self._find(job_id)
        if job.error is not None:
            raise job.error
        if job.answer is None:
            raise HTTPException(409, "the job is not done yet")
        return Response(
            job.answer.picture, media_type=job.answer.media_type, headers=_headers(job.answer.record)
        )

    def cancel(self, job_id: JobId) -> Response:
        """End a job at its next tile, and forget it."""
        self.jobs.drop(self._find(job_id))
        return Response(status_code=204)

    def models(self) -> Response:
        """The model of this server."""
        folder, engine = self._restorer.folder, self._restorer.engine
        config = folder.config
        info = {
            **self._model,
            "kind": config.kind,
            "words": list(folder.texts.names),
            "sampler": config.sampler,
            "steps": config.steps,
            "engine": engine.name,
            "precision": engine.precision,
        }
        return JSONResponse([info])

    def health(self) -> Response:
        """Alive, whatever the load."""
        return JSONResponse(self._health("alive"))

    def ready(self) -> Response:
        """Ready for another photo; 429 when the queue is full, 503 when the server ends."""
        self.jobs.check_room()
        return JSONResponse(self._health("ready"))

    def metrics(self) -> Response:
        """Figures for Prometheus."""
        return Response(generate_latest(self.figures.registry), media_type=CONTENT_TYPE_LATEST)

    def _health(self, status: str) -> dict[str, Any]:
        jobs = {"waiting": self.jobs.waiting, "working": self.jobs.working}
        return {"status": status, "version": version("daclip"), **jobs}

    def _find(self, job_id: str) -> Job:
        job = self.jobs.find(job_id)
        if job is None:
            raise HTTPException(404, "no such job; finished ones are kept for ten minutes")
        return job

    async def _wait(self, request: Request, work: partial[Answer]) -> Answer:
        """The answer of a job, cancelled when the client leaves or time is up."""
        job = self.jobs.submit(work)
        end = asyncio.wrap_future(job.future)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.settings.timeout
        while not end.done():
            await asyncio.wait([end], timeout=0.5)
            if end.done():
                break
            if await request.is_disconnected():
                job.cancel()
                self.figures.dropped.inc()
                raise Cancelled
            if loop.time() > deadline:
                job.cancel()
                raise TimedOut(self.settings.timeout)
        if job.error is not None:
            raise job.error
        assert job.answer is not None
        return job.answer

    def _restore(self, data: bytes, wishes: Wishes, job: Job) -> Answer:
        """In a worker thread: the restored file and the record of it."""
        photo = image.read(data, limits=self.settings.limits)
        with self.figures.seconds.labels("restore").time():
            restored = self._restorer.restore(
                photo,
                task=wishes.task,
                strength=parse_strength(wishes.strength),
                sampler=wishes.sampler,
                steps=wishes.steps,
                seed=wishes.seed,
                on_progress=job.tell,
            )
            format = wishes.format or image.output_format(photo)
            if restored.action == "unchanged" and format == photo.format and not wishes.strip_metadata:
                picture = data
            else:
                pixels, strip = restored.pixels, wishes.strip_metadata
                picture = image.to_bytes(
                    photo, pixels, format=format, quality=wishes.quality, strip_metadata=strip
                )
        self.figures.photos.labels(restored.action).inc()
        self.figures.megapixels.inc(photo.width * photo.height / 1e6)
        engine = self._restorer.engine
        used = {"model": self._model, "engine": engine.name, "precision": engine.precision}
        record = {"schema": "daclip.restore/1", **restored.record(), **used}
        return Answer(record=record, picture=picture, media_type=PICTURES[format])

    def _detect(self, data: bytes, threshold: float, job: Job) -> Answer:
        photo = image.read(data, limits=self.settings.limits)
        with self.figures.seconds.labels("detect").time():
            found = self._restorer.detect(photo, threshold=threshold)
        ranked = [{"name": name, "probability": round(p, 4)} for name, p in found.ranked()]
        record = {"schema": "daclip.detect/1", "width": photo.width, "height": photo.height}
        return Answer(
            record={**record, "detected": found.record(), "probabilities": ranked, "model": self._model}
        )


class _Figures:
    """What Prometheus may ask for."""

    def __init__(self, jobs: Jobs) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "daclip_requests", "Answers by route and status", ["route", "status"], registry=registry
        )
        self.photos = Counter("daclip_photos", "Photos by what was done", ["action"], registry=registry)
        self.megapixels = Counter("daclip_megapixels", "Megapixels restored", registry=registry)
        self.dropped = Counter("daclip_dropped", "Requests whose client left", registry=registry)
        self.seconds = Histogram(
            "daclip_work_seconds",
            "Seconds of work",
            ["kind"],
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100),
            registry=registry,
        )
        Gauge("daclip_waiting", "Jobs that wait", registry=registry).set_function(lambda: jobs.waiting)
        Gauge("daclip_working", "Jobs in work", registry=registry).set_function(lambda: jobs.working)

    def count(self, scope: Scope, status: int) -> None:
        """One answer; unknown paths share one label, so that strangers cannot make up labels."""
        route = scope.get("route")
        path = route.path if isinstance(route, APIRoute) else "other"
        self.requests.labels(path, str(status)).inc()


def build(restorer: Restorer, settings: Settings) -> FastAPI:
    """The application around one restorer."""
    service = Service(restorer, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        yield
        # what is in work is finished; requests have their answers by then
        await asyncio.to_thread(service.jobs.close)

    app = FastAPI(
        title="daclip",
        version=version("daclip"),
        summary="Says what is wrong with a photo, and mends it.",
        docs_url=None,  # the library's own page loads scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    _add_routes(app, service)
    _add_errors(app)
    app.add_middleware(
        Gate,
        jobs=service.jobs,
        max_bytes=settings.max_bytes,
        key=settings.key,
        hosts=settings.hosts,
        on_end=service.figures.count,
    )
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    key = [Depends(HTTPBearer(auto_error=False))] if service.settings.key else []
    refused = {
        status: _PROBLEM | {"description": TITLES[status]}
        for status in (400, 403, 413, 415, 422, 429, 500, 503, 504)
    }
    if key:
        refused[401] = _PROBLEM | {"description": TITLES[401]}
    few = {status: refused[status] for status in (401, 403) if status in refused}
    picture: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
    pictures = dict.fromkeys(PICTURES.values(), picture)
    found = {"description": "The picture", "content": pictures, "headers": _HEADERS}
    either = {**found, "model": Record}
    gone = {**few, 404: _PROBLEM | {"description": TITLES[404]}}
    ends = {404: gone[404], 409: _PROBLEM | {"description": TITLES[409]}, **refused}
    add = app.add_api_route
    add(
        "/v1/restore",
        service.restore,
        methods=["POST"],
        response_class=Response,
        responses={200: either, **refused},
        dependencies=key,
    )
    add(
        "/v1/detect",
        service.detect,
        methods=["POST"],
        responses={200: {"model": Detected}, **refused},
        dependencies=key,
    )
    add(
        "/v1/jobs",
        service.start,
        methods=["POST"],
        status_code=202,
        responses={202: {"model": JobState, "headers": _LOCATION}, **refused},
        dependencies=key,
    )
    add(
        "/v1/jobs/{job_id}",
        service.state,
        methods=["GET"],
        responses={200: {"model": JobState}, **gone, 422: refused[422]},
        dependencies=key,
    )
    add(
        "/v1/jobs/{job_id}/result",
        service.result,
        methods=["GET"],
        response_class=Response,
        responses={200: found, **ends},
        dependencies=key,
    )
    add(
        "/v1/jobs/{job_id}",
        service.cancel,
        methods=["DELETE"],
        status_code=204,
        response_class=Response,
        responses={**gone, 422: refused[422]},
        dependencies=key,
    )
    add(
        "/v1/models",
        service.models,
        methods=["GET"],
        responses={200: {"model": list[ModelInfo]}, **few},
        dependencies=key,
    )
    add("/health", service.health, methods=["GET"], responses={200: {"model": Health}})
    add(
        "/ready",
        service.ready,
        methods=["GET"],
        responses={200: {"model": Health}, 429: refused[429], 503: refused[503]},
    )
    add(
        "/metrics",
        service.metrics,
        methods=["GET"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}},
    )
    page = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    add("/docs", lambda: HTMLResponse(page, headers=_PAGE_HEADERS), methods=["GET"], include_in_schema=False)
    add("/", lambda: RedirectResponse("/docs"), methods=["GET"], include_in_schema=False)


def _add_errors(app: FastAPI) -> None:
    """Every error as a problem in JSON."""

    def answer(given: Problem) -> Response:
        status, body, headers = given
        return JSONResponse(body, status_code=status, headers=headers, media_type="application/problem+json")

    def of_ours(_: Request, error: Exception) -> Response:
        if not isinstance(error, DaclipError):
            logging.getLogger("daclip").error("unexpected error", exc_info=error)
        return answer(problem_of(error))

    def of_http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kind = {404: "missing", 409: "unfinished", 413: "too-large"}.get(error.status_code, "http")
        headers = dict(error.headers or {})
        return answer(problem(error.status_code, str(error.detail), kind=kind, headers=headers))

    def of_fields(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        faults = [f"{'.'.join(str(part) for part in one['loc'][1:])}: {one['msg']}" for one in error.errors()]
        return answer(problem(422, "; ".join(faults), kind="usage", hint="see /docs"))

    app.add_exception_handler(DaclipError, of_ours)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(RequestValidationError, of_fields)
    app.add_exception_handler(Exception, of_ours)


def _state_of(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "state": job.state,
        "part": round(job.part, 4),
        "record": dict(job.answer.record) if job.answer else None,
        "error": as_record(job.error)
        if isinstance(job.error, DaclipError)
        else None
        if job.error is None
        else _UNEXPECTED,
    }


def _headers(record: Any) -> dict[str, str]:
    found = ", ".join(f"{one['name']}={one['probability']:.2f}" for one in record["detected"])
    model = record["model"]
    return {
        "X-Daclip-Action": record["action"],
        "X-Daclip-Detected": found,
        "X-Daclip-Model": f"{model['name']}; sha256={model['sha256']}",
    }


def _wants_json(request: Request) -> bool:
    return request.headers.get("accept", "").partition(",")[0].partition(";")[0].strip() == "application/json"


_UNEXPECTED = {"kind": "internal", "message": "an unexpected error", "hint": "the server's log has it"}
_TEXT = {"schema": {"type": "string"}}
_HEADERS = {
    "X-Daclip-Action": {"description": "`restored` or `unchanged`", **_TEXT},
    "X-Daclip-Detected": {"description": "What was found, with probabilities", **_TEXT},
    "X-Daclip-Model": {"description": "Name and hash of the model", **_TEXT},
}
_LOCATION = {"Location": {"description": "Where the job can be asked for", **_TEXT}}
_PROBLEM: dict[str, Any] = {"content": {"application/problem+json": {"schema": Error.model_json_schema()}}}
# nothing from anywhere else, and nothing can be sent anywhere else
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
}
