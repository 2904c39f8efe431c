"""Data sets: draws that follow from their index alone."""

import csv
import io
import json
import pickle
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daclip.data import (
    CleanPhotos,
    Pair,
    Pairs,
    Sample,
    eight_bit,
    list_photos,
    open_data,
    published_layout,
    read_pixels,
    read_titles,
    split,
    split_title,
)
from daclip.data.files import PhotoCache
from daclip.errors import DataError, MissingExtra, PhotoError
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
        assert 0 < data._cache.used_bytes <= 2 * size
    assert replace(data, cache_bytes=0).draw(0) is not None


def test_a_photo_drawn_again_is_not_decoded_again(tmp_path: Path) -> None:
    paths = [write_photo(tmp_path / f"{number}.png", number) for number in range(3)]
    size = read_pixels(paths[0]).nbytes
    cache = PhotoCache(2 * size)
    first = cache.read(paths[0])
    cache.read(paths[1])
    assert cache.read(paths[0]) is first
    cache.read(paths[2])  # the second was used longest ago
    assert cache.read(paths[0]) is first
    cache.read(write_photo(tmp_path / "large.png", 4, height=200))  # no room for it, so nothing goes
    assert cache.read(paths[0]) is first
    paths[1].unlink()
    with pytest.raises(PhotoError):
        cache.read(paths[1])
    assert pickle.loads(pickle.dumps(cache)).used_bytes == 0


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


def places(photo: np.ndarray, patch: np.ndarray) -> list[tuple[int, int]]:
    """Where the patch lies in the photo."""
    side = patch.shape[0]
    starts = zip(*np.nonzero((photo == patch[0, 0]).all(axis=2)), strict=True)
    return [(y, x) for y, x in starts if np.array_equal(photo[y : y + side, x : x + side], patch)]


def test_pairs_are_balanced_by_word_and_cut_at_one_place(pairs: Path) -> None:
    data = Pairs(pairs=layout(pairs), region=16, seed=1, flips=False)
    drawn = [data.draw(index) for index in range(6)]
    assert [sample.names for sample in drawn] == [("hazy",), ("rainy",)] * 3
    assert all(same(sample, replace(data, cache_bytes=0).draw(i)) for i, sample in enumerate(drawn))
    degraded, clean = (read_pixels(pairs / "rainy" / side / "0.png") for side in ("LQ", "GT"))
    ((y, x),) = places(degraded, drawn[1].degraded)
    assert (y, x) in places(clean, drawn[1].clean)


def layout(root: Path) -> list[Pair]:
    return [
        Pair(degraded=path, clean=path.parents[1] / "GT" / path.name, word=path.parents[1].name)
        for path in sorted(root.glob("*/LQ/*.png"))
    ]


def test_both_halves_are_turned_alike_in_all_eight_ways(pairs: Path) -> None:
    data = Pairs(pairs=layout(pairs)[-1:], region=16, seed=2)
    degraded, clean = (read_pixels(pairs / "rainy" / side / "0.png") for side in ("LQ", "GT"))
    seen: list[int] = []
    for index in range(60):
        sample = data.draw(index)
        for turn in range(8):
            back = [
                np.rot90(half.swapaxes(0, 1) if turn >= 4 else half, turn % 4)
                for half in (sample.degraded, sample.clean)
            ]
            if place := places(degraded, back[0]):
                assert place == places(clean, back[1])
                seen.append(turn)
    assert len(seen) == 60
    assert set(seen) == set(range(8))


def test_photos_smaller_than_the_region_are_mirrored_at_their_edges(pairs: Path) -> None:
    data = Pairs(pairs=layout(pairs)[-1:], region=80, seed=1, flips=False)
    sample = data.draw(0)
    assert sample.degraded.shape == sample.clean.shape == (80, 80, 3)
    np.testing.assert_array_equal(sample.clean[10:70, 5:75], read_pixels(pairs / "rainy" / "GT" / "0.png"))
    np.testing.assert_array_equal(sample.clean[:10], sample.clean[10:20][::-1])


def test_a_share_of_pairs_is_grey(pairs: Path) -> None:
    data = Pairs(pairs=layout(pairs), region=16, grey_share=0.5)
    grey = [
        (sample.degraded == sample.degraded[..., :1]).all() and (sample.clean == sample.clean[..., :1]).all()
        for sample in map(data.draw, range(30))
    ]
    assert 5 < sum(grey) < 25


def test_draws_that_are_to_be_alike_have_one_kind_of_degradation(photos: Path) -> None:
    data = replace(clean_photos(photos), alike=4, mixture_share=0.3)
    groups = [[data.draw(4 * group + i).names for i in range(4)] for group in range(24)]

    def kind(names: tuple[str, ...]) -> str:
        return "mixed" if len(names) > 1 else (names or ("clean",))[0]

    kinds = [{kind(names) for names in group} for group in groups]
    assert all(len(each) == 1 for each in kinds)
    assert len(set.union(*kinds)) > 5
    mixed = [group for group in groups if len(group[0]) > 1]
    assert any(len(set(group)) > 1 for group in mixed)
    photos_drawn = {data.draw(i).clean.tobytes() for i in range(4)}
    assert len(photos_drawn) > 1


def test_a_share_of_photos_was_stored_as_jpeg_but_named_by_what_was_wrong_before(photos: Path) -> None:
    data = replace(clean_photos(photos), clean_share=0.1, mixture_share=0.1)
    stored = replace(data, stored_share=0.4)
    changed: dict[bool, list[bool]] = {True: [], False: []}
    for index in range(250):
        before, after = data.draw(index), stored.draw(index)
        assert before.names == after.names
        assert np.array_equal(before.clean, after.clean)
        may_be = len(after.names) == 1 and after.names[0] not in ("jpeg-compressed", "low-light")
        changed[may_be].append(not np.array_equal(before.degraded, after.degraded))
    assert not any(changed[False])
    assert 0.25 < np.mean(changed[True]) < 0.55


def test_a_share_of_photos_is_flat_but_never_where_flatness_is_the_damage(photos: Path) -> None:
    data = replace(clean_photos(photos), clean_share=0.3, mixture_share=0.2)
    toned = replace(data, tone_share=0.45)
    changed: dict[str, list[bool]] = {"flat": [], "levelled": [], "as it is": []}
    for index in range(160):
        before, after = data.draw(index), toned.draw(index)
        assert before.names == after.names
        kind = "flat" if len(after.names) < 2 and "low-light" not in after.names else "as it is"
        kind = "levelled" if after.names == ("hazy",) else kind
        changed[kind].append(not np.array_equal(before.clean, after.clean))
        if changed[kind][-1] and kind == "flat":
            assert np.ptp(after.clean.astype(int)) < np.ptp(before.clean.astype(int))
        if changed[kind][-1] and kind == "levelled":  # black and white, as a whole photo has them
            assert np.quantile(after.clean, 0.005) <= 2
            assert np.quantile(after.clean, 0.995) >= 0.9**2.3 * 255 - 1
    assert not any(changed["as it is"])
    assert len(changed["as it is"]) > 20
    assert 0.3 < np.mean(changed["flat"]) < 0.6
    assert 0.6 < np.mean(changed["levelled"]) <= 1


def test_words_of_mixtures_and_clean_photos(pairs: Path) -> None:
    one = layout(pairs)[0]
    assert replace(one, word="clean").names == ()
    assert replace(one, word="hazy, noisy").names == ("hazy", "noisy")
    data = Pairs(pairs=[replace(one, word=word) for word in ("zeal", "clean", "snowy", "hazy")])
    assert list(data.by_word) == ["hazy", "snowy", "clean", "zeal"]


def test_a_photo_without_its_pair_is_named(tmp_path: Path) -> None:
    write_photo(tmp_path / "hazy" / "LQ" / "a.png", 1)
    write_photo(tmp_path / "hazy" / "GT" / "a.webp", 1)
    write_photo(tmp_path / "hazy" / "LQ" / "lonely.png", 1)
    with pytest.raises(DataError, match=r"hazy: 1 photos have no partner \(lonely"):
        published_layout(tmp_path)


def test_pairs_of_other_names_are_matched_by_the_numbers_in_them(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        write_photo(tmp_path / "rainy" / "LQ" / f"rain-{number}.png", number)
        write_photo(tmp_path / "rainy" / "GT" / f"norain-{number}x2.png", number)
    both = {pair.degraded.name: pair.clean.name for pair in published_layout(tmp_path, "train")}
    both |= {pair.degraded.name: pair.clean.name for pair in published_layout(tmp_path, "val")}
    assert both == {f"rain-{n}.png": f"norain-{n}x2.png" for n in (1, 2, 10)}
    (tmp_path / "rainy" / "GT" / "norain-2x2.png").rename(tmp_path / "rainy" / "GT" / "norain-3x2.png")
    with pytest.raises(DataError, match="no partner"):
        published_layout(tmp_path)


def test_a_pair_of_unequal_size_is_named(tmp_path: Path) -> None:
    write_photo(tmp_path / "hazy" / "LQ" / "a.png", 1, width=70)
    write_photo(tmp_path / "hazy" / "GT" / "a.png", 1, width=71)
    with pytest.raises(DataError, match=r"a\.png: 70 x 60 pixels, but its clean photo has 71 x 60"):
        Pairs(pairs=layout(tmp_path)).draw(0)


def test_a_folder_without_pairs_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="LQ"):
        published_layout(tmp_path)


def test_each_split_has_its_folder_or_a_share_of_one(tmp_path: Path, pairs: Path) -> None:
    for word in ("hazy", "snowy"):
        for number in range(60):
            for side in ("LQ", "GT"):
                path = tmp_path / word / side / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    train, val = (published_layout(tmp_path, wanted) for wanted in ("train", "val"))
    assert len(train) + len(val) == 120
    # a clean photo lies on one side in all words
    assert not {pair.clean.name for pair in train} & {pair.clean.name for pair in val}
    assert {pair.word for pair in val} == {"hazy", "snowy"}
    (tmp_path / "train").mkdir()
    for word in ("hazy", "snowy"):
        (tmp_path / word).rename(tmp_path / "train" / word)
    assert {pair.clean.name for pair in published_layout(tmp_path, "val")} == {
        pair.clean.name for pair in val
    }
    assert len(published_layout(tmp_path)) == len(train)
    shutil.copytree(pairs, tmp_path / "val")
    assert len(published_layout(tmp_path, "val")) == 4
    assert len(published_layout(tmp_path)) == 120


# ---- caption files


@settings(max_examples=60)
@given(
    caption=st.text("ab :,", max_size=12).map(str.strip),
    word=st.sampled_from([*DEGRADATIONS, "clean"]),
    separator=st.sampled_from(["\t", ","]),
)
def test_captions_may_hold_colons_and_commas(
    tmp_path_factory: pytest.TempPathFactory, caption: str, word: str, separator: str
) -> None:
    root = tmp_path_factory.mktemp("titles")
    (root / "a.png").touch()
    with (root / "titles.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter=separator)
        rows.writerows([["filepath", "title"], ["a.png", f"{caption}: {word}"]])
    (row,) = read_titles(root / "titles.csv")
    assert row.word == word
    # a caption that ends in a colon or a word of its own is cut at the last one all the same
    assert (row.caption or "") == caption


def test_titles_without_a_word_are_captions_of_clean_photos() -> None:
    assert split_title("note: stop") == ("note: stop", None)
    assert split_title(": hazy") == (None, "hazy")
    assert split_title("a cat: foggy", folder="foggy") == ("a cat", "foggy")
    assert split_title("a cat: rainy, noisy") == ("a cat", "rainy, noisy")


def test_what_is_wrong_with_a_caption_file_is_said(tmp_path: Path) -> None:
    file = tmp_path / "titles.csv"
    for text, words in (
        ("image,caption\na,b\n", "its columns are image, caption"),
        ("filepath,title\n", "no rows in it"),
        ("filepath,title\nnowhere.png,a: hazy\n", r"1 of its photos are not there \(.*nowhere"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=words):
            read_titles(file)
    write_photo(tmp_path / "a.png", 1)
    file.write_text("filepath,title\na.png,a cat: hazy\n")
    with pytest.raises(DataError, match="no photo in <word>/LQ"):
        open_data(file)


def test_captions_find_their_pairs(pairs: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    shutil.copytree(pairs, root / "train")
    shutil.copytree(pairs, root / "val")
    photos = sorted(root.glob("train/*/LQ/*.png"))
    # paths as of the machine on which the file was made
    lines = [
        f"/elsewhere/datasets/{path.relative_to(root)}\tphoto {i}: sea: {path.parents[1].name}"
        for i, path in enumerate(photos)
    ]
    (root / "daclip_train.csv").write_text("\n".join(["filepath\ttitle", *lines]) + "\n")
    for source in (root, root / "daclip_train.csv"):
        data = open_data(source)
        assert isinstance(data, Pairs)
        captions = {str(pair.degraded): pair.caption for pair in data.pairs}
        if source == root:
            assert captions == {str(path): f"photo {i}: sea" for i, path in enumerate(photos)}
        assert data.draw(0).caption in captions.values()
    assert open_data(root, split="val").draw(0).caption is None


def test_captions_of_clean_photos_go_with_them(photos: Path) -> None:
    files = list_photos(photos)
    lines = [f"{path.relative_to(photos)},view of {path.stem}" for path in files]
    (photos / "captions.csv").write_text("\n".join(["filepath,title", *lines]) + "\n")
    data = open_data(photos / "captions.csv", region=24)
    (photos / "captions.csv").unlink()
    assert isinstance(data, CleanPhotos)
    assert data.draw(3).caption in {f"view of {path.stem}" for path in files}


# ---- open_data


def test_a_folder_of_photos_is_parted(photos: Path) -> None:
    train, val = (open_data(photos, split=split, region=24) for split in ("train", "val"))
    assert isinstance(train, CleanPhotos)
    assert isinstance(val, CleanPhotos)
    assert len(train.photos) + len(val.photos) == 5
    assert len(val.photos) > 0
    assert not set(train.photos) & set(val.photos)


def test_what_cannot_be_opened_is_named(tmp_path: Path, pairs: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        open_data(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no photos in it"):
        open_data(tmp_path)
    (tmp_path / "broken.tar").write_bytes(b"x" * 2000)
    with pytest.raises(DataError, match="not a tar file"):
        open_data(tmp_path / "broken.tar")
    write_photo(tmp_path / "one" / "hazy" / "LQ" / "a.png", 1)
    write_photo(tmp_path / "one" / "hazy" / "GT" / "a.png", 1)
    with pytest.raises(DataError, match="a single photo"):
        open_data(tmp_path / "one")
    shutil.copytree(pairs / "hazy", tmp_path / "few" / "hazy")
    with pytest.raises(DataError, match="only hazy in it; at least 2"):
        open_data(tmp_path / "few", words_needed=2)
    assert isinstance(open_data(tmp_path / "few"), Pairs)


# ---- shards


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_shards_of_pairs_are_drawn_by_index(tmp_path: Path, pairs: Path) -> None:
    members: dict[str, bytes] = {}
    for pair in layout(pairs):
        key = f"{pair.word}-{Path(pair.degraded.name).stem}"
        members[f"{key}.lq.png"] = pair.degraded.read_bytes()
        members[f"{key}.gt.png"] = pair.clean.read_bytes()
        facts = {"degradation": pair.word, "caption": f"about {key}"}
        members[f"{key}.json"] = json.dumps(facts).encode()
    write_shard(tmp_path / "train-000000.tar", members)
    write_shard(tmp_path / "val-000000.tar", members)
    shards = open_data(tmp_path / "train-*.tar", region=16, seed=1)
    assert isinstance(shards, Pairs)
    whole = Pairs(pairs=layout(pairs), region=16, seed=1)
    both = [open_data(tmp_path, split=split, region=16, seed=1) for split in ("train", "val")]
    for index in (0, 5, 2, 7):
        for data in both:
            assert same(data.draw(index), whole.draw(index))
            assert str(data.draw(index).caption).startswith("about ")


def test_other_shards_are_clean_photos_or_name_the_word_by_folder(tmp_path: Path, pairs: Path) -> None:
    photo = (pairs / "hazy" / "GT" / "0.png").read_bytes()
    members = {"a.png": photo, "a.txt": b"a view\n", "b.png": photo, "b.json": b'{"caption": "sea"}'}
    clean = open_data(write_shard(tmp_path / "clean.tar", members), region=24)
    assert isinstance(clean, CleanPhotos)
    assert clean.draw(0).caption in ("a view", "sea")
    members = {f"set/hazy/{i}.{kind}.png": photo for i in range(2) for kind in ("degraded", "clean")}
    data = open_data(write_shard(tmp_path / "pairs.tar", members), region=24)
    assert isinstance(data, Pairs)
    assert data.draw(0).names == ("hazy",)
    with pytest.raises(DataError, match=r"x\.tar: a\.lq\.png: no clean photo beside it"):
        open_data(write_shard(tmp_path / "x.tar", {"a.lq.png": photo}))
    with pytest.raises(DataError, match="no degradation named"):
        open_data(write_shard(tmp_path / "x.tar", {"a.lq.png": photo, "a.gt.png": photo}))


def test_a_damaged_photo_in_a_shard_is_named(tmp_path: Path) -> None:
    data = open_data(write_shard(tmp_path / "x.tar", {"a.png": b"not a photo", "b.png": b""}))
    assert isinstance(data, CleanPhotos)
    with pytest.raises(PhotoError) as caught:
        data.draw(0)
    assert str(caught.value.path).endswith(("x.tar: a.png", "x.tar: b.png"))


# ---- the hub's library


def test_the_hub_without_its_library_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.delitem(sys.modules, "daclip.data.hub", raising=False)
    with pytest.raises(MissingExtra, match=r'needs the extra \[data\]; pip install "daclip\[data\]"'):
        open_data("hf:owner/name")


@pytest.mark.slow
def test_tables_of_the_datasets_library_are_read(tmp_path: Path, pairs: Path) -> None:
    import datasets

    rows = layout(pairs)
    table = datasets.Dataset.from_dict(
        {
            "input": [str(pair.degraded) for pair in rows],
            "target": [str(pair.clean) for pair in rows],
            "label": [pair.word for pair in rows],
            "text": ["one", "two", "three", "four"],
        }
    )
    table = table.cast_column("input", datasets.Image()).cast_column("target", datasets.Image())
    table = table.class_encode_column("label")
    datasets.DatasetDict(train=table, validation=table).save_to_disk(str(tmp_path / "saved"))
    data = open_data(tmp_path / "saved", region=16, seed=1)
    assert isinstance(data, Pairs)
    whole = Pairs(pairs=rows, region=16, seed=1)
    for index in range(5):
        assert same(data.draw(index), whole.draw(index))
        assert data.draw(index).caption in ("one", "two", "three", "four")
    assert same(open_data(f"hf:{tmp_path / 'saved'}", split="val", region=16, seed=1).draw(1), whole.draw(1))
    # one column of photos: clean ones, degraded on the fly; no split to validate on: parted
    table.remove_columns(["input", "label"]).save_to_disk(str(tmp_path / "clean"))
    sides = [open_data(tmp_path / "clean", split=split, region=16) for split in ("train", "val")]
    assert [type(side) for side in sides] == [CleanPhotos, CleanPhotos]
    assert sides[0].draw(0).caption in ("one", "two", "three", "four")
    table.remove_columns(["label"]).save_to_disk(str(tmp_path / "wordless"))
    with pytest.raises(DataError, match="no column says what is wrong"):
        open_data(tmp_path / "wordless")
    with pytest.raises(DataError, match="cannot be loaded"):
        open_data(f"hf:{tmp_path / 'nowhere'}")


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


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
def test_a_process_that_has_decoded_photos_is_not_forked(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from daclip.data import read_pixels, start_method\n"
        "print(start_method()); read_pixels(Path(sys.argv[1])); print(start_method())"
    )
    photo = write_photo(tmp_path / "0.png", 0)
    done = subprocess.run(
        [sys.executable, "-c", code, str(photo)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["fork", "spawn"]
