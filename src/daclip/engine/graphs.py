"""The graphs of a model, loaded side by side."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Graph = TypeVar("Graph")


def loaded(load: Callable[[str, Path], Graph], graphs: Mapping[str, Path]) -> dict[str, Graph]:
    """What `load` makes of the name and file of each graph: libraries read and compile on one core each.

    Raises the first error, in the order of the graphs.
    """
    with ThreadPoolExecutor() as pool:
        loading = {name: pool.submit(load, name, path) for name, path in graphs.items()}
        return {name: each.result() for name, each in loading.items()}
