"""AirNet: the published network by its own names, its contrast, its phases. Conditioning: test_restormer."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from daclip.networks import airnet
from daclip.networks.airnet import AirNet, arguments_of, phase
from recorded_restorers import agrees, drawn, official_keys, photos, recording, shapes_of, state

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def published() -> AirNet:
    weights = state("airnet")
    network = AirNet(**arguments_of(weights)).eval()
    network.load_state_dict(weights, strict=True)
    return network


def tiny() -> AirNet:
    torch.manual_seed(0)
    return AirNet(width=8, groups=1, blocks=1, queue=10).train()


@torch.no_grad()
def test_a_published_state_dict_gives_the_published_pixels(published: AirNet) -> None:
    for mu, clean in photos("airnet"):
        assert agrees(published.eval()(mu), clean)
        assert not agrees(mu, clean)


@torch.no_grad()
def test_the_contrast_is_the_published_one_also_when_keys_have_been_queued() -> None:
    weights = state("airnet")
    network = AirNet(**arguments_of(weights)).train()
    network.load_state_dict(weights, strict=True)
    query, key = torch.from_numpy(recording()["query"]), torch.from_numpy(recording()["key"])
    for pair, wanted in zip([(query, key), (key, query)], recording()["logits"], strict=True):
        logits, labels = network.contrast(*pair)
        assert agrees(logits, torch.from_numpy(wanted))
        assert labels.tolist() == [0, 0, 0, 0]


def test_at_full_size_names_and_shapes_are_the_published_ones() -> None:
    keys = official_keys()["airnet"]
    assert arguments_of(keys) == {"width": 64, "groups": 5, "blocks": 5, "queue": 1280}
    with torch.device("meta"):
        built = AirNet()
    assert shapes_of(built.state_dict()) == shapes_of(keys)


@torch.no_grad()
def test_the_deformed_convolution_is_torchvisions() -> None:
    x, weight = drawn(2, 5, 7, 9).double(), drawn(4, 5, 3, 3, seed=2).double()
    offset = 6 * drawn(2, 18, 7, 9, seed=3).double() - 3  # some far outside
    mask = drawn(2, 9, 7, 9, seed=4).double()
    wanted = deform_conv2d(x, offset, weight, padding=1, mask=mask)
    found = airnet.deformed(x, weight, offset.unflatten(1, (9, 2)), mask)
    torch.testing.assert_close(found, wanted)


def test_gradients_are_the_same_whether_moved_maps_are_kept_or_made_again() -> None:
    conv = airnet.DeformedConv(4)
    with torch.no_grad():
        conv.conv_offset_mask.weight.add_(drawn(27, 8, 3, 3) - 0.5)
    x, guide = drawn(2, 4, 6, 5).requires_grad_(), drawn(2, 4, 6, 5, seed=2)
    again = torch.autograd.grad(conv(x, guide).square().sum(), [x, *conv.parameters()])
    found = conv.conv_offset_mask(torch.cat([x, guide], dim=1))
    kept = airnet.deformed(x, conv.weight, found[:, :18].unflatten(1, (9, 2)), found[:, 18:].sigmoid())
    for ours, wanted in zip(
        again, torch.autograd.grad(kept.square().sum(), [x, *conv.parameters()]), strict=True
    ):
        torch.testing.assert_close(ours, wanted)


def test_the_contrast_teaches_the_encoder_alone_and_moves_its_follower_slowly() -> None:
    network = tiny()
    with torch.no_grad():
        for weight in network.encoder.parameters():
            weight.add_(0.1)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    F.cross_entropy(*network.contrast(drawn(4, 3, 16, 16), drawn(4, 3, 16, 16, seed=2))).backward()
    learning = {key for key, weight in network.named_parameters() if weight.grad is not None}
    assert learning == {f"E.E.encoder_q.{key}" for key, _ in network.encoder.named_parameters()}
    after = network.state_dict()
    name = "mlp.0.weight"
    moved = 0.999 * before[f"E.E.encoder_k.{name}"] + 0.001 * before[f"E.E.encoder_q.{name}"]
    torch.testing.assert_close(after[f"E.E.encoder_k.{name}"], moved)
    assert not torch.equal(moved, before[f"E.E.encoder_k.{name}"])


def test_the_queue_holds_the_latest_keys_at_any_batch_size() -> None:
    network = tiny()
    for seed in range(4):
        network.contrast(drawn(4, 3, 8, 8, seed=seed), drawn(4, 3, 8, 8, seed=seed + 9))
    queue, pointer = (network.state_dict()[f"E.E.{key}"] for key in ("queue", "queue_ptr"))
    assert pointer.tolist() == [16 % 10]
    torch.testing.assert_close(queue.norm(dim=0), torch.ones(10))
    keys = network.E["E"].encoder_k(drawn(4, 3, 8, 8, seed=12))
    torch.testing.assert_close(queue[:, 2:6], F.normalize(keys, dim=1).T)


@pytest.mark.slow
def test_the_encoder_learns_to_tell_two_degradations_apart() -> None:
    network = tiny()
    optimiser = torch.optim.Adam(network.encoder.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor([0.02, 0.5] * 4)[:, None, None, None]

    def cut() -> torch.Tensor:
        return 0.5 + levels * torch.randn(8, 3, 16, 16, generator=generator)

    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(*network.contrast(cut(), cut())).backward()
        optimiser.step()
    with torch.no_grad():
        a, b = (F.normalize(network.encoder(cut()), dim=1) for _ in range(2))
    likeness = a @ b.T
    alike = likeness[::2, ::2].mean() + likeness[1::2, 1::2].mean()
    assert alike / 2 > likeness[::2, 1::2].mean() + 0.5


def test_the_schedule_is_the_published_one() -> None:
    assert phase(0.0) == airnet.Phase(restores=False, contrast_weight=1.0, learning_rate=1e-3)
    assert phase(0.0999).learning_rate == pytest.approx(1e-4)
    assert phase(0.1) == airnet.Phase(restores=True, contrast_weight=0.1, learning_rate=1e-4)
    assert phase(0.225).learning_rate == 5e-5
    assert phase(1.0).learning_rate == pytest.approx(1e-4 / 128)
