"""The runs one can name: typed values made by functions. Variants change one thing of another."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, Literal, cast, get_args, get_type_hints

from daclip.diffusion import IRSDE
from daclip.errors import UsageError
from daclip.vocabulary import DEGRADATIONS

SHARES = {
    "motion-blurry": 1.4,
    "hazy": 0.8,
    "jpeg-compressed": 1.4,
    "low-light": 0.9,
    "noisy": 1.6,
    "raindrop": 1.3,
    "rainy": 1.0,
    "shadowed": 1.3,
    "snowy": 0.9,
    "uncompleted": 1.0,
}
"""Relative draws of the restorer: fine detail (noise, jpeg, blur, drops, shadow) learns slowly, gets more."""


@dataclass(frozen=True, kw_only=True)
class Loop:
    """How a run is carried out, whatever it trains.

    Args:
        batch: samples of an update, over all processes and accumulated parts.
        accumulate: parts a batch is computed in, one after another, to save memory.
        optimiser: `adamw`, or `lion` (Chen et al., 2023).
        learning_rate: at its highest: linear warm-up, then a cosine to `floor` of it.
        beta1, beta2: of the optimiser's averages.
        eps: what AdamW adds to the root of the second average.
        clip_norm: largest norm of the gradient; 0 leaves it as it is.
        ema: share of the old in the averaged weights at each step.
        precision: of the forward pass.
        device: `auto` is a CUDA device where there is one; in a run of several processes each takes its own.
        compile: the networks, `initial` among them, by torch.compile; encoders of restorers stay as they are.
        workers: processes that read and degrade photos; their number changes nothing but the speed.
        cache_mb: megabytes of decoded photos kept in memory, over all workers of a process.
        threads: of the arithmetic; another number gives other last digits.
        validate_every, validate_regions: how often, in steps, and on how many regions.
        save_every, log_every: steps.
        keep: checkpoints kept.
        trackers: who else is told the figures, by the names accelerate knows; `log.jsonl` always is.
    """

    steps: int
    batch: int
    accumulate: int = 1
    optimiser: Literal["adamw", "lion"] = "adamw"
    learning_rate: float
    floor: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float
    warmup: int
    clip_norm: float = 1.0
    ema: float
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    device: str = "auto"
    compile: bool = False
    workers: int = 1
    cache_mb: int = 256
    threads: int = 1
    seed: int = 0
    validate_every: int = 500
    validate_regions: int = 256
    save_every: int = 250
    keep: int = 2
    log_every: int = 50
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])

    def __post_init__(self) -> None:
        """Raise UsageError for sizes that contradict each other."""
        if self.batch % self.accumulate:
            raise UsageError(f"batch={self.batch} is no multiple of accumulate={self.accumulate}")


@dataclass(frozen=True, kw_only=True)
class BackboneRun:
    """Stage 0, `train.backbone`: join the frozen halves of the compact backbone.

    Args:
        captions: CSV with the columns file, split, caption1, caption2, ...
        embed_dim: width of the embeddings.
        dropout: of the frozen features, while the heads learn.
        threads: of the arithmetic; another number gives other last digits.
    """

    captions: str = "captions.csv"
    embed_dim: int = 256
    epochs: int = 40
    batch: int = 1024
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    dropout: float = 0.3
    threads: int = 1
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ControllerRun:
    """Stage 1, `train.controller`: teach the controller what is wrong and what the clean photo would show.

    Args:
        data: what `daclip.data.open_data` can read: clean photos, pairs, a captions file, shards, the hub.
        encoder: run folder of the backbone, a model by folder or name, or `open_clip:NAME:TAG`.
        region: side of the degraded square, in pixels.
        view: side of what the encoder sees, in pixels: smaller than at use, where 224 costs three times more.
        start: of the controller: `tower`, a copy of the frozen tower, or `controller`, the encoder's own.
        anew: words that are learnt while the embeddings of photos with other damage stay near what they were,
            so that restorers told by the encoder need no training again; none: all words learn.
        degradation: loss of the degradation embedding, see train.controller.DEGRADATION_LOSSES.
        content: loss of the content embedding, see train.controller.CONTENT_LOSSES.
        content_weight: of the content loss beside the other.
        degrade: how photos are degraded here: `ten`, by one or several of the ten degradations, or `wild-ir`,
            by the random degradation of wild-IR, which has words of its own; some photos are then made grey.
        clean_share, mixture_share: of untouched photos and of mixtures, where photos are degraded here.
        tone_share: of photos flat or pale by nature, where photos are degraded here, see data.clean.toned.
        stored_share: of photos with one degradation that were stored as JPEG afterwards, see CleanPhotos.
        shares: relative draws of the degradations.
    """

    data: str = "photos"
    encoder: str = "runs/compact-backbone"
    region: int = 256
    view: int = 144
    start: Literal["tower", "controller"] = "tower"
    anew: list[str] = field(default_factory=list[str])
    degradation: Literal["sigmoid", "softmax", "published", "masked"] = "sigmoid"
    content: Literal["clean", "published", "masked", "none"] = "clean"
    content_weight: float = 5.0
    degrade: Literal["ten", "wild-ir"] = "ten"
    clean_share: float = 0.1
    mixture_share: float = 0.2
    tone_share: float = 0.3
    stored_share: float = 0.0
    shares: dict[str, float] = field(default_factory=lambda: dict.fromkeys(DEGRADATIONS, 1.0))
    loop: Loop = field(
        default_factory=lambda: Loop(
            steps=4000,
            batch=32,
            learning_rate=8e-4,
            weight_decay=0.05,
            warmup=100,
            ema=0.998,
            validate_regions=512,
        )
    )

    def __post_init__(self) -> None:
        """Raise UsageError for draws that cannot be, and for words that are unknown or not there before."""
        _check_draws(self)
        for word in self.anew:
            if word not in DEGRADATIONS:
                raise UsageError(f'anew: unknown degradation "{word}"', hint=_known(word, list(DEGRADATIONS)))
        if self.anew and self.start == "tower":
            raise UsageError(
                "anew: a controller that starts as its tower has no embeddings to keep",
                hint="start=controller, with an encoder that is trained",
            )


@dataclass(frozen=True, kw_only=True)
class RestorerRun:
    """Stage 2, `train.restorer`: teach a network to mend what the controller names.

    Args:
        data: what `daclip.data.open_data` can read: clean photos, pairs, shards, the hub.
        encoder: run folder of the controller, or a model by folder or name. Weights from a folder go into the
            finished model, a bundled name or hub id stays a name in it.
        network: name and constructor arguments of the network.
        start: model whose restorer is trained on, its form in the place of `network`; empty: random weights.
            A DRUNet with `tone`, `shade`, `fill` or `veil` also starts from one without.
        initial: model of one pass whose answer a diffusion goes on from; empty: it begins with the degraded
            photo itself.
        detail: side of blocks, in pixels: of what is left from there to the clean photo the network learns
            only what is finer than their means; 0: all of it.
        objective: `clean` is one pass, `uncover` trains only `fill`, `light` only `shade`, which nothing else
            trains, `blocks` all but these and `veil`; `published`, `noise` and `x0` train a diffusion
            network, see train.restorer.OBJECTIVES.
        loss: `l1`, `root-l1` or `log-l1`, see train.restorer.LOSSES. The more it is bent, the more a tenth
            less error counts the same in a dark patch and in a slightly blurred one, as it does in PSNR.
        sde: arguments of IRSDE where they are not its defaults, for diffusion.
        sample_steps: network calls of a validation and of the finished model, for diffusion.
        sample_times: times of these calls, from high to low, instead of even distances.
        region: side of the degraded square, in pixels.
        patch: side of what the network sees, in pixels.
        late_patch, late_from: side from this share of the steps on; a region then gives fewer patches, so
            that a step sees about as many pixels: 2 of 128 for the 6 of 64 of `compact`, 8 of 64 in pixels.
        patches_per_region: patches cut from one region; `loop.batch` counts patches.
        view: side of what the encoder sees, in pixels; 224 at use, see docs/decisions.md.
        checkpoint_activations: keep fewer maps for the backward pass and compute them again: less memory, a
            third more time.
        told_share: of photos whose damage the network is told by the texts of its words, not by what the
            encoder saw: so that it understands a person who names the damage.
        degrade: how photos are degraded here: `ten`, by one or several of the ten degradations, or `wild-ir`,
            by the random degradation of wild-IR, which has words of its own; some photos are then made grey.
        clean_share, mixture_share: of untouched photos and of mixtures, where photos are degraded here.
        tone_share: of photos flat or pale by nature, where photos are degraded here, see data.clean.toned.
        stored_share: of photos with one degradation that were stored as JPEG afterwards, see CleanPhotos.
        alike: all photos of a step have one kind of degradation, where photos are degraded here. With a
            `clip_norm` that every gradient exceeds, each kind then moves the weights equally far; in mixed
            steps haze and darkness drown what noise and blur ask for.
        shares: relative draws of the degradations.
    """

    data: str = "photos"
    encoder: str = "runs/compact-controller"
    network: dict[str, Any] = field(default_factory=dict[str, Any])
    start: str = ""
    initial: str = ""
    detail: int = 0
    objective: Literal["clean", "uncover", "light", "blocks", "published", "noise", "x0"] = "clean"
    loss: Literal["l1", "root-l1", "log-l1"] = "root-l1"
    sde: dict[str, Any] = field(default_factory=dict[str, Any])
    sample_steps: int = 8
    sample_times: list[int] = field(default_factory=list[int])
    region: int = 256
    patch: int = 64
    late_patch: int = 128
    late_from: float = 0.7
    patches_per_region: int = 4
    view: int = 160
    checkpoint_activations: bool = False
    told_share: float = 0.1
    degrade: Literal["ten", "wild-ir"] = "ten"
    clean_share: float = 0.1
    mixture_share: float = 0.2
    tone_share: float = 0.3
    stored_share: float = 0.0
    alike: bool = False
    shares: dict[str, float] = field(default_factory=lambda: dict(SHARES))
    loop: Loop = field(
        default_factory=lambda: Loop(
            steps=60_000,
            batch=32,
            learning_rate=2e-3,
            weight_decay=1e-4,
            warmup=300,
            ema=0.998,
            validate_every=2000,
        )
    )

    def __post_init__(self) -> None:
        """Raise UsageError for sizes that contradict each other."""
        if self.loop.batch % self.patches_per_region:
            raise UsageError(
                f"batch={self.loop.batch} is no multiple of patches_per_region={self.patches_per_region}"
            )
        for name in ("patch", "late_patch"):
            if getattr(self, name) > self.region:
                raise UsageError(f"{name}={getattr(self, name)} does not fit into region={self.region}")
            if self.detail and getattr(self, name) % self.detail:
                raise UsageError(f"{name}={getattr(self, name)} is no multiple of detail={self.detail}")
        if self.objective in ONE_PASS and (self.sde or self.initial):
            raise UsageError(
                "a network of one pass has no sde or initial", hint="objective=x0 is a diffusion"
            )
        _check_draws(self)
        _check_sde(self)


ONE_PASS = ("clean", "uncover", "light", "blocks")
"""Objectives of networks that answer at once."""

CONTRASTS = ("published", "masked")
"""Losses of the controller that compare the photos of a batch with all texts of it."""

Run = BackboneRun | ControllerRun | RestorerRun


def _check_draws(run: ControllerRun | RestorerRun) -> None:
    """Raise UsageError for shares of nothing known, or of more than there is."""
    for word, share in run.shares.items():
        if word not in DEGRADATIONS:
            raise UsageError(f'shares: unknown degradation "{word}"', hint=_known(word, list(DEGRADATIONS)))
        if share < 0:
            raise UsageError(f"shares: {word} cannot be {share:g}", hint="give a larger number")
    if not sum(run.shares.values()):
        raise UsageError("shares: nothing is drawn", hint="give one degradation a share above 0")
    for names in (("clean_share", "mixture_share"), ("tone_share",), ("stored_share",), ("told_share",)):
        given = {name: getattr(run, name) for name in names if hasattr(run, name)}
        if sum(given.values()) > 1:
            said = " and ".join(f"{name}={share:g}" for name, share in given.items())
            raise UsageError(f"{said}: more than all photos", hint="shares are parts of 1")


def _check_sde(run: RestorerRun) -> None:
    """Raise UsageError for a diffusion, or times of it, that cannot be."""
    known = [each.name for each in fields(IRSDE)]
    for name in run.sde:
        if name not in known:
            raise UsageError(f'sde: unknown setting "{name}"', hint=_known(name, known))
    try:
        steps = IRSDE(**run.sde).steps
    except TypeError as error:
        raise UsageError(f"sde={json.dumps(run.sde)}: {error}", hint="give numbers") from error
    if [*run.sample_times] != sorted({*run.sample_times} & {*range(1, steps + 1)}, reverse=True):
        raise UsageError(f"sample_times={run.sample_times}", hint=f"name times from {steps} down to 1")


# ---- small ones, for one small machine


def controller_compact() -> ControllerRun:
    """The bundled encoder: EfficientNet-Lite0 and MiniLM joined, under control."""
    return ControllerRun()


def compact() -> RestorerRun:
    """The bundled one-pass restorer: DRUNet + DA-CLIP at half resolution, 3.94 M weights."""
    network = {
        "name": "drunet",
        "widths": [48, 96, 160],
        "encoder_blocks": [2, 2],
        "middle_blocks": 5,
        "decoder_blocks": [2, 2],
        "context_dim": 256,
        "degradation": True,
        "content": "vector",
        "tone": True,
        "fill": True,
        "veil": True,
        "shuffle": 2,
        "leak": 0.02,
        "factors": True,
    }
    run = RestorerRun()
    # no gradient is shorter than clip_norm, so every step is equally long, whatever it mends; at five times
    # this rate most channels of the wider levels close within 200 steps, see networks.drunet.closed
    loop = replace(run.loop, batch=24, learning_rate=2e-4, clip_norm=0.05)
    return replace(run, network=network, alike=True, loop=loop, patches_per_region=6, view=224, late_from=0.4)


def compact_nafnet() -> RestorerRun:
    """NAFNet + DA-CLIP at the size of the bundled restorer's map: 1.46 M parameters."""
    network = {
        "name": "nafnet",
        "width": 40,
        "encoder_blocks": [1, 2],
        "middle_blocks": 4,
        "decoder_blocks": [1, 1],
        "context_dim": 256,
        "degradation": True,
        "content": "vector",
        "attention": "embedding",
        "shuffle": 2,
        "gain": 0.1,
    }
    return RestorerRun(network=network)


def compact_nafnet_degradation() -> RestorerRun:
    """`compact-nafnet` without the content embedding: the row NAFNet + Degradation of the paper's Table 3."""
    run = compact_nafnet()
    return replace(run, network={**run.network, "content": "none"})


def compact_nafnet_plain() -> RestorerRun:
    """`compact-nafnet` without any embedding: the row NAFNet of the paper's Table 3."""
    run = compact_nafnet()
    plain = {"degradation": False, "content": "none", "context_dim": None, "attention": "pool"}
    return replace(run, network={**run.network, **plain})


def compact_sde() -> RestorerRun:
    """The bundled diffusion restorer: adds to the answer of `compact` what is fine, 2.07 M parameters."""
    run = compact()
    smaller = {
        "name": "drunet-diffusion",
        "widths": [48, 96, 128],
        "middle_blocks": 2,
        "factors": False,
        # its initial has taken out what hides the photo, and the veil
        "fill": False,
        "veil": False,
    }
    loop = replace(run.loop, steps=10_000, warmup=200)
    return replace(
        run,
        network={**run.network, **smaller},
        initial="runs/compact",
        objective="x0",
        detail=8,
        sde={"max_sigma": 10},
        sample_times=[100, 40, 15, 5],
        late_from=0.5,
        loop=loop,
    )


def compact_tiny() -> RestorerRun:
    """A toy of 75 thousand parameters: 300 steps take a minute on a CPU, and the gain turns positive."""
    run = compact_nafnet()
    network = {**run.network, "width": 16, "encoder_blocks": [1], "middle_blocks": 1, "decoder_blocks": [1]}
    return replace(
        run,
        network=network,
        region=128,
        late_patch=64,
        tone_share=0.0,
        # an average over 1000 steps would still hold the random start
        loop=replace(run.loop, steps=300, batch=8, warmup=20, ema=0.98, validate_every=150, save_every=100),
    )


def _tiny(network: dict[str, Any], **changes: Any) -> RestorerRun:
    """Another network told by DA-CLIP, at the size of a toy."""
    return replace(compact_tiny(), network={**network, "context_dim": 256, "degradation": True}, **changes)


def unet_tiny() -> RestorerRun:
    """A toy of the conditional U-Net, 1.1 M parameters, which learns the noise without bias."""
    network = {"name": "unet", "width": 32, "multipliers": [1, 2], "content": True}
    return _tiny(network, objective="noise", loss="l1")


def restormer_tiny() -> RestorerRun:
    """A toy of Restormer + DA-CLIP, 0.9 M parameters."""
    network = {"name": "restormer", "width": 16, "blocks": [1, 1, 1, 1], "refinement": 1}
    return _tiny({**network, "heads": [1, 1, 2, 2], "content": "vector"})


def airnet_tiny() -> RestorerRun:
    """A toy of AirNet + DA-CLIP, 0.2 M parameters."""
    network = {"name": "airnet", "width": 16, "groups": 1, "blocks": 1, "queue": 128}
    return _tiny({**network, "content": "vector"})


def promptir_tiny() -> RestorerRun:
    """A toy of PromptIR + DA-CLIP, 1.4 M parameters."""
    network = {"name": "promptir", "width": 16, "blocks": [1, 1, 1, 1], "refinement": 1, "content": "vector"}
    return _tiny({**network, "prompts": [16, 32, 64], "prompt_sides": [16, 8, 4]})


def controller_tiny() -> ControllerRun:
    """A few hundred steps of the compact controller on small views."""
    run = ControllerRun(region=96, view=64, tone_share=0.0)
    loop = replace(run.loop, steps=300, batch=16, warmup=20, ema=0.97, validate_every=150, save_every=100)
    return replace(run, loop=loop)


# ---- the paper's


def controller() -> ControllerRun:
    """The published DA-CLIP, ViT-B-32: 50 epochs of 16 batches of 4 x 784 (PAPER.md 1.3)."""
    return ControllerRun(
        data="datasets/universal/daclip_train.csv",
        encoder="open_clip:ViT-B-32:laion2b_s34b_b79k",
        region=256,
        view=224,
        degradation="published",
        content="published",
        content_weight=1.0,
        loop=Loop(
            steps=800,
            batch=3136,
            learning_rate=3e-5,
            floor=0.0,
            beta2=0.98,
            eps=1e-6,
            weight_decay=0.05,
            warmup=100,
            clip_norm=0.0,
            ema=0.0,
            precision="fp16",
            workers=8,
            validate_every=100,
            save_every=50,
        ),
    )


_WILD: dict[str, Any] = {"degrade": "wild-ir", "clean_share": 0.0, "mixture_share": 0.0, "tone_share": 0.0}


def wild_controller() -> ControllerRun:
    """The wild DA-CLIP, ViT-L-14, on wild-IR's random degradations, which leave no photo clean.

    Content is drawn to the clean photo's, and each word (blur, ringing artifact, noise, jpeg block) answered
    by itself, for they come together. The training code is not published; these losses are those PAPER.md 1.2
    recommends.
    """
    run = controller()
    return replace(
        run,
        data="datasets/wild",
        encoder="open_clip:ViT-L-14:laion2b_s32b_b82k",
        degradation="sigmoid",
        content="clean",
        content_weight=5.0,
        **_WILD,
    )


def universal_ir() -> RestorerRun:
    """The published universal-ir: the conditional U-Net on all ten degradations (PAPER.md 2.4)."""
    network = {"name": "unet", "width": 64, "multipliers": [1, 2, 4, 8], "context_dim": 512}
    return RestorerRun(
        data="datasets/universal",
        encoder="runs/controller",
        network={**network, "degradation": True, "content": True, "content_levels": [3]},
        objective="published",
        loss="l1",
        sample_steps=100,
        patch=256,
        late_patch=256,
        patches_per_region=1,
        view=224,
        told_share=0.0,
        shares=dict.fromkeys(DEGRADATIONS, 1.0),
        loop=Loop(
            steps=700_000,
            batch=16,
            learning_rate=2e-4,
            floor=5e-3,
            weight_decay=0.0,
            warmup=0,
            clip_norm=0.0,
            ema=0.9995,  # published: 0.995 every 10 steps
            precision="fp32",
            workers=8,
            validate_every=10_000,
            save_every=5000,
        ),
    )


def universal_ir_unbiased() -> RestorerRun:
    """universal-ir trained on the noise itself: without bias, so that few steps sample it (PAPER.md 2.3)."""
    return replace(universal_ir(), objective="noise", sample_steps=20)


def ir_sde() -> RestorerRun:
    """IR-SDE of the unified table: the plain U-Net of 137 M weights, no embeddings, else as universal-ir."""
    network = {"name": "unet", "width": 64, "multipliers": [2, 4, 8, 16], "context_dim": None}
    return replace(universal_ir(), network={**network, "degradation": False, "content": False})


def wild_ir() -> RestorerRun:
    """The published wild-ir: the same at half resolution, on wild-IR's random degradations (PAPER.md 2.4)."""
    run = universal_ir()
    return replace(
        run,
        data="datasets/wild",
        encoder="runs/wild-controller",
        network={**run.network, "context_dim": 768, "degradation": False, "half_resolution": True},
        loop=replace(run.loop, steps=500_000, validate_every=5000),
        **_WILD,
    )


def _single(word: str, data: str) -> RestorerRun:
    """A degradation-specific model of the paper's Table 2: universal-ir without the prompt, on one word."""
    run = universal_ir()
    network = {**run.network, "degradation": False}
    return replace(run, data=data, network=network, shares={word: 1.0}, clean_share=0.0, mixture_share=0.0)


def rain100h() -> RestorerRun:
    """Table 2 (a), rain."""
    return _single("rainy", "datasets/rain100h")


def lol() -> RestorerRun:
    """Table 2 (b), low light."""
    return _single("low-light", "datasets/lol")


def gopro() -> RestorerRun:
    """Table 2 (c), motion blur."""
    return _single("motion-blurry", "datasets/gopro")


def reside6k() -> RestorerRun:
    """Table 2 (d), haze."""
    return _single("hazy", "datasets/reside6k")


def nafnet() -> RestorerRun:
    """NAFNet of the unified table: one pass, no embeddings."""
    run = universal_ir()
    network = {"name": "nafnet", "width": 32, "encoder_blocks": [1, 1, 1, 28], "middle_blocks": 1}
    return replace(
        run,
        network={**network, "decoder_blocks": [1, 1, 1, 1]},
        objective="clean",
        loop=replace(run.loop, learning_rate=1e-3, floor=1e-4, ema=0.999, beta2=0.9),
    )


def nafnet_degradation() -> RestorerRun:
    """NAFNet + Degradation of the unified table."""
    run = nafnet()
    return replace(run, network={**run.network, "context_dim": 512, "degradation": True})


def nafnet_daclip() -> RestorerRun:
    """NAFNet + DA-CLIP of the unified table."""
    run = nafnet_degradation()
    return replace(run, network={**run.network, "content": "attention"})


def _baseline(name: str, **changes: Any) -> RestorerRun:
    run = nafnet()
    return replace(run, network={"name": name}, loop=replace(run.loop, **{"learning_rate": 2e-4, **changes}))


def restormer() -> RestorerRun:
    """Restormer of the unified table."""
    return _baseline("restormer", weight_decay=1e-4, beta2=0.999)


def airnet() -> RestorerRun:
    """AirNet of the unified table; its rates and its first phase are those of networks.airnet.phase."""
    run = _baseline("airnet", learning_rate=1e-3, beta2=0.999)
    return replace(run, network={**run.network, "queue": 256 * run.loop.batch})


def promptir() -> RestorerRun:
    """PromptIR of the unified table."""
    return _baseline("promptir", beta2=0.999)


def _with_daclip(run: RestorerRun) -> RestorerRun:
    """The same network told what the encoder saw."""
    conditioned = {"context_dim": 512, "degradation": True, "content": "vector"}
    return replace(run, network={**run.network, **conditioned})


def restormer_daclip() -> RestorerRun:
    """Restormer + DA-CLIP."""
    return _with_daclip(restormer())


def airnet_daclip() -> RestorerRun:
    """AirNet + DA-CLIP."""
    return _with_daclip(airnet())


def promptir_daclip() -> RestorerRun:
    """PromptIR + DA-CLIP."""
    return _with_daclip(promptir())


PRESETS: dict[str, Callable[[], Run]] = {
    "compact-backbone": BackboneRun,
    "compact-controller": controller_compact,
    "compact": compact,
    "compact-nafnet": compact_nafnet,
    "compact-nafnet-degradation": compact_nafnet_degradation,
    "compact-nafnet-plain": compact_nafnet_plain,
    "compact-sde": compact_sde,
    "compact-tiny": compact_tiny,
    "controller-tiny": controller_tiny,
    "unet-tiny": unet_tiny,
    "restormer-tiny": restormer_tiny,
    "airnet-tiny": airnet_tiny,
    "promptir-tiny": promptir_tiny,
    "controller": controller,
    "wild-controller": wild_controller,
    "universal-ir": universal_ir,
    "universal-ir-unbiased": universal_ir_unbiased,
    "ir-sde": ir_sde,
    "wild-ir": wild_ir,
    "rain100h": rain100h,
    "lol": lol,
    "gopro": gopro,
    "reside6k": reside6k,
    "nafnet": nafnet,
    "nafnet-degradation": nafnet_degradation,
    "nafnet-daclip": nafnet_daclip,
    "restormer": restormer,
    "restormer-daclip": restormer_daclip,
    "airnet": airnet,
    "airnet-daclip": airnet_daclip,
    "promptir": promptir,
    "promptir-daclip": promptir_daclip,
}


# ---- by name, with overrides


def preset(name: str, overrides: Sequence[str] = ()) -> Run:
    """The run of a name, with `field=value` overrides; values are read as JSON, or as plain words.

    Fields of `loop` are named like the others. Raises UsageError for an unknown preset or field, with the
    nearest known one, and for a value that the field cannot take.
    """
    if name not in PRESETS:
        raise UsageError(f'unknown preset "{name}"', hint=_known(name, list(PRESETS)))
    run = PRESETS[name]()
    own: dict[str, Any] = {}
    of_loop: dict[str, Any] = {}
    for override in overrides:
        key, sign, text = override.partition("=")
        loop = None if isinstance(run, BackboneRun) else run.loop
        known = [each.name for part in (run, loop) if part is not None for each in fields(part)]
        if not sign or key not in known or key == "loop":
            raise UsageError(f'unknown setting "{override}"', hint=_known(key, sorted({*known} - {"loop"})))
        if key in {each.name for each in fields(run)}:
            own[key] = _value(run, key, text)
        else:
            of_loop[key] = _value(cast("Loop", loop), key, text)
    if not isinstance(run, BackboneRun):
        own["loop"] = replace(run.loop, **of_loop)
    return replace(run, **own)


def read_run(kind: str, settings: dict[str, Any]) -> Run:
    """A run from its JSON form, as `run.json` keeps it. Raises UsageError when they do not fit each other."""
    try:
        loop: dict[str, Any] = {"loop": Loop(**settings["loop"])} if "loop" in settings else {}
        return KINDS[kind](**(settings | loop))
    except (KeyError, TypeError) as error:
        raise UsageError(f"these settings are no {kind} run: {error}") from error


KINDS: dict[str, type[Run]] = {
    "backbone": BackboneRun,
    "controller": ControllerRun,
    "restorer": RestorerRun,
}


def _value(part: Run | Loop, key: str, text: str) -> Any:
    """The text as a value of the kind the setting has now."""
    now = getattr(part, key)
    words = get_args(get_type_hints(type(part))[key]) if isinstance(now, str) else ()
    if isinstance(now, str):
        if words and text not in words:
            raise UsageError(f'{key} cannot be "{text}"', hint=f"known: {', '.join(words)}")
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if isinstance(now, float) and type(value) is int:
        value = float(value)
    if key == "shares" and isinstance(value, dict):
        shares = cast("dict[str, Any]", value)
        are_numbers = all(isinstance(share, int | float) for share in shares.values())
        value = {word: float(share) for word, share in shares.items()} if are_numbers else text
    if type(value) is not type(now):
        raise UsageError(f'{key} cannot be "{text}"', hint=f"give a value like {json.dumps(now)}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        # `not`, so that it holds for NaN
        if not (value > 0 or (value == 0 and key in _MAY_BE_ZERO)):
            raise UsageError(f"{key} cannot be {text}", hint="give a larger number")
        if value >= (1 if key in _BELOW_ONE else math.inf):
            raise UsageError(f"{key} cannot be {text}", hint="give a smaller number")
    return value


_BELOW_ONE = frozenset({"beta1", "beta2", "dropout", "ema"})
"""Shares of the old in an average, which would never move; and of features that are left out."""


_MAY_BE_ZERO = frozenset(
    {
        "cache_mb",
        "clean_share",
        "clip_norm",
        "content_weight",
        "detail",
        "dropout",
        "ema",
        "floor",
        "late_from",
        "mixture_share",
        "seed",
        "stored_share",
        "told_share",
        "tone_share",
        "warmup",
        "weight_decay",
        "workers",
    }
)


def _known(word: str, known: list[str]) -> str:
    near = get_close_matches(word, known, n=1)
    meant = f'did you mean "{near[0]}"? ' if near else ""
    return f"{meant}known: {', '.join(known)}"
