"""The veil of haze is measured by the dark channel and taken off, as much as the network is told."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from daclip.errors import UsageError
from daclip.networks.conditioning import TONES, unit
from daclip.networks.drunet import DRUNet
from daclip.networks.veil import Veil, white, without_veil
from daclip.train.restorer import psnr
from test_drunet import TOLD, embeddings
from test_nafnet import drawn

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


def told_of_haze() -> Veil:
    veil = Veil(8)
    veil.listen(3 * torch.eye(8)[0], scale=10.0, bias=-2.0)
    return veil


def test_it_takes_what_the_encoder_calls_hazy_and_leaves_others_as_they_are() -> None:
    photo = scene(64, 64).expand(2, -1, -1, -1)
    answer = told_of_haze()(hazy(photo), unit(torch.eye(8)[:2]), torch.full((2,), 0.9))
    assert psnr(answer, photo)[0] - psnr(hazy(photo), photo)[0] > 3
    torch.testing.assert_close(answer[1], hazy(photo)[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("cosine", "is_taken"), [(0.25, True), (0.15, False)])
def test_below_a_half_nothing_is_taken(cosine: float, is_taken: bool) -> None:
    told = unit(torch.tensor([[cosine, (1 - cosine**2) ** 0.5, *[0.0] * 6]]))  # p of .62 and .38
    photo = hazy(scene(64, 64))
    answer = told_of_haze()(photo, told, torch.tensor([0.9]))
    assert ((answer - photo).abs().max() > 0.05) == is_taken


def test_untold_of_a_word_nothing_is_taken() -> None:
    photo = hazy(scene(64, 64))
    answer = Veil(8)(photo, unit(torch.eye(8)[:1]), torch.tensor([0.9]))
    torch.testing.assert_close(answer, photo, rtol=0, atol=1e-5)


def test_the_light_of_the_veil_is_read_from_the_tone() -> None:
    tone = torch.arange(TONES)[None] / TONES
    content = torch.cat([drawn(1, 16), tone], dim=1)
    torch.testing.assert_close(white(content), tone[:, 12:15].mean(1))


def test_a_network_takes_the_veil_off_before_its_blocks() -> None:
    network, given = DRUNet(**TOLD, tone=True, veil=True), embeddings(2)
    given["content"] = torch.cat([given["content"], torch.rand(2, TONES)], dim=1)
    assert network.veil is not None
    mu = hazy(scene(64, 64)).expand(2, -1, -1, -1)
    torch.testing.assert_close(network(mu, **given), mu, rtol=0, atol=1e-5)
    network.veil.listen(given["degradation"][0], scale=10.0, bias=-2.0)
    bare, errors = network.uncovered(mu, **given)
    assert (bare[0] - mu[0]).abs().max() > 0.05
    assert not errors, "nothing to learn"
    torch.testing.assert_close(network(mu, **given), bare, rtol=0, atol=1e-5)
    assert not [name for name, _ in network.named_parameters() if name.startswith("veil")]
    assert {"veil.direction", "veil.bias"} <= set(network.state_dict())


def test_the_veil_needs_the_tone() -> None:
    with pytest.raises(UsageError, match="tone"):
        DRUNet(**TOLD, veil=True)
