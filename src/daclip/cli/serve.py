"""`daclip serve`: the HTTP server, on this machine only unless told otherwise."""

import os
from pathlib import Path

import click

from daclip.cli import restore
from daclip.cli.terminal import Terminal, options
from daclip.errors import UsageError

SHARED = ("model", "faithful", "memory", "device", "engine", "precision", "offline")
"""What the server takes from `daclip restore` as it is."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@click.command(name="serve", short_help="Answer over HTTP.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one."
)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Photos at once.")
@click.option("--queue", type=click.IntRange(0), default=32, show_default=True, help="Photos that may wait.")
@click.option("--max-bytes", default="50MB", show_default=True, help="Refuse larger uploads.")
@click.option("--max-pixels", default="100MP", show_default=True, help="Refuse larger photos.")
@click.option(
    "--timeout", type=click.FloatRange(1), default=300, show_default=True, help="Seconds for one photo."
)
@click.option(
    "--formats", default="jpeg,png,webp,avif", show_default=True, help="Accepted; also tiff, gif, heic, raw."
)
@click.option(
    "--key-file",
    type=click.Path(path_type=Path),
    help="Holds the key clients must send. [else: DACLIP_API_KEY]",
)
@options
def command(
    host: str,
    port: int,
    workers: int,
    queue: int,
    max_bytes: str,
    max_pixels: str,
    timeout: float,
    formats: str,
    key_file: Path | None,
    model: str | None,
    faithful: bool,
    memory: str | None,
    device: str,
    engine: str,
    precision: str,
    offline: bool,
    quiet: bool,
    verbose: int,
    color: str,
) -> int:
    """Answer over HTTP: POST a photo to /v1/restore. The page /docs shows all, and tries it.

    Nothing is fetched from elsewhere, no photo is kept, no file name is logged.
    """
    terminal = Terminal(quiet=quiet, verbosity=verbose, color=color)
    with terminal.progress(1):  # a sign of life before the libraries are there
        from daclip import image, models, serve
        from daclip.restore import Restorer, default_memory, parse_bytes
    accepted = tuple(word.strip().lower() for word in formats.split(",") if word.strip())
    if unknown := [word for word in accepted if word not in KINDS]:
        raise UsageError(f'unknown format "{unknown[0]}"', hint=f"known: {', '.join(KINDS)}")
    is_local = host in LOOPBACK
    settings = serve.Settings(
        limits=image.Limits(max_pixels=restore.parse_pixels(max_pixels), formats=accepted),
        max_bytes=parse_bytes(max_bytes),
        timeout=float(timeout),
        waiting=queue,
        workers=workers,
        key=_key(key_file),
        hosts=LOOPBACK if is_local else (),
    )
    folder = models.find(model or ("compact" if faithful else "compact-sde"), offline=offline)
    budget = restore.parse_memory(memory) // workers
    with serve.listen(host, port) as door:
        restorer = Restorer(
            folder,
            device=device,
            memory=default_memory(folder, budget=budget) if memory is None else budget,
            threads=max(1, (os.cpu_count() or 1) // workers),
            engine=engine,
            precision=precision,
        )
        if not is_local and not settings.key:
            terminal.warning(f"anybody who reaches {host} can use this; set DACLIP_API_KEY to ask for a key")
        name = f"[{host}]" if ":" in host else host
        terminal.result(f"http://{name}:{door.getsockname()[1]}")
        serve.run(restorer, settings, door, log_level="info" if verbose else "warning")
    return 0


command.params += [parameter for parameter in restore.command.params if parameter.name in SHARED]

KINDS = ("jpeg", "png", "webp", "avif", "tiff", "gif", "heic", "raw")


def _key(path: Path | None) -> str:
    """The key from the file or the environment; never from a flag, which others can see."""
    if path is None:
        return os.environ.get("DACLIP_API_KEY", "")
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: the key cannot be read", hint="name a text file with the key") from error
    if not key:
        raise UsageError(f"{path}: is empty", hint="name a text file with the key")
    return key
