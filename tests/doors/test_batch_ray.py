"""`--executor ray` on a real cluster of two machines (as far as Ray can tell), one of which is lost."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ray", reason="needs the extra [ray]")

from daclip import batch
from daclip.batch import Recipe

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning")]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Two machines of one processor each; the first has none to work with, so that the second can be lost."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    small = {"object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **small})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_lost_machine_costs_no_photo_and_every_photo_is_done_once(
    cluster: object, toy: Path, tree: Path, tmp_path: Path
) -> None:
    from ray.cluster_utils import Cluster

    from daclip.batch.ray import RayExecutor

    assert isinstance(cluster, Cluster)
    second = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    cluster.wait_for_nodes()
    many = np.random.default_rng(0).integers(0, 60, (24, 200, 300, 3)).astype(np.uint8)
    for number, pixels in enumerate(many):
        Image.fromarray(pixels).save(tree / f"{number:02}.png")
    recipe, output = Recipe(model=str(toy), engine="onnx"), tmp_path / "out"
    found = batch.plan(tree, output)
    with batch.opened(output, recipe.settings(), {"name": "toy"}) as manifest:
        records = []
        doing = batch.run(found.tasks, recipe, manifest, RayExecutor(cluster.address), workers=0)
        for record in doing:
            records.append(record)
            if len(records) == 6:
                cluster.remove_node(second, allow_graceful=False)
    assert len(records) == len({record["input"] for record in records}) == 32
    assert [record["input"] for record in records if record["error"]] == ["broken.jpg"]
    rows = [json.loads(line) for line in (output / batch.MANIFEST).read_text().splitlines()[1:]]
    assert sorted(row["input"] for row in rows) == sorted(task.name for task in found.tasks)
    for row in rows:
        if row["action"] != "failed":
            assert batch.sha256(output / row["output"]) == row["output_sha256"]
    assert list(output.rglob("*.tmp")) == []


def test_both_executors_write_the_same_files(cluster: object, toy: Path, tree: Path, tmp_path: Path) -> None:
    from daclip.batch import process
    from daclip.batch.ray import RayExecutor

    recipe, files = Recipe(model=str(toy), engine="onnx"), []
    for name, executor in (("ray", RayExecutor(cluster.address)), ("process", process.run)):  # pyright: ignore[reportAttributeAccessIssue]
        output = tmp_path / name
        with batch.opened(output, recipe.settings(), {"name": "toy"}) as manifest:
            for _ in batch.run(batch.plan(tree, output).tasks, recipe, manifest, executor, workers=1):
                pass
        files.append({row["input"]: row.get("output_sha256") for row in manifest_rows(output)})
    assert len(files[0]) == 8
    assert files[0] == files[1]


def manifest_rows(output: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (output / batch.MANIFEST).read_text().splitlines()[1:]]
