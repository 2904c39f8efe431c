"""Stage 2: the restorer. Degraded patches in, clean patches out, told what the encoder saw in the photo."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from daclip import clip, detect, sampling
from daclip.detect import ClassTexts
from daclip.diffusion import IRSDE
from daclip.errors import UsageError
from daclip.networks import airnet, recompute
from daclip.networks.airnet import AirNet
from daclip.networks.drunet import DRUNet, closed
from daclip.networks.shade import Shade
from daclip.train.batch import Batch, draw_patches, draw_views, normalised, planes, tones
from daclip.train.optim import learning_rate
from daclip.train.presets import ONE_PASS, RestorerRun
from daclip.vocabulary import CLEAN, SHADOWED

_UNTOUCHED = 60.0
"""A patch closer to its clean photo than this, in dB, has nothing to gain."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the encoder saw, one row for each patch; None for a network that is not told."""

    content: Float[Tensor, "b k"] | None
    degradation: Float[Tensor, "b d"] | None

    def repeated(self, count: int) -> "Context":
        """Each row `count` times, for as many patches of one region."""
        return Context(
            content=None if self.content is None else self.content.repeat_interleave(count, 0),
            degradation=None if self.degradation is None else self.degradation.repeat_interleave(count, 0),
        )


class RestorerJob(nn.Module):
    """A restorer in training, with its frozen encoder.

    Args:
        run: its settings.
        encoder: a DA-CLIP, which learns nothing; None for a network without embeddings.
        network: called as network(mu, content, degradation), or for diffusion as
            network(x, mu, t, content=..., degradation=...).
        initial: of one pass, which learns nothing; the network goes on from its answer. None: from the
            degraded patch itself.
        texts: of the words, for photos whose damage the network is told by name.
        mean, std: normalisation of what the encoder sees.
    """

    def __init__(
        self,
        run: RestorerRun,
        encoder: clip.DaClip | None,
        network: nn.Module,
        *,
        initial: nn.Module | None = None,
        texts: ClassTexts | None = None,
        mean: Sequence[float] = clip.COMPACT_MEAN,
        std: Sequence[float] = clip.COMPACT_STD,
    ) -> None:
        super().__init__()
        self.run = run
        self.encoder = None if encoder is None else encoder.requires_grad_(False).eval()
        self.network = channels_last(network)
        if run.checkpoint_activations:
            recompute.checkpoint_activations(network)
        self.initial = None if initial is None else channels_last(initial).requires_grad_(False).eval()
        self.texts = texts
        self._words: dict[tuple[str, ...], Tensor] = {}
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        self.sde = IRSDE(**run.sde)
        _check_objective(run.objective, network)
        if run.objective == "blocks":
            for part in cast("DRUNet", network).first_parts():
                part.requires_grad_(False)

    def learning(self) -> nn.ModuleDict:
        """What is trained, averaged and saved."""
        return nn.ModuleDict({"network": self.network})

    def networks(self) -> list[nn.Module]:
        """What `compile` compiles."""
        return [each for each in (self.network, self.initial) if each is not None]

    def train(self, mode: bool = True) -> "RestorerJob":
        """The network to its training mode; encoder and initial only look on."""
        super().train(mode)
        for frozen in (self.encoder, self.initial):
            if frozen is not None:
                frozen.eval()
        return self

    @torch.no_grad()
    def context(self, regions: Float[Tensor, "b 3 h w"], generators: Sequence[torch.Generator]) -> Context:
        """Content and degradation embedding of one view of each region, and the tone of all of it.

        Neither where nobody asks for them.
        """
        if self.encoder is None or self.run.objective == "light":
            return Context(content=None, degradation=None)
        (views,) = draw_views([regions], self.run.view, generators)
        found = self.encoder.encode(normalised(views, self.mean, self.std))
        content = found.content.float()
        if self.run.network.get("tone"):
            content = torch.cat([content, tones(regions)], dim=1)
        return Context(content=content, degradation=found.degradation.float())

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of patches cut from the regions of a batch, and figures for the log, on its device.

        The gain is no number where every patch is clean.

        Args:
            batch: regions.
            progress: share of the steps that are done.
        """
        degraded, clean = planes(batch.degraded), planes(batch.clean)
        generators = batch.generators(self.run.loop.seed)
        context = self._told(self.context(degraded, generators), batch.names, generators)
        if self.run.objective != "light":
            degraded = self.lit(degraded, batch.names)
        side, count = self.cut(progress)
        mu, x0 = draw_patches([degraded, clean], side, count=count, generators=generators)
        draws = [each for each in generators for _ in range(count)]
        context = context.repeated(count)
        mu = self.begun(mu, context)
        errors, restored = OBJECTIVES[self.run.objective](self, mu, self._aim(mu, x0), context, draws)
        *first, last = errors
        # bent, the errors of the first parts would count most the many photos that are to stay as they are
        loss = torch.stack([*(error.mean() for error in first), LOSSES[self.run.loss](last).mean()]).sum()
        if isinstance(self.network, AirNet):
            (key,) = draw_patches([degraded], side, count=count, generators=generators)
            loss = _guided(self.network, mu, key, loss, airnet.phase(progress))
        before, after = psnr(mu, x0), psnr(restored.detach().float().clamp(0, 1), x0)
        gain = torch.where(before < _UNTOUCHED, after - before, math.nan).nanmean()
        return loss, {"error": errors[-1].detach().mean(), "gain": gain}

    @torch.no_grad()
    def begun(self, mu: Float[Tensor, "b 3 h w"], context: Context) -> Float[Tensor, "b 3 h w"]:
        """What the network goes on from: the degraded patches, or what `initial` makes of them."""
        if self.initial is None:
            return mu
        return self.initial(mu, context.content, context.degradation).float().clamp(0, 1)

    @torch.no_grad()
    def lit(
        self, regions: Float[Tensor, "b 3 h w"], names: Sequence[tuple[str, ...]]
    ) -> Float[Tensor, "b 3 h w"]:
        """The regions as a network with `shade`, its own or that of `initial`, is given them: shadows lit."""
        shades = [getattr(each, "shade", None) for each in (self.network, self.initial)]
        shade = next((each for each in shades if isinstance(each, Shade)), None)
        rows = [i for i, parts in enumerate(names) if SHADOWED in parts]
        if shade is None or not rows:
            return regions
        lighter = regions.clone()
        lighter[rows] = shade.lit(regions[rows])
        return lighter

    def _aim(self, mu: Float[Tensor, "b 3 h w"], x0: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """What the network is to make of mu: the clean patches, or only what is finer in them."""
        if not self.run.detail:
            return x0
        left = x0 - mu
        coarse = F.interpolate(F.avg_pool2d(left, self.run.detail), size=left.shape[-2:], mode="bilinear")
        return mu + left - coarse

    def _told(
        self, context: Context, names: Sequence[tuple[str, ...]], generators: Sequence[torch.Generator]
    ) -> Context:
        """The context, where some photos' damage is told by its words, as `task` tells it at use."""
        own, texts = context.degradation, self.texts
        if own is None or texts is None or not self.run.told_share:
            return context
        rows = list(own)
        for i, (parts, generator) in enumerate(zip(names, generators, strict=True)):
            told = float(torch.rand((), generator=generator)) < self.run.told_share
            if told and parts and set(parts) <= set(texts.names):
                if parts not in self._words:  # kept: a GPU is through with all else before it copies
                    words = detect.of_words(parts, texts, length=1.0)
                    self._words[parts] = torch.from_numpy(words[0]).to(own)
                rows[i] = self._words[parts] * own[i].norm()
        return Context(content=context.content, degradation=torch.stack(rows))

    def cut(self, progress: float) -> tuple[int, int]:
        """Side of the patches, and how many of a region: later larger and fewer, about as many pixels."""
        run = self.run
        if progress < run.late_from:
            return run.patch, run.patches_per_region
        return run.late_patch, max(1, round(run.patches_per_region * (run.patch / run.late_patch) ** 2))

    def restored(self, mu: Float[Tensor, "b 3 h w"], context: Context) -> Float[Tensor, "b 3 h w"]:
        """The clean photo, unclamped, as the trained network makes it."""
        if self.run.objective == "light":
            return cast("Shade", self.network.shade).lit(mu)
        if self.run.objective in ONE_PASS:
            return self.network(mu, context.content, context.degradation)
        mu = self.begun(mu, context)
        generator = torch.Generator().manual_seed(0)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            found = self.network(x, mu, t, content=context.content, degradation=context.degradation).float()
            return self.sde.noise_from_x0(x, found, mu, t) if self.run.objective == "x0" else found

        def draw(_: int) -> Tensor:
            return torch.randn(mu.shape, generator=generator).to(mu)

        if times := self.run.sample_times:
            return sampling.posterior(self.sde, predict, mu, draw, steps=[*times, 0])
        unbias = self.run.objective == "published"
        return sampling.mrs(self.sde, predict, mu, draw, steps=self.run.sample_steps, unbias=unbias)

    @torch.no_grad()
    def validate(
        self, batches: Sequence[Batch], device: torch.device
    ) -> tuple[dict[str, float], Float[Tensor, "n 3 h w"] | None]:
        """PSNR and SSIM of input and result by degradation (mixtures: "mixed"), on regions, 8 bit; mean gain.

        Of a DRUNet, how many of its channels are `closed`, on the first batch.
        The pictures are input, result and truth of one region of each degradation.
        """
        rows: dict[str, list[dict[str, float]]] = {}
        shown: dict[str, list[Tensor]] = {}
        shut: dict[str, float] = {}
        for batch in batches:
            on_device = batch.to(device)
            mu, x0 = planes(on_device.degraded), planes(on_device.clean)
            context = self.context(mu, batch.generators(0))
            given = mu if self.run.objective == "light" else self.lit(mu, batch.names)
            if self.run.objective in ("clean", "blocks") and isinstance(self.network, DRUNet) and not shut:
                shut["closed"] = closed(self.network, given, context.content, context.degradation)
            restored = self.restored(given, context)
            restored = (restored.float().clamp(0, 1) * 255).round() / 255
            for i, parts in enumerate(batch.names):
                word = "mixed" if len(parts) > 1 else (parts or (CLEAN,))[0]
                triple = [pixels[i : i + 1].float() for pixels in (mu, restored, x0)]
                rows.setdefault(word, []).append(_scores(*triple))
                if word not in shown:  # copies: a part of a batch would keep all of it
                    shown[word] = [each.clone() for each in triple]
        figures = {
            f"{name}/{word}": sum(each[name] for each in some) / len(some)
            for word, some in rows.items()
            for name in some[0]
        }
        gains = [figures[f"psnr/{word}"] - figures[f"input/{word}"] for word in rows if word != CLEAN]
        gain = {"gain": sum(gains) / len(gains)} if gains else {}
        pictures = [picture.cpu() for word in sorted(shown) for picture in shown[word]]
        return {**figures, **gain, **shut}, torch.cat(pictures) if pictures else None

    def learning_rate(self, step: int) -> float:
        """At a step; AirNet has its own two phases."""
        loop = self.run.loop
        if isinstance(self.network, AirNet):
            return loop.learning_rate * airnet.phase(step / loop.steps).learning_rate / airnet.HIGHEST_RATE
        return learning_rate(loop, step)

    def separate(self, weights: Sequence[Tensor]) -> list[list[Tensor]]:
        """The weights in parts that share no loss: the gradient of each is clipped by itself.

        Clipped together, a photo that asks much of `fill` would move the blocks less than others.
        """
        own: list[list[Tensor]] = [[*part.parameters()] for part in self._first_parts()]
        ids = {id(weight) for part in own for weight in part}
        return [*own, [weight for weight in weights if id(weight) not in ids]]

    def _first_parts(self) -> list[nn.Module]:
        """Parts of the network with losses of their own."""
        network = self.network
        parts = (network.shade, network.fill) if isinstance(network, DRUNet) else ()
        return [part for part in parts if part is not None]

    def after_step(self) -> None:
        """Nothing to keep in bounds."""

    def goal(self, figures: dict[str, float]) -> float:
        """What the best weights have most of."""
        return figures.get("gain", -float("inf"))


def _check_objective(objective: str, network: nn.Module) -> None:
    """Raise UsageError for the objective of a part that the network does not have."""
    if objective == "blocks" and not isinstance(network, DRUNet):
        raise UsageError(
            "objective=blocks trains the blocks of a DRUNet, and this network has none",
            hint="objective=clean",
        )
    part = {"light": "shade", "uncover": "fill"}.get(objective)
    if part and getattr(network, part, None) is None:
        raise UsageError(
            f"objective={objective} trains {part} of a DRUNet, and this network has none",
            hint=f'network={{"{part}": true, ...}}, or objective=clean',
        )


def channels_last(network: nn.Module) -> nn.Module:
    """The network with its kernels laid out as convolutions on a CPU are quickest; other weights stay."""
    for weight in network.parameters():
        if weight.ndim == 4:  # nn.Module.to would also try the prompts of PromptIR, and fail
            weight.data = weight.data.to(memory_format=torch.channels_last)
    return network


def _guided(
    network: AirNet,
    query: Float[Tensor, "b 3 h w"],
    key: Float[Tensor, "b 3 h w"],
    loss: Tensor,
    phase: airnet.Phase,
) -> Tensor:
    """AirNet's loss: its encoder must know two cuts of one photo by their degradation, first of all alone."""
    contrast = F.cross_entropy(*network.contrast(query, key))
    return phase.contrast_weight * contrast + (loss if phase.restores else 0 * loss)


def _scores(mu: Tensor, restored: Tensor, x0: Tensor) -> dict[str, float]:
    """PSNR and SSIM of one region, 1 3 h w: `input`, `input_ssim` of the degraded one, then the result's."""
    found: dict[str, float] = {}
    for prefix, picture in (("input", mu), ("", restored)):
        with torch.autocast(picture.device.type, enabled=False):  # bfloat16 is too coarse for variances
            ssim = structural_similarity_index_measure(picture, x0, data_range=1.0)
        assert isinstance(ssim, Tensor)
        found[prefix or "psnr"] = float(psnr(picture, x0))
        found[f"{prefix}_ssim" if prefix else "ssim"] = float(ssim)
    return found


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


# ---- objectives: the errors of each patch, and the clean patch the network stands for


Objective = Callable[
    [RestorerJob, Tensor, Tensor, Context, Sequence[torch.Generator]],
    tuple[list[Float[Tensor, "b"]], Float[Tensor, "b 3 h w"]],
]


def _clean(
    job: RestorerJob, mu: Tensor, x0: Tensor, context: Context, generators: Sequence[torch.Generator]
) -> tuple[list[Float[Tensor, "b"]], Float[Tensor, "b 3 h w"]]:
    """One pass: the L1 to the clean patch, behind the errors of what the network does before."""
    given = (mu, context.content, context.degradation)
    errors: list[Tensor] = []
    if isinstance(job.network, DRUNet):
        restored, errors = job.network(*given, clean=x0)
    else:
        restored = job.network(*given)
    return [*errors, _l1(restored, x0)], restored


def _blocks(
    job: RestorerJob, mu: Tensor, x0: Tensor, context: Context, generators: Sequence[torch.Generator]
) -> tuple[list[Float[Tensor, "b"]], Float[Tensor, "b 3 h w"]]:
    """One pass, all of a DRUNet but its first parts: the L1 to the clean patch."""
    restored = job.network(mu, context.content, context.degradation)
    return [_l1(restored, x0)], restored


def _uncovered(
    job: RestorerJob, mu: Tensor, x0: Tensor, context: Context, generators: Sequence[torch.Generator]
) -> tuple[list[Float[Tensor, "b"]], Float[Tensor, "b 3 h w"]]:
    """One pass, `fill` of a DRUNet alone: its error."""
    assert isinstance(job.network, DRUNet)
    mu, errors = job.network.uncovered(mu, context.content, context.degradation, clean=x0)
    return [*errors, _l1(mu, x0)], mu


def _lit(
    job: RestorerJob, mu: Tensor, x0: Tensor, context: Context, generators: Sequence[torch.Generator]
) -> tuple[list[Float[Tensor, "b"]], Float[Tensor, "b 3 h w"]]:
    """One pass, `shade` of a DRUNet alone, which needs no word to find where shadow lies: its error."""
    lit, error = cast("Shade", job.network.shade).lesson(mu, x0)
    return [error, _l1(lit, x0)], lit


def _published(
    job: RestorerJob, mu: Tensor, x0: Tensor, context: Context, generators: Sequence[torch.Generator]
) -> tuple[list[Float[Tensor, "b"]], Float[Tensor, "b 3 h w"]]:
    """Published: the L1 between the optimum step and the Euler step that the network's noise gives."""
    t, _, x, predicted = _diffused(job, mu, x0, context, generators)
    wanted = job.sde.reverse_step(x, x0, mu, t, t - 1)
    error = _l1(job.sde.euler_mean(x, predicted, mu, t), wanted)
    return [error], job.sde.x0_from_noise(x, job.sde.unbias(predicted, x, mu, t), mu, t)


def _noise(
    job: RestorerJob, mu: Tensor, x0: Tensor, context: Context, generators: Sequence[torch.Generator]
) -> tuple[list[Float[Tensor, "b"]], Float[Tensor, "b 3 h w"]]:
    """Bias-free: the L1 between true and predicted noise, worth what it is worth in the next state."""
    t, noise, x, predicted = _diffused(job, mu, x0, context, generators)
    weight = torch.as_tensor(job.sde.weight(t), dtype=torch.float32, device=mu.device)
    return [weight * _l1(predicted, noise)], job.sde.x0_from_noise(x, predicted, mu, t)


def _x0(
    job: RestorerJob, mu: Tensor, x0: Tensor, context: Context, generators: Sequence[torch.Generator]
) -> tuple[list[Float[Tensor, "b"]], Float[Tensor, "b 3 h w"]]:
    """Bias-free, too: the L1 between the clean patch and the one the network sees in the state."""
    *_, predicted = _diffused(job, mu, x0, context, generators)
    return [_l1(predicted, x0)], predicted


def _diffused(
    job: RestorerJob, mu: Tensor, x0: Tensor, context: Context, generators: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Times, on the CPU, noise, the states they make, and what the network predicts from them."""
    t = torch.stack([torch.randint(1, job.sde.steps + 1, (), generator=each) for each in generators])
    noise = torch.stack([torch.randn(mu.shape[1:], generator=each) for each in generators]).to(mu)
    x = job.sde.state(x0, mu, t, noise)
    predicted = job.network(x, mu, t.to(mu), content=context.content, degradation=context.degradation)
    return t, noise, x, predicted.float()


def _l1(a: Tensor, b: Tensor) -> Float[Tensor, "b"]:
    return (a.float() - b).abs().mean((1, 2, 3))


OBJECTIVES: dict[str, Objective] = {
    "clean": _clean,
    "uncover": _uncovered,
    "light": _lit,
    "blocks": _blocks,
    "published": _published,
    "noise": _noise,
    "x0": _x0,
}
