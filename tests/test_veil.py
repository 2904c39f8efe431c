"""The veil of haze is measured by the dark channel and taken off, as much as the network is told."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from daclip.errors import UsageError
from daclip.networks.conditioning import TONES
from daclip.networks.drunet import DRUNet
from daclip.networks.veil import Veil, white, without_veil
from daclip.train.restorer import psnr
from test_drunet import TOLD, embeddings
from test_nafnet import drawn, shaken

pytestmark = pytest.mark.torch


def scene(height: int, width: int) -> Tensor:
    """Small patches of colour; some colour is dark nearly everywhere, as in photos without haze."""
    coarse = torch.rand(1, 3, height // 4 + 1, width // 4 + 1, generator=torch.Generator().manual_seed(3))
    return F.interpolate(coarse, scale_factor=4, mode="nearest")[..., :height, :width] ** 2


def hazy(photo: Tensor, airlight: float = 0.9) -> Tensor:
    """Koschmieder's law, denser to the right."""
    through = torch.linspace(0.8, 0.3, photo.shape[-1])
    return photo * through + airlight * (1 - through)


@pytest.mark.parametrize("side", [(96, 128), (61, 83), (33, 35)])
def test_most_of_the_haze_is_taken_off_at_any_size(side: tuple[int, int]) -> None:
    photo = scene(*side)
    bare = without_veil(hazy(photo), torch.tensor(0.95), torch.full((1, 1, 1, 1), 0.9))
    assert bare.shape == photo.shape
    assert (psnr(bare, photo) - psnr(hazy(photo), photo)) > 3


def test_without_strength_the_photo_stays() -> None:
    photo = drawn(2, 3, 61, 83).sigmoid()
    same = without_veil(photo, torch.zeros(2, 1, 1, 1), torch.full((2, 1, 1, 1), 0.8))
    torch.testing.assert_close(same, photo, rtol=0, atol=1e-5)


def test_black_photos_stay_numbers() -> None:
    black = torch.zeros(1, 3, 32, 32)
    assert without_veil(black, torch.tensor(1.0), torch.zeros(1, 1, 1, 1)).isfinite().all()


def test_it_learns_from_hazy_photos_and_leaves_others_as_they_are() -> None:
    photo = scene(64, 64)
    given = torch.cat([hazy(photo), photo * 0.3, photo + 0.05 * drawn(1, 3, 64, 64)])
    vector, lightness = torch.zeros(3, 8), torch.full((3,), 0.9)
    answer, error = Veil(8).lesson(given, vector, lightness, photo.expand(3, -1, -1, -1))
    torch.testing.assert_close(answer, given, rtol=0, atol=1e-5)
    assert error[0] > 0.1, "asked for the photo behind the veil"
    assert (error[1:] < 0.03).all(), "asked to stay as they are"


def test_how_much_is_taken_is_learnt_from_the_embeddings() -> None:
    veil, photo, lightness = Veil(8), scene(64, 64).expand(2, -1, -1, -1), torch.full((2,), 0.9)
    vector = torch.eye(8)[:2]
    given = torch.cat([hazy(photo[:1]), photo[1:]])
    optimiser = torch.optim.Adam(veil.parameters(), lr=0.3)
    for _ in range(30):
        optimiser.zero_grad()
        veil.lesson(given, vector, lightness, photo)[1].mean().backward()
        optimiser.step()
    strength = veil.strength(vector).sigmoid()
    assert strength[0] > 0.7
    assert strength[1] < 0.1


def test_the_light_of_the_veil_is_read_from_the_tone() -> None:
    tone = torch.arange(TONES)[None] / TONES
    content = torch.cat([drawn(1, 16), tone], dim=1)
    torch.testing.assert_close(white(content), tone[:, 12:15].mean(1))


def test_a_network_takes_the_veil_off_first_and_its_blocks_do_not_teach_it() -> None:
    network, given = shaken(DRUNet(**TOLD, tone=True, veil=True)), embeddings(2)
    given["content"] = torch.cat([given["content"], torch.rand(2, TONES)], dim=1)
    assert network.veil is not None
    mu = hazy(scene(64, 64)).expand(2, -1, -1, -1)
    restored, (error,) = network(mu, **given, clean=scene(64, 64).expand(2, -1, -1, -1))
    torch.testing.assert_close(network(mu, **given), restored)
    restored.abs().mean().backward(retain_graph=True)
    assert network.veil.strength.bias.grad is None
    error.mean().backward()
    assert network.veil.strength.bias.grad is not None
    others = network.conditions.parameters()
    network.zero_grad()
    network.veil(mu, torch.ones(2, 6), torch.ones(2)).mean().backward()
    assert not any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in others)


def test_the_veil_needs_the_tone() -> None:
    with pytest.raises(UsageError, match="tone"):
        DRUNet(**TOLD, veil=True)
