"""Captions: from a model, a file, tags or nothing; rows that survive an interruption."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from daclip.captions import Captioner, from_file, from_tags, nothing, targets, write
from daclip.captions.write import HEADER
from daclip.cli import run
from daclip.data import CleanPhotos, Pairs, open_data, read_titles
from daclip.errors import DataError


def write_photo(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 48, 3), np.uint8)
    assert cv2.imwrite(str(path), pixels)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, name in enumerate(("a.png", "b.jpg", "sea/c.png", "d.png")):
        write_photo(tmp_path / "photos" / name, number)
    return tmp_path / "photos"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The published layout, one clean photo standing behind two words."""
    for split in ("train", "val"):
        for number in range(3):
            clean = write_photo(tmp_path / "set" / split / "hazy" / "GT" / f"{number}.png", number)
            other = tmp_path / "set" / split / "noisy" / "GT" / f"{number}.png"
            other.parent.mkdir(parents=True, exist_ok=True)
            other.hardlink_to(clean)
            for word in ("hazy", "noisy"):
                write_photo(tmp_path / "set" / split / word / "LQ" / f"{number}.png", 9 + number)
    return tmp_path / "set"


class Counting:
    """A captioner that counts what it was shown, and may break off."""

    def __init__(self, *, limit: int = 1000) -> None:
        self.shown: list[Path] = []
        self.calls, self.limit = 0, limit

    def __call__(self, photos: Sequence[Path]) -> list[str | None]:
        self.calls += 1
        if self.calls > self.limit:
            raise KeyboardInterrupt
        self.shown += photos
        return [f'a "view" of  {photo.stem}: really' for photo in photos]


# ---- rows


def test_each_clean_photo_is_described_once_and_named_by_its_degraded_ones(root: Path) -> None:
    captioner = Counting()
    done = [write(target, captioner, batch=2) for target in targets(root)]
    assert [(each.written, each.kept, each.without) for each in done] == [(6, 0, 0)] * 2
    assert len(captioner.shown) == 6
    assert captioner.calls == 4
    rows = read_titles(root / "daclip_train.csv")
    assert {(row.file.relative_to(root).as_posix(), row.caption, row.word) for row in rows} == {
        (f"train/{word}/LQ/{i}.png", f"a 'view' of {i}: really", word)
        for word in ("hazy", "noisy")
        for i in range(3)
    }
    data = open_data(root)
    assert isinstance(data, Pairs)
    assert all(pair.caption for pair in data.pairs)


def test_a_run_that_was_stopped_goes_on(root: Path) -> None:
    (train, _) = targets(root)
    whole = root.parent / "whole.csv"
    shutil.copytree(root, root.parent / "again")
    write(targets(root.parent / "again")[0], Counting())
    whole = (root.parent / "again" / "daclip_train.csv").read_text()
    with pytest.raises(KeyboardInterrupt):
        write(train, Counting(limit=1), batch=2)
    # and the machine went down in the middle of a row
    with train.file.open("ab") as file:
        file.write(b"train/noisy/LQ/1.png\thalf a")
    told: list[tuple[int, int]] = []
    captioner = Counting()
    done = write(train, captioner, batch=2, on_progress=lambda *numbers: told.append(numbers))
    assert (done.written, done.kept) == (4, 2)
    assert len(captioner.shown) == 1
    assert told[-1] == (4, 4)
    assert train.file.read_text() == whole
    assert write(train, captioner).written == 0
    assert train.file.read_text() == whole


def test_plain_photos_get_captions_without_a_word(photos: Path, tmp_path: Path) -> None:
    (target,) = targets(photos)
    assert target.file == photos / "captions.csv"
    write(target, lambda shown: [f"{photo.stem} in the sign: hazy" for photo in shown])
    rows = read_titles(target.file)
    assert [row.word for row in rows] == [None] * 4
    assert rows[0].caption == "a in the sign, hazy in a photo"
    assert isinstance(open_data(target.file), CleanPhotos)
    (elsewhere,) = targets(photos, tmp_path / "out" / "mine.csv")
    write(elsewhere, Counting())
    assert [row.file.name for row in read_titles(elsewhere.file)] == ["a.png", "b.jpg", "d.png", "c.png"]


def test_files_that_are_not_ours_are_left_alone(photos: Path, root: Path) -> None:
    (photos / "captions.csv").write_text("image,caption\na.png,sea\n")
    with pytest.raises(DataError, match="not a caption file of ours"):
        write(targets(photos)[0], Counting())
    assert (photos / "captions.csv").read_text() == "image,caption\na.png,sea\n"
    with pytest.raises(DataError, match="one file for two splits"):
        targets(root, root / "one.csv")


def test_without_a_captioner_the_words_remain(root: Path, photos: Path) -> None:
    (train, _) = targets(root)
    done = write(train, nothing)
    assert (done.written, done.without) == (6, 6)
    assert {row.caption for row in read_titles(train.file)} == {None}
    assert train.file.read_text().startswith(f"{HEADER}train/hazy/LQ/0.png\t: hazy\n")
    assert write(train, nothing).without == 6
    (plain,) = targets(photos)
    assert write(plain, nothing).written == 0


# ---- captioners without a model


@pytest.mark.parametrize(
    "text",
    [
        'image,caption\na.png,A sea .\na.png,Another\nb.jpg,"A dog, running"\n',
        "a.png#0\tA sea .\na.png#1\tAnother\nb.jpg#0\tA dog, running\n",
        'file,split,caption1,caption2\nphotos/a.webp,train,A sea .,x\nphotos/b.webp,val,"A dog, running",y\n',
        "filepath\ttitle\n/x/a.png\tA sea .: hazy\nb.jpg\tA dog, running\n",
    ],
)
def test_caption_files_are_read_in_their_usual_forms(text: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "given.txt").write_text(text)
    captioner = from_file(tmp_path / "given.txt")
    assert captioner([photos / "a.png", photos / "b.jpg", photos / "d.png"]) == [
        "A sea .",
        "A dog, running",
        None,
    ]


def test_files_without_captions_say_so(tmp_path: Path) -> None:
    file = tmp_path / "given.csv"
    for text, words in (
        ("photo,words\na,b\n", "no column of captions among photo, words"),
        ("image,caption\n", "no captions"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=words):
            from_file(file)
    with pytest.raises(DataError, match="cannot be read"):
        from_file(tmp_path / "nowhere.csv")


def test_tags_come_from_keywords_or_a_file_beside_the_photo(photos: Path) -> None:
    import pyvips

    from daclip.image import vips

    xmp = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:subject><rdf:Bag><rdf:li>harbour</rdf:li>'
        "<rdf:li>boats</rdf:li></rdf:Bag></dc:subject></rdf:Description></rdf:RDF></x:xmpmeta>"
    )
    picture = pyvips.Image.new_from_file(str(photos / "b.jpg")).copy()
    vips.set_field(picture, "xmp-data", xmp.encode())
    picture.jpegsave(str(photos / "tagged.jpg"), keep=pyvips.ForeignKeep.ALL)
    (photos / "a.txt").write_text("sea, evening\ncalm")
    (photos / "d.txt").write_text(" ")
    shown = [photos / name for name in ("tagged.jpg", "a.png", "b.jpg", "d.png")]
    assert from_tags(shown) == ["a photo of harbour, boats", "a photo of sea, evening, calm", None, None]


# ---- models


def tiny_blip(folder: Path) -> Path:
    """A BLIP of random weights, with the tokenizer of a real one, a vocabulary of a few words."""
    import torch
    from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", "a", "view", "of", "the", "sea", "dog", "sky"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"bos_token_id": 4, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = {**sizes, **tokens, "vocab_size": len(words), "encoder_hidden_size": 16, "projection_dim": 16}
    config = BlipConfig(text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 16})
    torch.manual_seed(3)
    network = BlipForConditionalGeneration(config)
    for weights in network.parameters():
        torch.nn.init.normal_(weights, std=0.5)
    network.save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt"), bos_token="[DEC]").save_pretrained(folder)
    BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.torch
def test_an_image_to_text_model_describes_photos(root: Path, tmp_path: Path) -> None:
    from daclip.captions.image_to_text import captioner
    from daclip.errors import ModelError, UsageError

    model = tiny_blip(tmp_path / "blip")
    describe: Captioner = captioner(str(model))
    (train, _) = targets(root)
    clean = sorted({row[1] for row in train.rows if "hazy" in str(row[1])})
    together = describe(clean)
    assert all(
        caption and set(caption.split()) <= {"a", "view", "of", "the", "sea", "dog", "sky"}
        for caption in together
    )
    assert len(set(together)) > 1
    # neither the batch nor another run changes a caption
    assert [describe([photo])[0] for photo in clean] == together
    assert run(["caption", str(root), "--model", str(model), "--batch", "2", "-q"]) == 0
    captions = {row.file.stem: row.caption for row in read_titles(root / "daclip_train.csv")}
    assert captions == {photo.stem: caption for photo, caption in zip(clean, together, strict=True)}
    with pytest.raises(ModelError, match="no image-to-text model"):
        captioner(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="no device abacus"):
        captioner(str(model), device="abacus")


# ---- the command


def test_the_command_says_what_no_captions_cost(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["caption", str(root), "--none"]) == 0
    told = capsys.readouterr()
    assert "text half of the content loss falls away" in told.err
    assert told.out.splitlines() == [
        f"{root / 'daclip_train.csv'}\t6 rows written, 0 were there",
        f"{root / 'daclip_val.csv'}\t6 rows written, 0 were there",
    ]
    assert run(["caption", str(root)]) == 2
    assert "no captioner named; one of --model" in capsys.readouterr().err
    assert run(["caption", str(root), "--none", "--tags"]) == 2


def test_the_command_takes_a_caption_file(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "given.csv").write_text("image,caption\na.png,sea\nb.jpg,dog\n")
    out = tmp_path / "mine.csv"
    assert run(["caption", str(photos), "--captions", str(tmp_path / "given.csv"), "-o", str(out)]) == 0
    told = capsys.readouterr()
    assert told.out == f"{out}\t2 rows written, 0 were there\n"
    assert "2 photos have no caption" in told.err
    assert {row.caption for row in read_titles(out)} == {"sea", "dog"}
