"""PromptIR: Restormer's blocks with learned maps in the decoder, chosen by what the features look like.

PromptIR (Potlapalli et al., NeurIPS 2023), and its form conditioned by DA-CLIP. Module names are the
published ones, so checkpoints load as they are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from daclip.errors import ModelError
from daclip.networks import restormer
from daclip.networks.conditioning import Conditions, Content
from daclip.networks.restormer import Level, TransformerBlock, down, up
from daclip.networks.unet import Projection, padded


class PromptIR(nn.Module):
    """Four levels of transformer blocks, a prompt joined before each step up; adds its output to the photo.

    Args:
        width: channels w of the first level, doubled at each further one; the last decoder level and the
            refinement have 2 w.
        blocks: of the four levels; the decoder has those of the first three.
        refinement: blocks at full resolution behind the decoder.
        heads: of the attention, by level.
        expansion: hidden channels of the feed-forward part per channel.
        prompts: channels of the prompts, of the second level first.
        prompt_sides: of the learned maps in pixels, in the same order; they are resized to the features.
        prompt_length: learned maps of a prompt.
        context_dim, degradation, content: see Conditions; the vector has 4 w numbers and modulates what each
            attention and each feed-forward part reads.
    """

    def __init__(
        self,
        *,
        width: int = 48,
        blocks: Sequence[int] = (4, 6, 6, 8),
        refinement: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        expansion: float = 2.66,
        prompts: Sequence[int] = (64, 128, 320),
        prompt_sides: Sequence[int] = (64, 32, 16),
        prompt_length: int = 5,
        context_dim: int | None = None,
        degradation: bool = False,
        content: Content = "none",
    ) -> None:
        super().__init__()
        self.multiple = 8
        self.conditions = Conditions(context_dim, 4 * width, degradation=degradation, content=content)
        one, two, three, four = (width * 2**i for i in range(4))

        def block(channels: int, head: int) -> TransformerBlock:
            return TransformerBlock(
                channels, heads=head, expansion=expansion, norm_bias=True, embedding=self.conditions.size
            )

        def level(channels: int, count: int, head: int) -> Level:
            return Level(block(channels, head) for _ in range(count))

        def prompt(place: int, channels: int) -> Prompt:
            return Prompt(channels, prompts[place], side=prompt_sides[place], length=prompt_length)

        self.patch_embed = Projection(3, one)
        self.encoder_level1 = level(one, blocks[0], heads[0])
        self.down1_2 = down(one)
        self.encoder_level2 = level(two, blocks[1], heads[1])
        self.down2_3 = down(two)
        self.encoder_level3 = level(three, blocks[2], heads[2])
        self.down3_4 = down(three)
        self.latent = level(four, blocks[3], heads[3])

        # published: the blocks that read a prompt all have the heads of level 3
        joined = [channels + more for channels, more in zip((two, three, four), prompts, strict=True)]
        self.prompt3 = prompt(2, four)
        self.noise_level3 = block(joined[2], heads[2])
        self.reduce_noise_level3 = nn.Conv2d(joined[2], three, 1, bias=False)
        self.up4_3 = up(three)
        self.reduce_chan_level3 = nn.Conv2d(two + three, three, 1, bias=False)
        self.decoder_level3 = level(three, blocks[2], heads[2])

        self.prompt2 = prompt(1, three)
        self.noise_level2 = block(joined[1], heads[2])
        self.reduce_noise_level2 = nn.Conv2d(joined[1], three, 1, bias=False)
        self.up3_2 = up(three)
        self.reduce_chan_level2 = nn.Conv2d(2 * two, two, 1, bias=False)
        self.decoder_level2 = level(two, blocks[1], heads[1])

        self.prompt1 = prompt(0, two)
        self.noise_level1 = block(joined[0], heads[2])
        self.reduce_noise_level1 = nn.Conv2d(joined[0], two, 1, bias=False)
        self.up2_1 = up(two)
        self.decoder_level1 = level(two, blocks[0], heads[0])
        self.refinement = level(two, refinement, heads[0])
        self.output = nn.Conv2d(two, 3, 3, padding=1, bias=False)

    def forward(
        self,
        mu: Float[Tensor, "b 3 h w"],
        content: Float[Tensor, "b d"] | None = None,
        degradation: Float[Tensor, "b d"] | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """The clean photo, unclamped. Embeddings un-normalised. Any size: reflected, then cropped."""
        height, width = mu.shape[-2:]
        photo = padded(mu, self.multiple)
        vector = self.conditions(content, degradation)
        first = self.encoder_level1(self.patch_embed(photo), vector)
        second = self.encoder_level2(self.down1_2(first), vector)
        third = self.encoder_level3(self.down2_3(second), vector)
        z = self.latent(self.down3_4(third), vector)
        z = self.noise_level3(torch.cat([z, self.prompt3(z)], dim=1), vector)
        z = self.up4_3(self.reduce_noise_level3(z))
        z = self.decoder_level3(self.reduce_chan_level3(torch.cat([z, third], dim=1)), vector)
        z = self.noise_level2(torch.cat([z, self.prompt2(z)], dim=1), vector)
        z = self.up3_2(self.reduce_noise_level2(z))
        z = self.decoder_level2(self.reduce_chan_level2(torch.cat([z, second], dim=1)), vector)
        z = self.noise_level1(torch.cat([z, self.prompt1(z)], dim=1), vector)
        z = self.up2_1(self.reduce_noise_level1(z))
        z = self.decoder_level1(torch.cat([z, first], dim=1), vector)
        z = self.output(self.refinement(z, vector))
        return (z + photo)[..., :height, :width]


class Prompt(nn.Module):
    """Learned maps weighted by a softmax over the mean of the features, at the size of the features.

    Args:
        features: channels of the features that choose.
        channels: of the maps.
        side: of the maps, in pixels.
        length: number of maps.
    """

    def __init__(self, features: int, channels: int, *, side: int, length: int) -> None:
        super().__init__()
        self.prompt_param = nn.Parameter(torch.rand(1, length, channels, side, side))
        self.linear_layer = nn.Linear(features, length)
        self.conv3x3 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b p h w"]:
        """The prompt of features x."""
        share = self.linear_layer(x.mean(dim=(2, 3))).softmax(dim=1)
        chosen = torch.einsum("bl,lpyx->bpyx", share, self.prompt_param[0])
        return self.conv3x3(F.interpolate(chosen, x.shape[-2:], mode="bilinear"))


def arguments_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `PromptIR` that fit published weights, read from their names and shapes.

    Raises ModelError when they are not those of a PromptIR with prompts.
    """
    try:
        maps = [state[f"prompt{place}.prompt_param"] for place in (1, 2, 3)]
    except KeyError as error:
        raise ModelError(f"not the weights of PromptIR: {error} is missing") from error
    found = restormer.arguments_of(state)
    del found["norm_bias"]
    return {
        **found,
        "prompts": [each.shape[2] for each in maps],
        "prompt_sides": [each.shape[3] for each in maps],
        "prompt_length": maps[0].shape[1],
    }


UNUSED = ("chnl_reduce", "reduce_noise_channel_")
"""published: starts of the names of convolutions that are in every file and that nothing reads."""
