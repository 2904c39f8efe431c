"""Every command and every piece of Python in the README, run as printed where the names it uses are there."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from daclip.degradations import degrade
from daclip.vocabulary import DEGRADATIONS

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT / "src" / "daclip" / "photos"

Names = dict[str, Any]


def blocks() -> dict[str, list[tuple[str, str]]]:
    """The README's pieces of code by section: language and text, in their order."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found: dict[str, list[tuple[str, str]]] = {}
    section = ""
    for part in re.finditer(r"^## ([^\n]+)$|^```(\w*)\n(.*?)^```$", readme, flags=re.MULTILINE | re.DOTALL):
        section = part[1] or section
        if part[2]:
            found.setdefault(section, []).append((part[2], part[3]))
    return found


def pieces(language: str, text: str) -> list[str]:
    """What is run at once: a line of shell without its comment, or a whole block of Python."""
    if language != "sh":
        return [text]
    lines = (re.sub(r"(^|\s+)#.*", "", line) for line in text.splitlines())
    return [line for line in lines if line]


def key_of(piece: str, table: Iterable[str]) -> str | None:
    """The longest key of a table that the piece begins with."""
    return max((key for key in table if piece.startswith(key)), key=len, default=None)


# ---- what something else runs, and what cannot be run as it is

ELSEWHERE = {
    "make restore": (".ci/run", "\nmake restore "),
    "make test": (".ci/run", "\nmake test\n"),
    "pip install .": ("tests/end_to_end/test_wheel.py", '"pip", "install"'),
    'uv pip install ".[torch]"': ("Makefile", '$(INSTALL) --compile-bytecode -e ".[torch,'),
}
"""Commands run elsewhere: the place, and what stands there."""

ADDED = {
    "daclip ui": ("--no-open", "a machine for tests shows no browser"),
    "daclip serve": ("--port 0", "port 8000 may be taken"),
    "daclip train compact-controller ": (
        "steps=2 batch=4 region=64 view=32 validate_regions=8 workers=0",
        "4000 steps take an hour",
    ),
    "daclip train compact ": (
        "steps=2 batch=4 patches_per_region=2 region=64 view=32 patch=32 late_patch=64 validate_regions=8"
        " workers=0",
        "60,000 steps take four hours of two cores",
    ),
    "daclip data make sets/universal ": ("--as low-light", "the other nine downloads hold 52,000 photos"),
}
"""Words added to a command, and why."""


# ---- what each promises


def is_changed(path: str, photo: str) -> bool:
    """True for a photo of the size of another and further from it than a new JPEG of it, 2 of 255 levels."""
    with Image.open(path) as one, Image.open(photo) as other:
        if one.size != other.size:
            return False
        return float(np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean()) > 5


def is_model(folder: str, *graphs: str) -> bool:
    return all((Path(folder) / name).is_file() for name in ("config.json", "model.safetensors", *graphs))


def holds(path: str, *words: str) -> bool:
    text = Path(path).read_text(encoding="utf-8")
    return all(word in text for word in words)


def has_row(table: str, *cells: str) -> bool:
    """True where a line of the table begins with these cells, given as patterns."""
    return re.search("^" + r"\s+".join(cells), table, flags=re.MULTILINE) is not None


PROMISES: dict[str, Callable[[str], object]] = {
    "daclip restore photo.jpg": lambda out: (
        out.startswith("photo.restored.jpg\trainy") and is_changed("photo.restored.jpg", "photo.jpg")
    ),
    "daclip restore holiday/": lambda _: (
        is_changed("mended/hazy.jpg", "holiday/hazy.jpg")
        and is_changed("mended/sea/snowy.jpg", "holiday/sea/snowy.jpg")
    ),
    "daclip restore photo.jpg --realistic": lambda _: is_changed("real.jpg", "photo.jpg"),
    "daclip restore photo.jpg --strength": lambda _: is_changed("gentle.jpg", "photo.jpg"),
    "daclip detect": lambda out: has_row(out, "photo.jpg", "rainy", r"[01]\.\d\d"),
    "daclip degrade": lambda out: (
        has_row(out, "bad.jpg", "rainy", ".*noisy") and is_changed("bad.jpg", "photo.jpg")
    ),
    "daclip restore photo.jpg --overwrite": lambda _: holds(
        "photo.restored.jpg.report.html", "Treated: rainy", "compact"
    ),
    "daclip batch": lambda _: (
        is_changed("mended/noisy.jpg", "photos/noisy.jpg")
        and holds("mended/daclip-manifest.jsonl", '"noisy.jpg"', '"low-light.jpg"')
    ),
    "daclip doctor": lambda out: has_row(out, " *onnx:") and has_row(out, " *torch:"),
    "daclip models convert": lambda _: is_model("universal-ir"),
    "daclip restore photo.jpg --model universal-ir --sampler posterior": lambda _: is_changed(
        "photo.restored.jpg", "photo.jpg"
    ),
    "daclip restore photo.jpg --model universal-ir --sampler mrs": lambda _: is_changed(
        "quick.jpg", "photo.jpg"
    ),
    "daclip train compact-backbone": lambda out: '"val"' in out and is_model("runs/compact-backbone/model"),
    "daclip train compact-controller": lambda out: (
        '"accuracy"' in out and is_model("runs/compact-controller/model")
    ),
    "daclip train compact ": lambda out: '"gain"' in out and is_model("runs/compact/model"),
    "daclip export": lambda out: "of torch" in out and is_model("my-model", "encoder.onnx", "restorer.onnx"),
    "daclip data make sets/mine": lambda _: (
        len(list(Path("sets/mine").glob("*/*/LQ/*.png"))) == len(SCENES) * len(DEGRADATIONS)
    ),
    "daclip data make sets/universal": lambda out: "\t500 pairs made" in out,
    "daclip data check": lambda out: has_row(out, "train", "uncompleted", r"\d"),
    "daclip data shard": lambda _: all(
        tarfile.is_tarfile(f"shards/{split}-000000.tar") for split in ("train", "val")
    ),
    "daclip caption": lambda _: holds("sets/mine/daclip_train.csv", "a photo of snowy: noisy"),
    "daclip evaluate --data pairs/": lambda out: has_row(out, "compact", "average", "4", ".* to "),
    "daclip evaluate --data pairs/ --peer": lambda out: all(
        has_row(out, name, "average", "4") for name in ("compact", "classics", "SCUNet", "tool")
    ),
    "daclip evaluate --photos clean/": lambda out: (
        has_row(out, "compact", "average", "10") and holds("run/measurements.jsonl", *DEGRADATIONS)
    ),
    "daclip evaluate --data lol/": lambda out: (
        has_row(out, "DA-CLIP", "published") and has_row(out, "compact", "measured", "2", *[r"\d+\.\d+"] * 3)
    ),
    "daclip evaluate --data pairs/ --format html": lambda _: (
        holds("report.html", "<table", "compact") and holds("plots/bars-psnr.svg", "<svg")
    ),
    "daclip evaluate run/": lambda out: has_row(out, "compact", "rainy") and "top-1" in out,
    "daclip score": lambda out: has_row(out, "results/rainy.png", "psnr", r"\d+\.\d\d", "ssim"),
    "daclip analyse": lambda _: holds("analysis.md", "## Contexts", "## Mixtures", "rainy"),
}

SERVERS: dict[str, Callable[[httpx.Client], object]] = {
    "daclip ui": lambda client: "daclip" in client.get("/").raise_for_status().text,
    "daclip serve": lambda client: (
        client.post("/v1/restore", files={"image": Path("photo.jpg").read_bytes()})
        .raise_for_status()
        .content.startswith(b"\xff\xd8")
    ),
}
"""Commands that stay until they are ended, and what they answer."""


def embedding_inputs() -> Names:
    import torch

    mu = torch.rand(1, 3, 16, 16)
    return {"pixels": torch.rand(1, 3, 32, 32), "x": mu, "mu": mu, "t": torch.tensor([50.0])}


PYTHON: dict[str, tuple[Callable[[], Names], Callable[[Names], object]]] = {
    "from daclip import Restorer": (
        dict,
        lambda names: (
            names["restored"].detection.ranked()[0][0] == "rainy" and is_changed("gentler.jpg", "photo.jpg")
        ),
    ),
    "from daclip.official import": (
        embedding_inputs,
        lambda names: names["noise"].shape == names["x"].shape and names["noise"].isfinite().all(),
    ),
}
"""By their first words, what pieces of Python are given and what they leave."""


# ---- what is there before

SCENES = ("motion-blurry", "hazy", "low-light", "noisy", "rainy", "snowy")
"""Examples of different scenes: two of one are a leak for `daclip data check`."""


def put(folder: str, *scenes: str, side: int | None = None, suffix: str = ".jpg") -> None:
    """Shipped examples into a folder, shrunk to this side."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for scene in scenes:
        if side is None:
            shutil.copy(PHOTOS / f"{scene}.jpg", folder)
            continue
        with Image.open(PHOTOS / f"{scene}.jpg") as photo:
            photo.thumbnail((side, side))
            photo.save(f"{folder}/{scene}{suffix}")


def put_pairs(degraded: str, clean: str, word: str, *scenes: str) -> None:
    put(clean, *scenes, side=64, suffix=".png")
    Path(degraded).mkdir(parents=True, exist_ok=True)
    for scene in scenes:
        with Image.open(f"{clean}/{scene}.png") as photo:
            pixels = np.asarray(photo, np.float32) / np.float32(255)
        made = degrade(pixels, word, severity=0.6, rng=np.random.default_rng(0)).pixels
        Image.fromarray(np.rint(made * 255).astype(np.uint8)).save(f"{degraded}/{scene}.png")


def for_restoring() -> None:
    shutil.copy(PHOTOS / "rainy.jpg", "photo.jpg")
    put("holiday", "hazy")
    put("holiday/sea", "snowy")
    put("photos", "noisy", "low-light")


def for_published_weights() -> None:
    """Files with the names and the layout of the published ones, and weights by chance."""
    import torch

    from daclip import clip, official
    from daclip.networks.unet import UNet

    put(".", "rainy", side=48)
    Path("rainy.jpg").rename("photo.jpg")
    # a width of 64 is one head, as shapes tell
    vision = {"image_size": 32, "layers": 1, "width": 64, "head_width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        daclip = clip.vit({"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}).state_dict()
        network = UNet(width=32, multipliers=(1, 2), context_dim=64).state_dict()
    torch.save({official.published_name(key): value for key, value in daclip.items()}, "daclip_ViT-B-32.pt")
    torch.save(network, "universal-ir.pth")


def for_training() -> None:
    put("photos", *SCENES, side=96)
    with open("captions.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "split", "caption1"])
        for number, scene in enumerate(SCENES):
            split = "val" if number < 2 else "train"
            rows.writerow([f"photos/{scene}.jpg", split, f"a photo of {scene}"])
    for part, count in (("our485", 485), ("eval15", 15)):
        for kind, level in (("low", 20), ("high", 200)):
            folder = Path("downloads", "LOLdataset", part, kind)
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 6), (level,) * 3).save(folder / "0.png")
            for number in range(1, count):
                (folder / f"{number}.png").hardlink_to(folder / "0.png")


def for_measuring() -> None:
    """Pairs, results, a program `tool`, and weights by chance where those of others are asked for."""
    import torch
    import torchvision
    from safetensors.torch import save_file
    from spandrel.architectures.SCUNet import SCUNet

    for word in ("noisy", "low-light"):
        put_pairs(f"pairs/{word}/LQ", f"pairs/{word}/GT", word, "rainy", "hazy")
    put_pairs("lol/low-light/LQ", "lol/low-light/GT", "low-light", "rainy", "hazy")
    put_pairs("results", "clean", "noisy", "rainy")
    Path("bin").mkdir()
    Path("bin/tool").symlink_to(shutil.which("cp") or "")
    Path("weights").mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(SCUNet(config=[0] * 7, dim=8).state_dict(), "SCUNet.pth")
        alexnet = torchvision.models.alexnet().state_dict()
        heads = {f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1) for i, n in enumerate(ALEXNET_WIDTHS)}
    features = {name: value for name, value in alexnet.items() if name.startswith("features.")}
    save_file(features, "weights/alexnet_features.safetensors")
    save_file(heads, "weights/lpips_alex_v0.1.safetensors")


ALEXNET_WIDTHS = (64, 192, 384, 256, 256)

BEFORE: dict[str, Callable[[], None]] = {
    "Install and run": for_restoring,
    "The published weights": for_published_weights,
    "Train": for_training,
    "Measure": for_measuring,
}
"""By section, what makes the names that its code uses."""


# ---- and now


def carry_out(command: str) -> None:
    key = key_of(command, PROMISES)
    assert key is not None, f"nothing is promised of: {command}"
    done = subprocess.run(["sh", "-c", f"exec {command}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert PROMISES[key](done.stdout), f"{command}\n{done.stdout}\n{done.stderr}"


def ask(command: str, answers: Callable[[httpx.Client], object]) -> None:
    """Start a server, ask it once, end it as Ctrl-C does."""
    with (
        open("server.txt", "w") as errors,
        subprocess.Popen(["sh", "-c", f"exec {command}"], stdout=subprocess.PIPE, stderr=errors) as server,
    ):
        try:
            assert server.stdout is not None
            address = server.stdout.readline().decode().strip()
            assert address.startswith("http://127.0.0.1:"), Path("server.txt").read_text()
            with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
                assert answers(client), command
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)
    assert "Traceback" not in Path("server.txt").read_text()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "section",
    [
        pytest.param(section, marks=() if section == "Install and run" else pytest.mark.torch)
        for section in blocks()
    ],
)
def test_a_section_of_the_readme_runs_from_top_to_bottom(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = [str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(places))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    BEFORE[section]()
    for language, text in blocks()[section]:
        for piece in pieces(language, text):
            if language == "python":
                given, leaves = PYTHON[key_of(piece, PYTHON) or piece]
                names = given()
                exec(compile(piece, "README.md", "exec"), names)
                assert leaves(names), piece
            elif key_of(piece, ELSEWHERE) is None:
                added = key_of(piece, ADDED)
                command = piece if added is None else f"{piece} {ADDED[added][0]}"
                server = key_of(piece, SERVERS)
                if server is None:
                    carry_out(command)
                else:
                    ask(command, SERVERS[server])


def test_nothing_in_the_readme_is_without_a_check_and_no_check_without_its_command() -> None:
    code = [block for parts in blocks().values() for block in parts]
    assert {language for language, _ in code} == {"sh", "python"}
    found = [piece for block in code for piece in pieces(*block)]
    checks = [*ELSEWHERE, *PROMISES, *SERVERS, *PYTHON]
    assert [piece for piece in found if key_of(piece, checks) is None] == []
    # each check has one command of its own: a new one cannot hide behind that of another
    assert sorted(str(key_of(piece, checks)) for piece in found) == sorted(checks)
    assert sorted(filter(None, (key_of(piece, ADDED) for piece in found))) == sorted(ADDED)


@pytest.mark.parametrize(("place", "words"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_what_the_readme_leaves_to_others_is_run_there(place: str, words: str) -> None:
    assert words in (ROOT / place).read_text(encoding="utf-8")
