"""Data sets made: out of any photos, out of raw downloads in their published folders, and as shards."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import pytest

from daclip.cli import run
from daclip.data import PAPER_COUNTS, Pairs, open_data, published_layout, read_pixels
from daclip.data_make import Item, Recipe, build, raw, shard, synthetic
from daclip.data_make.work import SETTINGS_FILE
from daclip.errors import DataError
from daclip.vocabulary import DEGRADATIONS


def write_photo(path: Path, seed: int, *, height: int = 40, width: int = 48, bits: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).random((5, 6, 3), dtype=np.float32)
    pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    stored = (pixels * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)
    assert cv2.imwrite(str(path), stored)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for number in range(3):
        write_photo(root / "sea" / f"{number}.png", number)
    write_photo(root / "wall.webp", 7)
    write_photo(root / "deep.png", 8, bits=16)
    return root


def contents(root: Path) -> dict[str, str]:
    """The hash of each file under a folder."""
    return {
        path.relative_to(root).as_posix(): sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


# ---- out of any photos


def test_every_photo_gets_every_degradation(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    told: list[tuple[int, int]] = []
    built = build(
        synthetic.plan(photos), root, Recipe(seed=3), on_progress=lambda *numbers: told.append(numbers)
    )
    assert (built.made, built.kept, built.failed) == (50, 0, ())
    assert told[-1] == (50, 50)
    train, val = (published_layout(root, split) for split in ("train", "val"))
    assert len(train) + len(val) == 50
    assert {pair.word for pair in train} == {pair.word for pair in val} == set(DEGRADATIONS)
    for pair in train + val:
        # names and kinds that the published code reads
        assert pair.degraded.name.endswith(".png")
        assert Path(pair.clean.name).stem == Path(pair.degraded.name).stem
        assert read_pixels(pair.degraded).shape == read_pixels(pair.clean).shape
        assert not np.array_equal(read_pixels(pair.degraded), read_pixels(pair.clean))
        assert cv2.imread(str(pair.clean), cv2.IMREAD_UNCHANGED).dtype == np.uint8
    # the original where it can be used, and one file for all words
    sea = [pair.clean for pair in train + val if pair.clean.name == "sea-0.png"]
    assert len(sea) == 10
    assert all(path.samefile(photos / "sea" / "0.png") for path in sea if isinstance(path, Path))
    wall = [pair.clean for pair in train + val if pair.clean.name == "wall.png"]
    assert len({path.stat().st_ino for path in wall if isinstance(path, Path)}) == 1
    np.testing.assert_array_equal(read_pixels(wall[0]), read_pixels(photos / "wall.webp"))


@pytest.mark.slow
def test_the_same_set_comes_of_any_number_of_workers(photos: Path, tmp_path: Path) -> None:
    items = synthetic.plan(photos)
    for workers in (1, 2):
        build(items, tmp_path / str(workers), Recipe(seed=5), workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    build(items, tmp_path / "other", Recipe(seed=6))
    assert contents(tmp_path / "1") != contents(tmp_path / "other")


def test_a_photo_draws_by_its_name_alone(photos: Path, tmp_path: Path) -> None:
    items = synthetic.plan(photos)
    build(items, tmp_path / "all", Recipe())
    build([items[13]], tmp_path / "one", Recipe())
    all_, one = contents(tmp_path / "all"), contents(tmp_path / "one")
    assert len(one) == 3
    assert one.items() <= all_.items()


def test_a_build_goes_on_where_it_was_stopped(photos: Path, tmp_path: Path) -> None:
    root, items = tmp_path / "set", synthetic.plan(photos)
    build(items, root, Recipe())
    whole = contents(root)
    lost = [root / name for name in list(whole) if "hazy" in name or name.endswith("rainy/GT/sea-1.png")]
    assert len(lost) == 11
    for path in lost:
        path.unlink()
    kept = root / "train" / "noisy" / "LQ"
    before = {path: path.stat().st_mtime_ns for path in kept.iterdir()}
    again = build(items, root, Recipe())
    assert (again.made, again.kept) == (6, 44)
    assert contents(root) == whole
    assert {path: path.stat().st_mtime_ns for path in kept.iterdir()} == before


def test_another_recipe_for_the_same_folder_is_refused(photos: Path, tmp_path: Path) -> None:
    items = synthetic.plan(photos, words=["noisy"])
    build(items, tmp_path / "set", Recipe(seed=1))
    assert json.loads((tmp_path / "set" / SETTINGS_FILE).read_text())["seed"] == 1
    with pytest.raises(DataError, match="made with another severity, seed"):
        build(items, tmp_path / "set", Recipe(seed=2, severity=(0.5, 0.6)))


def test_severity_and_settings_are_those_of_the_recipe(photos: Path, tmp_path: Path) -> None:
    items = synthetic.plan(photos, words=["noisy", "clean"])
    errors = {}
    for name, recipe in (
        ("mild", Recipe(severity=(0.1, 0.1))),
        ("heavy", Recipe(severity=(0.9, 0.9))),
        ("paper", Recipe(settings="paper")),
    ):
        build(items, tmp_path / name, recipe)
        pairs = published_layout(tmp_path / name, "train")
        difference = {
            pair.word: read_pixels(pair.degraded).astype(float) - read_pixels(pair.clean) for pair in pairs
        }
        assert not difference["clean"].any()
        errors[name] = float(difference["noisy"].std())
    assert errors["mild"] < 10 < 25 < errors["heavy"]
    assert 40 < errors["paper"] < 50  # sigma 50, clipped


def test_the_random_degradation_of_wild_ir_has_a_folder_of_its_own(photos: Path, tmp_path: Path) -> None:
    command = ["data", "make", str(tmp_path / "set"), "--photos", str(photos), "--as", "wild-ir", "-q"]
    assert run(command) == 0
    pairs = published_layout(tmp_path / "set", "train")
    assert {pair.word for pair in pairs} == {"wild-ir"}
    assert all((read_pixels(pair.degraded) != read_pixels(pair.clean)).any() for pair in pairs)


def test_photos_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b/c.png", "d.png"):
        write_photo(tmp_path / "photos" / name, 1)
    names = {item.name for item in synthetic.plan(tmp_path / "photos", words=["hazy"])}
    assert names == {"a-png", "a-jpg", "b-c", "d"}
    items = [Item(split="train", word="hazy", name="a", clean=tmp_path / "photos" / "a.png")] * 2
    with pytest.raises(DataError, match="train/hazy/a: two photos for one place"):
        build(items, tmp_path / "set", Recipe())


def test_a_photo_that_cannot_be_read_stops_no_other(photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    built = build(synthetic.plan(photos, words=["hazy", "noisy"]), tmp_path / "set", Recipe())
    assert built.made == 10
    assert len(built.failed) == 1
    assert "broken.png" in built.failed[0]


@pytest.mark.slow
def test_a_killed_build_leaves_no_half_file(photos: Path, tmp_path: Path) -> None:
    for number in range(15):
        write_photo(photos / f"{number}.png", number, height=160, width=160)
    root, command = tmp_path / "set", ["data", "make", str(tmp_path / "set"), "--photos", str(photos), "-q"]
    process = subprocess.Popen([sys.executable, "-m", "daclip", *command, "-j", "1"])
    while not any(root.rglob("*.png")) and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.2)
    process.kill()
    process.wait()
    there = list(root.rglob("LQ/*.png"))
    assert 0 < len(there) < 200
    assert run([*command, "-j", "1"]) == 0
    build(synthetic.plan(photos), tmp_path / "whole", Recipe())
    whole = {name: digest for name, digest in contents(tmp_path / "whole").items() if "/." not in name}
    assert {name: digest for name, digest in contents(root).items() if "/." not in name} == whole


# ---- out of raw downloads


def fill(folder: Path, names: list[str], seed: int = 0, **size: int) -> None:
    for number, name in enumerate(names):
        write_photo(folder / name, seed + number, **size)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few photos of each set, in the folders the sets are published with."""
    root = tmp_path_factory.mktemp("downloads")
    for part in ("train", "test"):
        for sequence in ("GOPR0372_07_00", "GOPR0374_11_00"):
            for kind in ("blur", "blur_gamma", "sharp"):
                fill(root / "GOPRO_Large" / part / sequence / kind, ["000047.png", "000048.png"], len(kind))
        fill(root / "RESIDE-6K" / part / "hazy", ["0001.jpg", "0002.jpg"], 10)
        fill(root / "RESIDE-6K" / part / "GT", ["0001.jpg", "0002.jpg"], 20)
        fill(root / "SRD" / part / "shadow", ["IMG_1_1.jpg", "IMG_2_1.jpg"], 10)
        fill(root / "SRD" / part / "shadow_free", ["IMG_1_1_no_shadow.jpg", "IMG_2_1_no_shadow.jpg"], 20)
    fill(root / "DIV2K" / "DIV2K_train_HR", ["0001.png", "0002.png"])
    fill(root / "DIV2K" / "DIV2K_valid_HR", ["0801.png"], 5)
    fill(root / "Flickr2K" / "Flickr2K_HR", ["000001.png", "000002.png"], 7)
    fill(root / "databaserelease2" / "refimgs", ["bikes.bmp", "caps.bmp"], 3)
    fill(root / "CBSD68" / "original_png", ["0000.png"], 4)
    fill(root / "CBSD68" / "noisy50", ["0000.png"], 4)
    for part, count in (("our485", 3), ("eval15", 1)):
        for kind in ("low", "high"):
            fill(root / "LOLdataset" / part / kind, [f"{i}.png" for i in range(count)], len(kind))
    for part in ("train", "test_a", "test_b"):
        fill(root / "RainDrop" / part / "data", ["0_rain.png", "1_rain.png"], 10)
        fill(root / "RainDrop" / part / "gt", ["0_clean.png", "1_clean.png"], 20)
    train = [f"{kind}-{i}.png" for i in (1, 2, 10) for kind in ("rain", "norain", "rainstreak")]
    fill(root / "RainTrainH", train)
    fill(root / "Rain100H" / "rainy", ["rain-001.png", "rain-002.png"])
    fill(root / "Rain100H", ["norain-001.png", "norain-002.png"])
    for folder in (
        "Snow100K-training/all",
        "Snow100K-testset/media/jdway/GameSSD/overlapping/test/Snow100K-L",
    ):
        for kind in ("gt", "synthetic", "mask"):
            names = [f"beautiful_smile_{i:05}.jpg" for i in range(4)]
            fill(root / folder / kind, names, len(kind))
    faces = root / "CelebA-HQ" / "CelebA-HQ-img"
    fill(faces, [f"{i}.jpg" for i in range(99, 103)], height=300, width=300)
    fill(faces, [f"{i}.jpg" for i in range(99)], height=20, width=20)
    return root


FOUND = {
    "train": {
        "motion-blurry": 4,
        "hazy": 2,
        "jpeg-compressed": 5,
        "low-light": 3,
        "noisy": 5,
        "raindrop": 2,
        "rainy": 3,
        "shadowed": 2,
        "snowy": 4,
        "uncompleted": 3,
    },
    "val": {
        "motion-blurry": 4,
        "hazy": 2,
        "jpeg-compressed": 2,
        "low-light": 1,
        "noisy": 1,
        "raindrop": 2,
        "rainy": 2,
        "shadowed": 2,
        "snowy": 4,
        "uncompleted": 100,
    },
}


def test_every_published_set_is_found_in_its_folders(downloads: Path) -> None:
    plan = raw.plan(downloads)
    found = {
        split: {word: sum((i.split, i.word) == (split, word) for i in plan.items) for word in DEGRADATIONS}
        for split in ("train", "val")
    }
    assert found == FOUND
    # every set but the faces to test on has another number than the paper's, and says so
    assert len(plan.problems) == sum(len(each.counts) for each in raw.RAW_SETS) - 1
    assert any(
        line.startswith("LOL, train of low-light: 3 photos, the paper has 485") for line in plan.problems
    )
    by_word = {item.word: item for item in plan.items if item.split == "train"}
    assert {item.word for item in plan.items if item.degraded is None} == {
        "jpeg-compressed",
        "noisy",
        "uncompleted",
    }
    for word, (degraded, clean) in {
        "motion-blurry": ("blur_gamma/000048.png", "sharp/000048.png"),
        "raindrop": ("data/1_rain.png", "gt/1_clean.png"),
        "rainy": ("RainTrainH/rain-10.png", "RainTrainH/norain-10.png"),
        "shadowed": ("shadow/IMG_2_1.jpg", "shadow_free/IMG_2_1_no_shadow.jpg"),
        "snowy": ("synthetic/beautiful_smile_00003.jpg", "gt/beautiful_smile_00003.jpg"),
    }.items():
        assert str(by_word[word].degraded).endswith(degraded)
        assert str(by_word[word].clean).endswith(clean)
    assert by_word["motion-blurry"].name == "GOPR0374_11_00-000048"


def test_the_papers_set_is_built_by_the_papers_protocol(downloads: Path, tmp_path: Path) -> None:
    plan = raw.plan(downloads)
    items = [item for item in plan.items if item.word != "uncompleted" or item.split == "train"]
    root = tmp_path / "universal"
    built = build(items, root, Recipe(settings="paper"))
    assert (built.made, built.failed) == (len(items), ())
    assert build(items, root, Recipe(settings="paper")).kept == len(items)
    pairs = {(pair.word, Path(pair.clean.name).stem): pair for pair in published_layout(root, "train")}
    # real pairs are the downloaded files themselves
    low = pairs["low-light", "1"]
    assert low.degraded.read_bytes() == (downloads / "LOLdataset/our485/low/1.png").read_bytes()
    # jpeg of quality 10 by OpenCV, exactly
    jpeg = pairs["jpeg-compressed", "flickr2k-000002"]
    clean = cv2.imread(str(downloads / "Flickr2K/Flickr2K_HR/000002.png"))
    coded = cv2.imencode(".jpg", clean, [cv2.IMWRITE_JPEG_QUALITY, 10])[1]
    np.testing.assert_array_equal(
        read_pixels(jpeg.degraded), cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1]
    )
    # sigma 50, truncated to 8 bits
    noise = read_pixels(pairs["noisy", "div2k-0801"].degraded).astype(float)
    clean = read_pixels(downloads / "DIV2K/DIV2K_valid_HR/0801.png")
    middle = (clean > 110) & (clean < 140)
    assert 40 < (noise - clean)[middle].std() < 60
    # faces of 256 x 256 with white holes
    face = pairs["uncompleted", "celeba-101"]
    degraded, clean = read_pixels(face.degraded), read_pixels(face.clean)
    assert degraded.shape == clean.shape == (256, 256, 3)
    changed = (degraded != clean).any(axis=2)
    assert 0.02 < changed.mean() < 0.6
    assert (degraded[changed] == 255).all()


def test_what_is_missing_is_named_with_where_it_is_published(downloads: Path, tmp_path: Path) -> None:
    lone = tmp_path / "downloads"
    lone.mkdir()
    (lone / "LOLdataset").symlink_to(downloads / "LOLdataset")
    plan = raw.plan(lone)
    assert {item.word for item in plan.items} == {"low-light"}
    missing = [line for line in plan.problems if "not there" in line]
    assert len(missing) == sum(len(each.counts) for each in raw.RAW_SETS) - 2
    (gopro,) = [line for line in missing if line.startswith("GoPro, train")]
    assert "looked for GOPRO_Large/{train,test}/GOPR*/{blur_gamma,sharp}" in gopro
    assert "published at seungjunnah.github.io/Datasets/gopro" in gopro
    where = "looked in LOLdataset/{our485,eval15}/{low,high}"
    assert raw.plan(lone, words=["low-light"]).problems == [
        f"LOL, train of low-light: 3 photos, the paper has 485; {where}",
        f"LOL, val of low-light: 1 photos, the paper has 15; {where}",
    ]
    with pytest.raises(DataError, match="not a folder"):
        raw.plan(tmp_path / "nowhere")


def test_a_download_with_a_photo_missing_is_named(downloads: Path, tmp_path: Path) -> None:
    fill(tmp_path / "our485" / "low", ["1.png", "2.png"])
    fill(tmp_path / "our485" / "high", ["1.png"])
    fill(tmp_path / "train" / "hazy", ["1.png"])
    plan = raw.plan(tmp_path, words=["low-light", "hazy"])
    assert any("1 photos have no partner (2" in line for line in plan.problems)
    assert any("no folder gt beside it" in line for line in plan.problems)


def test_the_counts_are_those_of_table_1() -> None:
    made: dict[str, dict[str, int]] = {"train": {}, "val": {}}
    for each in raw.RAW_SETS:
        for split, count in each.counts.items():
            for word in each.words:
                made[split][word] = made[split].get(word, 0) + count
    assert made == PAPER_COUNTS
    assert [sum(PAPER_COUNTS[split].values()) for split in ("train", "val")] == [52_801, 3_490]


# ---- shards


def test_shards_hold_the_set_and_the_same_bytes_each_time(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    build(synthetic.plan(photos, words=["hazy", "noisy", "clean"]), root, Recipe())
    told: list[tuple[int, int]] = []
    for out in ("one", "two"):
        time.sleep(1.1 * (out == "two"))  # a tar holds seconds
        for split in ("train", "val"):
            shard(root, tmp_path / out, split=split, on_progress=lambda *numbers: told.append(numbers))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert (12, 12) in told
    whole, packed = open_data(root, region=16), open_data(tmp_path / "one", region=16)
    assert isinstance(whole, Pairs)
    assert isinstance(packed, Pairs)
    assert len(whole.pairs) == len(packed.pairs)

    def pixels(data: Pairs) -> list[tuple[str, bytes, bytes]]:
        return sorted(
            (pair.word, read_pixels(pair.degraded).tobytes(), read_pixels(pair.clean).tobytes())
            for pair in data.pairs
        )

    assert pixels(whole) == pixels(packed)


def test_shards_are_closed_at_their_size_and_never_overwritten_unasked(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    build(synthetic.plan(photos, words=["hazy", "noisy"]), root, Recipe())
    small = shard(root, tmp_path / "out", split="train", shard_bytes=20_000)
    assert len(small) > 2
    assert all(path.stat().st_size <= 20_000 + 1_024 + 10_240 for path in small)
    packed = open_data(tmp_path / "out" / "train-*.tar")
    assert isinstance(packed, Pairs)
    with pytest.raises(DataError, match=r"holds train-000000\.tar already"):
        shard(root, tmp_path / "out", split="train")
    (one,) = shard(root, tmp_path / "out", split="train", overwrite=True)
    assert list((tmp_path / "out").iterdir()) == [one]


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in.*FileIO"
)  # the library leaves closing to the collector
def test_the_webdataset_library_reads_our_shards(photos: Path, tmp_path: Path) -> None:
    import webdataset

    root = tmp_path / "set"
    build(synthetic.plan(photos, words=["hazy"]), root, Recipe())
    (path,) = shard(root, tmp_path / "out", split="train")
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert len(samples) == len(published_layout(root, "train"))
    assert {"lq.png", "gt.png", "json"} <= set(samples[0])
    assert json.loads(samples[0]["json"])["degradation"] == "hazy"


def test_clean_photos_are_packed_with_their_captions(photos: Path, tmp_path: Path) -> None:
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    lines = [f"{name}\tview {i}" for i, name in enumerate(names)]
    (photos / "captions.csv").write_text("\n".join(["filepath\ttitle", *lines]) + "\n")
    shard(str(photos / "captions.csv"), tmp_path / "out", split="train")
    data = open_data(tmp_path / "out", region=16)
    assert str(data.draw(0).caption).startswith("view ")


# ---- the commands


def test_the_commands_make_and_pack(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "set"
    command = ["data", "make", str(root), "--photos", str(photos), "--as", "rain,clean", "-j", "1"]
    assert run([*command, "--dry-run"]) == 0
    assert capsys.readouterr().out == f"{root}\t10 pairs\n"
    assert not root.exists()
    assert run(command) == 0
    assert capsys.readouterr().out == f"{root}\t10 pairs made\t0 were there\n"
    assert run(command) == 0
    assert capsys.readouterr().out == f"{root}\t0 pairs made\t10 were there\n"
    assert run(["data", "shard", str(root), str(tmp_path / "out")]) == 0
    assert "train-000000.tar" in capsys.readouterr().out
    assert run(["data", "shard", str(root), str(tmp_path / "out")]) == 1
    assert "use --overwrite" in capsys.readouterr().err


def test_the_command_for_downloads_ends_with_what_is_missing(
    downloads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    command = ["data", "make", str(root), "--raw", str(downloads), "--as", "low-light", "-j", "1"]
    assert run(command) == 1
    told = capsys.readouterr()
    assert told.out == f"{root}\t4 pairs made\t0 were there\n"
    assert "the paper has 485" in told.err
    assert run(["data", "make", str(root)]) == 2
    assert "name either --photos or --raw" in capsys.readouterr().err


def test_what_a_set_is_made_of_can_be_made_again_by_hand(photos: Path, tmp_path: Path) -> None:
    recipe = Recipe(seed=9)
    (item,) = [i for i in synthetic.plan(photos) if (i.word, i.name) == ("snowy", "sea-2")]
    build([item], tmp_path / "set", recipe)
    made = read_pixels(item.places(tmp_path / "set")[0].with_suffix(".png"))
    np.testing.assert_array_equal(made, recipe.degrade(read_pixels(item.clean), item))
    other = replace(item, name="sea-1")
    assert not np.array_equal(made, recipe.degrade(read_pixels(item.clean), other))
