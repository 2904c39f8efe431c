"""Data sets to read: clean photos degraded on the fly, and degraded / clean pairs; from folders, shards, hub.

A data set is a function from an index to a sample: draw i is the same on every machine, for any number of
workers, and after any interruption.
"""

from daclip.data.clean import CleanPhotos
from daclip.data.files import (
    PHOTO_SUFFIXES,
    Pixels8,
    Split,
    Stored,
    eight_bit,
    is_held_out,
    is_photo_name,
    list_photos,
    read_pixels,
    split,
)
from daclip.data.open import open_data
from daclip.data.pairs import (
    PAPER_COUNTS,
    Pair,
    Pairs,
    check_headers,
    in_order,
    match,
    matched,
    published_layout,
    split_folders,
    word_folders,
)
from daclip.data.processes import start_method
from daclip.data.sample import DataSet, Sample
from daclip.data.shards import find_shards
from daclip.data.titles import Title, read_titles, split_title

__all__ = [
    "PAPER_COUNTS",
    "PHOTO_SUFFIXES",
    "CleanPhotos",
    "DataSet",
    "Pair",
    "Pairs",
    "Pixels8",
    "Sample",
    "Split",
    "Stored",
    "Title",
    "check_headers",
    "eight_bit",
    "find_shards",
    "in_order",
    "is_held_out",
    "is_photo_name",
    "list_photos",
    "match",
    "matched",
    "open_data",
    "published_layout",
    "read_pixels",
    "read_titles",
    "split",
    "split_folders",
    "split_title",
    "start_method",
    "word_folders",
]
