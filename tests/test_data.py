"""Data sets: draws that follow from their index alone."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daclip.data import CleanPhotos, Pairs, Sample, eight_bit, list_photos, read_pixels, split
from daclip.errors import DataError, PhotoError
from daclip.vocabulary import DEGRADATIONS


def write_photo(path: Path, seed: int, *, height: int = 60, width: int = 70) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).random((5, 6, 3), dtype=np.float32)
    pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(path), (pixels.clip(0, 1) * 255).astype(np.uint8))
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for number in range(4):
        write_photo(root / f"{number}.png", number)
    write_photo(root / "deep" / "small.png", 9, height=20, width=31)
    return root


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pairs")
    for word, count in (("hazy", 3), ("rainy", 1)):
        for number in range(count):
            write_photo(root / word / "LQ" / f"{number}.png", 10 + number)
            write_photo(root / word / "GT" / f"{number}.png", 20 + number)
    return root


def clean_photos(root: Path) -> CleanPhotos:
    return CleanPhotos(photos=list_photos(root), region=32, seed=3)


def same(first: Sample, second: Sample) -> bool:
    return (
        first.names == second.names
        and np.array_equal(first.degraded, second.degraded)
        and np.array_equal(first.clean, second.clean)
    )


# ---- clean photos


@settings(max_examples=8, deadline=None)
@given(index=st.integers(0, 2**40))
def test_an_index_is_always_the_same_sample(photos: Path, index: int) -> None:
    drawn = clean_photos(photos).draw(index)
    assert same(drawn, clean_photos(photos).draw(index))
    assert drawn.degraded.shape == drawn.clean.shape == (32, 32, 3)
    assert drawn.degraded.dtype == drawn.clean.dtype == np.uint8
    assert set(drawn.names) <= set(DEGRADATIONS)
    # a sample without names is clean, and one with names is not
    assert np.array_equal(drawn.degraded, drawn.clean) == (not drawn.names)


def test_neither_order_nor_memory_changes_a_sample(photos: Path) -> None:
    data = clean_photos(photos)
    forwards = [data.draw(index) for index in range(6)]
    for changed in (clean_photos(photos), replace(data, cache_bytes=0)):
        backwards = [changed.draw(index) for index in reversed(range(6))]
        assert all(same(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))


def test_another_index_or_seed_is_another_sample(photos: Path) -> None:
    data = clean_photos(photos)
    assert not np.array_equal(data.draw(0).clean, data.draw(1).clean)
    assert not np.array_equal(data.draw(0).clean, replace(data, seed=4).draw(0).clean)


def test_a_data_set_made_of_another_reads_its_own_photos(photos: Path) -> None:
    first, second = list_photos(photos)[:2]
    data = CleanPhotos(photos=[first], region=60, shrink_share=0.0, clean_share=1.0, paper_share=0.0)
    data.draw(0)
    other = replace(data, photos=[second])
    assert not np.array_equal(data.draw(0).clean, other.draw(0).clean)


def test_memory_for_photos_is_bounded(photos: Path) -> None:
    size = read_pixels(list_photos(photos)[0]).nbytes
    data = replace(clean_photos(photos), cache_bytes=2 * size)
    for index in range(12):
        data.draw(index)
    assert 0 < sum(kept.nbytes for kept in data._cache.values()) <= 2 * size


def test_shares_decide_what_is_drawn(photos: Path) -> None:
    data = replace(clean_photos(photos), paper_share=0.0)
    untouched = replace(data, clean_share=1.0)
    assert all(untouched.draw(index).names == () for index in range(5))
    mixed = replace(data, clean_share=0.0, mixture_share=1.0)
    assert all(len(mixed.draw(index).names) >= 2 for index in range(5))
    only_snow = replace(data, clean_share=0.0, mixture_share=0.0, names=("hazy", "snowy"), weights=(0.0, 1.0))
    assert all(only_snow.draw(index).names == ("snowy",) for index in range(5))
    only_haze = replace(only_snow, paper_share=1.0, weights=(1.0, 0.0))
    assert all(only_haze.draw(index).names == ("hazy",) for index in range(5))


# ---- pairs


def test_pairs_are_balanced_by_word_and_cut_at_one_place(pairs: Path) -> None:
    data = Pairs(root=pairs, region=16, seed=1)
    drawn = [data.draw(index) for index in range(6)]
    assert [sample.names for sample in drawn] == [("hazy",), ("rainy",)] * 3
    assert all(same(sample, Pairs(root=pairs, region=16, seed=1).draw(i)) for i, sample in enumerate(drawn))
    degraded, clean = (read_pixels(pairs / "rainy" / side / "0.png") for side in ("LQ", "GT"))
    places = [
        (y, x)
        for y in range(60 - 15)
        for x in range(70 - 15)
        if np.array_equal(degraded[y : y + 16, x : x + 16], drawn[1].degraded)
    ]
    assert len(places) == 1
    y, x = places[0]
    np.testing.assert_array_equal(clean[y : y + 16, x : x + 16], drawn[1].clean)


def test_the_folders_of_pairs_are_listed_once(pairs: Path, tmp_path: Path) -> None:
    root = tmp_path / "moved"
    root.symlink_to(pairs)
    data = Pairs(root=root)
    data.draw(0)
    listed = data.pairs
    root.unlink()
    assert data.pairs is listed
    assert [len(data.pairs[word]) for word in ("hazy", "rainy")] == [3, 1]


def test_a_photo_without_its_pair_is_named(tmp_path: Path) -> None:
    write_photo(tmp_path / "hazy" / "LQ" / "a.png", 1)
    write_photo(tmp_path / "hazy" / "GT" / "a.webp", 1)
    write_photo(tmp_path / "hazy" / "LQ" / "lonely.png", 1)
    with pytest.raises(DataError, match=r"hazy: 1 photos are in LQ or GT alone \(lonely"):
        Pairs(root=tmp_path).draw(0)


def test_a_pair_of_unequal_size_is_named(tmp_path: Path) -> None:
    write_photo(tmp_path / "hazy" / "LQ" / "a.png", 1, width=70)
    write_photo(tmp_path / "hazy" / "GT" / "a.png", 1, width=71)
    with pytest.raises(DataError, match=r"a\.png: 70 x 60 pixels, but its clean photo has 71 x 60"):
        Pairs(root=tmp_path).draw(0)


def test_a_folder_without_pairs_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="LQ"):
        Pairs(root=tmp_path).draw(0)


# ---- files


def test_photos_are_listed_by_relative_path_and_others_left_out(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/z.png", "notes.txt", "c.webp"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert [path.relative_to(tmp_path).as_posix() for path in list_photos(tmp_path)] == [
        "a/z.png",
        "b.JPG",
        "c.webp",
    ]


def test_a_folder_without_photos_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no photos in it"):
        list_photos(tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        list_photos(tmp_path / "nowhere")


@settings(max_examples=40, deadline=None)
@given(
    names=st.sets(st.text("abcdefgh0123", min_size=1, max_size=6), min_size=2, max_size=40),
    more=st.sets(st.text("ijklm", min_size=1, max_size=4), max_size=10),
)
def test_no_photo_changes_sides_when_others_come_or_go(names: set[str], more: set[str]) -> None:
    few = [Path(f"{name}.png") for name in sorted(names)]
    many = [Path("elsewhere") / f"{name}.png" for name in sorted(names | more)]
    train, val = split(few, held_out=3)
    assert sorted([*train, *val]) == sorted(few)
    train_names = {path.name for path in split(many, held_out=3)[0]}
    assert {path.name for path in train} <= train_names
    assert not {path.name for path in val} & train_names


def test_about_one_photo_in_twenty_is_held_out() -> None:
    train, val = split([Path(f"{number}.jpg") for number in range(4000)])
    assert len(train) + len(val) == 4000
    assert 150 < len(val) < 250


def test_pixels_are_read_as_eight_bit_colour(tmp_path: Path) -> None:
    grey = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30) * 100
    cv2.imwrite(str(tmp_path / "deep.png"), grey)
    pixels = read_pixels(tmp_path / "deep.png")
    assert (pixels.shape, pixels.dtype) == ((20, 30, 3), np.uint8)
    np.testing.assert_allclose(pixels[..., 0], grey / 257, atol=1)
    with pytest.raises(PhotoError):
        read_pixels(tmp_path / "missing.png")


def test_eight_bits_are_rounded_and_clipped() -> None:
    row = np.array([[[-0.1, 0.5 / 255 + 1e-4, 1.2]]], dtype=np.float32)
    assert eight_bit(row).tolist() == [[[0, 1, 255]]]
