"""What all tests share: long ones first, and no time limit on an example, which a busy machine would miss."""

import os
import tempfile

import pytest
from hypothesis import HealthCheck, settings

# tests beside each other, and the programs they start, would wait for each other's threads
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("daclip", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("daclip")


def pytest_configure(config: pytest.Config) -> None:
    """What programs keep between runs goes where nobody else looks; workers share it."""
    if not hasattr(config, "workerinput"):
        kept = tempfile.TemporaryDirectory(prefix="daclip-cache-")
        os.environ["XDG_CACHE_HOME"] = kept.name
        config.add_cleanup(kept.cleanup)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long tests, so that no worker waits at the end for another's."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
