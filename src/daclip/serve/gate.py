"""What stands before every request: size, key, origin and room are checked before its body is read."""

import hmac
import json
import re
import secrets
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daclip.errors import DaclipError, PhotoError, UsageError, as_record
from daclip.serve.jobs import Cancelled, Full, Jobs, Stopping, TimedOut

Problem = tuple[int, dict[str, Any], dict[str, str]]
"""Status, body and headers of an answer that says what is wrong (RFC 9457)."""

_STATUS_OF_KIND = {
    "too-large": 413,
    "no-memory": 413,
    "not-an-image": 415,
    "unsupported": 415,
    "empty": 415,
    "truncated": 422,
    "unreadable": 422,
}
_STATUS: dict[type[Exception], int] = {
    UsageError: 400,
    Full: 429,
    Stopping: 503,
    Cancelled: 409,
    TimedOut: 504,
}
TITLES = {
    400: "A field cannot mean anything",
    401: "A key is needed",
    403: "Not from this page",
    404: "Not found",
    405: "Not possible here",
    409: "Not there yet, or cancelled",
    413: "Too large",
    415: "Not a picture that is accepted here",
    422: "Cannot be read",
    429: "Too many requests",
    500: "An error of ours",
    503: "Stopping",
    504: "Took too long",
}


def problem_of(error: Exception) -> Problem:
    """What a client is told of an error; of an unexpected one only that it happened."""
    record = as_record(error)
    status = _STATUS.get(type(error), 500)
    if isinstance(error, PhotoError):
        status = _STATUS_OF_KIND.get(error.kind, 500)
    if status == 500 and not isinstance(error, DaclipError):
        record = {"kind": "internal", "message": "an unexpected error", "hint": "the server's log has it"}
    if isinstance(error, TimedOut | Full | Stopping | Cancelled):
        record["kind"] = {504: "timeout", 429: "busy", 503: "stopping", 409: "cancelled"}[status]
    headers = {"Retry-After": str(error.seconds)} if isinstance(error, Full) else {}
    if isinstance(error, Stopping):
        headers = {"Retry-After": "10"}
    return problem(status, record["message"], kind=record["kind"], hint=record["hint"], headers=headers)


def problem(
    status: int, detail: str, *, kind: str, hint: str = "", headers: dict[str, str] | None = None
) -> Problem:
    """A problem in the words of RFC 9457, with our kind and hint."""
    title = TITLES.get(status, "Error")
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return status, {**body, "kind": kind, "hint": hint}, headers or {}


class Gate:
    """ASGI middleware: gives a request its id, and refuses what need not be read.

    Args:
        app: what comes behind.
        jobs: whose room is checked before an upload is read.
        max_bytes: of a body, counted as it comes in.
        key: that requests to /v1 must carry as `Authorization: Bearer`; empty for none.
        hosts: names under which the server may be called; empty for any.
        on_end: called with the scope and the status of each answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        jobs: Jobs,
        max_bytes: int,
        key: str,
        hosts: tuple[str, ...],
        on_end: Callable[[Scope, int], object],
    ) -> None:
        self._app, self._jobs, self._max_bytes = app, jobs, max_bytes
        self._key, self._hosts, self._on_end = key, hosts, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with a problem."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if _IS_ID.fullmatch(given) else secrets.token_hex(8)
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"cache-control", b"no-store"),
                ]
            await send(message)

        refused = self._refusal(scope, headers)
        if refused is not None:
            await _drain(receive)
            await _answer(refused, send_with_id)
        else:
            await self._app(scope, self._counted(receive), send_with_id)
        self._on_end(scope, status)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> Problem | None:
        origin, path = headers.get("origin"), str(scope["path"])
        if self._hosts and _hostname(headers.get("host", "")) not in self._hosts:
            # a name that a stranger let point to this machine
            return problem(403, "the server is not called under this name", kind="host")
        if origin is not None and origin.partition("://")[2] != headers.get("host"):
            # a page of somebody else in the browser of who runs the server
            return problem(403, f"requests from {origin} are not answered", kind="origin")
        if not path.startswith("/v1/"):
            return None
        given = headers.get("authorization", "").encode("latin-1")
        if self._key and not hmac.compare_digest(given, f"Bearer {self._key}".encode()):
            hint = "send `Authorization: Bearer KEY`"
            bearer = {"WWW-Authenticate": "Bearer"}
            return problem(401, "the key is missing or wrong", kind="key", hint=hint, headers=bearer)
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_bytes:
            return self._too_large()
        if scope["method"] == "POST":
            try:
                self._jobs.check_room()
            except DaclipError as error:
                return problem_of(error)
        return None

    def _too_large(self) -> Problem:
        limit = f"{self._max_bytes / 1e6:g} MB"
        return problem(413, f"the upload is above the limit of {limit}", kind="too-large")

    def _counted(self, receive: Receive) -> Receive:
        """The body as it comes, ended by a 413 where it is too long, whatever Content-Length said."""
        total = 0

        async def receive_counted() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self._max_bytes:
                raise HTTPException(413, self._too_large()[1]["detail"])
            return message

        return receive_counted


async def _answer(refused: Problem, send: Send) -> None:
    status, body, headers = refused
    lines = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    lines.append((b"content-type", b"application/problem+json"))
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


async def _drain(receive: Receive) -> None:
    """Read what is left of a small body: a client that still sends may not see the answer."""
    total = 0
    while total < 1_000_000:
        message = await receive()
        total += len(message.get("body", b""))
        if not message.get("more_body", False):
            return


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


_IS_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
