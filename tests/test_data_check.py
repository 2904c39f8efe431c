"""Faults that `daclip data check` finds in a data set, one by one."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from daclip.cli import run
from daclip.data_check import Finding, Report, check, look
from daclip.errors import DataError


def write_photo(path: Path, seed: int, *, height: int = 48, width: int = 64, mirrored: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).random((7, 9, 3), dtype=np.float32)
    pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    pixels = pixels[:, ::-1] if mirrored else pixels
    assert cv2.imwrite(str(path), (pixels * 255).astype(np.uint8))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A set with nothing wrong: two words, three pairs each in train, two in val."""
    for split, count in (("train", 3), ("val", 2)):
        for word in ("hazy", "rainy"):
            for number in range(count):
                seed = 10 * (split == "val") + number
                write_photo(tmp_path / "set" / split / word / "GT" / f"{number}.png", seed)
                other = 100 + seed + 50 * (word == "hazy")
                write_photo(tmp_path / "set" / split / word / "LQ" / f"{number}.png", other)
    return tmp_path / "set"


def found(report: Report) -> list[tuple[str, bool, str]]:
    return [(finding.kind, finding.is_error, finding.where) for finding in report.findings]


def test_a_set_with_nothing_wrong_has_no_findings(root: Path) -> None:
    told: list[tuple[int, int]] = []
    report = check(root, on_progress=lambda *numbers: told.append(numbers))
    assert report.findings == []
    assert told[-1] == (20, 20)
    assert [(each.split, each.word, each.pairs, each.paper) for each in report.classes] == [
        ("train", "hazy", 3, 6000),
        ("train", "rainy", 3, 1800),
        ("val", "hazy", 2, 1000),
        ("val", "rainy", 2, 100),
    ]


@pytest.mark.slow
def test_workers_find_the_same(root: Path) -> None:
    (root / "train" / "hazy" / "LQ" / "1.png").write_bytes(b"nothing")
    assert check(root, workers=2) == check(root)


def test_a_photo_without_a_partner(root: Path) -> None:
    (root / "train" / "hazy" / "GT" / "1.png").unlink()
    (root / "val" / "rainy" / "LQ" / "0.png").unlink()
    report = check(root)
    assert found(report) == [
        ("pair", True, "train/hazy/LQ/1.png"),
        ("pair", True, "val/rainy/GT/0.png"),
    ]
    assert [each.pairs for each in report.classes] == [2, 3, 2, 1]
    assert [each.errors for each in report.classes] == [1, 0, 0, 1]


def test_a_side_without_photos(root: Path) -> None:
    shutil.rmtree(root / "train" / "hazy" / "GT")
    (finding,) = check(root).findings
    assert (finding.kind, finding.where, finding.message) == ("pair", "train/hazy", "no photos in GT")


def test_a_pair_of_unequal_size(root: Path) -> None:
    write_photo(root / "train" / "hazy" / "LQ" / "2.png", 5, width=65)
    assert check(root).findings == [
        Finding(
            kind="size",
            is_error=True,
            where="train/hazy/LQ/2.png",
            message="65 x 48 pixels, but its clean photo has 64 x 48",
        )
    ]


@pytest.mark.parametrize("damage", ["empty", "text", "half"])
def test_a_photo_that_cannot_be_read(root: Path, damage: str) -> None:
    path = root / "train" / "rainy" / "GT" / "0.png"
    path.write_bytes({"empty": b"", "text": b"hello", "half": path.read_bytes()[:400]}[damage])
    (finding,) = check(root).findings
    assert (finding.kind, finding.is_error, finding.where) == ("unreadable", True, "train/rainy/GT/0.png")
    assert finding.message


def test_the_same_degraded_photo_twice_is_a_warning(root: Path) -> None:
    folder = root / "train" / "hazy" / "LQ"
    shutil.copy(folder / "0.png", folder / "2.png")
    # clean photos may repeat: one scene in nine rains
    shutil.copy(root / "train" / "hazy" / "GT" / "0.png", root / "train" / "hazy" / "GT" / "1.png")
    (finding,) = check(root).findings
    assert (finding.kind, finding.is_error) == ("duplicate", False)
    assert (finding.where, finding.message) == (
        "train/hazy/LQ/2.png",
        "the same file as train/hazy/LQ/0.png",
    )


@pytest.mark.parametrize(("mirrored", "quality"), [(False, 95), (False, 40), (True, 90)])
def test_a_clean_photo_of_train_in_val_leaks(root: Path, mirrored: bool, quality: int) -> None:
    (root / "val" / "rainy" / "GT" / "1.png").unlink()
    write_photo(root / "val" / "rainy" / "LQ" / "1.png", 7, width=128, height=96)
    original = cv2.imread(str(root / "train" / "hazy" / "GT" / "2.png"))
    larger = cv2.resize(original[:, ::-1] if mirrored else original, (128, 96))
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    cv2.imwrite(str(root / "val" / "rainy" / "GT" / "1.jpg"), larger, options)
    (finding,) = check(root).findings
    assert (finding.kind, finding.is_error, finding.where) == ("leak", True, "val/rainy/GT/1.jpg")
    assert finding.message.startswith("looks like train/hazy/GT/2.png (")


def test_the_hash_is_that_of_the_imagehash_library(root: Path) -> None:
    import imagehash
    from PIL import Image

    path = root / "train" / "hazy" / "GT" / "0.png"
    bits = look(path).bits
    assert bits is not None
    np.testing.assert_array_equal(bits[0], imagehash.phash(Image.open(path)).hash.ravel())
    assert look(path, appearance=False).bits is None


def test_a_single_word_and_words_of_ones_own_are_warnings(root: Path) -> None:
    for split in ("train", "val"):
        (root / split / "rainy").rename(root / split / "foggy")
    report = check(root)
    assert found(report) == [("classes", False, "train"), ("classes", False, "val")]
    assert "foggy" in report.findings[0].message
    assert [each.paper for each in report.classes] == [6000, None, 1000, None]
    for split in ("train", "val"):
        shutil.rmtree(root / split / "foggy")
    report = check(root)
    assert found(report) == [("classes", False, "train"), ("classes", False, "val")]
    assert report.findings[0].message.startswith("only hazy")


def test_words_without_splits_are_looked_at_too(root: Path) -> None:
    report = check(root / "train")
    assert [(each.split, each.word, each.pairs) for each in report.classes] == [
        ("", "hazy", 3),
        ("", "rainy", 3),
    ]
    assert report.findings == []
    with pytest.raises(DataError, match="no <word>/LQ"):
        check(root / "train" / "hazy")


def test_captions_that_do_not_fit(root: Path) -> None:
    file = root / "daclip_train.csv"
    rows = [f"train/{word}/LQ/{i}.png\ta sea: {word}" for word in ("hazy", "rainy") for i in range(3)]
    file.write_text("\n".join(["filepath\ttitle", *rows]) + "\n")
    assert check(root).findings == []
    file.write_text("\n".join(["filepath\ttitle", *rows[1:5], "train/rainy/LQ/2.png\ta: hazy"]) + "\n")
    report = check(root)
    assert found(report) == [("captions", False, file.name), ("captions", True, file.name)]
    assert report.findings[0].message == "1 of 6 photos have no row"
    file.write_text("photo,words\n")
    assert found(check(root)) == [("captions", True, file.name)]


def test_the_command_prints_a_table_and_ends_with_one_for_errors(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["data", "check", str(root), "-j", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "SPLIT  DEGRADATION  PAIRS  PAPER  ERRORS  WARNINGS",
        "train  hazy             3  6,000       0         0",
    ]
    shutil.copy(root / "train" / "hazy" / "LQ" / "0.png", root / "train" / "hazy" / "LQ" / "1.png")
    assert run(["data", "check", str(root), "-j", "1"]) == 0
    assert "warning: train/hazy/LQ/1.png: the same file" in capsys.readouterr().err
    assert run(["data", "check", str(root), "-j", "1", "--strict"]) == 1
    (root / "train" / "hazy" / "LQ" / "2.png").unlink()
    capsys.readouterr()
    assert run(["data", "check", str(root), "-j", "1", "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert record["schema"] == "daclip.data/1"
    assert (record["errors"], record["warnings"]) == (1, 1)
    assert record["classes"][0] == {
        "split": "train",
        "word": "hazy",
        "pairs": 2,
        "paper": 6000,
        "errors": 1,
        "warnings": 1,
    }
    assert record["findings"][0] == {
        "kind": "pair",
        "level": "error",
        "where": "train/hazy/GT/2.png",
        "message": "has no partner",
    }
    assert run(["data", "check", str(root / "nowhere")]) == 1
    assert "no <word>/LQ" in capsys.readouterr().err
