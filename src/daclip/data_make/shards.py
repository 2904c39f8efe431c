"""WebDataset shards of a data set: the same data, the same bytes."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from daclip import image
from daclip.data import Pairs, Split, Stored, open_data
from daclip.errors import DataError

Files = list[tuple[str, Stored | bytes]]
"""The files of one sample: the end of the name, and the content."""


def shard(
    source: str | Path,
    output: Path,
    *,
    split: Split,
    shard_bytes: int = 256 * 2**20,
    overwrite: bool = False,
    on_progress: Callable[[int, int], object] | None = None,
) -> list[Path]:
    """Write one split of a data set (anything `open_data` takes) as shards `output/split-000000.tar`, ...

    A pair is `lq.*`, `gt.*` and `json` with degradation and caption; a clean photo has its caption in `txt`.
    Samples lie in an order drawn by the hash of their names, so that reading in sequence mixes degradations.
    A shard is closed when the next sample would not fit into `shard_bytes`. Files appear complete or not at
    all. Raises DataError for shards that are there already, without `overwrite`.
    """
    samples = _samples(source, split)
    there = sorted(output.glob(f"{split}-*.tar"))
    if there and not overwrite:
        raise DataError(f"{output}: holds {there[0].name} already", hint="use --overwrite or another folder")
    shards: list[Path] = []
    done = 0
    for number, part in enumerate(_parts(samples, shard_bytes)):
        shards.append(output / f"{split}-{number:06d}.tar")
        with (
            image.new_file(shards[-1], overwrite=True) as descriptor,
            os.fdopen(descriptor, "wb", closefd=False) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for files in part:
                for end, content in files:
                    _add(tar, f"{done:08d}.{end}", content)
                done += 1
                if on_progress is not None:
                    on_progress(done, len(samples))
    for old in set(there) - set(shards):
        old.unlink()
    return shards


def _samples(source: str | Path, split: Split) -> list[Files]:
    """The files of each sample, in the order of the hash of their names."""
    data = open_data(source, split=split)
    samples: dict[str, Files] = {}
    if isinstance(data, Pairs):
        for pair in data.pairs:
            facts = {"degradation": pair.word, "caption": pair.caption, "name": Path(pair.clean.name).stem}
            about = json.dumps({name: value for name, value in facts.items() if value}, sort_keys=True)
            samples[f"{pair.word}/{pair.degraded.name}"] = [
                (f"lq{_suffix(pair.degraded)}", pair.degraded),
                (f"gt{_suffix(pair.clean)}", pair.clean),
                ("json", about.encode()),
            ]
    else:
        for number, photo in enumerate(data.photos):
            caption = data.captions[number] if data.captions else None
            files: Files = [(_suffix(photo)[1:], photo)]
            samples[f"{number}/{photo.name}"] = [*files, ("txt", caption.encode())] if caption else files
    order = sorted(samples, key=lambda name: hashlib.sha256(name.encode()).digest())
    return [samples[name] for name in order]


def _suffix(photo: Stored) -> str:
    return Path(photo.name).suffix.lower()


def _parts(samples: list[Files], shard_bytes: int) -> Iterator[list[Files]]:
    """The samples of each shard."""
    part: list[Files] = []
    used = 0
    for files in samples:
        # in a tar each file has a header of 512 bytes and is padded to as many
        size = sum(512 + -(-_size(content) // 512) * 512 for _, content in files)
        if part and used + size > shard_bytes:
            yield part
            part, used = [], 0
        part.append(files)
        used += size
    if part:
        yield part


def _size(content: Stored | bytes) -> int:
    if isinstance(content, Path):
        return content.stat().st_size
    return len(content if isinstance(content, bytes) else content.read_bytes())


def _add(tar: tarfile.TarFile, name: str, content: Stored | bytes) -> None:
    """A file without owner and time, which would make other bytes of the same data."""
    data = content if isinstance(content, bytes) else content.read_bytes()
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
