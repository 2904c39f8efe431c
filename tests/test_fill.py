"""What hides the photo is found and filled from around, without a weight in the filling itself."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from daclip.networks.drunet import DRUNet
from daclip.networks.fill import Fill, flat, hardness, push_pull
from daclip.train.restorer import psnr
from test_drunet import TOLD, embeddings
from test_nafnet import drawn, shaken

pytestmark = pytest.mark.torch


def smooth(count: int, height: int, width: int) -> Tensor:
    """Soft pictures with values in [0.1, 0.7]."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(7))
    return F.interpolate(coarse, (height, width), mode="bilinear") * 0.6 + 0.1


def holed(photos: Tensor, side: int = 12) -> Tensor:
    """The pictures with a white square each, somewhere else in each."""
    result = photos.clone()
    for i, photo in enumerate(result):
        top, left = 3 + 7 * i % 40, 5 + 11 * i % 40
        photo[:, top : top + side, left : left + side] = 1
    return result


def test_pixels_that_are_not_trusted_are_not_in_what_is_put_in_their_place() -> None:
    photo = torch.tensor([0.2, 0.5, 0.7])[None, :, None, None].expand(1, 3, 128, 256).clone()
    photo[..., 128:] = 0.9
    trust = torch.ones(1, 1, 128, 256)
    hidden = photo.clone()
    hidden[..., 30:70, 20:60] = 1
    trust[..., 30:70, 20:60] = 0
    filled = push_pull(hidden, trust)
    inside = filled[..., 30:70, 20:50]
    torch.testing.assert_close(inside, photo[..., 30:70, 20:50], rtol=0, atol=0.02)
    torch.testing.assert_close(filled[..., 200:], photo[..., 200:], rtol=0, atol=1e-3)


def test_flat_is_a_hole_of_one_colour_to_its_border_and_nothing_that_has_noise() -> None:
    photo = smooth(1, 40, 40) + 0.05 * drawn(1, 3, 40, 40)
    assert flat(photo).sum() == 0
    hole = torch.zeros(1, 1, 40, 40)
    hole[..., 5:17, 8:10] = 1
    hole[..., 30:, 20:] = 1
    colour = torch.tensor([1.0, 0.5, 0.0])[:, None, None]
    torch.testing.assert_close(flat(torch.where(hole > 0, colour, photo)), hole)


def test_the_tips_of_a_hole_are_counted_in_by_their_colour() -> None:
    photo = smooth(1, 40, 40) + 0.05 * drawn(1, 3, 40, 40)
    hole = torch.zeros(1, 1, 40, 40)
    hole[..., 10:20, 10:20] = 1
    hole[..., 9, 12] = hole[..., 20, 20] = 1  # in no square of one colour
    found = flat(torch.where(hole > 0, torch.tensor(1.0), photo))
    torch.testing.assert_close(found, hole)
    photo[..., 9, 15] = 0.98  # nearly that colour, but not it
    torch.testing.assert_close(flat(torch.where(hole > 0, torch.tensor(1.0), photo)), hole)


def test_a_hole_has_hard_borders_and_a_clipped_sky_has_not_far_into_both() -> None:
    photo = smooth(1, 128, 256) + 0.02 * drawn(1, 3, 128, 256)
    hole, sky = photo.clone(), photo.clone()
    hole[..., :100, :100] = 1
    ramp = torch.linspace(1.4, 0, 256).expand(128, 256)  # over the border it loses a hundredth a pixel
    sky = (sky + ramp).clamp(max=1)
    found = [hardness(each, flat(each))[..., :50, :20].mean() for each in (hole, sky)]
    assert found[0] > 0.7
    assert found[1] < 0.3
    assert hardness(photo, flat(photo)).abs().max() == 0


def test_what_is_flat_and_fades_into_the_photo_is_no_hole_from_the_start() -> None:
    fill, photo = Fill(4, 0), smooth(1, 128, 256) + 0.02 * drawn(1, 3, 128, 256)
    sky = (photo + torch.linspace(1.4, 0, 256)).clamp(max=1)
    hole = photo.clone()
    hole[..., 30:60, 30:60] = 1
    with torch.no_grad():
        assert (fill(sky, None) - sky).abs().max() < 0.05
        assert (fill(hole, None) - hole).abs()[..., 35:55, 35:55].min() > 0.1


def test_where_nothing_can_be_trusted_numbers_stay_numbers() -> None:
    assert push_pull(torch.ones(1, 3, 128, 128), torch.zeros(1, 1, 128, 128)).isfinite().all()


@pytest.mark.parametrize("side", [(1, 1), (37, 50), (130, 128)])
def test_an_untrained_one_leaves_the_photo_nearly_as_it_is(side: tuple[int, int]) -> None:
    photo = smooth(2, *side) + 0.02 * drawn(2, 3, *side)
    filled = Fill(4, 0)(photo, None)
    assert filled.shape == photo.shape
    assert (filled - photo).abs().max() < 0.03


def test_a_hole_that_is_hardly_found_is_filled_from_its_border_alone() -> None:
    """A network is never quite sure: what it trusts a little in the hole must not outweigh the border."""
    fill, clean = Fill(4, 0), smooth(1, 64, 64)
    hole = (holed(clean) - clean).abs().amax(1, keepdim=True) > 0
    found = torch.where(hole, 2.5, -4.0)
    left = (fill.without_hidden(holed(clean), found, None) - clean).abs()[hole.expand_as(clean)]
    assert left.mean() < 0.3 * (1 - clean)[hole.expand_as(clean)].mean()


@pytest.mark.parametrize("side", [(1, 1), (37, 50), (200, 256)])
def test_a_photo_of_one_colour_stays(side: tuple[int, int]) -> None:
    photo = torch.tensor([0.9, 0.5, 0.1])[:, None, None].expand(1, 3, *side)
    torch.testing.assert_close(Fill(4, 0)(photo, None), photo, rtol=0, atol=1e-4)


def test_an_untrained_one_fills_what_is_flat() -> None:
    clean = smooth(1, 64, 64) + 0.02 * drawn(1, 3, 64, 64)
    photo = clean.clone()
    photo[..., 20:30, 20:50] = 1
    with torch.no_grad():
        filled = Fill(4, 0)(photo, None)
    assert psnr(filled, clean) > psnr(photo, clean) + 10


def test_it_learns_what_hides_and_on_which_photos_anything_does() -> None:
    torch.manual_seed(0)
    fill, clean = Fill(8, 2), smooth(6, 64, 64)
    told = torch.tensor([[1.0, 0]] * 3 + [[0, 1.0]] * 3)
    degraded = torch.cat([holed(clean[:3]), clean[3:] * 0.3])
    optimiser = torch.optim.Adam(fill.parameters(), lr=1e-2)
    for _ in range(80):
        optimiser.zero_grad()
        _, error = fill.lesson(degraded, told, clean)
        error.mean().backward()
        optimiser.step()
    with torch.no_grad():
        filled = fill(degraded, told)
    assert (psnr(filled, clean) - psnr(degraded, clean))[:3].min() > 6
    assert (filled - degraded)[3:].abs().mean() < 0.01


def test_noise_and_darkness_hide_nothing() -> None:
    clean = smooth(2, 64, 64)
    degraded = torch.stack([clean[0] * 0.3, clean[1] + 0.05 * drawn(3, 64, 64)])
    fill = Fill(4, 2)
    assert fill.gate is not None
    _, error = fill.lesson(degraded, torch.zeros(2, 2), clean)
    fill.gate.bias = nn.Parameter(torch.tensor([-9.0]))
    _, closed = fill.lesson(degraded, torch.zeros(2, 2), clean)
    assert (error > 0.6).all()
    assert (closed < 0.01).all()


def test_a_closed_one_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    fill, photo, told = Fill(4, 6).eval(), torch.rand(2, 3, 128, 128), torch.ones(2, 6)
    photo[:, :, 40:60, 40:60] = 1.0
    assert fill.gate is not None
    with torch.no_grad():
        fill.gate.bias.fill_(4.0)
        assert not torch.equal(fill(photo, told), photo)
        fill.gate.bias.fill_(-4.0)
        monkeypatch.setattr(fill, "without_hidden", pytest.fail)
        assert torch.equal(fill(photo, told), photo)


def test_the_network_sees_the_filled_photo_and_what_was_taken_and_neither_learns_for_the_other() -> None:
    network, given = shaken(DRUNet(**TOLD, fill=True)), embeddings(2)
    assert network.fill is not None
    assert network.taken is not None
    mu, clean = holed(smooth(2, 64, 64)), smooth(2, 64, 64)
    restored, (error,) = network(mu, **given, clean=clean)
    torch.testing.assert_close(network(mu, **given), restored)
    restored.abs().mean().backward(retain_graph=True)
    assert all(weight.grad is None for weight in network.fill.parameters())
    assert network.taken.weight.grad is not None
    assert network.taken.weight.grad.abs().max() > 0
    network.zero_grad()
    error.mean().backward()
    assert all(weight.grad is not None for weight in network.fill.parameters())
    others = [w for name, w in network.named_parameters() if not name.startswith("fill.")]
    assert not any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in others)


def test_a_network_with_fill_starts_near_one_without() -> None:
    plain, filling = DRUNet(**TOLD), DRUNet(**TOLD, fill=True)
    shaken(plain)
    missing = filling.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert {name.split(".")[0] for name in missing} == {"fill", "taken"}
    mu, given = smooth(2, 32, 32) + 0.01 * drawn(2, 3, 32, 32), embeddings(2)
    with torch.no_grad():
        assert (filling(mu, **given) - plain(mu, **given)).abs().mean() < 0.02
