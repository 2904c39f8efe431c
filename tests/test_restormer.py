"""Restormer: the published network by its own names; what conditioning adds to it, PromptIR and AirNet.

What all three have in common is tested here, what is special in the test of each.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from daclip import checkpoints, official
from daclip.detect import ClassTexts
from daclip.errors import ModelError, UsageError
from daclip.networks.airnet import AirNet
from daclip.networks.promptir import PromptIR
from daclip.networks.restormer import ChannelAttention, Restormer, Scaling, arguments_of
from recorded_restorers import agrees, drawn, embedding, official_keys, photos, shaken, shapes_of, state

pytestmark = pytest.mark.torch

FEW: dict[str, Any] = {"width": 8, "blocks": (1, 1, 1, 1), "refinement": 1}
TOLD: dict[str, Any] = {"context_dim": 6, "degradation": True, "content": "vector"}

SMALL: dict[str, Callable[..., nn.Module]] = {
    "restormer": lambda **told: Restormer(**FEW, **told),
    "restormer-bias-free": lambda **told: Restormer(**FEW, norm_bias=False, **told),
    "promptir": lambda **told: PromptIR(**FEW, prompts=(8, 8, 8), prompt_sides=(4, 4, 4), **told),
    "airnet": lambda **told: AirNet(width=8, groups=1, blocks=1, queue=8, **told),
}
every = pytest.mark.parametrize("name", list(SMALL))


@pytest.mark.parametrize("name", ["restormer", "restormer-bias-free"])
@torch.no_grad()
def test_a_published_state_dict_gives_the_published_pixels(name: str) -> None:
    weights = state(name)
    ours = Restormer(**arguments_of(weights)).eval()
    ours.load_state_dict(weights, strict=True)
    for mu, clean in photos(name):
        assert agrees(ours(mu), clean)
        assert not agrees(mu, clean)


@pytest.mark.parametrize("name", ["restormer", "restormer-bias-free"])
def test_at_full_size_names_and_shapes_are_the_published_ones(name: str) -> None:
    keys = official_keys()[name]
    assert arguments_of(keys) == {
        "width": 48,
        "blocks": [4, 6, 6, 8],
        "refinement": 4,
        "heads": [1, 2, 4, 8],
        "expansion": 2.66,
        "norm_bias": name == "restormer",
    }
    with torch.device("meta"):
        built = Restormer(**arguments_of(keys))
    assert shapes_of(built.state_dict()) == shapes_of(keys)


@torch.no_grad()
def test_channel_attention_is_its_definition() -> None:
    attention = shaken(ChannelAttention(12, heads=3)).double()
    x = drawn(2, 12, 5, 7).double()
    q, k, v = attention.qkv_dwconv(attention.qkv(x)).reshape(2, 3, 3, 4, 35).unbind(1)
    q, k = (part / part.norm(dim=3, keepdim=True) for part in (q, k))
    share = (torch.einsum("bhin,bhjn->bhij", q, k) * attention.temperature).softmax(dim=3)
    out = torch.einsum("bhij,bhjn->bhin", share, v).reshape(2, 12, 5, 7)
    torch.testing.assert_close(attention(x), attention.project_out(out))


@torch.no_grad()
def test_scaling_keeps_the_mean_and_computes_in_float32() -> None:
    scaling = Scaling(4)
    x = torch.tensor([[9.0, 11.0, 9.0, 11.0]])
    torch.testing.assert_close(scaling(x), x, rtol=1e-4, atol=0)  # the deviation is 1
    x = torch.tensor([[1.0, 3.0, 8.0, 17.0]])  # its variance has too many digits for bfloat16
    torch.testing.assert_close(scaling(x.bfloat16()), scaling(x), rtol=1e-5, atol=0)


# ---- all of them


@every
@torch.no_grad()
def test_conditioning_changes_nothing_at_the_start(name: str) -> None:
    conditioned, plain = SMALL[name](**TOLD), SMALL[name]()
    shaken(plain)
    added = conditioned.load_state_dict(plain.state_dict(), strict=False)
    assert not added.unexpected_keys
    assert all("modulation" in key or key.startswith("conditions.") for key in added.missing_keys)
    mu = drawn(2, 3, 16, 24)
    told = conditioned.eval()(mu, content=embedding(2, 3), degradation=embedding(2, 4))
    assert (told - mu).abs().max() > 1e-3
    torch.testing.assert_close(told, plain(mu), rtol=0, atol=0)


@every
@torch.no_grad()
def test_a_trained_network_listens_to_both_embeddings_of_each_photo(name: str) -> None:
    network = shaken(SMALL[name](**TOLD))
    mu, content, degradation = drawn(1, 3, 16, 16).expand(2, -1, -1, -1), embedding(2, 3), embedding(2, 4)
    by_degradation = network(mu, content[:1].expand(2, -1), degradation)
    by_content = network(mu, content, degradation[:1].expand(2, -1))
    assert (by_degradation[0] - by_degradation[1]).abs().max() > 1e-4
    assert (by_content[0] - by_content[1]).abs().max() > 1e-4
    together = network(mu, content, degradation)
    torch.testing.assert_close(together[1:], network(mu[1:], content[1:], degradation[1:]))


@every
def test_every_weight_learns(name: str) -> None:
    network = shaken(SMALL[name](**TOLD)).train()
    restored = network(drawn(2, 3, 16, 24), embedding(2, 3), embedding(2, 4))
    loss = (restored - drawn(2, 3, 16, 24, seed=9)).pow(2).mean()
    if isinstance(network, AirNet):
        loss = loss + nn.functional.cross_entropy(*network.contrast(drawn(2, 3, 16, 16), drawn(2, 3, 16, 16)))
    loss.backward()
    for key, weight in network.named_parameters():
        if key.startswith("E.E.encoder_k."):  # follows, and is not trained
            assert not weight.requires_grad
            continue
        assert weight.grad is not None, key
        assert weight.grad.abs().max() > 0, key


@every
def test_the_first_step_of_training_reaches_the_modulation(name: str) -> None:
    network = SMALL[name](**TOLD)
    with torch.no_grad():  # AirNet's guided convolutions start small
        for weight in network.parameters():
            weight.mul_(2)
    network(drawn(2, 3, 16, 16), embedding(2, 3), embedding(2, 4)).square().sum().backward()
    first = next(weight for key, weight in network.named_parameters() if "modulation1.linear.weight" in key)
    assert first.abs().max() == 0
    assert first.grad.abs().max() > 0


@every
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 5), (16, 17)])
@torch.no_grad()
def test_any_size_keeps_its_size(name: str, height: int, width: int) -> None:
    network = shaken(SMALL[name](**TOLD))
    restored = network(drawn(1, 3, height, width), embedding(1, 3), embedding(1, 4))
    assert restored.shape == (1, 3, height, width)
    assert restored.isfinite().all()


@every
@torch.no_grad()
def test_bfloat16_is_close_to_float32(name: str) -> None:
    network = shaken(SMALL[name](**TOLD), size=0.03)
    told = drawn(1, 3, 16, 16), embedding(1, 3), embedding(1, 4)
    exact = network(*told)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(*told)
    assert 0 < (rough - exact).abs().max() < 0.05 * exact.abs().max()


@every
def test_conditioning_without_a_width_of_embeddings_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="context_dim"):
        SMALL[name](degradation=True)


# ---- files


@pytest.mark.parametrize(
    ("name", "wrapped"),
    [("restormer", "params"), ("restormer-bias-free", "bare"), ("promptir", "lightning"), ("airnet", "bare")],
)
@torch.no_grad()
def test_a_published_file_becomes_a_model_folder(name: str, wrapped: str, tmp_path) -> None:
    network = shaken(SMALL[name]())
    weights = network.state_dict()
    if name == "promptir":  # published: in every file, and never used
        weights |= {f"{key}1.weight": torch.zeros(4, 4) for key in ("chnl_reduce", "reduce_noise_channel_")}
    wrap = {
        "bare": weights,
        "params": {"params": weights},
        "lightning": {"epoch": 3, "state_dict": {f"net.{key}": value for key, value in weights.items()}},
    }
    torch.save(wrap[wrapped], tmp_path / "file.pth")
    folder = checkpoints.convert([tmp_path / "file.pth"], tmp_path / "model")
    model = checkpoints.from_pretrained(folder)
    assert model.config.kind == "one-pass"
    assert model.config.encoder == "compact-encoder"
    assert model.config.bytes_per_pixel > 1000
    assert model.config.network["name"] == name.removesuffix("-bias-free")
    mu = drawn(1, 3, 16, 24)
    torch.testing.assert_close(
        model.network(mu, embedding(1, 3), embedding(1, 4)), network(mu), rtol=0, atol=0
    )


@every
def test_a_conditioned_network_comes_back_as_it_was_saved(name: str, tmp_path) -> None:
    arguments = {key: list(value) if isinstance(value, tuple) else value for key, value in FEW.items()}
    if name == "promptir":
        arguments |= {"prompts": [8, 8, 8], "prompt_sides": [4, 4, 4]}
    if name == "airnet":
        arguments = {"width": 8, "groups": 1, "blocks": 1, "queue": 8}
    if name == "restormer-bias-free":
        arguments["norm_bias"] = False
    network = shaken(SMALL[name](**TOLD))
    bundled = checkpoints.from_pretrained("compact-encoder")
    texts = ClassTexts(names=("rainy",), embeddings=torch.eye(1, 6).numpy())
    config = checkpoints.ModelConfig(
        kind="one-pass",
        encoder="compact-encoder",
        network={"name": name.removesuffix("-bias-free"), **arguments, **TOLD},
        texts=texts,
    )
    checkpoints.save_pretrained(
        checkpoints.Model(daclip=bundled.daclip, network=network, config=config), tmp_path
    )
    again = checkpoints.from_pretrained(tmp_path).network
    told = drawn(1, 3, 9, 16), embedding(1, 3), embedding(1, 4)
    with torch.no_grad():
        torch.testing.assert_close(again(*told), network(*told), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "missing", "message"),
    [
        ("restormer", "latent.0.ffn.project_in.weight", "not the weights of a Restormer"),
        (
            "promptir",
            "prompt2.prompt_param",
            "not the weights of PromptIR: 'prompt2.prompt_param' is missing",
        ),
        ("airnet", "E.E.encoder_q.mlp.0.bias", "1 weights missing"),
    ],
)
def test_a_file_with_a_weight_missing_is_named(name: str, missing: str, message: str, tmp_path) -> None:
    weights = SMALL[name]().state_dict()
    del weights[missing]
    torch.save(weights, tmp_path / "file.pth")
    with pytest.raises(ModelError, match=rf"file\.pth: {message}"):
        official.load_network(tmp_path / "file.pth")
