"""Data sets made: the paper's out of raw downloads, a synthetic one out of any photos, shards of either.

`raw.plan` or `synthetic.plan` say which pairs there will be, `build` makes them, `shard` packs them.
"""

from daclip.data_make import raw, synthetic
from daclip.data_make.shards import shard
from daclip.data_make.work import Built, Item, Recipe, build

__all__ = ["Built", "Item", "Recipe", "build", "raw", "shard", "synthetic"]
