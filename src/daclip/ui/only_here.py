"""Gradio can fetch files from other machines when a request names them. This page does not."""

import json
import re
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class OnlyHere:
    """Middleware that refuses requests whose answer would come from another machine."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or hand on to Gradio."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if _ELSEWHERE.search(scope["path"]):
            return await _refuse(scope, receive, send)
        if scope["method"] == "POST" and not scope["path"].endswith("/upload"):
            body = await Request(scope, receive).body()
            if _names_a_url(body):
                return await _refuse(scope, receive, send)
            return await self._app(scope, _once_more(body, receive), send)
        await self._app(scope, receive, send)


_ELSEWHERE = re.compile(r"file=\s*https?:|/proxy=|/llms\.txt", re.IGNORECASE)
_URL = re.compile(r"\s*https?:", re.IGNORECASE)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("this page fetches nothing from other machines", 403)(scope, receive, send)


def _names_a_url(body: bytes) -> bool:
    """Whether a JSON body has a file that lies on another machine."""
    try:
        return _has_url(json.loads(body))
    except ValueError:
        return False


def _has_url(value: Any) -> bool:
    if isinstance(value, list):
        return any(_has_url(one) for one in cast("list[Any]", value))
    if not isinstance(value, dict):
        return False
    given = cast("dict[str, Any]", value)
    path = given.get("path")
    return (isinstance(path, str) and bool(_URL.match(path))) or any(_has_url(one) for one in given.values())


def _once_more(body: bytes, receive: Receive) -> Receive:
    """A channel that brings the body already read, then what else comes, such as the visitor's leaving."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def channel() -> Message:
        return messages.pop() if messages else await receive()

    return channel
