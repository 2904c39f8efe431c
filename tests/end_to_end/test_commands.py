"""`daclip ...` as people run it: a process of its own, on real photos, with everything that can go wrong."""

import json
import os
import pty
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image

# each of these starts several processes; what can be tested without them is in tests/test_cli.py
pytestmark = pytest.mark.slow

Run = Callable[..., subprocess.CompletedProcess[bytes]]


def lines(data: bytes) -> list[str]:
    return data.decode().splitlines()


def read(path: Path | str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def left_behind(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob(".daclip-*")]


def test_a_photo_becomes_a_better_photo_beside_it(daclip: Run, photos: Path) -> None:
    done = daclip("restore", "dark.jpg")
    assert done.returncode == 0, done.stderr
    name, found, seconds = lines(done.stdout)[0].split("\t")
    assert (name, found) == ("dark.restored.jpg", "low-light 1.00")
    assert seconds.endswith(" s")
    assert done.stderr == b""
    assert read(name).mean() > 1.3 * read("dark.jpg").mean()
    with Image.open(name) as restored:
        assert restored.getexif()[0x010F] == "a camera"
    assert left_behind(photos) == []


def test_a_folder_becomes_a_folder_and_clean_photos_are_copied(daclip: Run, photos: Path) -> None:
    done = daclip("restore", ".", "-o", "better")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in Path("better").iterdir()) == [
        "alpha.png",
        "clean.jpg",
        "dark.jpg",
        "grey.png",
    ]
    assert Path("better/clean.jpg").read_bytes() == Path("clean.jpg").read_bytes()
    assert b"note: clean.jpg: no known degradation found (clean " in done.stderr
    assert b"better/clean.jpg\tunchanged: no known degradation found" in done.stdout
    assert read("better/grey.png").ndim == 2
    np.testing.assert_array_equal(read("better/alpha.png")[..., 3], read("alpha.png")[..., 3])


def test_a_16_bit_tiff_stays_one(daclip: Run, photos: Path) -> None:
    fine = np.random.default_rng(0).integers(0, 257, (200, 260, 3))
    deep = (read("dark.jpg").astype(np.uint16) * 257 + fine).clip(0, 65535).astype(np.uint16)
    pyvips.Image.new_from_array(deep).write_to_file("deep.tif")
    assert daclip("restore", "deep.tif").returncode == 0
    back = pyvips.Image.new_from_file("deep.restored.tif").numpy()
    assert back.dtype == np.uint16
    assert back.mean() > 1.3 * deep.mean()
    assert len(np.unique(back)) > 1000


def test_json_is_one_object_per_photo_good_or_bad(daclip: Run, photos: Path) -> None:
    Path("empty.jpg").touch()
    done = daclip("restore", "dark.jpg", "clean.jpg", "empty.jpg", "-o", "out/", "--json")
    assert done.returncode == 1
    good, clean, bad = (json.loads(line) for line in lines(done.stdout))
    assert list(good)[:4] == ["schema", "input", "output", "action"]
    assert good["schema"] == "daclip.restore/1"
    assert (good["input"], good["output"], good["action"]) == ("dark.jpg", "out/dark.jpg", "restored")
    assert (good["width"], good["height"], good["bits"]) == (260, 200, 8)
    assert good["detected"][0]["name"] == "low-light"
    assert good["applied"] == [{"name": "low-light", "strength": 1.0}]
    assert good["model"]["name"] == "toy"
    assert len(good["model"]["sha256"]) == 64
    assert (good["engine"], good["precision"], good["sampler"], good["steps"]) == ("onnx", "fp32", None, 1)
    assert good["seconds"] > 0
    assert 20 < good["peak_mb"] < 2000
    assert (good["warnings"], good["error"]) == ([], None)
    assert (clean["action"], clean["applied"]) == ("unchanged", [])
    assert (bad["action"], bad["output"], bad["error"]["kind"]) == ("failed", None, "empty")


def test_bad_files_get_one_line_each_and_the_others_are_done(daclip: Run, photos: Path) -> None:
    Path("empty.jpg").touch()
    Path("text.png").write_text("this is not a picture\n")
    whole = Path("dark.jpg").read_bytes()
    Path("short.jpg").write_bytes(whole[: len(whole) // 2])
    Path("wrong.jpg").write_bytes(Path("grey.png").read_bytes())
    inputs = ["empty.jpg", "text.png", "short.jpg", "missing.jpg", "wrong.jpg", "dark.jpg"]
    done = daclip("restore", *inputs, "-o", "out/")
    assert done.returncode == 1
    told = lines(done.stderr)
    for name, words in (
        ("empty.jpg", "empty"),
        ("text.png", "not a picture"),
        ("short.jpg", "early"),
        ("missing.jpg", ""),
    ):
        assert sum(line.startswith(f"error: {name}: ") and words in line for line in told) == 1, told
    assert "4 of 6 failed:" in told
    assert any(line.startswith("warning: wrong.jpg:") and "PNG" in line for line in told)
    assert "Traceback" not in done.stderr.decode()
    assert "out/dark.jpg" in done.stdout.decode()
    assert left_behind(photos) == []


def test_a_bomb_is_refused_by_its_header(daclip: Run, photos: Path) -> None:
    Image.new("1", (30_000, 30_000)).save("bomb.png")
    start = time.monotonic()
    done = daclip("restore", "bomb.png")
    assert done.returncode == 1
    assert b"900 megapixels" in done.stderr
    assert time.monotonic() - start < 10


def test_what_is_there_stays_unless_told(daclip: Run, photos: Path) -> None:
    Path("dark.restored.jpg").write_bytes(b"mine")
    done = daclip("restore", "dark.jpg")
    assert done.returncode == 1
    assert b"error: dark.restored.jpg: already there; use --overwrite, --skip-existing" in done.stderr
    assert daclip("restore", "dark.jpg", "--skip-existing").stdout.startswith(b"dark.restored.jpg\tskipped")
    assert Path("dark.restored.jpg").read_bytes() == b"mine"
    assert daclip("restore", "dark.jpg", "--overwrite").returncode == 0
    assert read("dark.restored.jpg").shape == (200, 260, 3)


def test_an_input_is_replaced_only_with_overwrite(daclip: Run, photos: Path) -> None:
    before = Path("dark.jpg").read_bytes()
    assert daclip("restore", "dark.jpg", "-o", "dark.jpg").returncode == 1
    assert Path("dark.jpg").read_bytes() == before
    os.chmod("dark.jpg", 0o640)
    assert daclip("restore", "dark.jpg", "-o", "dark.jpg", "--overwrite").returncode == 0
    assert Path("dark.jpg").read_bytes() != before
    assert Path("dark.jpg").stat().st_mode & 0o777 == 0o640


def test_strength_nought_returns_the_bytes(daclip: Run, photos: Path) -> None:
    done = daclip("restore", "dark.jpg", "--strength", "0")
    assert done.returncode == 0
    assert Path("dark.restored.jpg").read_bytes() == Path("dark.jpg").read_bytes()
    assert b"unchanged: strength is 0" in done.stdout


def test_stdin_to_stdout_is_a_pipe(daclip: Run, photos: Path) -> None:
    done = daclip("restore", "-", stdin=Path("dark.jpg").read_bytes())
    assert done.returncode == 0, done.stderr
    Path("piped.jpg").write_bytes(done.stdout)
    assert read("piped.jpg").mean() > 1.3 * read("dark.jpg").mean()
    assert done.stderr.startswith(b"-\tlow-light 1.00")
    clean = Path("clean.jpg").read_bytes()
    assert daclip("restore", "-", stdin=clean).stdout == clean
    assert daclip("restore", "clean.jpg", "-o", "-").stdout == clean
    png = daclip("restore", "-", "--format", "png", stdin=clean).stdout
    assert png.startswith(b"\x89PNG")
    assert daclip("restore", "-", stdin=b"no picture").returncode == 1


def test_another_format_and_stripped_metadata(daclip: Run, photos: Path) -> None:
    done = daclip(
        "restore",
        "dark.jpg",
        "clean.jpg",
        "-o",
        "out/",
        "--format",
        "webp",
        "--strip-metadata",
        "--quality",
        "80",
    )
    assert done.returncode == 0, done.stderr
    for name in ("dark", "clean"):
        with Image.open(f"out/{name}.webp") as image:
            assert (image.format, dict(image.getexif())) == ("WEBP", {})


def test_several_photos_at_once_give_the_same_files_in_the_same_order(daclip: Run, photos: Path) -> None:
    names = ["alpha.png", "clean.jpg", "dark.jpg", "grey.png"]
    one = daclip("restore", *names, "-o", "one/")
    three = daclip("restore", *names, "-o", "three/", "-j", "3")
    assert three.returncode == 0, three.stderr
    order = [line.split("\t")[0].removeprefix("three/") for line in lines(three.stdout)]
    assert order == names
    assert [Path("one", name).read_bytes() for name in names] == [
        Path("three", name).read_bytes() for name in names
    ]
    assert one.returncode == 0


def test_diffusion_from_the_command_line(daclip: Run, photos: Path, toy_sde: Path) -> None:
    common = ("restore", "dark.jpg", "--model", str(toy_sde), "--engine", "onnx", "--overwrite", "--json")
    done = daclip(*common, "--sampler", "mrs", "--steps", "3", "--seed", "5")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["sampler"], record["steps"], record["seed"]) == ("mrs", 3, 5)
    assert read("dark.restored.jpg").mean() > 1.3 * read("dark.jpg").mean()
    refused = daclip("restore", "dark.jpg", "--sampler", "mrs", "--overwrite")
    assert refused.returncode == 2
    assert b"error: toy restores in one pass, without sampler and steps" in refused.stderr


def test_a_mask_says_where_to_fill(daclip: Run, photos: Path) -> None:
    Image.new("L", (260, 200), 0).save("mask.png")
    same = daclip("restore", "grey.png", "--mask", "mask.png", "--task", "noisy")
    assert same.returncode == 0, same.stderr
    np.testing.assert_array_equal(read("grey.restored.png"), read("grey.png"))
    unknown = daclip("restore", "grey.png", "--mask", "mask.png", "--overwrite")
    assert unknown.returncode == 2
    assert b'unknown degradation "uncompleted"' in unknown.stderr
    Image.new("L", (26, 20), 0).save("small.png")
    wrong = daclip("restore", "grey.png", "--mask", "small.png", "--task", "noisy", "--overwrite")
    assert wrong.returncode == 1
    assert b"error: grey.png: the mask has 26 x 20, the photo 260 x 200 pixels" in wrong.stderr


def test_a_dry_run_writes_nothing(daclip: Run, photos: Path) -> None:
    before = sorted(photos.iterdir())
    done = daclip("restore", ".", "-o", "out", "--dry-run")
    assert lines(done.stdout)[0] == "alpha.png\tout/alpha.png\tplanned\t260 x 200"
    assert sorted(photos.iterdir()) == before


@pytest.mark.usefixtures("photos")
def test_two_photos_that_become_one_file_do_not_replace_each_other(daclip: Run) -> None:
    Image.open("dark.jpg").save("dark.gif")  # read, not written: becomes dark.jpg
    done = daclip("restore", "dark.jpg", "dark.gif", "-o", "out/", "--overwrite")
    assert done.returncode == 1
    assert b"error: out/dark.jpg: is the result of dark.jpg already; name a --format" in done.stderr
    assert read("out/dark.jpg").mean() > 1.3 * read("dark.jpg").mean()


def test_fail_fast_and_limit(daclip: Run, photos: Path) -> None:
    Path("aa.jpg").touch()
    done = daclip("restore", "aa.jpg", "dark.jpg", "-o", "out/", "--fail-fast")
    assert done.returncode == 1
    assert not Path("out/dark.jpg").exists()
    assert len(lines(daclip("restore", "dark.jpg", "clean.jpg", "-o", "two/", "--limit", "1").stdout)) == 1


def test_detect_names_what_is_wrong(daclip: Run, photos: Path) -> None:
    done = daclip("detect", "dark.jpg", "clean.jpg", "missing.jpg")
    assert done.returncode == 1
    dark, clean = lines(done.stdout)
    assert dark == "dark.jpg\tlow-light 1.00"
    assert clean.startswith("clean.jpg\tclean ")
    assert "error: missing.jpg: " in done.stderr.decode()
    every = daclip("detect", "dark.jpg", "-v")
    assert len(lines(every.stdout)[0].split("\t")) == 4
    record = json.loads(daclip("detect", "-", "--json", stdin=Path("dark.jpg").read_bytes()).stdout)
    assert record["schema"] == "daclip.detect/1"
    assert record["detected"][0]["name"] == "low-light"
    assert set(record["probabilities"]) == {"low-light", "noisy", "clean"}


def test_models_and_doctor_tell_what_there_is(daclip: Run, toy: Path) -> None:
    told = daclip("models", "info", str(toy)).stdout.decode()
    assert "kind:                one-pass" in told
    assert "Brightens and smooths." in told
    assert json.loads(daclip("models", "info", str(toy), "--json").stdout)["licence"] == "mit"
    assert daclip("models", "list").returncode == 0
    checked = daclip(
        "doctor", "--model", str(toy), "--json", env={"DACLIP_API_KEY": "secret", "DACLIP_RESTORE_SEED": "4"}
    )
    report = json.loads(checked.stdout)
    assert (checked.returncode, report["trial"]["works"]) == (0, True)
    assert report["settings"]["DACLIP_RESTORE_SEED"] == "4"
    assert "secret" not in checked.stdout.decode()
    failed = daclip("doctor", "--model", "nothing-like-it")
    assert failed.returncode == 1
    assert b"works: False" in failed.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["restroe"], 'no command "restroe"; did you mean "restore"?'),
        (["restore", "x.jpg", "--stregnth", "1"], "--strength"),
        (["restore"], "missing argument"),
        (["restore", "x.jpg", "--strength", "2"], "2 is not between 0 and 1"),
        (["restore", "x.jpg", "--task", "noise,fog"], 'unknown degradation "fog"'),
        (["restore", "x.jpg", "--model", "comapct"], 'no model "comapct"'),
        (["restore", "x.jpg", "--memory", "lots"], '"lots" is no amount of memory'),
        (["models", "convert", "x.pt"], "missing option '-o'"),
    ],
)
def test_wrong_usage_is_one_line_and_two(daclip: Run, photos: Path, words: list[str], told: str) -> None:
    Path("x.jpg").write_bytes(Path("dark.jpg").read_bytes())
    done = daclip(*words)
    assert done.returncode == 2
    assert told in done.stderr.decode()
    assert len(lines(done.stderr)) == 1
    assert done.stdout == b""


def test_variables_stand_in_for_flags(daclip: Run, photos: Path) -> None:
    done = daclip("restore", "dark.jpg", env={"DACLIP_RESTORE_STRENGTH": "0"})
    assert b"strength is 0" in done.stdout
    won = daclip(
        "restore", "dark.jpg", "--strength", "1", "--overwrite", env={"DACLIP_RESTORE_STRENGTH": "0"}
    )
    assert b"low-light" in won.stdout


def test_help_comes_at_once_and_loads_nothing_heavy(daclip: Run) -> None:
    code = """
import sys
from daclip.cli import run
code = run(sys.argv[1:])
heavy = {"numpy", "pyvips", "onnxruntime", "openvino", "torch", "jaxtyping", "rich", "huggingface_hub", "PIL"}
print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}), code)
"""
    for words in (
        ["--help"],
        ["-h"],
        [],
        ["restore", "--help"],
        ["detect", "-h"],
        ["models", "list", "-h"],
        ["--version"],
    ):
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "[] 0"
        assert time.monotonic() - start < 2  # alone it takes 0.1 s; this machine may be busy
    assert "Examples:" in daclip().stdout.decode()


def test_openvino_comes_without_what_converts_models(photos: Path) -> None:
    pytest.importorskip("openvino")
    code = """
import sys
from daclip.cli import main
try:
    main(["detect", "dark.jpg"])
finally:
    print("openvino" in sys.modules, [name for name in sys.modules if name.startswith("openvino.tools.ovc.")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True []"


def test_import_daclip_loads_nothing_heavy() -> None:
    heavy = "{'numpy', 'torch', 'pyvips', 'jaxtyping'}"
    code = f"import sys, daclip; print(sorted({heavy} & set(sys.modules)), dir(daclip))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] [")
    assert "'Restorer'" in done.stdout


def test_restore_needs_no_torch(photos: Path, toy: Path) -> None:
    code = """
import sys
blocked = ["torch", "torchvision", "open_clip", "timm", "transformers", "accelerate", "cv2", "PIL"]
sys.modules.update(dict.fromkeys(blocked))
from daclip.cli import main
main(sys.argv[1:])
"""
    words = ["restore", "dark.jpg", "--model", str(toy)]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    convert = ["models", "convert", "dark.jpg", "-o", "folder"]
    done = subprocess.run([sys.executable, "-c", code, *convert], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert (
        done.stderr == 'error: `daclip models convert` needs the extra [torch]; pip install "daclip[torch]"\n'
    )


def test_a_full_disk_leaves_nothing_behind(daclip: Run, photos: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = daclip("restore", "dark.jpg", "clean.jpg", "-o", "out/", preexec_fn=small_files)
    assert done.returncode == 1
    told = lines(done.stderr)
    assert (
        sum("no space left" in line and "nothing was written" in line for line in told) == 4
    )  # each once more at the end
    assert list(Path("out").iterdir()) == []


def test_a_closed_stdout_ends_quietly(photos: Path, toy: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "daclip",
        "detect",
        *["dark.jpg"] * 1,
        "clean.jpg",
        "grey.png",
        "alpha.png",
    ]
    words += ["--model", str(toy), "--engine", "onnx"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_signal_stops_cleanly(photos: Path, toy_sde: Path, number: int, code: int, jobs: str) -> None:
    Image.fromarray(np.tile(read("dark.jpg"), (4, 4, 1))).save("large.png")
    words = [sys.executable, "-m", "daclip", "restore", "dark.jpg", "large.png", "-o", "out/", "-j", jobs]
    words += ["--model", str(toy_sde), "--engine", "onnx", "--steps", "2", "--sampler", "ode", "--tile", "64"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"out/dark.jpg")
        time.sleep(0.3)
        process.send_signal(number)
        told = process.stderr.read().decode()
        assert process.wait() == code
    assert "Traceback" not in told
    if number == signal.SIGINT:
        assert "stopped: 1 of 2 photos done" in told
    assert sorted(path.name for path in Path("out").iterdir()) == ["dark.jpg"]


def test_on_a_terminal_a_bar_shows_and_results_stay_clean(photos: Path, toy_sde: Path) -> None:
    master, slave = pty.openpty()
    words = [sys.executable, "-m", "daclip", "restore", "dark.jpg", "clean.jpg", "-o", "out/"]
    words += ["--model", str(toy_sde), "--engine", "onnx", "--steps", "10"]
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=slave, env=environment) as process:
        os.close(slave)
        shown = b""
        while process.poll() is None:
            if select.select([master], [], [], 0.1)[0]:
                try:
                    shown += os.read(master, 65536)
                except OSError:
                    break
        assert process.stdout is not None
        results = process.stdout.read()
    os.close(master)
    assert process.returncode == 0
    assert b"1/2" in shown
    assert b"\x1b[" in shown
    assert b"note:" in shown
    assert [line.split("\t")[0] for line in lines(results)] == ["out/dark.jpg", "out/clean.jpg"]
    assert b"\x1b" not in results


def test_completion_is_installed_where_the_shell_looks(daclip: Run, tmp_path: Path) -> None:
    done = daclip("--install-completion", "bash", env={"HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    script = (tmp_path / ".local/share/bash-completion/completions/daclip").read_text()
    assert "_DACLIP_COMPLETE=bash_complete" in script
    assert done.stdout.decode().strip() == script.strip()
    words = {
        "_DACLIP_COMPLETE": "bash_complete",
        "COMP_WORDS": "daclip restore --task rai",
        "COMP_CWORD": "3",
    }
    completed = daclip(env=words).stdout.decode()
    assert "raindrop" in completed
    assert "rainy" in completed
    assert b"known: bash, zsh, fish" in daclip("--install-completion", "tcsh").stderr
