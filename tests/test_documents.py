"""The documents agree with the code."""

import re
from pathlib import Path

import click
import pytest

from daclip.cli import COMMANDS

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "daclip"


def test_every_file_that_follows_or_leaves_the_published_code_stands_in_the_paper_page() -> None:
    page = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8").partition("## Known differences")[2]
    marked = [path for path in SOURCE.rglob("*.py") if "published:" in path.read_text(encoding="utf-8")]
    assert len(marked) > 5
    missing = [name for path in marked if (name := path.relative_to(SOURCE).as_posix()) not in page]
    assert not missing


def test_the_places_the_paper_page_names_are_there() -> None:
    page = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    places = re.findall(r"`((?:\w+/)?\w+\.py)(?:: ([\w., ]+))?", page)
    assert len(places) > 20
    for file, names in places:
        text = ((ROOT if file.startswith("tests/") else SOURCE) / file).read_text(encoding="utf-8")
        for name in re.findall(r"\w+", names):
            assert re.search(rf"\b{name}\b", text), f"{file} has no {name}"


def shell_lines(path: Path) -> list[list[str]]:
    """The `daclip` commands in the shell blocks of a page, as words, comments dropped."""
    blocks = re.findall(r"```sh\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line.partition("#")[0].split() for block in blocks for line in block.splitlines()]
    return [words for words in lines if words[:1] == ["daclip"]]


COMMANDS_SHOWN = [*shell_lines(ROOT / "README.md"), *shell_lines(ROOT / "docs" / "peers.md")]


@pytest.mark.parametrize("words", COMMANDS_SHOWN, ids=" ".join)
def test_every_flag_in_a_command_of_readme_and_peers_exists(words: list[str]) -> None:
    module = __import__(f"daclip.cli.{words[1]}", fromlist=["command"])
    assert words[1] in COMMANDS
    command: click.Command = module.command
    arguments = words[2:]
    if isinstance(command, click.Group):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    known = {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    flags = [word.partition("=")[0] for word in arguments if word.startswith("-")]
    assert set(flags) <= known


def test_the_examples_stay_small_and_each_degradation_has_one() -> None:
    from daclip.vocabulary import DEGRADATIONS

    photos = [path for path in (SOURCE / "photos").iterdir() if path.suffix == ".jpg"]
    assert {path.stem for path in photos} == set(DEGRADATIONS)
    assert sum(path.stat().st_size for path in photos) < 1_500_000
