"""WebDataset shards: tar files whose members lie at known places, so that any index can be drawn at once."""

import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daclip.data.files import Split, Stored, is_photo_name
from daclip.data.pairs import Pair
from daclip.errors import DataError

DEGRADED_NAMES = frozenset({"lq", "degraded", "input"})
CLEAN_NAMES = frozenset({"gt", "clean", "target"})


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file inside a shard."""

    shard: Path
    member: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}: {self.member}"

    @property
    def name(self) -> str:
        """The file name, with its suffix."""
        return self.member.rpartition("/")[2]

    def read_bytes(self) -> bytes:
        """The bytes of the file."""
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def find_shards(source: Path, wanted: Split) -> tuple[list[Path], bool]:
    """The shards a tar file, folder or pattern names, sorted, and whether they are of the wanted split.

    Where some are called `train-*` and others `val-*`, those of the split; else all, still to be split.
    """
    if source.is_dir():
        found = sorted(source.glob("*.tar"))
    elif source.is_file():
        found = [source]
    else:
        found = sorted(source.parent.glob(source.name))
    if not found:
        raise DataError(f"{source}: no shards", hint="name a .tar file, a folder of them, or a pattern")
    named = {split: [path for path in found if path.name.startswith(split)] for split in ("train", "val")}
    if named["train"] and named["val"]:
        return named[wanted], True
    return found, False


def read_shards(shards: Sequence[Path]) -> tuple[list[Pair], list[tuple[Stored, str | None]]]:
    """What lies in shards: pairs, and clean photos with their captions.

    The members of a sample share their name up to the first dot. A pair is `lq.*` and `gt.*` (or degraded and
    clean, input and target) with `json` that names its degradations, or, without it, in a folder of that
    name. Any other photo is a clean one, with a caption in `txt` or `json`.
    """
    pairs: list[Pair] = []
    clean: list[tuple[Stored, str | None]] = []
    for shard in shards:
        for key, members in _samples(shard).items():
            facts = _facts(members)
            photos = {name: member for name, member in members.items() if is_photo_name(member.name)}
            degraded = _first(photos, DEGRADED_NAMES)
            target = _first(photos, CLEAN_NAMES)
            if degraded is not None and target is not None:
                word = facts.get("degradation") or key.rpartition("/")[0].rpartition("/")[2]
                if not word:
                    raise DataError(f"{degraded}: no degradation named", hint='json: {"degradation": "hazy"}')
                pair = Pair(degraded=degraded, clean=target, word=word, caption=facts.get("caption"))
                pairs.append(pair)
            elif degraded is not None:
                raise DataError(f"{degraded}: no clean photo beside it", hint="add it as gt.png")
            else:
                clean += [(member, facts.get("caption")) for member in photos.values()]
    if not pairs and not clean:
        raise DataError(f"{shards[0]}: no photos in it")
    return pairs, clean


def _samples(shard: Path) -> dict[str, dict[str, Member]]:
    """The members of each sample by their name after the first dot."""
    found: dict[str, dict[str, Member]] = {}
    try:
        # "r:" and not "r": in a compressed file no member lies at a known place
        with tarfile.open(shard, "r:") as tar:
            for info in tar:
                folder, _, name = info.name.rpartition("/")
                stem, _, kind = name.partition(".")
                if not info.isfile() or not stem:
                    continue
                member = Member(shard=shard, member=info.name, offset=info.offset_data, size=info.size)
                found.setdefault(f"{folder}/{stem}" if folder else stem, {})[kind.lower()] = member
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{shard}: not a tar file ({error})", hint="unpack compressed ones first") from error
    return found


def _first(members: dict[str, Member], names: frozenset[str]) -> Member | None:
    return next((member for kind, member in members.items() if kind.partition(".")[0] in names), None)


def _facts(members: dict[str, Member]) -> dict[str, str]:
    """Degradation and caption of a sample."""
    facts: dict[str, str] = {}
    if "txt" in members:
        facts["caption"] = members["txt"].read_bytes().decode("utf-8", "replace").strip()
    if "json" in members:
        try:
            read: Any = json.loads(members["json"].read_bytes())
        except ValueError as error:
            raise DataError(f"{members['json']}: not JSON ({error})") from error
        for name in ("degradation", "caption"):
            value = read.get(name) if isinstance(read, dict) else None
            if value:
                facts[name] = ", ".join(value) if isinstance(value, list) else str(value)
    return facts
