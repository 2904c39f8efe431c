"""`daclip batch` with real worker processes, one of which dies, and the whole of which is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(toy: Path, tmp_path: Path) -> Start:
    def start(*words: str, model: str = str(toy), **options: object) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "daclip", "batch", *words, "--model", model, "--engine", "onnx"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(command, cwd=tmp_path, **pipes)  # pyright: ignore[reportCallIssue, reportArgumentType]

    return start


def finish(process: "subprocess.Popen[bytes]", data: bytes | None = None) -> tuple[int, list[str], str]:
    out, err = process.communicate(data, timeout=120)
    return process.returncode, out.decode().splitlines(), err.decode()


def rows(output: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (output / "daclip-manifest.jsonl").read_text().splitlines()[1:]]


def test_a_tree_is_restored_by_two_processes(start: Start, tree: Path, tmp_path: Path) -> None:
    code, out, err = finish(start("in", "out", "-j", "2", "--json"))
    assert code == 1, "one file is no picture"
    records = {record["input"]: record for record in map(json.loads, out)}
    assert len(records) == len(out) == 8
    assert records["sub/deep/e.tif"]["action"] == "restored"
    assert records["clean.png"]["action"] == "unchanged"
    assert records["broken.jpg"]["error"]["kind"] == "not-an-image"
    assert err.splitlines()[-2:] == [
        "1 of 8 failed:",
        "  broken.jpg: not a picture (looks like text)",
    ]
    with (
        Image.open(tmp_path / "out" / "sub" / "c.png") as after,
        Image.open(tree / "sub" / "c.png") as before,
    ):
        assert np.asarray(after).mean() > 1.3 * np.asarray(before).mean()
    code, out, err = finish(start("in", "out", "-j", "2"))
    assert (code, out) == (1, [])
    assert "note: 7 of 8 photos were done before" in err


def test_dry_run_writes_nothing_and_says_what_is_left(start: Start, tree: Path, tmp_path: Path) -> None:
    code, out, _ = finish(start("in", "out", "--dry-run"))
    assert (code, len(out)) == (0, 8)
    assert not (tmp_path / "out").exists()
    finish(start("in", "out", "-j", "1", "--limit", "3"))
    _, out, _ = finish(start("in", "out", "--dry-run"))
    assert sum(line.endswith("\tskipped") for line in out) == 3


def test_killed_at_any_time_the_same_command_goes_on_and_every_photo_is_done_once(
    start: Start, tree: Path, tmp_path: Path
) -> None:
    many = tmp_path / "in" / "many"
    many.mkdir()
    dark = np.random.default_rng(0).integers(0, 60, (24, 300, 400, 3)).astype(np.uint8)
    for number, pixels in enumerate(dark):
        Image.fromarray(pixels).save(many / f"{number:02}.png")
    manifest = tmp_path / "out" / "daclip-manifest.jsonl"
    for kill in range(2):
        process = start("in", "out", "-j", "2", start_new_session=True)
        wait_for(lambda: manifest.exists() and manifest.read_text().count("output_sha256") > 2 + 6 * kill)  # noqa: B023
        process.kill()  # the parent alone: its workers must end by themselves
        process.communicate()
        wait_for(lambda: not alive_in_group(process.pid))  # noqa: B023
    begun = len([row for row in rows_so_far(manifest) if row["action"] == "started"])
    done_before = {
        row["input"]: row["output_sha256"] for row in rows_so_far(manifest) if "output_sha256" in row
    }
    assert begun > 0
    code, out, _ = finish(start("in", "out", "-j", "2", "--json"))
    assert code == 1
    again = {record["input"] for record in map(json.loads, out) if record["action"] != "failed"}
    assert again.isdisjoint(done_before), "what was done is not done again"
    after = rows(tmp_path / "out")
    assert len(after) == len({row["input"] for row in after}) == 32
    assert [row["input"] for row in after if row["action"] == "failed"] == ["broken.jpg"]
    assert {row["input"]: row["output_sha256"] for row in after if row["input"] in done_before} == done_before
    assert list((tmp_path / "out").rglob("*.tmp")) == []


def rows_so_far(manifest: Path) -> list[dict[str, object]]:
    lines = [line for line in manifest.read_text().splitlines(keepends=True)[1:] if line.endswith("\n")]
    return list({row["input"]: row for row in map(json.loads, lines)}.values())


def test_a_worker_that_dies_costs_no_photo(start: Start, tree: Path, tmp_path: Path) -> None:
    process = start("in", "out", "-j", "1", "--json", start_new_session=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    worker = next(pid for pid in alive_in_group(process.pid) if pid != process.pid and is_worker(pid))
    os.kill(worker, signal.SIGKILL)
    code, out, _ = finish(process)
    records = [json.loads(line) for line in (first.decode(), *out)]
    assert code == 1
    assert len({record["input"] for record in records}) == len(records) == 8
    assert [record["input"] for record in records if record["action"] == "failed"] == ["broken.jpg"]


def test_ctrl_c_says_what_is_done_and_leaves_nothing_half_written(
    start: Start, tree: Path, tmp_path: Path
) -> None:
    process = start("in", "out", "-j", "1", "--watch", start_new_session=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(7)]
    (tree / "sub" / "late.png").write_bytes((tree / "a.png").read_bytes())
    late = process.stdout.readline().decode()
    assert late.startswith("sub/late.png\tlow-light"), (late, lines)
    os.killpg(process.pid, signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert "warning: stopped: 9 photos done; the same command goes on" in err
    assert list((tmp_path / "out").rglob("*.tmp")) == []


def test_what_is_wrong_with_all_photos_is_said_once(start: Start, tree: Path) -> None:
    code, out, err = finish(start("in", "out", "--sampler", "mrs"))
    assert (code, out) == (2, [])
    assert err.splitlines()[-1].startswith("error: toy restores in one pass, without sampler and steps")
    code, _, err = finish(start("in"))
    assert (code, err) == (2, "error: two folders are needed; daclip batch IN_DIR OUT_DIR\n")


def test_frames_go_through_a_pipe(start: Start) -> None:
    film = np.full((3, 32, 48, 3), 30, np.uint8)
    code, out, err = 0, b"", b""
    process = start("--raw", "48x32", stdin=subprocess.PIPE)
    out, err = process.communicate(film.tobytes(), timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert len(out) == film.size
    assert np.frombuffer(out, np.uint8).mean() > 1.3 * 30
    process = start("--raw", "48x32", stdin=subprocess.PIPE)
    code, _, err = finish(process, film.tobytes()[:-1])
    assert code == 1
    assert "error: the stream ends within frame 3 (4,607 of 4,608 bytes)" in err


def wait_for(is_so: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def alive_in_group(group: int) -> list[int]:
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def is_worker(pid: int) -> bool:
    return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
