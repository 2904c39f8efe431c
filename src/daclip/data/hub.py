"""Data sets of the Hugging Face hub, or saved by its library to a folder (`datasets`, extra [data])."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daclip.data.files import Split, Stored
from daclip.data.pairs import Pair
from daclip.data.shards import CLEAN_NAMES, DEGRADED_NAMES
from daclip.errors import DataError

try:
    import datasets
except ModuleNotFoundError as error:
    from daclip.errors import missing_extra

    raise missing_extra(error, "reading data sets of the hub") from error

WORD_COLUMNS = ("degradation", "label", "task")
CAPTION_COLUMNS = ("caption", "text", "title")
SPLITS: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "validation", "valid", "test")}


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """The photo in one column of one row."""

    table: Any = field(repr=False)
    column: str
    index: int

    def __str__(self) -> str:
        return f"row {self.index}, column {self.column}"

    @property
    def name(self) -> str:
        """The file name the table holds, or one made of row and column."""
        return Path(self._cell().get("path") or f"{self.index}.{self.column}").name

    def read_bytes(self) -> bytes:
        """The bytes of the file, as it was put in."""
        cell = self._cell()
        if cell.get("bytes") is not None:
            return cell["bytes"]
        if cell.get("path"):
            return Path(cell["path"]).read_bytes()
        raise DataError(f"{self}: no photo in it")

    def _cell(self) -> dict[str, Any]:
        return self.table[self.index][self.column] or {}


def read_hub(name: str, wanted: Split) -> tuple[list[Pair], list[tuple[Stored, str | None]], bool]:
    """Pairs, or clean photos with captions, and whether the data set has the wanted split itself.

    Args:
        name: `owner/name` with `@revision` and `:configuration` if need be, or a folder of `save_to_disk`.
        wanted: split; "val" takes validation or test.
    """
    table, is_split = _table(name, wanted)
    photos = [column for column, kind in table.features.items() if isinstance(kind, datasets.Image)]
    if not photos:
        raise DataError(f"{name}: no column of photos among {', '.join(table.column_names)}")
    for column in photos:  # files as they are: decoding is our own
        table = table.cast_column(column, datasets.Image(decode=False))
    facts = table.remove_columns(photos)
    captions = _texts(facts, CAPTION_COLUMNS) or [None] * len(table)
    degraded = next((column for column in photos if column.lower() in DEGRADED_NAMES), None)
    clean = next((column for column in photos if column.lower() in CLEAN_NAMES), None)
    if degraded and clean:
        words = _texts(facts, WORD_COLUMNS)
        if words is None:
            raise DataError(
                f"{name}: no column says what is wrong", hint=f"call it {' or '.join(WORD_COLUMNS)}"
            )
        pairs = [
            Pair(
                degraded=Row(table=table, column=degraded, index=i),
                clean=Row(table=table, column=clean, index=i),
                word=words[i] or "",
                caption=captions[i],
            )
            for i in range(len(table))
        ]
        return pairs, [], is_split
    column = clean or photos[0]
    rows = [(Row(table=table, column=column, index=i), captions[i]) for i in range(len(table))]
    return [], [*rows], is_split


def _table(name: str, wanted: Split) -> tuple[Any, bool]:
    """One table, and whether it is the wanted split."""
    folder, (where, configuration) = Path(name), (*name.split(":"), None)[:2]
    try:
        if folder.is_dir():
            loaded: Any = datasets.load_from_disk(str(folder))
        else:
            owner_name, _, revision = str(where).partition("@")
            loaded = datasets.load_dataset(owner_name, configuration, revision=revision or None)
    except Exception as error:  # whatever the library, the network and the hub come up with
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{name}: cannot be loaded ({reason})") from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded, False
    for split in SPLITS[wanted]:
        if split in loaded:
            # without a split to validate on, the training photos are parted
            return loaded[split], wanted == "val" or any(each in loaded for each in SPLITS["val"])
    if "train" in loaded:
        return loaded["train"], False
    raise DataError(f"{name}: no split train or val among {', '.join(map(str, loaded))}")


def _texts(table: Any, columns: tuple[str, ...]) -> list[str | None] | None:
    """The first of these columns that is there, class numbers as their names."""
    column = next((each for each in columns if each in table.column_names), None)
    if column is None:
        return None
    kind: Any = table.features[column]
    values: list[Any] = list(table[column])
    if isinstance(kind, datasets.ClassLabel):
        return [str(kind.int2str(value)) for value in values]
    return [
        ", ".join(value) if isinstance(value, list) else (str(value) if value else None) for value in values
    ]
