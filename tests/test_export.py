"""Exported graphs: what they compute, where their weights lie, and that they run without torch."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import onnx
import pytest
import torch

from daclip import calibrate, checkpoints, cli, clip, engine, image, models
from daclip.errors import ModelError, UsageError
from daclip.export import export
from daclip.models import ModelConfig, read_config
from daclip.networks.conditioning import TONES
from daclip.networks.drunet import DRUNet
from daclip.restore import Restorer
from test_models import hub_cache_with
from test_peers import scene
from toy_training import DRUNET, NETWORK, VIT, toy_encoder, write_encoder

pytestmark = [pytest.mark.torch, pytest.mark.slow]

ENGINES = ["onnx", "openvino"]
UNET = {"name": "unet", "width": 32, "multipliers": [1, 2], "context_dim": 24}
DIFFUSION: dict[str, Any] = {"kind": "diffusion", "sde": {}, "objective": "noise", "sampler": "posterior"}


def shaken(network: torch.nn.Module) -> torch.nn.Module:
    """The network with every weight moved, so that no branch is silent."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return network


def write_model(folder: Path, network: dict[str, Any], **settings: Any) -> Path:
    """A restorer with random weights that carries the toy encoder."""
    torch.manual_seed(0)
    encoder = read_config(write_encoder(folder.parent / "eyes"))
    values: dict[str, Any] = {
        "kind": "one-pass",
        "encoder": {"name": "open_clip", "config": VIT},
        "texts": encoder.texts,
        "view_side": 32,
        **settings,
    }
    model = checkpoints.Model(
        daclip=toy_encoder(),
        network=shaken(checkpoints.build_network(network)),
        config=ModelConfig(network=network, **values),
    )
    return checkpoints.save_pretrained(model, folder)


@pytest.fixture(scope="module")
def one_pass(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("one") / "model", NETWORK, dtype="float32")
    assert export(folder).differences.keys() == {"encoder", "restorer"}
    return folder


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("diff") / "model", UNET, dtype="float32", **DIFFUSION)
    export(folder)
    return folder


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Types are not checked: torch cannot capture those checks within a branch of a graph."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def engines(folder: Path, name: str) -> tuple[engine.Engine, engine.Engine]:
    found = models.find(folder)
    return tuple(engine.load(found, engine=each, precision="fp32", threads=1) for each in (name, "torch"))


def assert_near(got: np.ndarray, wanted: np.ndarray) -> None:
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("name", ENGINES)
def test_a_one_pass_graph_computes_what_torch_does_at_any_size_and_batch(one_pass: Path, name: str) -> None:
    graph, torch_engine = engines(one_pass, name)
    for batch, height, width in ((1, 16, 16), (3, 37, 50), (2, 1, 9)):
        mu = random(batch, 3, height, width)
        content, degradation = random(batch, 24, seed=1), random(batch, 24, seed=2)
        wanted = torch_engine.predict_clean(mu, content, degradation)
        assert_near(graph.predict_clean(mu, content, degradation), wanted)
        assert np.abs(wanted - mu).max() > 1e-2


@pytest.mark.long
@pytest.mark.usefixtures("unchecked")
def test_a_restorer_is_told_the_tone_of_the_whole_photo(tmp_path: Path) -> None:
    """Every tile is told the same, and a network that reads it answers to it."""
    folder = write_model(tmp_path / "model", {**DRUNET, "tone": True, "fill": True}, dtype="float32")
    export(folder)
    restorers = {
        each: Restorer(folder, engine=each, precision="fp32", threads=1) for each in (*ENGINES, "torch")
    }
    photo = (random(40, 56, 3) * 100).astype(np.uint8)
    wanted = restorers["torch"].restore(photo, task="noisy").pixels.astype(int)
    for name in ENGINES:
        restorer = restorers[name]
        seen = restorer.encode(photo)
        assert seen.tone is not None
        condition = restorer.condition(seen)
        assert condition.content.shape == (1, 24 + TONES)
        np.testing.assert_array_equal(condition.content[:, -TONES:], seen.tone)
        assert np.abs(restorer.restore(photo, task="noisy").pixels - wanted).max() <= 1
        brighter = restorer.condition(replace(seen, tone=seen.tone + 1))
        mu = random(1, 3, 20, 20)
        answers = [
            restorer.engine.predict_clean(mu, told.content, told.degradation)
            for told in (condition, brighter)
        ]
        assert np.abs(answers[0] - answers[1]).max() > 1e-3
        with pytest.raises(UsageError, match="without the tone"):
            restorer.restore(photo, embeddings=replace(seen, tone=None))


@pytest.mark.long
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("opened", [True, False])
def test_fill_and_veil_are_branches_that_a_graph_takes_where_the_embedding_asks(
    tmp_path: Path, opened: bool
) -> None:
    """Flat squares are holes and the photo is hazy, or neither; the graph computes only what is asked for."""
    network = {**DRUNET, "tone": True, "fill": True, "veil": True}
    folder = write_model(tmp_path / "model", network, dtype="float32")
    model = checkpoints.from_pretrained(folder)
    told = random(1, 24, seed=2)
    assert isinstance(model.network, DRUNet)
    assert model.network.fill is not None
    assert model.network.fill.gate is not None
    assert model.network.veil is not None
    with torch.no_grad():
        model.network.fill.gate.bias.fill_(20 if opened else -20)
    model.network.veil.listen(torch.from_numpy(told[0]), scale=9.0 if opened else -9.0, bias=0.0)
    checkpoints.save_pretrained(model, folder)
    export(folder)
    mu = 0.3 + 0.5 * random(1, 3, 70, 90)
    mu[..., 20:40, 30:50] = 1
    content = random(1, 24 + TONES, seed=1)
    bare, _ = model.network.uncovered(*(torch.from_numpy(each) for each in (mu, content, told)))
    assert (np.abs(bare.detach().numpy() - mu).max() > 0.1) == opened
    for name in ENGINES:
        graph, torch_engine = engines(folder, name)
        wanted = torch_engine.predict_clean(mu, content, told)
        assert_near(graph.predict_clean(mu, content, told), wanted)
    graph = onnx.load(str(folder / "restorer.onnx"), load_external_data=False).graph
    assert [node.op_type for node in graph.node].count("If") == 2
    assert not {"AveragePool", "MaxPool"} & {node.op_type for node in graph.node}, "pools are in the branches"
    assert b".py" not in (folder / "restorer.onnx").read_bytes()


@pytest.mark.long
def test_a_calibrated_network_computes_nearly_the_same_in_8_bit_integers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cv2", reason="needs the extra [data]")
    monkeypatch.setattr(calibrate, "_CALIBRATED", 4)
    monkeypatch.setattr(calibrate, "_CHECKED", 3)
    for number in range(24):  # one in twenty is held out
        pixels = np.roll(scene(330, 340), 13 * number, axis=0)
        (tmp_path / "photos").mkdir(exist_ok=True)
        image.write(image.from_array(pixels), pixels, tmp_path / "photos" / f"{number}.png", format="png")
    folder = write_model(tmp_path / "model", DRUNET, dtype="float32")
    done = export(folder, photos=str(tmp_path / "photos"))
    assert done.lost is not None
    assert abs(done.lost) < 0.05
    found = models.find(folder)
    assert {"downs.0", "middle.0.conv1", "middle.0.conv2"} <= found.config.int8.keys()
    assert not {name for name in found.config.int8 if not name.startswith(("downs", "middle"))}
    for low, high, least, most in found.config.int8.values():
        assert low <= 0 <= high
        assert least <= 0 <= most
        assert low < high
        assert least < most
    mu, content, degradation = random(1, 3, 61, 83), random(1, 24, seed=1), random(1, 24, seed=2)
    wanted = engine.load(found, engine="torch").predict_clean(mu, content, degradation)
    for name in ENGINES:
        rounded = engine.load(found, engine=name, precision="int8")
        assert rounded.precision == "int8"
        off = np.abs(rounded.predict_clean(mu, content, degradation) - wanted).max()
        assert 1e-5 < off / np.abs(wanted - mu).max() < 0.05
    assert engine.load(found, engine="openvino").precision == "int8"
    monkeypatch.setattr(calibrate, "loss", lambda *_: 0.3)
    with pytest.raises(ModelError, match=r"8-bit integers cost 0\.30 dB"):
        export(folder, photos=str(tmp_path / "photos"))
    assert not models.find(folder).int8_graphs


def test_other_networks_are_not_calibrated(one_pass: Path) -> None:
    with pytest.raises(ModelError, match="only a DRUNet computes in 8-bit integers"):
        calibrate.ranges(models.find(one_pass), "photos")


def test_compiled_graphs_are_kept_until_the_weights_change(
    one_pass: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="needs the extra [openvino]")
    monkeypatch.setenv("DACLIP_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(one_pass, tmp_path / "model")
    mu, content, degradation = random(1, 3, 61, 83), random(1, 24, seed=1), random(1, 24, seed=2)

    def answer() -> np.ndarray:
        found = engine.load(models.find(folder), engine="openvino", precision="fp32", threads=1)
        return found.predict_clean(mu, content, degradation)

    def kept() -> set[Path]:
        return set((tmp_path / "cache" / "openvino").glob("*/*.blob"))

    wanted = answer()
    first = kept()
    assert len(first) == 2
    np.testing.assert_array_equal(answer(), wanted)
    assert kept() == first
    for blob in first:
        blob.chmod(0o600)
        blob.write_bytes(b"not what was written")
    np.testing.assert_array_equal(answer(), wanted)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-4000] + bytes(4000))
    assert np.abs(answer() - wanted).max() > 1e-3
    assert len(kept()) == 4
    monkeypatch.setattr("daclip.engine.openvino._MOST_KEPT", 2)
    (folder / "model.safetensors").write_bytes(weights)
    np.testing.assert_array_equal(answer(), wanted)
    assert len(kept()) == 2
    (tmp_path / "file").touch()
    monkeypatch.setenv("DACLIP_CACHE", str(tmp_path / "file"))
    np.testing.assert_array_equal(answer(), wanted)


def test_shadows_are_found_by_a_graph_of_its_own_and_lit_before_the_network_sees_them(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", {**DRUNET, "shade": True}, dtype="float32")
    model = checkpoints.from_pretrained(folder)
    network = model.network
    assert isinstance(network, DRUNet)
    assert network.shade is not None
    shade = network.shade
    with torch.no_grad():
        for part in (network.tail, shade.head, shade.up, *shade.fine, shade.tail):
            for weight in part.parameters():
                weight.zero_()  # so the network itself changes nothing
        # what is darker than .3 is shadow
        shade.head.weight[0, :12, 1, 1] = 1 / 12
        shade.tail.weight[:, 0, 1, 1] = -60
        shade.tail.bias.fill_(18)
    folder = checkpoints.save_pretrained(model, tmp_path / "finds")
    assert export(folder).differences.keys() == {"encoder", "restorer", "shade"}
    ground = 0.6 + 0.1 * random(70, 131, 3)
    ground[20:50, 40:90] *= 0.35
    mu, photo = random(2, 3, 70, 131), (ground * 255).astype(np.uint8)
    torch_restorer = Restorer(folder, engine="torch")
    wanted = torch_restorer.restore(photo, task="shadowed").pixels.astype(int)
    light = torch_restorer.encode(photo).light
    assert light is not None
    lit = light.lit(photo.astype(np.float32) / 255, top=0, left=0, height=70, width=131) * 255
    assert np.abs(wanted - lit.clip(0, 255)).max() < 2
    assert abs(wanted[25:45, 45:85].mean() - wanted[:15].mean()) < 10
    assert photo[25:45, 45:85].mean() < 70
    where = np.zeros((70, 131), np.uint8)
    where[:, :60] = 255
    masked = torch_restorer.restore(photo, task="shadowed", mask=image.from_array(where)).pixels
    np.testing.assert_array_equal(masked[:, 60:], photo[:, 60:])
    assert np.abs(masked[:, :60].astype(int) - photo[:, :60]).max() > 50
    for name in ENGINES:
        graph, torch_engine = engines(folder, name)
        for got, found in zip(graph.find_shadows(mu), torch_engine.find_shadows(mu), strict=True):
            assert_near(got, found)
        restorer = Restorer(folder, engine=name, precision="fp32", threads=1)
        assert np.abs(restorer.restore(photo, task="shadowed").pixels - wanted).max() <= 1
        left = restorer.restore(photo, task="noisy").pixels.astype(int)
        assert np.abs(left - photo).max() <= 1, "nobody spoke of shadows"


@pytest.mark.parametrize("name", ENGINES)
def test_an_encoder_graph_computes_what_torch_does_for_any_number_of_views(one_pass: Path, name: str) -> None:
    graph, torch_engine = engines(one_pass, name)
    for count in (1, 5):
        views = random(count, 3, 32, 32) - 0.5
        got, wanted = graph.encode(views), torch_engine.encode(views)
        assert_near(got.content, wanted.content)
        assert_near(got.degradation, wanted.degradation)
        assert np.abs(wanted.content - wanted.degradation).max() > 1e-2


@pytest.mark.parametrize("name", ENGINES)
def test_a_diffusion_graph_computes_what_torch_does_at_any_time(diffusion: Path, name: str) -> None:
    graph, torch_engine = engines(diffusion, name)
    for batch, height, width in ((1, 16, 16), (2, 21, 30)):
        inputs = (
            random(batch, 3, height, width),
            random(batch, 3, height, width, seed=1),
            np.linspace(3, 87.5, batch, dtype=np.float32),
            random(batch, 24, seed=2),
            random(batch, 24, seed=3),
        )
        assert_near(graph.predict_at(*inputs), torch_engine.predict_at(*inputs))


@pytest.mark.parametrize("part", ["encoder", "restorer"])
def test_a_graph_holds_no_weights_and_no_trace_of_its_maker(one_pass: Path, part: str) -> None:
    graph = one_pass / f"{part}.onnx"
    model = onnx.load(str(graph), load_external_data=False)
    outside = [each for each in model.graph.initializer if each.data_location == each.EXTERNAL]
    inside = [each for each in model.graph.initializer if each.data_location != each.EXTERNAL]
    assert {each.value for tensor in outside for each in tensor.external_data if each.key == "location"} == {
        "model.safetensors"
    }
    assert sum(len(each.raw_data) for each in inside) < 2000
    assert sum(np.prod(each.dims) for each in outside) > 5000
    content = graph.read_bytes()
    for trace in (str(Path(checkpoints.__file__).parent), str(Path(torch.__file__).parent), ".py"):
        assert trace.encode() not in content
    assert not list(one_pass.glob("*.part"))


def test_other_weights_in_the_folder_are_what_the_graph_then_uses(one_pass: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(one_pass, tmp_path / "copy"))
    mu, told = random(1, 3, 16, 16), random(1, 24)
    before = engines(folder, "onnx")[0].predict_clean(mu, told, told)
    model = checkpoints.from_pretrained(folder)
    assert model.network is not None
    checkpoints.save_pretrained(replace(model, network=shaken(model.network)), folder)
    graph, torch_engine = engines(folder, "onnx")
    after = graph.predict_clean(mu, told, told)
    assert np.abs(after - before).max() > 1e-3
    assert_near(after, torch_engine.predict_clean(mu, told, told))


def test_a_copy_carries_its_encoder_and_its_card(tmp_path: Path) -> None:
    """A restorer beside its encoder, as the bundled ones: in place it stays so, elsewhere it stands alone."""
    eyes = write_encoder(tmp_path / "eyes")
    write_model(tmp_path / "hands", NETWORK, encoder="eyes", texts=None)
    (tmp_path / "hands" / "README.md").write_text("---\nlicense: mit\n---\n# Hands\n")
    with pytest.raises(ModelError, match=r"eyes/encoder\.onnx: not there; `daclip export .*eyes` first"):
        export(tmp_path / "hands")
    assert not (tmp_path / "hands" / "restorer.onnx").exists()
    export(eyes)
    assert export(tmp_path / "hands").differences.keys() == {"restorer"}
    done = export(tmp_path / "hands", tmp_path / "elsewhere" / "alone")
    assert done.differences.keys() == {"encoder", "restorer"}
    assert "# Hands" in (done.folder / "README.md").read_text()
    views = random(2, 3, 32, 32)
    first, second = (
        engine.load(models.find(folder), engine="onnx", threads=1)
        for folder in (tmp_path / "hands", done.folder)
    )
    np.testing.assert_array_equal(first.encode(views).content, second.encode(views).content)
    mu, told = random(1, 3, 20, 20), random(1, 24)
    np.testing.assert_array_equal(first.predict_clean(mu, told, told), second.predict_clean(mu, told, told))


@pytest.mark.long
def test_a_diffusion_that_goes_on_from_another_model(tmp_path: Path) -> None:
    """Its states surround what the initial model makes of the photo, in place and exported elsewhere."""
    first = write_model(tmp_path / "first", NETWORK, dtype="float32")
    settings = {**DIFFUSION, "objective": "x0", "initial": "first", "steps": 3}
    refiner = {**DRUNET, "name": "drunet-diffusion"}
    second = write_model(tmp_path / "second", refiner, dtype="float32", **settings)
    with pytest.raises(ModelError, match=r"first/restorer\.onnx: not there; `daclip export .*first` first"):
        export(second)
    export(first)
    export(second)
    alone = export(second, tmp_path / "elsewhere" / "alone").folder
    assert models.find(alone).initial == tmp_path / "elsewhere" / "first"
    photo = (random(40, 56, 3) * 255).astype(np.uint8)
    reference, initial = (
        Restorer(folder, engine="torch", precision="fp32", threads=1) for folder in (second, first)
    )
    for name in ENGINES:
        one, elsewhere = (
            Restorer(folder, engine=name, precision="fp32", threads=1) for folder in (second, alone)
        )
        pixels = one.restore(photo, task="noisy").pixels
        np.testing.assert_array_equal(pixels, elsewhere.restore(photo, task="noisy").pixels)
        assert np.abs(pixels - reference.restore(photo, task="noisy").pixels.astype(int)).max() <= 1
        mu, told = random(1, 3, 20, 20), one.condition(one.encode(photo))
        wanted = initial.engine.predict_clean(mu, told.content, told.degradation).clip(0, 1)
        assert_near(one.begun(mu, told), wanted)
        assert np.abs(wanted - mu).max() > 1e-2


@pytest.mark.parametrize("name", ENGINES)
def test_a_model_in_the_cache_of_the_hub_runs(one_pass: Path, tmp_path: Path, name: str) -> None:
    """There every file is a link to a file elsewhere, the weights a graph refers to as well."""
    cache = hub_cache_with(tmp_path, "somebody/restorer", one_pass)
    found = models.find("somebody/restorer", cache_dir=cache, offline=True)
    views = random(1, 3, 32, 32)
    got = engine.load(found, engine=name, precision="fp32", threads=1).encode(views)
    assert_near(got.content, engines(one_pass, "torch")[0].encode(views).content)


def test_a_graph_that_is_not_equal_is_not_left_behind(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "eyes")
    with pytest.raises(ModelError, match=r"encoder\.onnx: differs from torch by .* of the largest value"):
        export(folder, tolerance=0.0)
    assert not list(folder.glob("*.onnx"))


def test_the_compact_encoder_is_exported(tmp_path: Path) -> None:
    config = ModelConfig(
        kind="encoder",
        encoder={"name": "timm", "embed_dim": 24},
        texts=read_config(write_encoder(tmp_path / "eyes")).texts,
        view_side=64,
        dtype="float16",
    )
    model = checkpoints.Model(daclip=clip.compact(24, pretrained=False), network=None, config=config)
    folder = checkpoints.save_pretrained(model, tmp_path / "compact")
    assert export(folder).differences["encoder"] < 1e-4
    assert (folder / "encoder.onnx").stat().st_size < 300_000


def test_the_command_takes_a_run_folder_and_says_how_near_the_graphs_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    write_encoder(run / "model")
    assert cli.run(["export", str(run), "-o", str(out), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["folder"] == str(out)
    assert answer["differences"].keys() == {"encoder"}
    assert 0 <= answer["differences"]["encoder"] <= 1e-4
    assert models.find(out).is_exported
    assert not (run / "model" / "encoder.onnx").exists()
    assert cli.run(["export", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
