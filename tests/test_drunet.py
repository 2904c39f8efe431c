"""DRUNet: residual blocks and nothing else, told by DA-CLIP what is wrong."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from daclip import checkpoints, image, models, tiling
from daclip.engine.torch import TorchEngine
from daclip.errors import UsageError
from daclip.networks.conditioning import TONES, ContentVector, unit
from daclip.networks.drunet import DiffusionDRUNet, DRUNet, ResBlock, closed
from daclip.restore import Restorer
from test_nafnet import drawn, shaken

pytestmark = pytest.mark.torch

TOLD: dict[str, Any] = {
    "widths": (8, 12),
    "encoder_blocks": (1,),
    "middle_blocks": 1,
    "decoder_blocks": (2,),
    "context_dim": 6,
    "degradation": True,
    "content": "vector",
    "shuffle": 2,
    "factors": True,
}


def embeddings(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(count, 6, generator=generator).requires_grad_()
        for name in ("content", "degradation")
    }


def test_rectifiers_leak_below_zero() -> None:
    block = shaken(ResBlock(4, 0, 0.25))
    x = drawn(1, 4, 8, 8)
    first = block.conv1(x)
    wanted = x + block.conv2(torch.where(first > 0, first, first / 4))
    torch.testing.assert_close(block(x, None), wanted)
    assert (first < 0).any()


def test_channels_that_no_photo_opens_are_counted() -> None:
    network = shaken(DRUNet(**TOLD))
    mu, told = drawn(2, 3, 32, 32), [each.detach() for each in embeddings(2).values()]
    assert closed(network, mu, *told) < 0.2
    with torch.no_grad():
        network.middle[0].conv1.bias.fill_(-100)
    # 12 of the 12 + 8 + 2 x 8 channels
    assert closed(network, mu, *told) == pytest.approx(1 / 3, abs=0.1)
    assert not any(each._forward_pre_hooks for each in network.modules())


def test_channels_of_the_bundled_network_are_open() -> None:
    """Nine tenths were closed once, and no error told."""
    restorer = Restorer("compact", engine="torch", precision="fp32", device="cpu")
    assert isinstance(restorer.engine, TorchEngine)
    network = restorer.engine.network
    assert isinstance(network, DRUNet)
    photo = image.read(Path(models.__file__).parent / "photos" / "rainy.jpg").own[:256, :256]
    told = restorer.condition(restorer.encode(photo))
    assert told is not None
    mu = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None] / 255
    assert closed(network, mu, torch.from_numpy(told.content), torch.from_numpy(told.degradation)) < 0.1


@pytest.mark.parametrize("side", [(1, 1), (37, 50), (64, 64)])
def test_an_untrained_network_gives_the_photo_back_whatever_its_size(side: tuple[int, int]) -> None:
    mu = drawn(2, 3, *side)
    with torch.no_grad():
        torch.testing.assert_close(DRUNet(**TOLD)(mu, **embeddings(2)), mu, rtol=0, atol=0)


def test_blocks_are_those_of_the_paper() -> None:
    """x + conv(relu(conv(x))) with 3 x 3 kernels; strided 2 x 2 convolutions down, transposed ones up."""
    network = shaken(DRUNet(widths=(4, 8), encoder_blocks=(1,), middle_blocks=1, decoder_blocks=(1,)))
    w = dict(network.named_parameters())
    conv, mu = nn.functional.conv2d, drawn(1, 3, 8, 8)

    def block(x: Tensor, name: str) -> Tensor:
        first = conv(x, w[f"{name}.conv1.weight"], w[f"{name}.conv1.bias"], padding=1).clamp(min=0)
        return x + conv(first, w[f"{name}.conv2.weight"], w[f"{name}.conv2.bias"], padding=1)

    fine = block(conv(mu, w["head.weight"], w["head.bias"], padding=1), "encoders.0.0")
    x = block(conv(fine, w["downs.0.weight"], w["downs.0.bias"], stride=2), "middle.0")
    x = nn.functional.conv_transpose2d(x, w["ups.0.weight"], w["ups.0.bias"], stride=2)
    x = conv(block(x + fine, "decoders.0.0"), w["tail.weight"], w["tail.bias"], padding=1)
    torch.testing.assert_close(network(mu), mu + x)


def test_the_tone_of_the_photo_is_read_behind_the_content_and_says_nothing_at_the_start() -> None:
    plain, told = DRUNet(**TOLD), DRUNet(**TOLD, tone=True)
    shaken(plain)
    missing = told.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert {name.rsplit(".", 3)[0] for name in missing} == {"conditions.tone"}
    mu, given = drawn(2, 3, 16, 16), {name: each.detach() for name, each in embeddings(2).items()}
    tone = torch.rand(2, TONES, generator=torch.Generator().manual_seed(4))
    with_tone = {**given, "content": torch.cat([given["content"], tone], dim=1)}
    torch.testing.assert_close(told(mu, **with_tone), plain(mu, **given))
    shaken(told)
    brighter = {**given, "content": torch.cat([given["content"], tone + 0.2], dim=1)}
    assert (told(mu, **with_tone) - told(mu, **brighter)).abs().max() > 1e-3
    with pytest.raises(UsageError, match="tone follows the content"):
        DRUNet(**{**TOLD, "content": "none"}, tone=True)


def test_a_network_with_factors_multiplies_the_photo_where_it_stands() -> None:
    network, mu = DRUNet(**TOLD), drawn(2, 3, 37, 50)
    with torch.no_grad():
        # the tail's planes at half resolution: red, green, blue, four neighbours each, terms before factors
        network.tail.bias.copy_(torch.tensor([0.1, 0, 0, 0.5, 1, -1]).repeat_interleave(4))
        wanted = mu * torch.tensor([1.5, 2, 0])[:, None, None] + torch.tensor([0.1, 0, 0])[:, None, None]
        torch.testing.assert_close(network(mu, **embeddings(2)), wanted)


def test_every_weight_learns_and_both_embeddings_are_heard() -> None:
    network = shaken(DRUNet(**TOLD)).train()
    told = embeddings(2)
    network(drawn(2, 3, 16, 24), **told).pow(2).mean().backward()
    for name, tensor in (*network.named_parameters(), *told.items()):
        assert tensor.grad is not None, name
        assert tensor.grad.abs().max() > 0, name


@pytest.mark.parametrize("heard", [(), ("content",), ("degradation",), ("content", "degradation")])
def test_a_network_hears_only_the_embeddings_it_asks_for(heard: tuple[str, ...]) -> None:
    content = "vector" if "content" in heard else "none"
    network = shaken(DRUNet(**{**TOLD, "degradation": "degradation" in heard, "content": content}))
    mu, own = drawn(2, 3, 16, 24), {name: each.detach() for name, each in embeddings(2).items()}
    with torch.no_grad():
        first = network(mu, **own)
        changes = {name: not torch.equal(network(mu, **{**own, name: -own[name]}), first) for name in own}
    assert changes == {name: name in heard for name in own}


def test_a_part_of_a_photo_gets_the_pixels_of_the_whole_away_from_its_border() -> None:
    """Nothing is averaged over the photo: what a tile does not show cannot matter in its middle."""
    network, mu, told = shaken(DRUNet(**TOLD)), drawn(1, 3, 96, 96), embeddings(1)
    with torch.no_grad():
        whole, part = network(mu, **told), network(mu[..., 16:80, 16:80], **told)
    torch.testing.assert_close(part[..., 26:38, 26:38], whole[..., 42:54, 42:54], rtol=1e-5, atol=1e-5)


def test_the_vector_of_a_content_unlike_all_others_is_shortened() -> None:
    part = ContentVector(6, 8)
    content = drawn(5, 6)
    for size in (0.01, 100.0):
        nn.init.normal_(part.out.weight, std=size, generator=torch.Generator().manual_seed(4))
        whole = part.out(nn.functional.silu(part.hidden(unit(content))))
        length = whole.square().mean(1).sqrt()
        assert bool((length > 0.6).all()) == (size == 100)
        wanted = whole if size < 1 else whole / length[:, None] * 0.6
        torch.testing.assert_close(part(content), wanted)


def test_the_bundled_restorer_stays_in_bounds_whatever_content_it_is_told() -> None:
    """Its thirteen blocks multiply: without a bound these come out as 8e8."""
    model = checkpoints.load(models.find("compact"))
    generator = torch.Generator().manual_seed(0)
    tone = tiling.tone(drawn(1, 3, 64, 64).permute(0, 2, 3, 1).numpy())
    content = torch.cat(
        [torch.randn(60, 256, generator=generator), torch.from_numpy(tone).expand(60, -1)], dim=1
    )
    noisy = models.find("compact-encoder").texts.embeddings[4:5].repeat(60, 0)
    with torch.no_grad():
        restored = model.network.float()(
            drawn(1, 3, 16, 16).expand(60, -1, -1, -1), content, torch.from_numpy(noisy).float()
        )
    assert float(restored.abs().max()) < 10


def test_bfloat16_leaves_the_embeddings_in_full() -> None:
    """Half a percent of an embedding's direction would be another degradation."""
    network, told = shaken(DRUNet(**TOLD)), embeddings(2)
    with torch.no_grad():
        wanted = network.conditions(**told)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(network.conditions(**told), wanted, rtol=0, atol=0)


def test_conditions_without_a_width_of_embeddings_are_refused() -> None:
    with pytest.raises(UsageError, match="width of the embeddings"):
        DRUNet(degradation=True)


def test_a_diffusion_with_the_weights_of_a_trained_network_restores_as_that_does_at_any_time() -> None:
    one_pass, diffusion = shaken(DRUNet(**TOLD)), DiffusionDRUNet(**TOLD)
    diffusion.load_state_dict({**diffusion.state_dict(), **one_pass.state_dict()})
    mu, told = drawn(2, 3, 37, 50), embeddings(2)
    with torch.no_grad():
        restored = diffusion(drawn(2, 3, 37, 50, seed=2), mu, torch.tensor([3.0, 80.5]), **told)
        torch.testing.assert_close(restored, one_pass(mu, **told))


@pytest.mark.parametrize("is_told", [True, False])
def test_a_diffusion_hears_the_state_and_the_time_and_learns_with_every_weight(is_told: bool) -> None:
    plain = {"context_dim": None, "degradation": False, "content": "none"}
    network = shaken(DiffusionDRUNet(**{**TOLD, **({} if is_told else plain)})).train()
    x, mu = drawn(2, 3, 16, 24, seed=2).requires_grad_(), drawn(2, 3, 16, 24)
    t = torch.tensor([3.0, 80.0])
    told = embeddings(2) if is_told else {}
    network(x, mu, t, **told).pow(2).mean().backward()
    for name, tensor in (*network.named_parameters(), *told.items(), ("x", x)):
        assert tensor.grad is not None, name
        assert tensor.grad.abs().max() > 0, name
    with torch.no_grad():
        assert not torch.equal(network(x, mu, t, **told), network(x, mu, t + 9, **told))
