"""Stage 2: the restorer. Degraded patches in, clean patches out, told what the encoder saw in the photo."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from daclip import clip
from daclip.train.batch import Batch, draw_patches, draw_views, normalised, planes
from daclip.train.presets import RestorerRun
from daclip.vocabulary import CLEAN

_UNTOUCHED = 60.0
"""A patch closer to its clean photo than this, in dB, has nothing to gain."""


class RestorerJob(nn.Module):
    """A one-pass restorer in training, with its frozen encoder.

    Args:
        run: its settings.
        encoder: a DA-CLIP, which learns nothing.
        network: called as network(mu, content, degradation).
        mean, std: normalisation of what the encoder sees.
    """

    def __init__(
        self,
        run: RestorerRun,
        encoder: clip.DaClip,
        network: nn.Module,
        *,
        mean: Sequence[float] = clip.COMPACT_MEAN,
        std: Sequence[float] = clip.COMPACT_STD,
    ) -> None:
        super().__init__()
        self.run = run
        self.encoder = encoder.requires_grad_(False).eval()
        self.network = network.to(memory_format=torch.channels_last)
        self.mean, self.std = mean, std

    def learning(self) -> nn.ModuleDict:
        """What is trained, averaged and saved."""
        return nn.ModuleDict({"network": self.network})

    @torch.no_grad()
    def embeddings(
        self, regions: Float[Tensor, "b 3 h w"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """Content and degradation embedding of one view of each region."""
        (views,) = draw_views([regions], self.run.view, generator)
        found = self.encoder.encode(normalised(views, self.mean, self.std))
        return found.content.float(), found.degradation.float()

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss of patches cut from the regions of a batch, and figures for the log."""
        degraded, clean = planes(batch.degraded), planes(batch.clean)
        content, degradation = self.embeddings(degraded, generator)
        count = self.run.patches_per_region
        mu, x0 = draw_patches([degraded, clean], self.run.patch, count=count, generator=generator)
        restored = self.network(
            mu, content.repeat_interleave(count, 0), degradation.repeat_interleave(count, 0)
        )
        error = (restored.float() - x0).abs().mean((1, 2, 3))
        loss = LOSSES[self.run.loss](error).mean()
        before, after = psnr(mu, x0), psnr(restored.float().clamp(0, 1), x0)
        figures = {"l1": error.mean().item()}
        if len(gain := (after - before)[before < _UNTOUCHED]):
            figures["gain"] = gain.mean().item()
        return loss, figures

    @torch.no_grad()
    def validate(self, batches: Sequence[Batch]) -> dict[str, float]:
        """PSNR of input and result by degradation (mixtures: "mixed"), on whole regions, 8 bit; mean gain."""
        rows: dict[str, list[tuple[float, float]]] = {}
        for number, batch in enumerate(batches):
            mu, x0 = planes(batch.degraded), planes(batch.clean)
            restored = self.network(mu, *self.embeddings(mu, torch.Generator().manual_seed(number)))
            restored = (restored.float().clamp(0, 1) * 255).round() / 255
            for parts, before, after in zip(batch.names, psnr(mu, x0), psnr(restored, x0), strict=True):
                word = "mixed" if len(parts) > 1 else (parts or (CLEAN,))[0]
                rows.setdefault(word, []).append((float(before), float(after)))
        figures = {f"psnr/{word}": sum(after for _, after in row) / len(row) for word, row in rows.items()}
        inputs = {f"input/{word}": sum(before for before, _ in row) / len(row) for word, row in rows.items()}
        gains = [figures[f"psnr/{word}"] - inputs[f"input/{word}"] for word in rows if word != CLEAN]
        gain = {"gain": sum(gains) / len(gains)} if gains else {}
        return {**inputs, **figures, **gain}


def psnr(a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
    """PSNR in dB of each pair, for pixels in [0, 1]; equal pictures give 100."""
    return -10 * F.mse_loss(a, b, reduction="none").mean((1, 2, 3)).clamp(min=1e-10).log10()


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda error: error,
    "root-l1": lambda error: (error + 1e-3).sqrt(),
    # the floor keeps nearly clean patches, whose L1 is small, from outweighing all others
    "log-l1": lambda error: (error + 0.01).log(),
}
"""From the L1 of each patch to its loss: the more it is bent, the more small errors count beside large."""
