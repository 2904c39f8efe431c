"""The command line: a group that loads a command when it is called; errors become lines here only."""

import os
import signal
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click

from daclip.cli.terminal import Terminal
from daclip.errors import DaclipError, ModelError, missing_extra

COMMANDS = {
    "restore": "Make photos better.",
    "detect": "Say what is wrong with photos.",
    "models": "List, describe and convert models.",
    "doctor": "Show what is installed and whether it works.",
    "degrade": "Make photos worse, to test or to train.",
    "data": "Check, make and pack data sets to train on.",
    "caption": "Describe clean photos in words, for training.",
    "train": "Train a model.",
    "export": "Write the graphs that run a model without torch.",
    "evaluate": "Measure models on photos whose clean version is known.",
    "analyse": "Show what contexts, words and samplers are worth.",
    "score": "Measure results against clean photos.",
    "batch": "Restore a whole tree of photos, resumable.",
    "serve": "Answer over HTTP.",
    "ui": "Open the web page.",
}
"""Every command and its line of help; `daclip X` is `command` in the file X.py beside this one."""

EXAMPLES = """\
Examples:
  daclip restore photo.jpg                 writes photo.restored.jpg
  daclip restore holiday/ better/          a whole folder
  daclip detect photo.jpg                  says what is wrong with it
"""


class Commands(click.Group):
    """Loads a command's file when it is called; `--help` of the group loads none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order people need them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in COMMANDS:
            return None
        return import_module(f"daclip.cli.{cmd_name}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest name where there is no such command."""
        if args and args[0] not in COMMANDS:
            near = get_close_matches(args[0], COMMANDS, n=1)
            meant = f'; did you mean "{near[0]}"?' if near else "; `daclip --help` lists all"
            raise click.UsageError(f'no command "{args[0]}"{meant}', ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of commands, from the lines above, without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, with their line breaks."""
        formatter.write("\n" + EXAMPLES)


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        click.echo(f"daclip {version('daclip')}")
        ctx.exit()


def _install_completion(ctx: click.Context, _: click.Parameter, shell: str | None) -> None:
    if shell is None:
        return
    from click.shell_completion import get_completion_class

    shell = Path(os.environ.get("SHELL", "bash")).name if shell == "auto" else shell
    completion = get_completion_class(shell)
    if shell not in COMPLETION_FILES or completion is None:
        raise click.UsageError(f'no completion for "{shell}"; known: {", ".join(COMPLETION_FILES)}')
    script = completion(app, {}, "daclip", "_DACLIP_COMPLETE").source()
    path = Path.home() / COMPLETION_FILES[shell]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script, encoding="utf-8")
    click.echo(script)
    click.echo(f"written to {path}; open a new shell to use it", err=True)
    if shell == "zsh":
        click.echo("zsh finds it with `fpath+=~/.zfunc` above `compinit` in .zshrc", err=True)
    ctx.exit()


COMPLETION_FILES = {
    "bash": ".local/share/bash-completion/completions/daclip",
    "zsh": ".zfunc/_daclip",
    "fish": ".config/fish/completions/daclip.fish",
}
"""Where each shell looks for completions of its own accord, under the home folder."""


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "DACLIP"},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show it."
)
@click.option(
    "--install-completion",
    is_flag=False,
    flag_value="auto",
    metavar="[bash|zsh|fish]",
    expose_value=False,
    callback=_install_completion,
    help="Install completion for this shell, or the one named.",
)
@click.pass_context
def app(ctx: click.Context) -> None:
    """Say what is wrong with a photo, and mend it."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.modules[_NOT_NEEDED] = None  # pyright: ignore[reportArgumentType]: so Python says there is none
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(given))


_NOT_NEEDED = "openvino.tools.ovc"
"""Converts models of other libraries. OpenVINO imports it with itself, where it is there: .2 s of a start."""


def run(arguments: list[str]) -> int:
    """The exit code of one command line; every error of every command ends here as a line on stderr."""
    terminal = Terminal(verbosity=sum(word == "-vv" for word in arguments) * 2)
    try:
        result: Any = app.main(args=arguments, prog_name="daclip", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.UsageError as error:
        return terminal.fail(_lower(error.format_message()), exit_code=2, error=error)
    except click.Abort:
        return 130
    except click.ClickException as error:
        return terminal.fail(_lower(error.format_message()), exit_code=error.exit_code, error=error)
    except DaclipError as error:
        code = terminal.fail(_with_path(error), exit_code=error.exit_code, error=error)
        if isinstance(error, ModelError) and {"-v", "-vv", "--verbose"} & set(arguments):
            click.echo("\n".join(error.details), err=True)
        return code
    except ModuleNotFoundError as error:
        extra = missing_extra(error, f"`daclip {next(iter(arguments), '')}`")
        return terminal.fail(str(extra), exit_code=extra.exit_code, error=error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return _closed_stdout()


def _with_path(error: DaclipError) -> str:
    path = getattr(error, "path", None)
    return f"{path}: {error}" if path is not None else str(error)


def _lower(message: str) -> str:
    """Click writes sentences; our lines begin small and end without a full stop."""
    return (message[:1].lower() + message[1:]).rstrip(".")


def _closed_stdout() -> int:
    """Whoever read our output has left, as `head` does: end quietly, and keep Python from flushing again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _interrupt(_signal: int, _frame: object) -> None:
    # the second Ctrl-C ends the process at once
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


def _terminate(_signal: int, _frame: object) -> None:
    # as an exception, so that temporary files are removed on the way out
    raise SystemExit(143)
