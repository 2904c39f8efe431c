"""Finding, reading and describing model folders."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from daclip import models
from daclip.errors import ModelError
from daclip.models import ModelConfig, read_config, write_config
from toy_model import TEXTS, write_toy_model


def hub_cache_with(root: Path, repository: str, folder: Path) -> Path:
    """The hub's cache as a download leaves it: blobs, and a snapshot of links to them."""
    home = root / ("models--" + repository.replace("/", "--"))
    snapshot, blobs = home / "snapshots" / ("c0ffee" * 7)[:40], home / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(snapshot.name)
    for number, path in enumerate(sorted(folder.iterdir())):
        blob = blobs / f"{number:040x}"
        blob.write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    return root


def test_a_description_survives_writing_and_reading(tmp_path: Path) -> None:
    config = ModelConfig(
        kind="one-pass",
        encoder="compact-encoder",
        network={"name": "nafnet"},
        texts=TEXTS,
        brings_out={"low-light": ("noisy",)},
    )
    write_config(config, tmp_path)
    back = read_config(tmp_path)
    assert back.brings_out == config.brings_out
    assert back.texts is not None
    assert back.texts.names == TEXTS.names
    np.testing.assert_array_equal(back.texts.embeddings, TEXTS.embeddings)
    assert (back.kind, back.encoder, back.network, back.mean) == (
        "one-pass",
        "compact-encoder",
        config.network,
        config.mean,
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "bert"}, "not a daclip model"),
        ({"format": 2}, "format 2"),
        ({"colour": "red"}, "unknown keys colour"),
        ({"kind": "two-pass"}, "two-pass"),
        ({"texts": {"names": ["hazy"], "embeddings": [[1.0], [2.0]]}}, "1 words but text embeddings"),
        ({"mean": ["red"]}, "red"),
        ({"brings_out": 3}, "not iterable"),
    ],
)
def test_a_bad_description_is_refused_with_its_fault(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    path = write_toy_model(tmp_path) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelError, match=words):
        read_config(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", "3"])
def test_a_file_that_is_no_description_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        read_config(tmp_path)


def test_a_folder_is_found_by_its_path_as_text_or_path(tmp_path: Path) -> None:
    folder = write_toy_model(tmp_path / "toy")
    for name in (folder, str(folder)):
        found = models.find(name)
        assert (found.path, found.name, found.source, found.is_exported) == (folder, "toy", "folder", True)
        assert found.texts.names == TEXTS.names


def test_an_encoder_named_in_the_description_is_the_folder_beside_it(tmp_path: Path) -> None:
    eye = write_toy_model(tmp_path / "eye", "encoder", view_side=32)
    hand = write_toy_model(tmp_path / "hand", encoder="eye")
    found = models.find(hand)
    assert found.encoder_path == eye
    assert found.graphs == {"encoder": eye / "encoder.onnx", "restorer": hand / "restorer.onnx"}
    assert found.texts.names == TEXTS.names


def test_an_initial_named_in_the_description_is_the_folder_beside_it(tmp_path: Path) -> None:
    first = write_toy_model(tmp_path / "first")
    second = write_toy_model(tmp_path / "second", "diffusion", initial="first")
    found = models.find(second)
    assert found.initial == first
    assert found.graphs["initial"] == first / "restorer.onnx"
    assert models.find(first).initial is None


@pytest.mark.parametrize(("kind", "initial"), [("diffusion", "other"), ("one-pass", "first")])
def test_only_a_diffusion_goes_on_and_only_from_one_pass(tmp_path: Path, kind: str, initial: str) -> None:
    write_toy_model(tmp_path / "first")
    write_toy_model(tmp_path / "other", "diffusion", initial="second")
    second = write_toy_model(tmp_path / "second", kind, initial=initial)
    with pytest.raises(ModelError, match=f'initial "{initial}" is for a diffusion, and of one pass'):
        models.find(second)


@pytest.mark.parametrize("name", ["../eye", "/etc", "a/b/c", ".."])
def test_a_description_cannot_reach_outside_its_surroundings(tmp_path: Path, name: str) -> None:
    write_toy_model(tmp_path / "eye", "encoder")
    hand = write_toy_model(tmp_path / "models" / "hand", encoder=name)
    with pytest.raises(ModelError, match="neither a model name nor a hub id"):
        models.find(hand)


def test_an_unknown_name_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(ModelError, match=r'no model "comapct"; .*`daclip models list`'):
        models.find("comapct")


def test_a_mistyped_path_does_not_become_a_question_to_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match='no model "weights/compact"'):
        models.find("weights/compact")


def test_a_hub_id_is_found_in_the_cache_without_the_network(tmp_path: Path) -> None:
    toy = write_toy_model(tmp_path / "toy")
    cache = hub_cache_with(tmp_path / "cache", "ann/toy", toy)
    found = models.find("ann/toy", cache_dir=cache, offline=True)
    assert (found.name, found.source) == ("ann/toy", "cached")
    assert [folder.name for folder in models.cached(cache)] == ["ann/toy"]
    assert models.find("ann/toy@main", cache_dir=cache, offline=True).path == found.path


def test_offline_a_hub_id_that_is_not_cached_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="ann/toy: not in the cache and offline; run once without --offline"):
        models.find("ann/toy", cache_dir=tmp_path, offline=True)


def test_the_hubs_own_offline_variable_is_obeyed(tmp_path: Path) -> None:
    code = "from daclip import models; models.find('ann/toy')"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "DACLIP_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "not in the cache and offline" in done.stderr


def test_a_hub_that_cannot_be_reached_is_one_clear_line(tmp_path: Path) -> None:
    code = "from daclip import models; models.find('ann/toy')"
    # port 9 of this machine: nobody listens there
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "DACLIP_CACHE": str(tmp_path)}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "ann/toy: the hub cannot be reached" in done.stderr.strip().splitlines()[-1]


def test_the_description_of_a_folder_names_licence_size_and_hash(tmp_path: Path) -> None:
    folder = models.find(write_toy_model(tmp_path / "toy"))
    told = models.describe(folder)
    assert told.licence == "mit"
    assert told.size_bytes == sum(path.stat().st_size for path in folder.path.iterdir())
    assert told.card.startswith("---")
    graph = folder.path / "restorer.onnx"
    graph.write_bytes(graph.read_bytes() + b" ")
    assert models.describe(folder).weights_sha256 != told.weights_sha256
