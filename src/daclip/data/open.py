"""`open_data`: a data set from whatever a person names after `--data`."""

from collections.abc import Sequence
from pathlib import Path

from daclip.data.clean import CleanPhotos
from daclip.data.files import Split, Stored, list_photos, side
from daclip.data.pairs import Pair, Pairs, published_layout, split_folders
from daclip.data.shards import find_shards, read_shards
from daclip.data.titles import captioned_pairs, read_titles
from daclip.errors import DataError

Captioned = tuple[Stored, str | None]

CAPTION_SUFFIXES = frozenset({".csv", ".tsv", ".txt"})


def open_data(
    source: str | Path, *, split: Split = "train", region: int = 256, seed: int = 0, words_needed: int = 1
) -> CleanPhotos | Pairs:
    """The data set that `source` names, one split of it; a set with one split holds photos out for "val".

    - a folder `root/{train,val}/<word>/{LQ,GT}` or `root/<word>/{LQ,GT}`, with `root/daclip_{train,val}.csv`
      for captions where it is there: Pairs;
    - any other folder of photos: CleanPhotos, degraded on the fly;
    - a caption file (.csv, .tsv) with columns filepath and title, of degraded photos or of clean ones;
    - shards (a .tar file, a folder of them, a pattern `*.tar`), of pairs or of clean photos;
    - `hf:owner/name[@revision][:configuration]`, or a folder written by the `datasets` library.

    Args:
        source: as above.
        split: "train" or "val".
        region: side of the squares drawn, in pixels; all else can be changed with `dataclasses.replace`.
        seed: of all draws.
        words_needed: fewer degradations among pairs are an error (an encoder cannot tell one from itself).

    Raises DataError, or MissingExtra for the hub without the extra [data].
    """
    pairs, clean = _contents(str(source), split)
    if not pairs:
        photos, captions = [photo for photo, _ in clean], [caption for _, caption in clean]
        return CleanPhotos(
            photos=photos, captions=captions if any(captions) else None, region=region, seed=seed
        )
    if clean:
        raise DataError(f"{source}: pairs and clean photos side by side ({clean[0][0]})", hint="part them")
    data = Pairs(pairs=pairs, region=region, seed=seed)
    if len(data.by_word) < words_needed:
        raise DataError(
            f"{source}: only {', '.join(data.by_word)} in it",
            hint=f"at least {words_needed} degradations are needed to learn to tell them apart",
        )
    return data


def _contents(source: str, split: Split) -> tuple[list[Pair], Sequence[Captioned]]:
    """All pairs, or all clean photos with captions, of one split."""
    path = Path(source)
    if source.startswith("hf:") or any((path / name).is_file() for name in _SAVED):
        from daclip.data.hub import read_hub  # an extra of its own, and slow to import

        pairs, clean, is_split = read_hub(source.removeprefix("hf:"), split)
    elif path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar"))):
        shards, is_split = find_shards(path, split)
        pairs, clean = read_shards(shards)
    elif path.suffix.lower() in CAPTION_SUFFIXES:
        return _captioned(path, split)
    elif not path.exists():
        raise DataError(f"{source}: no such file or folder", hint="hf:owner/name names a data set of the hub")
    elif split_folders(path):
        return _with_captions(path, published_layout(path, split), split), []
    else:
        return [], side([(photo, None) for photo in list_photos(path)], split, name=_name, source=source)
    if is_split:
        return pairs, clean
    if pairs:
        return side(pairs, split, name=lambda pair: pair.clean.name, source=source), []
    return [], side(clean, split, name=_name, source=source)


_SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")
"""Files by which a folder shows that the `datasets` library wrote it."""


def _name(photo: Captioned) -> str:
    return photo[0].name


def _captioned(path: Path, split: Split) -> tuple[list[Pair], Sequence[Captioned]]:
    """What a caption file names; one called `*train*` has the other split in the `*val*` beside it."""
    other = path.with_name(path.name.replace("train", "val"))
    is_split = other != path and other.is_file()
    if is_split and split == "val":
        path = other
    rows = read_titles(path)
    if all(row.word is None for row in rows):
        clean: list[Captioned] = [(row.file, row.caption) for row in rows]
        return [], clean if is_split else side(clean, split, name=_name, source=path)
    pairs = captioned_pairs(path, rows)
    return pairs if is_split else side(pairs, split, name=lambda pair: pair.clean.name, source=path), []


def _with_captions(root: Path, pairs: list[Pair], split: Split) -> list[Pair]:
    """The pairs with the captions of `root/daclip_{split}.csv`, where that is there."""
    file = root / f"daclip_{split}.csv"
    if not file.is_file():
        return pairs
    captions = {row.file.resolve(): row.caption for row in read_titles(file)}
    return [
        Pair(
            degraded=pair.degraded,
            clean=pair.clean,
            word=pair.word,
            caption=captions.get(pair.degraded.resolve()) if isinstance(pair.degraded, Path) else None,
        )
        for pair in pairs
    ]
