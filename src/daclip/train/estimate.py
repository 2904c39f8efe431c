"""What a run will take: parameters, memory and time, from one small step on noise."""

import time
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from daclip.data import Sample
from daclip.train.batch import Batch, collate
from daclip.train.controller import ControllerJob
from daclip.train.loop import regions_per_step
from daclip.train.restorer import RestorerJob


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run will take.

    Args:
        parameters: that learn.
        frozen: parameters that only look.
        memory_bytes: of the process that trains, at its peak; the workers that read photos come on top.
        seconds_per_step: of this machine's CPU; None where the run will be on another device.
    """

    parameters: int
    frozen: int
    memory_bytes: int
    seconds_per_step: float | None

    def line(self, steps: int) -> str:
        """One line for a person."""
        text = f"{self.parameters / 1e6:.2f} M parameters learn, {self.frozen / 1e6:.2f} M look on;"
        text += f" {self.memory_bytes / 1e9:.1f} GB"
        if self.seconds_per_step is not None:
            text += f"; {self.seconds_per_step:.2f} s a step, {self.seconds_per_step * steps / 3600:.1f} h"
        return text


def estimate_job(job: ControllerJob | RestorerJob) -> Estimate:
    """The estimate of a job, on the CPU.

    One step is carried out on a single region; what it keeps for the gradients grows with the batch.
    """
    run, loop = job.run, job.run.loop
    regions = regions_per_step(run)
    learning = sum(weight.numel() for weight in job.learning().parameters())
    every = sum(weight.numel() for weight in job.parameters())
    # libraries and weights are here already; on another device the weights are what counts
    here = psutil.Process().memory_info().rss
    kept, largest, seconds = _measured(job)
    part = regions / loop.accumulate
    # gradient, two averages of AdamW and the average of the weights, in float32
    states = 4 * 4 * learning
    pixels = 12 * 4 * run.region**2 * part
    is_cpu = loop.device == "cpu" or not torch.cuda.is_available()
    return Estimate(
        parameters=learning,
        frozen=every - learning,
        memory_bytes=round((here if is_cpu else 4 * every) + states + (kept + largest) * part + pixels),
        seconds_per_step=seconds * regions if is_cpu else None,
    )


def _measured(job: ControllerJob | RestorerJob) -> tuple[int, int, float]:
    """Bytes kept for the gradients, bytes of the largest of them, and seconds, of a step of one region."""
    batch = _noise(job.run.region)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter):
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    kind = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.bfloat16}[job.run.loop.precision]
    seconds = float("inf")
    for _ in range(2):  # the first step also builds what later ones find ready
        start = time.perf_counter()
        kept.clear()
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", kind, enabled=kind is not None),
        ):
            loss, _ = job(batch, 0.0)
        loss.backward()
        seconds = min(seconds, time.perf_counter() - start)
    for weight in job.parameters():
        weight.grad = None
    weights = {weight.untyped_storage().data_ptr() for weight in job.parameters()}
    maps = [size for pointer, size in kept.items() if pointer not in weights]
    return sum(maps), max(maps, default=0), seconds


def _noise(side: int) -> Batch:
    rng = np.random.default_rng(0)
    degraded, clean = (rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(2))
    return collate([(0, Sample(degraded=degraded, clean=clean, names=("noisy",), caption="a photo"))])
