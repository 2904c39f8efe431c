"""Engines run the same folder to the same numbers."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from daclip import engine, models
from daclip.diffusion import IRSDE
from daclip.errors import ModelError, UsageError
from toy_model import SIDE, mended, write_toy_model

ENGINES = ["onnx", *(["openvino"] if find_spec("openvino") else [])]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> models.ModelFolder:
    return models.find(write_toy_model(tmp_path_factory.mktemp("toy")))


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)


def planes(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def vector(*numbers: float) -> np.ndarray:
    return np.array([numbers], dtype=np.float32)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("size", [(64, 64), (33, 47), (1, 1), (8, 200)])
def test_every_engine_computes_the_graph(toy: models.ModelFolder, name: str, size: tuple[int, int]) -> None:
    runs = engine.load(toy, engine=name, precision="fp32")
    mu = photo(*size)
    clean = runs.predict_clean(planes(mu), vector(0, 0, 0, 1), vector(0.5, 0.7, 0, 0))
    np.testing.assert_allclose(clean, planes(mended(mu, 0.5, 0.7)), atol=2e-6)
    assert clean.dtype == np.float32


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_sees_darkness_and_noise(toy: models.ModelFolder, name: str) -> None:
    runs = engine.load(toy, engine=name)
    dark = np.full((1, 3, SIDE, SIDE), -0.9, np.float32)
    rough = np.sign(np.random.default_rng(0).standard_normal((1, 1, SIDE, SIDE))).repeat(3, axis=1)
    seen = runs.encode(np.concatenate([dark, rough.astype(np.float32)]))
    assert seen.degradation[0, 0] == pytest.approx(0.7, abs=1e-3)
    assert seen.degradation[1, 1] > 1
    assert seen.content.shape == (2, 4)


@pytest.mark.parametrize("name", ENGINES)
def test_a_diffusion_graph_takes_state_photo_and_time(tmp_path: Path, name: str) -> None:
    runs = engine.load(models.find(write_toy_model(tmp_path, "diffusion")), engine=name, precision="fp32")
    sde = IRSDE()
    mu, noise = photo(20, 30), np.random.default_rng(1).standard_normal((20, 30, 3)).astype(np.float32)
    x0 = mended(mu, 0.3, 0.0)
    x = mu + (x0 - mu) * sde.alpha(np.array([40.0])) + sde.sigma_bar(np.array([40.0])) * noise
    found = runs.predict_at(
        planes(x.astype(np.float32)),
        planes(mu),
        np.array([40], np.float32),
        vector(0, 0, 0, 1),
        vector(0.3, 0, 0, 0),
    )
    np.testing.assert_allclose(found, planes(noise), atol=2e-4)


@pytest.mark.parametrize("name", ENGINES)
def test_threads_may_share_one_engine(toy: models.ModelFolder, name: str) -> None:
    runs = engine.load(toy, engine=name, precision="fp32", threads=1)
    photos = [photo(40 + number, 50, seed=number) for number in range(16)]

    def restore(mu: np.ndarray) -> np.ndarray:
        return runs.predict_clean(planes(mu), vector(0, 0, 0, 1), vector(0.5, 0.7, 0, 0))

    with ThreadPoolExecutor(4) as pool:
        for mu, clean in zip(photos, pool.map(restore, photos), strict=True):
            np.testing.assert_allclose(clean, planes(mended(mu, 0.5, 0.7)), atol=2e-6)


def test_auto_takes_openvino_where_it_is_installed(toy: models.ModelFolder) -> None:
    assert engine.load(toy).name == ENGINES[-1]


def test_an_unknown_engine_precision_or_device_is_a_usage_error(toy: models.ModelFolder) -> None:
    with pytest.raises(UsageError, match="known: auto, onnx, openvino, torch"):
        engine.load(toy, engine="tensorflow")
    with pytest.raises(UsageError, match="known: auto, fp32"):
        engine.load(toy, precision="fp8")
    with pytest.raises(UsageError, match="fp32 or int8, not bf16"):
        engine.load(toy, engine="onnx", precision="bf16")
    for name in ("onnx", "openvino"):
        with pytest.raises(ModelError, match="not calibrated for int8"):
            engine.load(toy, engine=name, precision="int8")
    with pytest.raises(UsageError, match='device "cuda:7"'):
        engine.load(toy, engine="onnx", device="cuda:7")


@pytest.mark.parametrize("name", ENGINES)
def test_a_broken_graph_is_named(tmp_path: Path, name: str) -> None:
    folder = write_toy_model(tmp_path)
    (folder / "restorer.onnx").write_bytes(b"no graph at all")
    with pytest.raises(ModelError, match=r"restorer\.onnx: .* cannot load it"):
        engine.load(models.find(folder), engine=name)


def test_a_missing_graph_is_named_with_the_way_out(tmp_path: Path) -> None:
    folder = write_toy_model(tmp_path)
    (folder / "restorer.onnx").unlink()
    with pytest.raises(ModelError, match=r"restorer\.onnx: not there; `daclip export`"):
        engine.load(models.find(folder), engine="onnx")


@pytest.mark.parametrize(("package", "extra"), [("openvino", "openvino"), ("torch", "torch")])
def test_an_engine_that_is_not_installed_is_one_install_line(
    toy: models.ModelFolder, package: str, extra: str
) -> None:
    code = f"""
import sys
sys.modules["{package}"] = None
from daclip import engine, models
folder = models.find({str(toy.path)!r})
try:
    engine.load(folder, engine="{package}")
except Exception as error:
    print(error)
print(engine.load(folder).name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    line, name = done.stdout.splitlines()
    assert line.endswith(f'pip install "daclip[{extra}]"')
    assert name == ("onnx" if package == "openvino" else ENGINES[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
@pytest.mark.parametrize("name", ENGINES)
def test_running_out_of_memory_is_a_memory_error(toy: models.ModelFolder, name: str) -> None:
    code = f"""
import resource
import numpy as np
from daclip import engine, models
runs = engine.load(models.find({str(toy.path)!r}), engine={name!r}, threads=1)
embedding = np.ones((1, 4), np.float32)
runs.predict_clean(np.ones((1, 3, 64, 64), np.float32), embedding, embedding)
mu = np.ones((1, 3, 3000, 3000), np.float32)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), hard))
try:
    runs.predict_clean(mu, embedding, embedding)
except MemoryError:
    print("memory")
resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
print(runs.predict_clean(mu[:, :, :32, :32], embedding, embedding).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["memory", "(1, 3, 32, 32)"], done.stderr


def test_shapes_are_part_of_the_contract(toy: models.ModelFolder) -> None:
    runs = engine.load(toy, engine="onnx")
    with pytest.raises(TypeCheckError):
        runs.predict_clean(np.ones((3, 8, 8), np.float32), vector(0, 0, 0, 1), vector(0, 0, 0, 1))


def test_the_usual_variable_for_threads_is_obeyed(toy: models.ModelFolder) -> None:
    code = f"""
import os, time
from daclip import engine, models
runs = engine.load(models.find({str(toy.path)!r}), engine="onnx")
time.sleep(0.5)  # the threads that loaded the graphs are joined, but the system counts them a moment longer
print(len(os.listdir("/proc/self/task")))
"""
    counts = [
        int(
            subprocess.run(
                [sys.executable, "-c", code],
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": number},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for number in ("1", "3")
    ]
    # two graphs, two more threads each
    assert counts[1] - counts[0] == 4


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> models.ModelFolder:
    """A small NAFNet and ViT with random weights, saved the way real models are, without graphs."""
    from daclip import checkpoints
    from daclip.detect import ClassTexts
    from daclip.models import ModelConfig

    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    encoder = {"name": "open_clip", "config": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}}
    network = {"name": "nafnet", "width": 8, "encoder_blocks": [1], "decoder_blocks": [1], "context_dim": 16}
    network |= {"degradation": True, "content": "vector", "attention": "embedding", "gain": 0.3}
    texts = ClassTexts(names=("noisy", "clean"), embeddings=np.eye(2, 16, dtype=np.float32))
    config = ModelConfig(kind="one-pass", encoder=encoder, network=network, texts=texts, view_side=32)
    model = checkpoints.Model(
        daclip=checkpoints.build_encoder(encoder), network=checkpoints.build_network(network), config=config
    )
    return models.find(checkpoints.save_pretrained(model, tmp_path_factory.mktemp("models") / "untrained"))


@pytest.mark.torch
@pytest.mark.slow
def test_a_folder_without_graphs_runs_with_torch(untrained: models.ModelFolder) -> None:
    import torch

    from daclip import checkpoints

    runs = engine.load(untrained)
    assert (runs.name, runs.precision) == ("torch", "fp32")
    generator = np.random.default_rng(0)
    views, vectors = (
        generator.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 32, 32), (1, 16))
    )
    mu = planes(photo(21, 30))
    model = checkpoints.load(untrained)
    assert model.network is not None
    with torch.no_grad():
        seen = model.daclip.encode(torch.from_numpy(views))
        clean = model.network(
            torch.from_numpy(mu), torch.from_numpy(vectors), torch.from_numpy(-vectors)
        ).numpy()
    np.testing.assert_allclose(runs.encode(views).degradation, seen.degradation.numpy(), rtol=1e-5)
    np.testing.assert_allclose(runs.encode(views).content, seen.content.numpy(), rtol=1e-5)
    np.testing.assert_allclose(runs.predict_clean(mu, vectors, -vectors), clean, atol=1e-6)
    half = engine.load(untrained, precision="bf16").predict_clean(mu, vectors, -vectors)
    assert half.dtype == np.float32
    assert 0 < np.abs(half - clean).max() < 0.05
    with pytest.raises(UsageError, match='no device "cuda:99"'):
        engine.load(untrained, engine="torch", device="cuda:99")


@pytest.mark.parametrize("name", ENGINES)
def test_graphs_with_their_weights_beside_them_run_from_the_hub_cache(tmp_path: Path, name: str) -> None:
    # the cache holds links that lead out of the model's folder, which OpenVINO takes for an attack
    import onnx

    from test_models import hub_cache_with

    folder = write_toy_model(tmp_path / "toy")
    for graph in ("encoder.onnx", "restorer.onnx"):
        onnx.save_model(
            onnx.load(folder / graph),
            folder / graph,
            save_as_external_data=True,
            location=f"{graph}.data",
            size_threshold=100,
        )
    cache = hub_cache_with(tmp_path / "cache", "ann/toy", folder)
    runs = engine.load(models.find("ann/toy", cache_dir=cache, offline=True), engine=name, precision="fp32")
    mu = photo(20, 30)
    clean = runs.predict_clean(planes(mu), vector(0, 0, 0, 1), vector(0.5, 0.7, 0, 0))
    np.testing.assert_allclose(clean, planes(mended(mu, 0.5, 0.7)), atol=2e-6)
    assert sorted(path.name for path in (cache / "models--ann--toy").iterdir()) == [
        "blobs",
        "refs",
        "snapshots",
    ]
    assert len(list((cache / "models--ann--toy" / "blobs").iterdir())) == len(list(folder.iterdir()))
