import gzip
import io
import json
import pickle
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from daclip import clip, official
from daclip.clip import DaClip
from daclip.errors import ModelError
from daclip.networks import nafnet_refusion, unet
from daclip.networks.nafnet_refusion import RefusionNAFNet
from daclip.networks.unet import UNet
from daclip.vocabulary import DEGRADATIONS

pytestmark = pytest.mark.torch

PARITY = Path(__file__).parent / "parity"
CONFIG = json.loads((PARITY / "daclip_tiny.json").read_text())


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A checkpoint as the published training code writes it: nested, with optimizer and scaler."""
    path = tmp_path_factory.mktemp("published") / "epoch_3.pt"
    path.write_bytes(gzip.decompress((PARITY / "daclip_tiny.pt.gz").read_bytes()))
    return path


@pytest.fixture(scope="module")
def state(published) -> dict[str, torch.Tensor]:
    return official.read_state(published)


@pytest.fixture(scope="module")
def model(published) -> DaClip:
    return official.load_daclip(published, CONFIG)


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    return dict(np.load(PARITY / "daclip_tiny.npz"))


def agrees(found: torch.Tensor, recorded: np.ndarray, tolerance: float = 1e-5) -> bool:
    return np.abs(found.detach().numpy() - recorded).max() <= tolerance * np.abs(recorded).max()


# ---- numbers of the published code


@torch.inference_mode()
def test_embeddings_are_those_of_the_published_code(model, recorded):
    pixels = torch.from_numpy(recorded["pixels"])
    embeddings = model.encode(pixels)
    assert agrees(embeddings.content, recorded["content"])
    assert agrees(embeddings.degradation, recorded["degradation"])
    assert agrees(model.encode_plain(pixels), recorded["plain"])
    # the recording tells the two apart, and control from none
    assert not agrees(embeddings.content, recorded["plain"], 1e-2)
    assert not agrees(embeddings.content, recorded["degradation"], 1e-2)


@torch.inference_mode()
def test_texts_are_those_of_the_published_code(model, recorded):
    words = list(DEGRADATIONS)
    assert np.array_equal(model.text_tower.tokenize(words).numpy(), recorded["tokens"])
    assert agrees(model.encode_text(words), recorded["texts"])
    assert agrees(
        model.classify(torch.from_numpy(recorded["pixels"]), words), recorded["probabilities"], 1e-4
    )


@torch.inference_mode()
def test_features_for_training_are_those_of_the_published_code(model, recorded):
    texts = np.concatenate([recorded["caption_tokens"], recorded["tokens"][[0, 3, 6]]], axis=1)
    features = model(torch.from_numpy(recorded["pixels"]), torch.from_numpy(texts))
    assert agrees(features.content, recorded["forward_image_features"])
    assert agrees(features.caption, recorded["forward_text_features"])
    assert agrees(features.degradation, recorded["forward_image_degra_features"])
    assert agrees(features.degradation_text, recorded["forward_text_degra_features"])
    assert agrees(features.scale, recorded["forward_logit_scale"])


@torch.inference_mode()
def test_the_published_start_is_repeated_with_its_defect(model, recorded):
    started = DaClip(model.image_tower, init="published")
    embeddings = started.encode(torch.from_numpy(recorded["pixels"]))
    assert agrees(embeddings.content, recorded["start_content"])
    assert agrees(embeddings.degradation, recorded["start_degradation"])


@torch.inference_mode()
def test_refusion_predicts_the_published_noise_at_odd_sizes_and_fractional_times(tmp_path):
    path = tmp_path / "lastest_EMA.pth"
    path.write_bytes(gzip.decompress((PARITY / "daclip_refusion.pth.gz").read_bytes()))
    network = official.load_network(path)
    with np.load(PARITY / "daclip_refusion.npz") as recording:
        x, mu, t = (torch.from_numpy(recording[name].astype(np.float32)) for name in ("x", "mu", "t"))
        assert agrees(network(x, mu, t), recording["noise"])


# ---- wrappers


def wrapped(state, wrapper):
    if wrapper == "bare":
        return state
    if wrapper == "several GPUs":
        return {"epoch": 1, "state_dict": {f"module.{key}": value for key, value in state.items()}}
    if wrapper == "compiled on several GPUs":
        return {f"_orig_mod.module.{key}": value for key, value in state.items()}
    if wrapper == "an EMA saved whole":
        old = {f"online_model.{key}": torch.zeros_like(value) for key, value in state.items()}
        new = {f"ema_model.module.{key}": value for key, value in state.items()}
        return {**old, **new, "initted": torch.tensor(True), "step": torch.tensor(7)}
    dropped = "visual." if wrapper == "without visual" else "clip.visual."
    return {key: value for key, value in state.items() if not key.startswith(dropped)}


@pytest.mark.parametrize(
    "wrapper",
    [
        "bare",
        "several GPUs",
        "compiled on several GPUs",
        "an EMA saved whole",
        "without visual",
        "without clip.visual",
    ],
)
def test_every_wrapper_gives_the_same_model(wrapper, state, model, tmp_path):
    path = tmp_path / "daclip.pt"
    torch.save(wrapped(state, wrapper), path)
    again = official.load_daclip(path, CONFIG).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(again[name], value), name


def test_safetensors_files_are_read_too(state, model, tmp_path):
    kept = {key: value.clone() for key, value in state.items() if not key.startswith("visual.")}
    save_file(kept, tmp_path / "daclip.safetensors")
    again = official.load_daclip(tmp_path / "daclip.safetensors", PARITY / "daclip_tiny.json")
    assert torch.equal(again.controller.zeros[1].weight, model.controller.zeros[1].weight)


def test_files_written_with_numpy_1_are_read(published, tmp_path):
    path = tmp_path / "epoch_3.pt"
    with zipfile.ZipFile(published) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert content.count(b"numpy._core.multiarray") == 1
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            new.writestr(entry.filename, content)
    assert official.load_daclip(path, CONFIG).logit_scale.item() == pytest.approx(4.25)


def test_half_files_become_float32(state, tmp_path):
    torch.save({key: value.half() for key, value in state.items()}, tmp_path / "half.pt")
    again = official.load_daclip(tmp_path / "half.pt", CONFIG)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}


def test_what_is_frozen_and_what_learns_survives_loading(model):
    assert not any(p.requires_grad for p in model.image_tower.parameters())
    assert not any(p.requires_grad for p in model.text_tower.parameters())
    assert all(p.requires_grad for p in model.controller.parameters())


def test_two_different_copies_of_the_image_tower_are_told(state, tmp_path, caplog):
    changed = {**state, "visual.proj": state["visual.proj"] + 1}
    torch.save(changed, tmp_path / "daclip.pt")
    again = official.load_daclip(tmp_path / "daclip.pt", CONFIG)
    assert "visual.* and clip.visual.* differ (visual.proj, ... 1 in all)" in caplog.text
    assert torch.equal(again.image_tower.visual.proj, changed["visual.proj"])


# ---- faults


def test_every_key_that_does_not_fit_is_named(state, tmp_path):
    broken = {key: value for key, value in state.items() if "zero_modules.1" not in key}
    broken["visual_control.extra"] = torch.zeros(1)
    broken["clip.text_projection"] = torch.zeros(32, 23)
    torch.save(broken, tmp_path / "daclip.pt")
    with pytest.raises(ModelError) as caught:
        official.load_daclip(tmp_path / "daclip.pt", CONFIG)
    assert (
        "daclip.pt: 2 weights missing (visual_control.transformer.zero_modules.1.weight, "
        "visual_control.transformer.zero_modules.1.bias); 1 weights unexpected (visual_control.extra); "
        "1 weights misshaped (clip.text_projection 32x23 instead of 32x24); all are in --verbose"
    ) in str(caught.value)
    assert caught.value.details == (
        "missing: visual_control.transformer.zero_modules.1.weight",
        "missing: visual_control.transformer.zero_modules.1.bias",
        "unexpected: visual_control.extra",
        "misshaped: clip.text_projection 32x23 instead of 32x24",
    )


def test_heads_that_shapes_do_not_tell_are_asked_for(published):
    with pytest.raises(ModelError, match=r"32 and 32 wide.*pass config="):
        official.load_daclip(published)


class Evil:
    def __reduce__(self):
        return print, ("nothing was loaded? this was!",)


def test_code_in_a_file_is_never_run(state, tmp_path, capsys):
    torch.save({"state_dict": dict(state), "optimizer": Evil()}, tmp_path / "daclip.pt")
    with pytest.raises(ModelError, match=r"print.*nothing was loaded"):
        official.load_daclip(tmp_path / "daclip.pt", CONFIG)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(ModelError, match="nothing was loaded"):
        official.load_network(tmp_path / "plain.pt")
    assert capsys.readouterr().out == ""


def test_a_broken_file_is_named(published, tmp_path):
    (tmp_path / "half.pt").write_bytes(published.read_bytes()[:100_000])
    with pytest.raises(ModelError, match=r"half\.pt: cannot be read"):
        official.load_daclip(tmp_path / "half.pt")
    with pytest.raises(ModelError, match=r"none\.pt: cannot be read \(No such file or directory\)"):
        official.load_daclip(tmp_path / "none.pt")
    (tmp_path / "empty.pth").write_bytes(b"")
    with pytest.raises(ModelError, match=r"empty\.pth: cannot be read"):
        official.load_network(tmp_path / "empty.pth")


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 1 << 16), byte=st.integers(0, 255), cut=st.booleans(), zipped=st.booleans())
def test_a_damaged_file_gives_weights_or_one_clear_error(at, byte, cut, zipped):
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3), "b": [1.5]}, buffer, _use_new_zipfile_serialization=zipped)
    content = bytearray(buffer.getvalue())
    at %= len(content)
    content[at] = byte
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.pt"
        path.write_bytes(content[: at + 1] if cut else content)
        try:
            found = official.read_state(path)
        except ModelError as error:
            message = str(error)
        else:
            message = f"{path}: read"
            assert all(isinstance(value, torch.Tensor) for value in found.values())
    assert str(path) in message


def test_the_wrong_kind_of_file_names_the_right_function(published, state, tmp_path):
    with pytest.raises(ModelError, match="a DA-CLIP, not a restorer; read it with load_daclip"):
        official.load_network(published)
    torch.save(UNet(width=32, multipliers=(1,), context_dim=24).state_dict(), tmp_path / "10_G.pth")
    with pytest.raises(ModelError, match="a U-Net restorer, not a DA-CLIP file; read it with load_network"):
        official.load_daclip(tmp_path / "10_G.pth")
    plain = {key.removeprefix("clip."): value for key, value in state.items() if key.startswith("clip.")}
    torch.save(plain, tmp_path / "clip.pt")
    with pytest.raises(ModelError, match=r"a plain CLIP without controller.*daclip\.clip\.vit"):
        official.load_daclip(tmp_path / "clip.pt")
    torch.save({"epoch": 1, "iter": 2, "schedulers": [], "optimizers": []}, tmp_path / "10.state")
    with pytest.raises(ModelError, match="no weights in it, only epoch, iter, optimizers, schedulers"):
        official.load_network(tmp_path / "10.state")


# ---- restorers


@pytest.mark.parametrize("prefix", ["", "module.", "ema_model.module."])
def test_a_unet_is_built_from_its_file(prefix, tmp_path):
    arguments = {"width": 32, "multipliers": [1, 2], "context_dim": 24, "half_resolution": True}
    network = UNet(**arguments).eval()
    torch.save({prefix + k: v for k, v in network.state_dict().items()}, tmp_path / "lastest_EMA.pth")
    again, description = official.network_of(tmp_path / "lastest_EMA.pth")
    assert description["name"] == "unet"
    assert arguments.items() <= description.items()
    x, t, e = torch.rand(1, 3, 16, 16), torch.tensor([3.5]), torch.rand(1, 24)
    with torch.inference_mode():
        assert torch.equal(
            again(x, x, t, content=e, degradation=e), network(x, x, t, content=e, degradation=e)
        )


def test_networks_of_other_projects_are_read_through_spandrel(tmp_path):
    from spandrel.architectures.DnCNN import DnCNN

    saved = DnCNN(in_nc=3, out_nc=3, nc=8, nb=10, act_mode="R").eval()
    torch.save({"params": saved.state_dict()}, tmp_path / "dncnn.pth")
    theirs = official.load_network(tmp_path / "dncnn.pth")
    assert type(theirs).__module__.startswith("spandrel")
    mu = torch.rand(1, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(theirs(mu), saved(mu), atol=1e-5, rtol=1e-4)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "unknown.pth")
    with pytest.raises(ModelError, match=r"no network we know has these weights \(weight"):
        official.load_network(tmp_path / "unknown.pth")


def test_a_published_nafnet_is_ours(tmp_path):
    from spandrel.architectures.NAFNet import NAFNet as Published

    from daclip.networks.nafnet import NAFNet

    published = Published(width=8, middle_blk_num=2, enc_blk_nums=[1, 3], dec_blk_nums=[2, 1]).eval()
    with torch.no_grad():
        for weight in published.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    torch.save({"params": published.state_dict()}, tmp_path / "NAFNet-GoPro.pth")
    ours, description = official.network_of(tmp_path / "NAFNet-GoPro.pth")
    assert type(ours) is NAFNet
    form = {"encoder_blocks": [1, 3], "middle_blocks": 2, "decoder_blocks": [2, 1]}
    assert description == {"name": "nafnet", "width": 8, **form}
    mu = torch.rand(1, 3, 19, 16)
    with torch.inference_mode():
        torch.testing.assert_close(ours(mu), published(mu), atol=1e-5, rtol=1e-4)


def test_a_unet_with_a_weight_missing_is_named(tmp_path):
    state = UNet(width=32, multipliers=(1, 2), context_dim=None).state_dict()
    del state["mid_block1.mlp.1.bias"]
    torch.save(state, tmp_path / "1_G.pth")
    with pytest.raises(ModelError, match=r"1 weights missing \(mid_block1\.mlp\.1\.bias\)"):
        official.load_network(tmp_path / "1_G.pth")


# ---- full-size names


def official_keys() -> dict[str, dict[str, torch.Tensor]]:
    """Every weight of the published files as a tensor without memory."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    with gzip.open(PARITY / "daclip_official_keys.tsv.gz", "rt") as lines:
        for line in lines:
            file, name, shape = line.rstrip("\n").split("\t")
            sizes = [] if shape == "scalar" else [int(side) for side in shape.split("x")]
            found.setdefault(file, {})[name] = torch.empty(sizes, device="meta")
    return found


def shapes(state) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


@pytest.mark.parametrize("name", ["daclip_ViT-B-32", "daclip_ViT-L-14"])
def test_full_size_daclip_has_exactly_the_published_weights(name):
    keys = official_keys()[name]
    config = official.clip_config(keys, Path(name))
    listed = clip.read_clip_config(name)
    assert config["embed_dim"] == listed["embed_dim"]
    assert listed["vision_cfg"].items() <= config["vision_cfg"].items()
    assert listed["text_cfg"].items() <= config["text_cfg"].items()
    with torch.device("meta"):
        model = clip.vit(config)
    ours = {official.published_name(key): value for key, value in model.state_dict().items()}
    wanted = {key: value for key, value in shapes(keys).items() if not key.startswith("visual.")}
    assert shapes(ours) == wanted


@pytest.mark.parametrize(
    ("name", "network", "arguments_of"),
    [
        ("universal-ir", UNet, unet.arguments_of),
        ("wild-ir", UNet, unet.arguments_of),
        ("ir-sde", UNet, unet.arguments_of),
        ("ir-sde_deshadow-test", UNet, unet.arguments_of),
        ("refusion_nafnet", RefusionNAFNet, nafnet_refusion.arguments_of),
    ],
)
def test_full_size_restorers_have_exactly_the_published_weights(name, network, arguments_of):
    keys = official_keys()[name]
    with torch.device("meta"):
        built = network(**arguments_of(keys))
    assert shapes(built.state_dict()) == shapes(keys)
