import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parent / "parity"))

from unet_weights import weights  # noqa: E402

from daclip.errors import ModelError, UsageError  # noqa: E402
from daclip.networks.recompute import checkpoint_activations  # noqa: E402
from daclip.networks.unet import DoublingConv, LinearAttention, UNet, arguments_of  # noqa: E402

pytestmark = pytest.mark.torch
PARITY = Path(__file__).parent / "parity"


@pytest.fixture(scope="module")
def recorded():
    with np.load(PARITY / "unet_small.npz") as file:
        return dict(file)


def shapes_of(recorded, kind):
    shapes = [tuple(map(int, shape.split("x"))) for shape in recorded[f"{kind}_shapes"].tolist()]
    return dict(zip(recorded[f"{kind}_names"].tolist(), shapes, strict=True))


def network_of(recorded, kind):
    state = {name: torch.from_numpy(w) for name, w in weights(shapes_of(recorded, kind)).items()}
    network = UNet(**arguments_of(state))
    network.load_state_dict(state)
    return network.eval()


def tiny(**changed):
    torch.manual_seed(0)
    network = UNet(**{"width": 32, "multipliers": (1, 2), "context_dim": 8, **changed}).eval()
    with torch.no_grad():  # away from the zero start of the transformers
        for weight in network.parameters():
            weight.add_(0.03 * torch.randn_like(weight))
    return network


def batch(b=2, h=12, w=20, d=8):
    generator = torch.Generator().manual_seed(1)
    photos = [torch.rand(b, 3, h, w, generator=generator) for _ in range(2)]
    embeddings = {name: torch.randn(b, d, generator=generator) for name in ("content", "degradation")}
    return [*photos, 100 * torch.rand(b, generator=generator)], embeddings


@torch.no_grad()
@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("kind", ["universal", "wild", "plain"])
def test_the_noise_is_what_the_published_network_says(recorded, kind, size):
    x, mu, t, content, degradation, noise = (
        torch.from_numpy(recorded[f"{kind}_{size}_{name}"])
        for name in ("x", "mu", "t", "content", "degradation", "noise")
    )
    ours = network_of(recorded, kind)(x, mu, t, content=content, degradation=degradation)
    assert (ours - noise).abs().max() <= 1e-5 * noise.abs().max()


@pytest.mark.parametrize("kind", ["universal", "wild", "plain"])
def test_names_and_shapes_are_the_published_ones_in_their_order(recorded, kind):
    network = network_of(recorded, kind)
    ours = {name: tuple(weight.shape) for name, weight in network.state_dict().items()}
    assert ours == shapes_of(recorded, kind)


@pytest.mark.parametrize(
    ("changed", "parameters"),
    [
        ({}, 48_975_747),
        ({"context_dim": 768, "degradation": False, "half_resolution": True}, 49_470_467),
        ({"multipliers": (2, 4, 8, 16), "context_dim": None}, 137_147_523),
    ],
    ids=["universal-ir", "wild-ir", "ir-sde"],
)
def test_published_settings_have_the_published_number_of_weights(changed, parameters):
    with torch.device("meta"):
        network = UNet(**changed)
    assert sum(weight.numel() for weight in network.parameters()) == parameters


@pytest.mark.slow
def test_levels_that_are_computed_again_in_the_backward_pass_give_the_same_gradients():
    network = tiny()
    inputs, embeddings = batch()
    kept: list[int] = []

    def gradients():
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = network(*inputs, **embeddings).square().mean()
        return torch.autograd.grad(loss, [w for w in network.parameters() if w.requires_grad])

    def count(tensor):
        kept[-1] += tensor.numel()
        return tensor

    plain = gradients()
    checkpoint_activations(network)
    for again, wanted in zip(gradients(), plain, strict=True):
        assert torch.equal(again, wanted)
    assert kept[1] < kept[0] / 2


@torch.no_grad()
def test_folded_cross_attention_equals_attention_to_one_token():
    transformer = tiny().mid_attn.fn["fn"]
    block = transformer.transformer_blocks[0]
    u, content = torch.randn(2, 15, 64), torch.randn(2, 8)
    q, k, v = block.attn2.to_q(block.norm2(u)), block.attn2.to_k(content)[:, None], block.attn2.to_v(content)
    q, k, v = (a.reshape(2, -1, 2, 32).transpose(1, 2) for a in (q, k, v[:, None]))
    share = (q @ k.transpose(2, 3) / 32**0.5).softmax(dim=-1)
    attended = block.attn2.to_out((share @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(block.attn2(content)[:, None].expand(2, 15, 64), attended)


@torch.no_grad()
def test_linear_attention_equals_its_definition():
    attention = LinearAttention(24).double()
    x = torch.randn(2, 24, 3, 5, dtype=torch.float64)
    q, k, v = (a.reshape(2, 4, 32, 15) for a in attention.to_qkv(x).chunk(3, dim=1))
    context = torch.einsum("bhdn,bhen->bhde", k.softmax(-1), v / 15)
    out = torch.einsum("bhde,bhdn->bhen", context, q.softmax(-2) * 32**-0.5)
    torch.testing.assert_close(attention(x), attention.to_out(out.reshape(2, 128, 3, 5)))


@torch.no_grad()
def test_a_convolution_of_repeated_pixels_is_done_without_repeating_them():
    conv = DoublingConv(5, 7).double()
    x = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    plain = torch.nn.functional.conv2d(repeated, conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(conv(x), plain)


@torch.no_grad()
@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 9), (2, 3), (4, 4), (5, 31)])
@pytest.mark.parametrize("half_resolution", [False, True])
def test_any_size_keeps_its_size(h, w, half_resolution):
    inputs, embeddings = batch(1, h, w)
    noise = tiny(width=64, half_resolution=half_resolution)(*inputs, **embeddings)
    assert noise.shape == (1, 3, h, w)
    assert noise.isfinite().all()


@torch.no_grad()
def test_each_sample_has_its_own_time_and_conditions():
    network, (inputs, embeddings) = tiny(), batch(3)
    together = network(*inputs, **embeddings)
    for i in range(3):
        one = slice(i, i + 1)
        alone = network(*(a[one] for a in inputs), **{n: e[one] for n, e in embeddings.items()})
        torch.testing.assert_close(together[one], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_one_time_serves_the_whole_batch():
    network, ((x, mu, _), embeddings) = tiny(), batch()
    one, two = torch.tensor([30.0]), torch.tensor([30.0, 30.0])
    torch.testing.assert_close(network(x, mu, one, **embeddings), network(x, mu, two, **embeddings))


@torch.no_grad()
@pytest.mark.parametrize("name", ["content", "degradation"])
def test_conditions_change_the_noise_only_where_the_network_takes_them(name):
    inputs, embeddings = batch()
    other = {**embeddings, name: embeddings[name] + 1}
    taking, deaf = tiny(), tiny(**{name: False})
    assert (taking(*inputs, **embeddings) - taking(*inputs, **other)).abs().max() > 1e-4
    assert torch.equal(deaf(*inputs, **embeddings), deaf(*inputs, **other))


def test_a_missing_content_embedding_is_named():
    inputs, embeddings = batch()
    with pytest.raises(UsageError, match="content"):
        tiny()(*inputs, degradation=embeddings["degradation"])


def test_what_must_learn_has_a_gradient_and_what_has_no_effect_is_frozen():
    network, (inputs, embeddings) = tiny().train(), batch()
    network(*inputs, **embeddings).abs().mean().backward()
    for name, weight in network.named_parameters():
        without_effect = any(part in name for part in ("attn2.to_q", "attn2.to_k", "norm2"))
        assert weight.requires_grad != without_effect, name
        assert without_effect or weight.grad.abs().sum() > 0, name


def test_transformers_add_nothing_at_the_start():
    torch.manual_seed(0)
    transformer = UNet(width=32, multipliers=(1, 2), context_dim=8).mid_attn.fn["fn"]
    x = torch.randn(1, 64, 3, 3)
    assert torch.equal(transformer(x, torch.randn(1, 8)), x)


@torch.no_grad()
def test_half_precision_stays_near_the_full_one():
    network, (inputs, embeddings) = tiny(), batch(1, 32, 32)
    full = network(*inputs, **embeddings)
    half = network.bfloat16()
    lower = half(*(a.bfloat16() for a in inputs), **{n: e.bfloat16() for n, e in embeddings.items()})
    assert lower.dtype == torch.bfloat16
    assert (lower.float() - full).abs().mean() < 0.05 * full.abs().mean()


def test_weights_of_something_else_are_refused():
    with pytest.raises(ModelError, match=r"init_conv\.weight"):
        arguments_of({"conv1.weight": torch.zeros(3)})


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporter
def test_an_exported_graph_takes_any_size_and_gives_the_same_noise(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    network, (inputs, embeddings) = tiny(), batch(2, 9, 14)
    b, h, w = (torch.export.Dim(name) for name in "bhw")
    photo = {0: b, 2: h, 3: w}
    shapes = {"x": photo, "mu": photo, "t": {0: b}, "content": {0: b}, "degradation": {0: b}}
    program = torch.onnx.export(
        network, tuple(inputs), kwargs=embeddings, dynamic_shapes=shapes, dynamo=True, verbose=False
    )
    program.save(tmp_path / "unet.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "unet.onnx")
    for size in ((1, 16, 16), (3, 21, 10)):
        inputs, embeddings = batch(*size)
        given = {**dict(zip(("x", "mu", "t"), inputs, strict=True)), **embeddings}
        (noise,) = session.run(None, {name: value.numpy() for name, value in given.items()})
        expected = network(*inputs, **embeddings).numpy()
        assert np.abs(noise - expected).max() <= 1e-5 * np.abs(expected).max()
