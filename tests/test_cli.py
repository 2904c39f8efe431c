"""The pieces of the command line: the naming rule, values of flags, progress. Whole commands: end_to_end."""

import io
import time
from pathlib import Path

import pytest

from daclip import sampling, vocabulary
from daclip.cli import COMMANDS, restore, run, terminal
from daclip.cli.naming import plan
from daclip.errors import PhotoError, UsageError
from daclip.restore import parse_strength


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a few photos (by name; nothing here opens them)."""
    for name in ("a.jpg", "b.png", "holiday/c.jpg", "holiday/sea/d.jpg", "holiday/.hidden.jpg", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"x")
    (tmp_path / "better").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def targets(
    *inputs: str, output: str | None = None, recursive: bool = False, format: str | None = None
) -> list[str]:
    return [str(job.target) for job in plan(inputs, output, recursive=recursive, format=format)]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("inputs", "wanted"),
    [
        (["a.jpg"], ["a.restored.jpg"]),
        (["a.jpg", "b.png"], ["a.restored.jpg", "b.restored.png"]),
        (["a.jpg", "better"], ["better/a.jpg"]),
        (["a.jpg", "b.png", "better"], ["better/a.jpg", "better/b.png"]),
        (["a.jpg", "new.png"], ["new.png"]),
        (["a.jpg", "new/"], ["new/a.jpg"]),
        (["a.jpg", "-"], ["None"]),
        (["-"], ["None"]),
        (["-", "new.png"], ["new.png"]),
        (["holiday"], ["holiday/c.restored.jpg"]),
        (["holiday", "better"], ["better/c.jpg"]),
        (["holiday", "new"], ["new/c.jpg"]),
        (["*.jpg"], ["a.restored.jpg"]),
        (["a.jpg", "./a.jpg", "better"], ["better/a.jpg"]),
    ],
)
def test_every_photo_gets_its_place(inputs: list[str], wanted: list[str]) -> None:
    assert targets(*inputs) == wanted


@pytest.mark.usefixtures("here")
def test_a_folder_with_its_folders_is_mirrored() -> None:
    assert targets("holiday", recursive=True, output="new") == ["new/c.jpg", "new/sea/d.jpg"]
    assert targets("holiday", recursive=True) == ["holiday/c.restored.jpg", "holiday/sea/d.restored.jpg"]


@pytest.mark.usefixtures("here")
def test_results_of_earlier_runs_are_no_photos() -> None:
    Path("holiday/c.restored.jpg").write_bytes(b"x")
    assert targets("holiday") == ["holiday/c.restored.jpg"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (["a.jpg", "b.png", "-o", "c.jpg"], "c.jpg is one file for 2 photos"),
        (["holiday", "-o", "c.jpg"], "c.jpg is one file for 1 photo"),
        (["a.jpg", "b.png", "-o", "-"], "2 photos do not fit into stdout"),
        (["-", "a.jpg", "b.png"], "stdin is one photo"),
        (["a.jpg", "other/a.jpg", "-o", "better"], "would both become better/a.jpg"),
    ],
)
def test_what_cannot_be_is_refused_before_work_starts(inputs: list[str], words: str) -> None:
    Path("other").mkdir()
    Path("other/a.jpg").write_bytes(b"y")
    output = inputs[inputs.index("-o") + 1] if "-o" in inputs else None
    with pytest.raises(UsageError, match=words):
        targets(*[name for name in inputs if name not in ("-o", output)], output=output)


@pytest.mark.usefixtures("here")
def test_one_format_for_two_photos_of_one_name_is_refused() -> None:
    Path("a.png").write_bytes(b"y")
    assert targets("a.jpg", "a.png", output="better") == ["better/a.jpg", "better/a.png"]
    with pytest.raises(UsageError, match="would both become"):
        targets("a.jpg", "a.png", output="better", format="webp")


@pytest.mark.usefixtures("here")
def test_a_folder_without_photos_says_so() -> None:
    with pytest.raises(PhotoError, match="no photos in this folder"):
        targets("better")


def test_values_are_read_as_people_write_them() -> None:
    assert parse_strength("0.5") == 0.5
    assert parse_strength("noise=0.4, rainy=1") == {"noisy": 0.4, "rainy": 1.0}
    assert restore.parse_pixels("100MP") == 100_000_000
    assert restore.parse_pixels("1000") == 1000
    for read, text in (
        (parse_strength, "much"),
        (parse_strength, "noisy=x"),
        (restore.parse_pixels, "4K"),
    ):
        with pytest.raises(UsageError, match=text):
            read(text)
    with pytest.raises(UsageError, match='did you mean "rainy"'):
        parse_strength("rany=1")


def test_memory_by_default_is_halved_until_it_is_half_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for free, wanted in ((64e9, 2e9), (4e9, 2e9), (3.9e9, 1e9), (1.5e9, 0.5e9), (0.1e9, 0.5e9)):
        monkeypatch.setattr(restore, "free_memory", lambda free=free: int(free))
        assert restore.parse_memory(None) == wanted
    assert restore.parse_memory("700MB") == 700_000_000


def test_lists_in_flags_agree_with_the_code() -> None:
    assert set(restore.SAMPLERS) == set(sampling.SAMPLERS)
    assert len(vocabulary.DEGRADATIONS) == 10


def test_every_command_has_a_file_and_its_own_line_of_help() -> None:
    folder = Path(terminal.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "answers", "naming", "terminal"}
    assert files == set(COMMANDS)


def test_time_left_follows_megapixels_not_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = terminal.Terminal(quiet=True).progress(4)
    progress.update("small", 1.0, 0.0)
    now[0] += 2
    progress.finish("small")
    progress.update("large", 9.0, 0.0)
    # 2 s for 1 megapixel; 9 left in this photo, and two more photos of the mean 5 each
    assert progress.seconds_left() == pytest.approx(2 * (9 + 2 * 5))
    now[0] += 9
    progress.update("large", 9.0, 0.5)
    assert progress.part == pytest.approx(1.5 / 4)
    assert progress.seconds_left() == pytest.approx((4.5 + 10) * 11 / 5.5)


def test_off_a_terminal_progress_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = [0.0], io.StringIO()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr("sys.stderr", told)
    with terminal.Terminal().progress(100) as progress:
        for number in range(100):
            now[0] += 1
            progress.update(number, 1.0, 0.0)
            progress.finish(number)
    lines = told.getvalue().splitlines()
    assert lines[0] == "progress: 10 of 100 photos, 10%, about 1:30 left"
    assert len(lines) == 9
    assert "\r" not in told.getvalue()


@pytest.mark.parametrize(
    ("variables", "flag", "wanted"),
    [
        ({}, "auto", False),
        ({"FORCE_COLOR": "1"}, "auto", True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, "auto", False),
        ({"NO_COLOR": "1"}, "always", True),
        ({"FORCE_COLOR": "1"}, "never", False),
        ({"FORCE_COLOR": "1", "NO_COLOR": ""}, "auto", True),
    ],
)
def test_colour_obeys_flag_then_variables_then_terminal(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], flag: str, wanted: bool
) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    told = io.StringIO()
    monkeypatch.setattr("sys.stderr", told)
    terminal.Terminal(color=flag).warning("look")
    assert ("\x1b[" in told.getvalue()) == wanted
    assert "warning:" in told.getvalue()


@pytest.mark.torch
def test_convert_names_every_weight_that_is_missing_when_asked_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from daclip.networks.unet import UNet

    weights = UNet(width=32, multipliers=(1, 2), context_dim=8).state_dict()
    gone = [name for name in weights if name.startswith("mid_block")]
    torch.save(
        {name: weight for name, weight in weights.items() if name not in gone}, tmp_path / "broken.pth"
    )
    call = ["models", "convert", str(tmp_path / "broken.pth"), "-o", str(tmp_path / "model")]
    assert run(call) == 2
    assert f"missing: {gone[-1]}" not in capsys.readouterr().err
    assert run([*call, "-v"]) == 2
    named = capsys.readouterr().err.splitlines()
    assert all(f"missing: {name}" in named for name in gone)
    assert not (tmp_path / "model").exists()
