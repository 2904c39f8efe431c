"""Patches per second and memory of one training step of each network, on one thread.

python benchmarks/train.py [--networks unet nafnet ...] [--compile] [--batch 4] [--side 128] [--rounds 2]
python benchmarks/train.py --photos FOLDER

A step is what a run of the network's preset does with a batch: embeddings of the degraded patches, states,
forward, loss, backward, optimiser and average of the weights. A network that is told has two rows, with
embeddings computed by the encoder of its preset and with given ones. The U-Net and NAFNet stand beside a
plain transcription of the published step on a batch of the same size. For the U-Net that is every operation
as described: the encoder block by block, the state of the SDE, the network (without the published
recomputation of its transformers, which costs it time), the L1 between the Euler step and the optimum one,
AdamW; its averages, of every tenth step, are left out. For NAFNet it is the published network, which spandrel
has.
With --compile ours are compiled, as compile=true does it in a run; that takes minutes before the first step.
Seconds are of the processor, the best of steps in interleaved processes; memory is what such a process holds
at its peak above what it held before the networks were built (Linux).

With --photos: the whole loop of `compact` with the bundled encoder, on photos degraded by one worker and on
one cached batch of noise. Where both give the same patches a second, reading and degrading cost nothing.
"""

import argparse
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from spandrel.architectures.NAFNet import NAFNet as PublishedNAFNet
from torch import Tensor, nn
from unet import machine, published_computation, seconds, status_mb

from daclip import clip, train
from daclip.checkpoints import build_network
from daclip.data import Sample
from daclip.models import ModelConfig
from daclip.networks.conditioning import TONES
from daclip.train import loop, presets
from daclip.train.batch import Batch, collate, normalised
from daclip.train.described import described_job
from daclip.train.restorer import Context, RestorerJob

RUNS: dict[str, Callable[[], presets.RestorerRun]] = {
    "unet": presets.universal_ir,
    "nafnet": presets.nafnet,
    "nafnet-daclip": presets.nafnet_daclip,
    "restormer": presets.restormer,
    "restormer-daclip": presets.restormer_daclip,
    "promptir": presets.promptir,
    "airnet": presets.airnet,
    "compact": presets.compact,
}

Step = Callable[[], float]


# ---- the published step


class PublishedSDE:
    """The cosine schedule of IR-SDE in tables of float32, and its objective (PAPER.md 2.1, 2.3)."""

    steps = 100

    def __init__(self, max_sigma: float = 50 / 255, eps: float = 0.005) -> None:
        share = torch.linspace(0, 1, self.steps + 3)
        a = torch.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2
        self.theta = 1 - a[1:-1] / a[0]
        theta_bar = self.theta.cumsum(0) - self.theta[0]
        self.dt = -math.log(eps) / theta_bar[-1]
        self.alpha = torch.exp(-theta_bar * self.dt)
        self.sigma = (2 * max_sigma**2 * self.theta).sqrt()
        self.sigma_bar = max_sigma * (1 - self.alpha**2).sqrt()

    def state(self, x0: Tensor, mu: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The degraded, noisy patch at time t."""
        return mu + (x0 - mu) * _each(self.alpha[t]) + _each(self.sigma_bar[t]) * noise

    def optimum(self, x: Tensor, x0: Tensor, mu: Tensor, t: Tensor) -> Tensor:
        """The likeliest state one step before, given the clean patch."""
        a = _each(torch.exp(-self.theta[t] * self.dt))
        b, c = _each(self.alpha[t]), _each(self.alpha[t - 1])
        return mu + a * (1 - c**2) / (1 - b**2) * (x - mu) + c * (1 - a**2) / (1 - b**2) * (x0 - mu)

    def euler(self, x: Tensor, noise: Tensor, mu: Tensor, t: Tensor) -> Tensor:
        """The mean of the reverse Euler step, given the noise."""
        score = -noise / _each(self.sigma_bar[t])
        return x - (_each(self.theta[t]) * (mu - x) - _each(self.sigma[t] ** 2) * score) * self.dt


def _each(numbers: Tensor) -> Tensor:
    return numbers[:, None, None, None]


def published_embeddings(encoder: clip.DaClip, photos: Tensor) -> tuple[Tensor, Tensor]:
    """Content and degradation embedding of whole patches, block by block as described (PAPER.md 1.1, 2.5)."""
    views = F.interpolate(photos, (224, 224), mode="bicubic", antialias=True)
    views = normalised(views, ModelConfig.mean, ModelConfig.std)
    own, frozen = encoder.controller.tower, encoder.image_tower
    state, hiddens = own.stem(views), []
    for block, zero in zip(own.blocks, encoder.controller.zeros, strict=True):
        state = block(state)
        hiddens.append(zero(state))
    degradation = own.head(state)
    state = frozen.stem(views)
    for block, hidden in zip(frozen.blocks, reversed(hiddens), strict=True):
        state = block(state) + hidden
    return frozen.head(state).float(), degradation.float()


def published_unet(args: argparse.Namespace) -> tuple[nn.Module, Step]:
    """The network of universal-ir, and one step of its training."""
    own = build_network({"name": "unet"}).state_dict()
    weights = nn.ParameterDict({name.replace(".", "/"): nn.Parameter(value) for name, value in own.items()})
    named = {name: weights[name.replace(".", "/")] for name in own}
    encoder = None if args.given else clip.vit("ViT-B-32").requires_grad_(False).eval()
    optimiser = torch.optim.AdamW(weights.parameters(), lr=2e-4, betas=(0.9, 0.99), weight_decay=0.0)
    sde = PublishedSDE()
    mu, x0 = torch.rand(2, args.batch, 3, args.side, args.side)
    content, degradation = torch.randn(2, args.batch, 512)

    def step() -> float:
        embeddings = content, degradation
        with autocast(args):
            if encoder is not None:
                with torch.no_grad():
                    embeddings = published_embeddings(encoder, mu)
            t = torch.randint(1, sde.steps + 1, (args.batch,))
            x = sde.state(x0, mu, t, torch.randn_like(x0))
            noise = published_computation(named, x, mu, t.float(), *embeddings).float()
            loss = F.l1_loss(sde.euler(x, noise, mu, t), sde.optimum(x, x0, mu, t))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()

    return weights, step


def published_nafnet(args: argparse.Namespace) -> tuple[nn.Module, Step]:
    """The network of NAFNet's authors, and one step of its training."""
    network = PublishedNAFNet(
        width=32, middle_blk_num=1, enc_blk_nums=[1, 1, 1, 28], dec_blk_nums=[1, 1, 1, 1]
    )
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.9), weight_decay=0.0)
    mu, x0 = torch.rand(2, args.batch, 3, args.side, args.side)

    def step() -> float:
        with autocast(args):
            loss = F.l1_loss(network(mu).float(), x0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()

    return network, step


def autocast(args: argparse.Namespace) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16")


PUBLISHED = {"unet": published_unet, "nafnet": published_nafnet}


# ---- ours


def toy_batch(args: argparse.Namespace) -> Batch:
    """Noise: as many regions as patches."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (args.batch, 2, args.side, args.side, 3), np.uint8)
    return collate([(i, Sample(degraded=a, clean=b, names=("noisy",))) for i, (a, b) in enumerate(pixels)])


def our_step(name: str, args: argparse.Namespace) -> tuple[nn.Module, Step]:
    """The network of a preset, and one step of a run; each patch is a region of its own."""
    run = RUNS[name]()
    of_loop = {"batch": args.batch, "precision": args.precision, "compile": args.compile}
    sides = {"region": args.side, "patch": args.side, "late_patch": args.side, "patches_per_region": 1}
    run = replace(run, **sides, loop=replace(run.loop, **of_loop, device="cpu", trackers=[]))
    job = described_job(replace(run, encoder="open_clip:ViT-B-32") if name != "compact" else run)
    assert isinstance(job, RestorerJob)
    if args.given:
        width = job.run.network["context_dim"]
        content, degradation = torch.randn(2, args.batch, width)
        if job.run.network.get("tone"):
            content = torch.cat([content, torch.rand(args.batch, TONES)], dim=1)
        given = Context(content=content, degradation=degradation)
        job.context = lambda regions, generators: given
        job.encoder = None
    learner = loop.Learner(job, loop.processes(run.loop, Path(tempfile.gettempdir())))
    batch = toy_batch(args)
    return job.network, lambda: learner.step(batch, 0)["loss"]


def measure(name: str, which: str, args: argparse.Namespace) -> None:
    """Print processor seconds of a step, peak MB and millions of parameters of this process."""
    before = status_mb("VmRSS")
    torch.manual_seed(0)
    network, step = PUBLISHED[name](args) if which == "published" else our_step(name, args)
    step()  # the first step loads libraries, and compiles
    best = min(seconds(step)[1] for _ in range(args.steps))
    print(best, status_mb("VmHWM") - before, sum(w.numel() for w in network.parameters()) / 1e6)


def measured(name: str, which: str, args: argparse.Namespace) -> tuple[float, float, float]:
    """What a process of its own found: patches a second, MB, millions of parameters."""
    command = [sys.executable, __file__, "--one", name, which, "--precision", args.precision]
    command += ["--batch", str(args.batch), "--side", str(args.side), "--steps", str(args.steps)]
    command += ["--compile"] * args.compile + ["--given"] * args.given
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    step, mb, millions = map(float, found)
    return args.batch / step, mb, millions


def row(name: str, args: argparse.Namespace) -> str:
    """A line of the table; processes of both sides take turns."""
    sides = ["published", "ours"] if name in PUBLISHED else ["ours"]
    rounds = [{side: measured(name, side, args) for side in sides} for _ in range(args.rounds)]
    best = {side: max(r[side] for r in rounds) for side in sides}
    speed, mb, millions = best["ours"]
    published = best.get("published")
    beside = (
        "| | | "
        if published is None
        else f"| {published[0]:.2f} | {published[1]:.0f} | {speed / published[0]:.2f} "
    )
    is_told = RUNS[name]().network.get("context_dim")
    embeddings = "" if not is_told else "given" if args.given else "computed"
    return f"| {name} | {millions:.1f} | {args.precision} | {embeddings} | {speed:.2f} | {mb:.0f} {beside}|"


class CachedNoise:
    """A data set whose every draw is the same region of noise."""

    def __init__(self, side: int) -> None:
        degraded, clean = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
        self.sample = Sample(degraded=degraded, clean=clean, names=("noisy",))

    def draw(self, index: int) -> Sample:
        """The one sample."""
        return self.sample


def loop_speed(photos: str, steps: int) -> None:
    """Print patches a second of the whole loop on photos and on cached noise."""
    overrides = [f"data={photos}", "encoder=compact-encoder", f"steps={steps}", f"log_every={steps}"]
    run = presets.preset("compact", [*overrides, "trackers=[]", f"validate_every={2 * steps}", "device=cpu"])
    assert isinstance(run, presets.RestorerRun)
    job, _ = train.restorer_parts(run)
    data, _ = train.data_sets(run)
    print(f"The loop of compact, {steps} steps of {run.loop.batch} patches; {machine(1)}\n")
    print("| data | patches/s | processor s |\n|---|---|---|")
    for name, source in (("photos", data), ("cached noise", CachedNoise(run.region))):
        found: list[float] = []
        with tempfile.TemporaryDirectory() as folder:
            _, used = seconds(
                lambda source=source, folder=folder, found=found: loop.fit(
                    job,
                    accelerator=loop.processes(run.loop, Path(folder)),
                    data=source,
                    val=[],
                    folder=Path(folder),
                    log=lambda figures, found=found: found.append(figures.get("per_second", 0.0)),
                    write_model=lambda _: None,
                )
            )
        print(f"| {name} | {max(found):.1f} | {used:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--compile", action="store_true", help="compile our networks")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--photos", help="measure the whole loop on these photos")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="fp32", help=argparse.SUPPRESS)
    parser.add_argument("--given", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one:
        return measure(args.one[0], args.one[1], args)
    if args.photos:
        return loop_speed(args.photos, 20 * args.steps)
    title = f"One training step, batch {args.batch} x {args.side} x {args.side}"
    title += ", ours compiled" * args.compile
    print(f"{title}; {machine(1).replace(', float32', '').replace('threads', 'thread')}\n")
    columns = "network | M | precision | embeddings | patches/s | MB | published patches/s | MB | ratio"
    print(f"| {columns} |\n{9 * '|---'}|")
    for name in args.networks:
        is_told = bool(RUNS[name]().network.get("context_dim"))
        for precision in args.precisions:
            for given in (False, True)[: 1 + is_told]:
                args.precision, args.given = precision, given
                print(row(name, args), flush=True)


if __name__ == "__main__":
    main()
