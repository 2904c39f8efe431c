"""`daclip ui`: the web page, on this machine unless asked otherwise."""

import os
import tempfile
import time
from pathlib import Path

import click

from daclip.cli.terminal import Terminal, engine_options, options
from daclip.errors import UsageError


@click.command(name="ui", short_help="Open the web page.")
@click.option(
    "--model",
    "names",
    multiple=True,
    help="Bundled name, folder, or hub id; several to choose from. [default: what is bundled]",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 lets other machines in.")
@click.option("--port", type=click.IntRange(1, 65535), help="[default: the first free one from 7860]")
@click.option("--open/--no-open", "open_browser", default=True, help="Show it in the browser.")
@click.option(
    "--memory",
    help="Limit for the whole process. [default: half of what is free, at most 2GB, more for a large model]",
)
@engine_options
@click.option("--offline", is_flag=True, help="Never ask the hub.")
@options
def command(
    names: tuple[str, ...],
    host: str,
    port: int | None,
    open_browser: bool,
    memory: str | None,
    device: str,
    engine: str,
    offline: bool,
    quiet: bool,
    verbose: int,
    color: str,
) -> int:
    """Open the web page: drop photos, see what is wrong, compare before and after, take the results home.

    Its address is printed. Nobody but this machine reaches it, and it sends nothing anywhere.
    """
    terminal = Terminal(quiet=quiet, verbosity=verbose, color=color)
    from daclip import models
    from daclip.cli.restore import parse_memory
    from daclip.restore import Restorer, default_memory

    bundled = [one for one in ("compact", "compact-sde") if one in models.bundled_names()]
    folders = [models.find(name, offline=offline) for name in names or bundled]
    for folder in folders:
        if folder.config.kind == "encoder":
            raise UsageError(f"{folder.name} is an encoder alone", hint="name a model that restores")
    budget = parse_memory(memory)
    limits = [budget if memory else default_memory(folder, budget=budget) for folder in folders]
    restorers = [
        Restorer(folder, device=device, engine=engine, memory=limit)
        for folder, limit in zip(folders, limits, strict=True)
    ]
    if host not in ("127.0.0.1", "localhost", "::1"):
        terminal.warning(f"everybody who reaches {host} can use the page; there is no password")
    with tempfile.TemporaryDirectory(prefix="daclip-ui-", ignore_cleanup_errors=True) as folder:
        # read by Gradio when it is imported: no telemetry, and uploads where they are deleted at the end
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder, "HF_HUB_OFFLINE": "1"}
        from daclip.ui import Page

        page = Page(restorers, Path(folder))
        try:
            terminal.result(page.launch(host=host, port=port, open_browser=open_browser))
            terminal.note("Ctrl-C ends it")
            while True:
                time.sleep(3600)
        finally:
            page.close()
