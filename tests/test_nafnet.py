"""NAFNet: the published network by its own names, and what conditioning adds to it."""

from typing import Any

import pytest
import torch
from spandrel.architectures.NAFNet import NAFNet as SpandrelNAFNet
from torch import Tensor, nn

from daclip.networks.nafnet import NAFNet

pytestmark = pytest.mark.torch

CONDITIONED: dict[str, Any] = {
    "width": 8,
    "encoder_blocks": (1, 1),
    "middle_blocks": 1,
    "decoder_blocks": (1, 1),
    "context_dim": 6,
    "degradation": True,
    "content": "vector",
    "gain": 0.5,
}


def shaken(network: nn.Module, seed: int = 0, size: float = 0.1) -> Any:
    """The network with every weight moved, so that nothing is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=generator))
    return network.eval()


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def embedding(count: int, seed: int) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def test_a_published_state_dict_loads_by_name_and_gives_the_same_pixels() -> None:
    published = shaken(SpandrelNAFNet(width=8, middle_blk_num=2, enc_blk_nums=[1, 2], dec_blk_nums=[1, 1]))
    ours = NAFNet(width=8, encoder_blocks=(1, 2), middle_blocks=2, decoder_blocks=(1, 1)).eval()
    ours.load_state_dict(published.state_dict(), strict=True)
    mu = drawn(2, 3, 37, 50)
    with torch.no_grad():
        torch.testing.assert_close(ours(mu), published(mu), rtol=1e-5, atol=1e-5)
        assert (ours(mu) - mu).abs().max() > 0.1


@pytest.mark.parametrize("attention", ["pool", "embedding"])
def test_modulation_changes_nothing_at_the_start(attention: str) -> None:
    conditioned = NAFNet(**CONDITIONED, attention=attention).eval()
    mu = drawn(2, 3, 16, 16)
    with torch.no_grad():
        told = conditioned(mu, content=embedding(2, 3), degradation=embedding(2, 4))
        untold = conditioned(mu)
        assert (untold - mu).abs().max() > 1e-3
        torch.testing.assert_close(told, untold, rtol=0, atol=0)
    if attention == "pool":
        plain = NAFNet(**{**CONDITIONED, "degradation": False, "content": "none"}).eval()
        missing = plain.load_state_dict(
            {k: v for k, v in conditioned.state_dict().items() if k in plain.state_dict()}, strict=True
        )
        assert not missing.missing_keys
        with torch.no_grad():
            torch.testing.assert_close(told, plain(mu), rtol=0, atol=0)


def test_a_trained_network_listens_to_both_embeddings_of_each_photo() -> None:
    network = shaken(NAFNet(**CONDITIONED))
    mu, content, degradation = drawn(1, 3, 16, 16).expand(2, -1, -1, -1), embedding(2, 3), embedding(2, 4)
    with torch.no_grad():
        by_degradation = network(mu, content[:1].expand(2, -1), degradation)
        by_content = network(mu, content, degradation[:1].expand(2, -1))
        together = network(mu, content, degradation)
        alone = network(mu[1:], content[1:], degradation[1:])
    assert (by_degradation[0] - by_degradation[1]).abs().max() > 1e-3
    assert (by_content[0] - by_content[1]).abs().max() > 1e-3
    torch.testing.assert_close(together[1:], alone, rtol=1e-5, atol=1e-5)


def test_the_length_of_a_content_embedding_does_not_matter() -> None:
    network = shaken(NAFNet(**CONDITIONED))
    mu, content, degradation = drawn(1, 3, 16, 16), embedding(1, 3), embedding(1, 4)
    with torch.no_grad():
        torch.testing.assert_close(
            network(mu, content, degradation), network(mu, 30 * content, degradation), rtol=1e-5, atol=1e-5
        )


def test_one_kind_of_condition_can_be_left_out() -> None:
    for kept, dropped in (("content", "degradation"), ("degradation", "content")):
        off = {"degradation": False, "content": "none"}[dropped]
        network = shaken(NAFNet(**{**CONDITIONED, dropped: off}))
        mu, one, other = drawn(1, 3, 8, 8), embedding(1, 3), embedding(1, 4)
        with torch.no_grad():
            first = network(mu, **{kept: one, dropped: one})
            torch.testing.assert_close(first, network(mu, **{kept: one, dropped: other}), rtol=0, atol=0)
            assert (first - network(mu, **{kept: other, dropped: one})).abs().max() > 1e-4


@pytest.mark.parametrize("attention", ["pool", "embedding"])
@pytest.mark.parametrize("shuffle", [1, 2])
def test_every_weight_learns(attention: str, shuffle: int) -> None:
    network = shaken(NAFNet(**CONDITIONED, attention=attention, shuffle=shuffle)).train()
    restored = network(drawn(2, 3, 16, 24), embedding(2, 3), embedding(2, 4))
    (restored - drawn(2, 3, 16, 24, seed=9)).pow(2).mean().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


def test_the_first_step_of_training_reaches_the_modulation() -> None:
    network = NAFNet(**CONDITIONED)
    network(drawn(2, 3, 16, 16), embedding(2, 3), embedding(2, 4)).sum().backward()
    last = network.middle_blks[0].mlp[1].weight
    assert last.abs().max() == 0
    assert last.grad.abs().max() > 0


@pytest.mark.parametrize("shuffle", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 5), (16, 17), (33, 64)])
def test_any_size_keeps_its_size(shuffle: int, height: int, width: int) -> None:
    network = shaken(NAFNet(**CONDITIONED, shuffle=shuffle))
    with torch.no_grad():
        restored = network(drawn(1, 3, height, width), embedding(1, 3), embedding(1, 4))
    assert restored.shape == (1, 3, height, width)
    assert restored.isfinite().all()


def test_an_odd_size_is_the_padded_photo_cut_back() -> None:
    network = shaken(NAFNet(**CONDITIONED))
    mu, told = drawn(1, 3, 13, 22), (embedding(1, 3), embedding(1, 4))
    padded = nn.functional.pad(mu, (0, 2, 0, 3))
    with torch.no_grad():
        torch.testing.assert_close(network(mu, *told), network(padded, *told)[..., :13, :22])


def reach(settings: dict[str, Any]) -> int:
    """How far, in pixels, the network looks: one pixel of its level for each 3 x 3 convolution."""
    shuffle, levels = settings.get("shuffle", 1), len(settings["encoder_blocks"])
    total = 2 * shuffle + shuffle * 2**levels * settings["middle_blocks"]
    for level in range(levels):
        blocks = settings["encoder_blocks"][level] + settings["decoder_blocks"][levels - 1 - level]
        total += shuffle * 2**level * blocks
    return total + shuffle * 2**levels - 1  # the corner of a coarse pixel sees as far as its other corner


@pytest.mark.parametrize("attention", ["embedding", "pool"])
def test_a_tile_equals_the_whole_photo_away_from_its_borders(attention: str) -> None:
    settings = {**CONDITIONED, "attention": attention, "shuffle": 2}
    network, margin = shaken(NAFNet(**settings)), reach(settings)
    mu, told = drawn(1, 3, 96, 160), (embedding(1, 3), embedding(1, 4))
    with torch.no_grad():
        whole, tile = network(mu, *told), network(mu[..., 32:144], *told)
    difference = (whole[..., 32:144] - tile).abs()
    middle = difference[..., margin : 112 - margin].max()
    assert middle < 1e-5 if attention == "embedding" else middle > 1e-3
    assert difference.max() > 1e-3


def test_attention_to_the_content_takes_the_place_of_channel_attention_in_the_middle() -> None:
    settings = {
        **CONDITIONED,
        "width": 16,
        "encoder_blocks": (1,),
        "decoder_blocks": (1,),
        "content": "attention",
    }
    network = shaken(NAFNet(**settings))
    names = set(network.state_dict())
    assert any(name.startswith("middle_blks.0.attn.") for name in names)
    assert not any(name.startswith("middle_blks.0.sca.") for name in names)
    assert any(name.startswith("encoders.0.0.sca.") for name in names)
    mu, content, degradation = drawn(1, 3, 17, 19).expand(2, -1, -1, -1), embedding(2, 3), embedding(2, 4)
    with torch.no_grad():
        out = network(mu, content, degradation[:1].expand(2, -1))
    assert out.shape == mu.shape
    assert (out[0] - out[1]).abs().max() > 1e-4


def test_conditioning_without_a_width_of_embeddings_is_refused() -> None:
    with pytest.raises(ValueError, match="context_dim"):
        NAFNet(width=8, degradation=True)
