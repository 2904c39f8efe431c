import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from spandrel.architectures.DnCNN import DnCNN

from daclip import checkpoints, clip, detect, models, official, train
from daclip.checkpoints import Model, convert, from_pretrained, save_pretrained
from daclip.detect import ClassTexts
from daclip.errors import ModelError
from daclip.models import ModelConfig
from daclip.networks.nafnet import NAFNet
from daclip.networks.nafnet_refusion import RefusionNAFNet
from daclip.networks.unet import UNet
from daclip.vocabulary import DEGRADATIONS

pytestmark = pytest.mark.torch

PARITY = Path(__file__).parent / "parity"
CONFIG = json.loads((PARITY / "daclip_tiny.json").read_text())
WORDS = ClassTexts(
    names=("rainy", "clean"), embeddings=np.eye(2, 16, dtype=np.float32), rule="sigmoid", scale=8.0
)
NAFNET = {"name": "nafnet", "width": 8, "encoder_blocks": [1], "decoder_blocks": [1]}


@pytest.fixture(scope="module")
def compact() -> clip.DaClip:
    return clip.compact(16, pretrained=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Published files: a tiny DA-CLIP, a restorer that fits, one that does not, two without embeddings."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "daclip.pt").write_bytes(gzip.decompress((PARITY / "daclip_tiny.pt.gz").read_bytes()))
    networks = {
        "universal-ir": UNet(width=32, multipliers=(1, 2), context_dim=24),
        "other": UNet(width=32, multipliers=(1, 2), context_dim=40),
        "ir-sde": UNet(width=32, multipliers=(2, 4), context_dim=None),
        "refusion": RefusionNAFNet(width=8, encoder_blocks=(1,), middle_blocks=1, decoder_blocks=(1,)),
    }
    for name, network in networks.items():
        torch.save(network.state_dict(), folder / f"{name}.pth")
    return {path.stem: path for path in folder.iterdir()}


def one_pass(compact, **settings) -> Model:
    config = ModelConfig(
        kind="one-pass",
        encoder={"name": "timm", "embed_dim": 16},
        network=NAFNET,
        texts=WORDS,
        mean=clip.COMPACT_MEAN,
        std=clip.COMPACT_STD,
    )
    network = NAFNet(width=8, encoder_blocks=[1], decoder_blocks=[1], gain=0.5).eval()
    return Model(daclip=compact, network=network, config=replace(config, **settings))


def test_a_model_comes_back_as_it_was_saved(compact, tmp_path):
    model = one_pass(compact)
    save_pretrained(model, tmp_path / "model")
    again = from_pretrained(tmp_path / "model")
    for saved, read in ((model.daclip, again.daclip), (model.network, again.network)):
        state = read.state_dict()
        assert state.keys() == saved.state_dict().keys()
        assert all(torch.equal(state[name], value) for name, value in saved.state_dict().items())
    assert replace(again.config, texts=None) == replace(model.config, texts=None)
    assert np.array_equal(again.config.texts.embeddings, WORDS.embeddings)
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md"}


def test_half_weights_take_half_the_space_and_come_back_as_float32(compact, tmp_path):
    save_pretrained(one_pass(compact), tmp_path / "full")
    save_pretrained(one_pass(compact, dtype="float16"), tmp_path / "half")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.51 * sizes[1]
    again = from_pretrained(tmp_path / "half")
    assert {p.dtype for p in [*again.daclip.parameters(), *again.network.parameters()]} == {torch.float32}


def test_a_restorer_can_use_the_encoder_of_a_sibling_folder(compact, tmp_path):
    encoder = Model(
        daclip=compact,
        network=None,
        config=ModelConfig(kind="encoder", encoder={"name": "timm", "embed_dim": 16}, texts=WORDS),
    )
    save_pretrained(encoder, tmp_path / "my-encoder")
    save_pretrained(one_pass(compact, encoder="my-encoder", texts=None), tmp_path / "restorer")
    weights = load_file(tmp_path / "restorer" / "model.safetensors")
    assert {name.partition(".")[0] for name in weights} == {"network"}
    again = from_pretrained(tmp_path / "restorer")
    assert torch.equal(again.daclip.controller.zeros[3].weight, compact.controller.zeros[3].weight)


def test_the_card_says_what_is_known_or_what_it_is_given(compact, tmp_path):
    save_pretrained(one_pass(compact), tmp_path / "a")
    assert "rainy, clean" in (tmp_path / "a" / "README.md").read_text()
    save_pretrained(one_pass(compact), tmp_path / "b", card="---\nlicense: mit\n---\n# Mine\n")
    assert models.describe(models.find(tmp_path / "b")).licence == "mit"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"network": {**NAFNET, "name": "nafnot"}},
            'unknown network "nafnot".*: unet, drunet, drunet-diff',
        ),
        ({"network": {**NAFNET, "widht": 3}}, "widht"),
        (
            {"network": {**NAFNET, "width": 4}},
            r"model\.safetensors: .* misshaped \(network\.intro\.weight 8x",
        ),
        ({"encoder": {"name": "timm", "embed_dim": 15}}, r"misshaped \(encoder\."),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_named(settings, message, compact, tmp_path):
    save_pretrained(one_pass(compact), tmp_path)
    models.write_config(replace(one_pass(compact).config, **settings), tmp_path)
    with pytest.raises(ModelError, match=message):
        from_pretrained(tmp_path)


def test_missing_and_broken_weights_are_named(compact, tmp_path):
    save_pretrained(one_pass(compact), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read"):
        from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors: not there"):
        from_pretrained(tmp_path)


# ---- conversion


@torch.inference_mode()
def test_published_files_become_a_folder_that_computes_the_same(files, tmp_path):
    folder = convert([files["universal-ir"], files["daclip"]], tmp_path / "folder", config=CONFIG)
    model = from_pretrained(folder)
    config = model.config
    assert (config.kind, config.objective, config.sampler, config.steps) == (
        "diffusion",
        "published",
        "posterior",
        100,
    )
    assert config.sde == {"max_sigma": 50 / 255, "steps": 100, "schedule": "cosine", "eps": 0.005}
    assert config.view_side == 48
    with np.load(PARITY / "daclip_tiny.npz") as recorded:
        pixels = torch.from_numpy(recorded["pixels"])
        found = model.daclip.encode(pixels)
        assert config.texts.names == DEGRADATIONS
        np.testing.assert_allclose(config.texts.embeddings, recorded["texts"], atol=1e-5)
        np.testing.assert_allclose(
            detect.probabilities(found.degradation.numpy(), config.texts),
            recorded["probabilities"],
            atol=1e-4,
        )
    x, t = torch.rand(3, 3, 16, 16), torch.tensor([1.0, 50.0, 100.0])
    published = official.load_network(files["universal-ir"])
    assert torch.equal(
        model.network(x, x, t, content=found.content, degradation=found.degradation),
        published(x, x, t, content=found.content, degradation=found.degradation),
    )
    card = (folder / "README.md").read_text()
    assert "universal-ir.pth" in card
    assert "daclip.pt" in card


def test_a_daclip_alone_becomes_an_encoder_folder(files, tmp_path):
    model = from_pretrained(convert([files["daclip"]], tmp_path, config=CONFIG))
    assert model.config.kind == "encoder"
    assert model.network is None


@pytest.mark.parametrize("name", ["ir-sde", "refusion"])
def test_restorers_without_embeddings_are_converted_beside_any_encoder(name, files, tmp_path):
    model = from_pretrained(convert([files["daclip"], files[name]], tmp_path, config=CONFIG))
    assert model.config.kind == "diffusion"
    x = torch.rand(1, 3, 8, 8)
    noise = model.network(x, x, torch.ones(1), content=torch.rand(1, 24), degradation=torch.rand(1, 24))
    assert noise.shape == x.shape


def test_files_that_do_not_belong_together_are_refused(files, tmp_path):
    with pytest.raises(ModelError, match="embeddings are 24 wide, the restorer takes 40"):
        convert([files["daclip"], files["other"]], tmp_path, config=CONFIG)
    with pytest.raises(ModelError, match="needs its DA-CLIP"):
        convert([files["universal-ir"]], tmp_path)
    with pytest.raises(ModelError, match="0 DA-CLIP and 2 restorer files"):
        convert([files["universal-ir"], files["ir-sde"]], tmp_path)
    plain = tmp_path / "dncnn.pth"
    torch.save(DnCNN(in_nc=3, out_nc=3, nc=8, nb=10, act_mode="R").state_dict(), plain)
    with pytest.raises(ModelError, match="a network of another project"):
        convert([files["daclip"], plain], tmp_path, config=CONFIG)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_published_nafnet_becomes_a_model_that_a_run_can_start_from(tmp_path):
    saved = NAFNet(width=16, encoder_blocks=(1,), decoder_blocks=(1,), gain=0.5)
    torch.save({"params": saved.state_dict()}, tmp_path / "nafnet.pth")
    convert([tmp_path / "nafnet.pth"], tmp_path / "model")
    config = models.read_config(tmp_path / "model")
    assert (config.kind, config.encoder) == ("one-pass", "compact-encoder")
    run = train.preset("compact-nafnet-plain", [f"start={tmp_path / 'model'}", "encoder=compact-encoder"])
    job, _ = train.restorer_parts(run)
    for name, weight in saved.named_parameters():
        torch.testing.assert_close(job.network.get_parameter(name).contiguous(), weight)


# ---- the hub


@pytest.mark.slow
def test_without_a_network_an_upload_says_so(compact, tmp_path):
    save_pretrained(one_pass(compact), tmp_path)
    code = (
        "import sys; from daclip.checkpoints import push_to_hub; from daclip.errors import ModelError\n"
        "try: push_to_hub(sys.argv[1], 'someone/model', token='hf_none')\n"
        "except ModelError as error: print(error)"
    )
    # a fresh process, since the hub's client reads its variables once; nothing listens on this port
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("someone/model: not uploaded (")


def test_only_model_folders_are_uploaded(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        checkpoints.push_to_hub(tmp_path, "someone/model")
