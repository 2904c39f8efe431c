"""The HTTP server: bounded queue, one engine for all workers, nothing fetched from anywhere."""

import socket

import uvicorn

from daclip.errors import UsageError
from daclip.restore import Restorer
from daclip.serve.app import Settings, build

__all__ = ["Settings", "build", "listen", "run"]


def listen(host: str, port: int) -> socket.socket:
    """A socket at that address; port 0 takes a free one. Raises UsageError where it cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(
            f"{host}:{port} cannot be used ({reason})", hint="name another --port or --host"
        ) from error


def run(restorer: Restorer, settings: Settings, door: socket.socket, *, log_level: str = "warning") -> None:
    """Serve until a signal; then requests that were begun get their answers."""
    config = uvicorn.Config(
        build(restorer, settings),
        log_level=log_level,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=round(settings.timeout) + 10,
    )
    uvicorn.Server(config).run(sockets=[door])
