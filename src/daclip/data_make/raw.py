"""The paper's data set out of raw downloads, each in the folders it is published with (PAPER 1.4, 5)."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from daclip.data import PAPER_COUNTS, Split, is_photo_name, match
from daclip.data_make.work import Item
from daclip.errors import DataError
from daclip.vocabulary import DEGRADATIONS

Found = list[tuple[str, Path | None, Path]]
"""Name, degraded photo (None: to be made) and clean photo of each pair."""


class Downloads:
    """The folders with photos in them under a folder of downloads, by their path in lower case."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise DataError(f"{root}: not a folder", hint="name the folder that holds the downloads")
        self.photos: dict[str, list[Path]] = {}
        for folder, _, files in os.walk(root, followlinks=True):
            if found := sorted(Path(folder) / name for name in files if is_photo_name(name)):
                self.photos["/" + found[0].parent.relative_to(root.parent).as_posix().lower()] = found

    def folders(self, pattern: str) -> list[str]:
        """The folders whose path ends as the pattern says, sorted."""
        return sorted(path for path in self.photos if re.search(rf"/{pattern}$", path))

    def pairs(self, pattern: str, clean: str, *, keep_folder: bool = False) -> Found:
        """The pairs of the folders of that pattern with the folder `clean` beside each.

        Names are those of the degraded photos; `keep_folder` puts the folder around both in front.
        """
        found: Found = []
        for path in self.folders(pattern):
            around = path.rpartition("/")[0]
            beside = self.photos.get(f"{around}/{clean}")
            if beside is None:
                raise DataError(f"{self.photos[path][0].parent}: no folder {clean} beside it")
            head = f"{self.photos[path][0].parent.parent.name}-" if keep_folder else ""
            both = match(self.photos[path], beside, source=self.photos[path][0].parent.parent)
            found += [(head + degraded.stem, degraded, sharp) for degraded, sharp in both]
        return found

    def clean(self, pattern: str, *, head: str) -> Found:
        """The photos of the folders of that pattern, by number, with `head` before their names."""
        photos = [photo for path in self.folders(pattern) for photo in self.photos[path]]
        photos.sort(key=lambda photo: ([int(n) for n in re.findall(r"\d+", photo.stem)], photo.stem))
        return [(f"{head}-{photo.stem}", None, photo) for photo in photos]


@dataclass(frozen=True, kw_only=True)
class RawSet:
    """A published data set: what it becomes, how it is found, and where it comes from.

    Args:
        name: as people call it.
        words: degradations it gives pairs for.
        counts: pairs of each split that it must give; splits it has no part in are missing.
        find: its pairs among the downloads.
        layout: the folders it is published with, for the message that it is missing.
        source: where it is published.
        side: photos are shrunk to squares of this side.
    """

    name: str
    words: tuple[str, ...]
    counts: dict[Split, int]
    find: Callable[[Downloads, Split], Found]
    layout: str
    source: str
    side: int | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Pairs to be made, and a line for each set that is missing or has another number of photos."""

    items: list[Item]
    problems: list[str]


def plan(raw: Path, *, words: Sequence[str] = DEGRADATIONS) -> Plan:
    """Everything that the downloads give for these words, checked against the paper's Table 1."""
    downloads = Downloads(raw)
    items: list[Item] = []
    problems: list[str] = []
    for each in RAW_SETS:
        asked = [word for word in each.words if word in words]
        for split, count in each.counts.items() if asked else ():
            try:
                found = each.find(downloads, split)
            except DataError as error:
                problems.append(f"{each.name}: {error}")
                continue
            if len(found) != count:
                problems.append(_wrong(each, split, len(found)))
            items += [
                Item(split=split, word=word, name=name, clean=clean, degraded=degraded, side=each.side)
                for word in asked
                for name, degraded, clean in found
            ]
    return Plan(items=items, problems=problems)


def _wrong(each: RawSet, split: Split, count: int) -> str:
    what = f"{each.name}, {split} of {' and '.join(each.words)}: "
    if not count:
        return f"{what}not there; looked for {each.layout}; published at {each.source}"
    return f"{what}{count:,} photos, the paper has {each.counts[split]:,}; looked in {each.layout}"


# ---- each set in its own folders


def _gopro(downloads: Downloads, split: Split) -> Found:
    part = {"train": "train", "val": "test"}[split]
    # published twice: with a camera's tone curve (gamma), the benchmark's usual input, and linear
    for blurred in ("blur_gamma", "blur"):
        if found := downloads.pairs(rf"{part}/gopr[^/]*/{blurred}", "sharp", keep_folder=True):
            return found
    return downloads.pairs(rf"gopro[^/]*/{part}/input", "target")


def _reside(downloads: Downloads, split: Split) -> Found:
    return downloads.pairs({"train": "train/hazy", "val": "test/hazy"}[split], "gt")


def _lol(downloads: Downloads, split: Split) -> Found:
    return downloads.pairs({"train": "our485/low", "val": "eval15/low"}[split], "high")


def _raindrop(downloads: Downloads, split: Split) -> Found:
    return downloads.pairs({"train": "train/data", "val": "test_a/data"}[split], "gt")


def _srd(downloads: Downloads, split: Split) -> Found:
    part = {"train": "train", "val": "test"}[split]
    return downloads.pairs(f"{part}/shadow", "shadow_free") or downloads.pairs(f"{part}_a", f"{part}_c")


def _snow(downloads: Downloads, split: Split) -> Found:
    found = downloads.pairs({"train": "all/synthetic", "val": "snow100k-l/synthetic"}[split], "gt")
    # the paper takes a part of it and does not say which; ours is spread evenly
    count = min(PAPER_COUNTS[split]["snowy"], len(found))
    return [found[i * len(found) // count] for i in range(count)]


def _rain(downloads: Downloads, split: Split) -> Found:
    """Rainy and clean photos lie in one folder or in two; the name says which is which."""
    pattern = {
        "train": r"(raintrainh|rain_data_train_heavy)(/.*)?",
        "val": r"(rain100h|rain_data_test_heavy)(/.*)?",
    }
    rainy: list[Path] = []
    clean: list[Path] = []
    for path in downloads.folders(pattern[split]):
        for photo in downloads.photos[path]:
            kind = photo.stem.lower() if photo.stem[:1].isalpha() else path.rpartition("/")[2]
            if kind.startswith("norain"):
                clean.append(photo)
            elif re.match(r"rain(y)?([-_/\d]|$)", kind) or path.endswith("/rain/x2"):
                rainy.append(photo)
    both = match(rainy, clean, source="Rain100H") if rainy or clean else []
    return [(degraded.stem, degraded, sharp) for degraded, sharp in both]


def _faces(downloads: Downloads, split: Split) -> Found:
    found = downloads.clean(r"[^/]*celeb[^/]*hq[^/]*(/[^/]+)?", head="celeba")
    # which hundred the paper tests on is not published; ours are the first
    return found[:100] if split == "val" else found[100:]


def _clean(pattern: str, head: str) -> Callable[[Downloads, Split], Found]:
    return lambda downloads, _: downloads.clean(pattern, head=head)


RAW_SETS: tuple[RawSet, ...] = (
    RawSet(
        name="GoPro",
        words=("motion-blurry",),
        counts={"train": 2103, "val": 1111},
        find=_gopro,
        layout="GOPRO_Large/{train,test}/GOPR*/{blur_gamma,sharp}",
        source="seungjunnah.github.io/Datasets/gopro",
    ),
    RawSet(
        name="RESIDE-6k",
        words=("hazy",),
        counts={"train": 6000, "val": 1000},
        find=_reside,
        layout="RESIDE-6K/{train,test}/{hazy,GT}",
        source="github.com/IDKiro/DehazeFormer",
    ),
    RawSet(
        name="DIV2K",
        words=("jpeg-compressed", "noisy"),
        counts={"train": 900},
        find=_clean(r"div2k_(train|valid)_hr", "div2k"),
        layout="DIV2K/{DIV2K_train_HR,DIV2K_valid_HR}",
        source="data.vision.ee.ethz.ch/cvl/DIV2K",
    ),
    RawSet(
        name="Flickr2K",
        words=("jpeg-compressed", "noisy"),
        counts={"train": 2650},
        find=_clean(r"flickr2k_hr", "flickr2k"),
        layout="Flickr2K/Flickr2K_HR",
        source="cv.snu.ac.kr/research/EDSR/Flickr2K.tar",
    ),
    RawSet(
        name="LIVE1",
        words=("jpeg-compressed",),
        counts={"val": 29},
        find=_clean(r"(refimgs|live1)", "live1"),
        layout="LIVE1 or databaserelease2/refimgs",
        source="live.ece.utexas.edu/research/quality",
    ),
    RawSet(
        name="CBSD68",
        words=("noisy",),
        counts={"val": 68},
        find=_clean(r"(cbsd68|cbsd68/original(_png)?)", "cbsd68"),
        layout="CBSD68 or CBSD68/original_png",
        source="github.com/clausmichele/CBSD68-dataset",
    ),
    RawSet(
        name="LOL",
        words=("low-light",),
        counts={"train": 485, "val": 15},
        find=_lol,
        layout="LOLdataset/{our485,eval15}/{low,high}",
        source="daooshee.github.io/BMVC2018website",
    ),
    RawSet(
        name="RainDrop",
        words=("raindrop",),
        counts={"train": 861, "val": 58},
        find=_raindrop,
        layout="RainDrop/{train,test_a}/{data,gt}",
        source="github.com/rui1996/DeRaindrop",
    ),
    RawSet(
        name="Rain100H",
        words=("rainy",),
        counts={"train": 1800, "val": 100},
        find=_rain,
        layout="{RainTrainH,Rain100H}/**/{rain-*,norain-*}",
        source="www.icst.pku.edu.cn/struct/Projects/joint_rain_removal.html",
    ),
    RawSet(
        name="SRD",
        words=("shadowed",),
        counts={"train": 2680, "val": 408},
        find=_srd,
        layout="SRD/{train,test}/{shadow,shadow_free}",
        source="github.com/vinthony/ghost-free-shadow-removal",
    ),
    RawSet(
        name="Snow100K",
        words=("snowy",),
        counts={"train": 1872, "val": 601},
        find=_snow,
        layout="Snow100K-training/all/{synthetic,gt} and **/test/Snow100K-L/{synthetic,gt}",
        source="sites.google.com/view/yunfuliu/desnownet",
    ),
    RawSet(
        name="CelebA-HQ",
        words=("uncompleted",),
        counts={"train": 29900, "val": 100},
        find=_faces,
        layout="CelebA-HQ*/*.jpg",
        source="github.com/tkarras/progressive_growing_of_gans",
        side=256,
    ),
)
