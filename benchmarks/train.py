"""Patches per second and memory of one training step of each network, on one thread.

python benchmarks/train.py [--networks unet nafnet ...] [--compile] [--batch 4] [--side 128] [--rounds 2]
python benchmarks/train.py --photos FOLDER

A step is forward, L1, backward and AdamW. The U-Net and NAFNet stand beside a plain transcription of the
published step on the same random batch: for the U-Net every operation as described (without the published
recomputation of its transformers, which costs it time), for NAFNet the published network, which spandrel has.
With --compile ours are compiled, as compile=true does it in a run; that takes minutes before the first step.
Seconds are of the processor, the best of steps in interleaved processes; memory is what such a process holds
at its peak above what it held before the network was built (Linux).

With --photos: the whole loop of `compact` with the bundled encoder, on photos degraded by one worker and on
one cached batch of noise. Where both give the same patches a second, reading and degrading cost nothing.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from spandrel.architectures.NAFNet import NAFNet as PublishedNAFNet
from torch import Tensor, nn
from unet import machine, published_computation, seconds, status_mb

from daclip import train
from daclip.checkpoints import build_network
from daclip.data import Sample
from daclip.train import loop, optim, presets
from daclip.train.restorer import channels_last

DEEP = {"encoder_blocks": [1, 1, 1, 28], "middle_blocks": 1, "decoder_blocks": [1, 1, 1, 1]}
TOLD = {"context_dim": 512, "degradation": True}

NETWORKS: dict[str, dict[str, object]] = {
    "unet": {"name": "unet"},
    "nafnet": {"name": "nafnet", "width": 32, **DEEP},
    "nafnet-daclip": {"name": "nafnet", "width": 32, **DEEP, **TOLD, "content": "attention"},
    "restormer": {"name": "restormer"},
    "restormer-daclip": {"name": "restormer", **TOLD, "content": "vector"},
    "promptir": {"name": "promptir"},
    "airnet": {"name": "airnet"},
    "compact": {**presets.compact().network, "context_dim": 512},
}


class PublishedUNet(nn.Module):
    """The published computation, with the weights of ours under one list."""

    def __init__(self) -> None:
        super().__init__()
        own = build_network({"name": "unet"}).state_dict()
        self.names = list(own)
        self.weights = nn.ParameterList(own.values())

    def forward(self, x: Tensor, mu: Tensor, t: Tensor, *, content: Tensor, degradation: Tensor) -> Tensor:
        """The noise."""
        named = dict(zip(self.names, self.weights, strict=True))
        return published_computation(named, x, mu, t, content, degradation)


PUBLISHED: dict[str, Callable[[], nn.Module]] = {
    "unet": PublishedUNet,
    "nafnet": lambda: PublishedNAFNet(
        width=32, middle_blk_num=1, enc_blk_nums=[1, 1, 1, 28], dec_blk_nums=[1, 1, 1, 1]
    ),
}


def training_step(
    network: nn.Module, name: str, *, ours: bool, args: argparse.Namespace
) -> Callable[[], float]:
    """One step on the same batch again and again; it returns its loss."""
    if ours:
        network = channels_last(network)
        if args.compile:
            network.compile(dynamic=False)
        optimiser = optim.optimiser(network.named_parameters(), presets.compact().loop)
    else:
        optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(0)
    shape = (args.batch, 3, args.side, args.side)
    x, mu, wanted = (torch.rand(shape, generator=generator) for _ in range(3))
    content, degradation = (torch.randn(args.batch, 512, generator=generator) for _ in range(2))
    t = torch.rand(args.batch, generator=generator) * 100

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
            if name == "unet":
                made = network(x, mu, t, content=content, degradation=degradation)
            else:
                made = network(mu, content, degradation) if ours else network(mu)
            loss = (made.float() - wanted).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def measure(name: str, which: str, args: argparse.Namespace) -> None:
    """Print processor seconds of a step, peak MB and millions of parameters of this process."""
    before = status_mb("VmRSS")
    torch.manual_seed(0)
    network = PUBLISHED[name]() if which == "published" else build_network(dict(NETWORKS[name]))
    step = training_step(network, name, ours=which == "ours", args=args)
    step()  # the first step loads libraries, and compiles
    best = min(seconds(step)[1] for _ in range(args.steps))
    print(best, status_mb("VmHWM") - before, sum(w.numel() for w in network.parameters()) / 1e6)


def measured(name: str, which: str, precision: str, args: argparse.Namespace) -> tuple[float, float, float]:
    """What a process of its own found: patches a second, MB, millions of parameters."""
    command = [sys.executable, __file__, "--one", name, which, "--precision", precision]
    command += ["--batch", str(args.batch), "--side", str(args.side), "--steps", str(args.steps)]
    command += ["--compile"] * args.compile
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    step, mb, millions = map(float, found)
    return args.batch / step, mb, millions


def row(name: str, precision: str, args: argparse.Namespace) -> str:
    """A line of the table; processes of both sides take turns."""
    sides = ["published", "ours"] if name in PUBLISHED else ["ours"]
    rounds = [{side: measured(name, side, precision, args) for side in sides} for _ in range(args.rounds)]
    best = {side: max(r[side] for r in rounds) for side in sides}
    speed, mb, millions = best["ours"]
    published = best.get("published")
    beside = (
        "| | | "
        if published is None
        else f"| {published[0]:.2f} | {published[1]:.0f} | {speed / published[0]:.2f} "
    )
    return f"| {name} | {millions:.1f} | {precision} | {speed:.2f} | {mb:.0f} {beside}|"


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
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--precisions", nargs="+", choices=["float32", "bf16"], default=["float32", "bf16"])
    parser.add_argument("--compile", action="store_true", help="compile our networks")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--photos", help="measure the whole loop on these photos")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="float32", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one:
        return measure(args.one[0], args.one[1], args)
    if args.photos:
        return loop_speed(args.photos, 20 * args.steps)
    title = f"One training step, batch {args.batch} x {args.side} x {args.side}"
    title += ", ours compiled" * args.compile
    print(f"{title}; {machine(1).replace(', float32', '').replace('threads', 'thread')}\n")
    print("| network | M | precision | patches/s | MB | published patches/s | published MB | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for name in args.networks:
        for precision in args.precisions:
            print(row(name, precision, args), flush=True)


if __name__ == "__main__":
    main()
