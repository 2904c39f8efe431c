"""What a run will take: parameters, memory and time, told before anything is trained or fetched.

Memory is counted on tensors without contents, so that the largest preset can be asked about on any machine.
Time is that of a small step on noise, where the run is for this machine's CPU and fits into its memory.
"""

import os
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from daclip import clip
from daclip.data import Sample
from daclip.networks.airnet import AirNet
from daclip.networks.conditioning import TONES
from daclip.networks.drunet import DRUNet
from daclip.train.backbone import FEATURE_BATCH, Captioned, read_captions
from daclip.train.batch import collate
from daclip.train.controller import ControllerJob
from daclip.train.described import described_job
from daclip.train.loop import PREFETCHED, VAL_BATCH, regions_per_step
from daclip.train.presets import ONE_PASS, BackboneRun, ControllerRun, RestorerRun, Run
from daclip.train.restorer import RestorerJob

_WORKING_BYTES = 150_000_000
"""What a process holds more once it computes, in libraries and compiled kernels: docs/decisions.md."""

_WORKER_BYTES = 60_000_000
"""What a process that reads photos holds beside its cache, measured there, too."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run will take.

    Args:
        parameters: that learn.
        frozen: parameters that only look.
        memory_bytes: of one training process and the workers that read photos for it, at the peak.
        device_bytes: of its graphics card; None for a run on the CPU.
        processes: that train together.
        steps: of the run.
        seconds_per_step: of this machine's CPU; None for another device, and for a run that does not fit.
    """

    parameters: int
    frozen: int
    memory_bytes: int
    device_bytes: int | None = None
    processes: int = 1
    steps: int = 0
    seconds_per_step: float | None = None

    def line(self) -> str:
        """One line for a person."""
        text = f"{self.parameters / 1e6:.2f} M parameters learn, {self.frozen / 1e6:.2f} M look on;"
        text += f" {self.memory_bytes / 1e9:.1f} GB"
        if self.device_bytes is not None:
            text += f" and {self.device_bytes / 1e9:.1f} GB on the device"
        if self.processes > 1:
            text += f", in each of {self.processes} processes"
        if self.seconds_per_step is not None:
            hours = self.seconds_per_step * self.steps / 3600
            text += f"; {self.seconds_per_step:.2f} s a step, {hours:.1f} h"
        return text


def estimate_run(run: Run) -> Estimate:
    """The estimate of a run, for each of the processes that were started."""
    if isinstance(run, BackboneRun):
        return _of_backbone(run)
    with torch.device("meta"):
        job = described_job(run)
    loop = run.loop
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    regions = regions_per_step(run) // processes
    learning, every = _size(job.learning().parameters()), _size(job.parameters())
    step, validation = _peaks(job, max(1, regions // loop.accumulate))
    pixels = 2 * 3 * run.region**2
    # validation meets the last step's gradients, and puts the weights in training aside; it holds photos in
    # float32 (twice `pixels`): four of each region, and three times the pictures, of twelve words
    shown = 2 * pixels * (4 * VAL_BATCH + 3 * 36) if isinstance(run, RestorerRun) else 0
    maps = max(step, validation + shown + 8 * learning)
    averages = {"adamw": 2, "lion": 1}[loop.optimiser] + 1  # one of the weights themselves
    on_device = 4 * every + 4 * averages * learning + maps + 5 * pixels * regions // loop.accumulate
    batches = pixels * (regions * (1 + PREFETCHED * loop.workers) + loop.validate_regions)
    readers = loop.workers * _WORKER_BYTES + loop.cache_mb * 10**6
    is_cpu = loop.device == "cpu" or not torch.cuda.is_available()
    # what this process holds, the counting included, is held while it trains, too
    here = psutil.Process().memory_info().rss + _WORKING_BYTES
    memory = here + batches + readers + (on_device if is_cpu else 4 * every)
    fits = is_cpu and memory * processes < psutil.virtual_memory().total
    return Estimate(
        parameters=learning,
        frozen=every - learning,
        memory_bytes=memory,
        device_bytes=None if is_cpu else on_device,
        processes=processes,
        steps=loop.steps,
        seconds_per_step=_seconds(described_job(run)) * regions if fits else None,
    )


def _of_backbone(run: BackboneRun) -> Estimate:
    """Two projections learn from what the frozen halves make of all photos, which stays in memory.

    Before the caption file is there, its photos are not counted.
    """
    model = clip.compact(run.embed_dim, pretrained=False, text=True)
    head, text = model.image_tower.head, model.text_tower
    assert isinstance(text, clip.MiniLmText)
    assert isinstance(head, clip.MapHead)
    learning = _size([*head.projection.parameters(), *text.projection.parameters()])
    every = _size(model.parameters())
    rows = [row for rows in _captioned(run).values() for row in rows]
    numbers = sum(
        head.projection.in_features + len(captions) * text.projection.in_features for _, captions in rows
    )
    with (mode := FakeTensorMode(allow_non_fake_inputs=True)):
        model.image_tower.to_empty(device="cpu")
    peak = _Peak(model)
    with mode, peak, torch.no_grad():
        model.encode_plain(torch.rand(FEATURE_BATCH, 3, clip.COMPACT_SIDE, clip.COMPACT_SIDE))
    # twice: a list of batches becomes one array; the towers' weights were in memory already
    memory = psutil.Process().memory_info().rss + peak.bytes + 2 * 4 * numbers + 4 * 3 * learning
    return Estimate(parameters=learning, frozen=every - learning, memory_bytes=memory)


def _captioned(run: BackboneRun) -> dict[str, list[Captioned]]:
    path = Path(run.captions)
    return read_captions(path) if path.is_file() else {}


def _size(weights: Iterable[nn.Parameter]) -> int:
    return sum(weight.numel() for weight in weights)


def _autocast(job: ControllerJob | RestorerJob) -> torch.autocast:
    """The precision of a job, or one as wide: not all that a CPU can do in bfloat16 it can in float16."""
    return torch.autocast("cpu", torch.bfloat16, enabled=job.run.loop.precision != "fp32")


# ---- memory, on tensors without contents


def _peaks(job: ControllerJob | RestorerJob, regions: int) -> tuple[int, int]:
    """Bytes of all maps and gradients at the peak of a step of so many regions, and of a validation."""
    run = job.run
    with (mode := FakeTensorMode(allow_non_fake_inputs=True)):
        job.to_empty(device="cpu")
    step, validation = _Peak(job), _Peak(job)
    with mode, _autocast(job):
        with step:
            for side, count in _phases(job):
                _answer(job, regions * count, side).backward()
        with validation, torch.no_grad():
            _answer(job, VAL_BATCH, run.view if isinstance(run, ControllerRun) else run.region)
    return step.bytes, validation.bytes


def _phases(job: ControllerJob | RestorerJob) -> set[tuple[int, int]]:
    """Side of what the network sees, and how many a region gives, early and late in the run."""
    return {(job.run.view, 1)} if isinstance(job, ControllerJob) else {job.cut(0.0), job.cut(1.0)}


def _answer(job: ControllerJob | RestorerJob, count: int, side: int) -> Tensor:
    """A loss of what the job's network makes of noise, which depends on all that the loss of a step does."""
    if isinstance(job, ControllerJob):
        seen = job.model.encode(torch.rand(count, 3, side, side))
        return seen.content.sum() + seen.degradation.sum()
    network, described = job.network, job.run.network
    mu, x0 = (torch.rand(count, 3, side, side).to(memory_format=torch.channels_last) for _ in range(2))
    content = degradation = None
    if width := described.get("context_dim"):
        content = torch.rand(count, width + TONES * bool(described.get("tone")))
        degradation = torch.rand(count, width)
    if job.run.objective not in ONE_PASS:
        found = network(x0, mu, torch.rand(count), content=content, degradation=degradation)
    elif isinstance(network, DRUNet) and torch.is_grad_enabled() and job.run.objective != "blocks":
        if job.run.objective == "light" and network.shade is not None:
            found = network.shade.lesson(mu, x0)
        else:
            told = network.uncovered if job.run.objective == "uncover" else network
            found = told(mu, content, degradation, clean=x0)
    else:
        found = network(mu, content, degradation)
    loss = torch.stack([each.float().abs().mean() for each in tree_leaves(found)]).sum()
    if isinstance(network, AirNet):
        loss = loss + F.cross_entropy(*network.contrast(mu, x0))
    return loss


class _Peak(TorchDispatchMode):
    """Counts the bytes of the tensors made under it, while they live; `bytes` is the most there were at once.

    Args:
        job: whose weights are not counted: they were there before.
    """

    def __init__(self, job: nn.Module) -> None:
        super().__init__()
        self.bytes = self._now = 0
        self._before = [each.untyped_storage() for each in (*job.parameters(), *job.buffers())]
        self._alive = {id(storage) for storage in self._before}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, Tensor):
                self._count(each.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        number, size = id(storage), storage.nbytes()
        if number not in self._alive:
            self._alive.add(number)
            self._now += size
            self.bytes = max(self.bytes, self._now)
            weakref.finalize(storage, self._forget, number, size)

    def _forget(self, number: int, size: int) -> None:
        self._alive.discard(number)
        self._now -= size


# ---- time, by a step of one region


def _seconds(job: ControllerJob | RestorerJob) -> float:
    """Seconds of a step of one region."""
    rng = np.random.default_rng(0)
    side = job.run.region
    degraded, clean = (rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(2))
    batch = collate([(0, Sample(degraded=degraded, clean=clean, names=("noisy",), caption="a photo"))])
    seconds = float("inf")
    for _ in range(2):  # the first step also builds what later ones find ready
        start = time.perf_counter()
        with _autocast(job):
            loss, _ = job(batch, 0.0)
        loss.backward()
        seconds = min(seconds, time.perf_counter() - start)
    return seconds
