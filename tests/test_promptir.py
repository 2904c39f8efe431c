"""PromptIR: the published network by its own names, and its prompts. Conditioning: see test_restormer."""

import pytest
import torch
from torch.nn import functional as F

from daclip.networks.promptir import UNUSED, Prompt, PromptIR, arguments_of
from recorded_restorers import agrees, drawn, official_keys, photos, shaken, shapes_of, state

pytestmark = pytest.mark.torch


@torch.no_grad()
def test_a_published_state_dict_gives_the_published_pixels() -> None:
    weights = {key: value for key, value in state("promptir").items() if not key.startswith(UNUSED)}
    ours = PromptIR(**arguments_of(weights)).eval()
    ours.load_state_dict(weights, strict=True)
    for mu, clean in photos("promptir"):
        assert agrees(ours(mu), clean)
        assert not agrees(mu, clean)


def test_at_full_size_names_and_shapes_are_the_published_ones() -> None:
    keys = official_keys()["promptir"]
    used = {key: value for key, value in keys.items() if not key.startswith(UNUSED)}
    assert len(keys) - len(used) == 6
    with torch.device("meta"):
        built = PromptIR()
    assert shapes_of(built.state_dict()) == shapes_of(used)
    assert sum(value.numel() for value in keys.values()) == 35_592_263
    with torch.device("meta"):
        told = PromptIR(**arguments_of(used))
    assert shapes_of(told.state_dict()) == shapes_of(used)


@torch.no_grad()
def test_a_prompt_is_its_maps_weighted_by_the_features_at_their_size() -> None:
    prompt = shaken(Prompt(5, 4, side=3, length=2))
    x = drawn(2, 5, 6, 9)
    share = prompt.linear_layer(x.mean((2, 3))).softmax(dim=1)
    for i in range(2):
        mixed = share[i, 0] * prompt.prompt_param[:, 0] + share[i, 1] * prompt.prompt_param[:, 1]
        wanted = prompt.conv3x3(F.interpolate(mixed, (6, 9), mode="bilinear"))
        torch.testing.assert_close(prompt(x)[i : i + 1], wanted)
