"""The training loop: draws in order, steps, averages of the weights, checkpoints, validation.

Everything a step needs follows from (seed, step): which photos, which cuts, which views. So a run that was killed goes
on from its last checkpoint with the losses it would have had.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from daclip.data import DataSet, Sample
from daclip.errors import DataError
from daclip.train import resume
from daclip.train.controller import Batch, ControllerJob
from daclip.train.optim import cosine, weight_groups
from daclip.train.presets import ControllerRun, RestorerRun
from daclip.train.restorer import RestorerJob

Job = ControllerJob | RestorerJob
Log = Callable[[dict[str, Any]], None]


class _Draws(Dataset[Sample]):
    def __init__(self, data: DataSet) -> None:
        self.data = data

    def __getitem__(self, index: int) -> Sample:
        return self.data.draw(index)


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of one size as one batch."""
    return Batch(
        degraded=torch.stack([torch.from_numpy(sample.degraded) for sample in samples]),
        clean=torch.stack([torch.from_numpy(sample.clean) for sample in samples]),
        names=[sample.names for sample in samples],
    )


def batches(data: DataSet, *, size: int, start: int, stop: int, workers: int) -> Iterator[Batch]:
    """Batches number `start` to `stop` - 1 of the data, each the same however often training was interrupted."""
    loader = DataLoader(
        _Draws(data),
        sampler=range(start * size, stop * size),
        batch_size=size,
        num_workers=workers,
        collate_fn=collate,
        prefetch_factor=4 if workers else None,
    )
    return iter(loader)


def regions_per_step(run: ControllerRun | RestorerRun) -> int:
    """Draws a step takes from the data."""
    return run.batch // run.patches_per_region if isinstance(run, RestorerRun) else run.batch


def fit(job: Job, *, data: DataSet, val: Sequence[Batch], folder: Path, log: Log) -> nn.Module:
    """Train until the run's last step; the averaged weights come back, validated and saved on the way.

    Raises DataError when the loss is not a number.
    """
    run = job.run
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(asdict(run), indent=1) + "\n", encoding="utf-8")
    optimiser = torch.optim.AdamW(
        weight_groups(job.named_parameters(), weight_decay=run.weight_decay),
        lr=run.learning_rate,
        betas=(0.9, 0.99),
    )
    average = AveragedModel(_learning(job), multi_avg_fn=get_ema_multi_avg_fn(run.ema), use_buffers=False)
    state = resume.load(folder)
    start = 0
    if state is not None:
        start = int(state["step"])
        _learning(job).load_state_dict(state["weights"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
    began = time.monotonic()
    source = batches(data, size=regions_per_step(run), start=start, stop=run.steps, workers=run.workers)
    for step in range(start, run.steps):
        figures = _step(job, next(source), optimiser, step)
        average.update_parameters(_learning(job))
        done = step + 1
        if done % 50 == 0:
            rate = (done - start) * run.batch / (time.monotonic() - began)
            log({"step": done, **figures, "per_second": round(rate, 1)})
        if done % run.save_every == 0 or done == run.steps:
            weights = {"weights": _learning(job).state_dict(), "average": average.state_dict()}
            resume.save(folder, done, {**weights, "optimiser": optimiser.state_dict()})
        if done % run.validate_every == 0 or done == run.steps:
            log({"step": done, "val": _validate(job, average, val)})
    return cast("nn.Module", average.module)


def _learning(job: Job) -> nn.ModuleDict:
    """What is trained, averaged and saved."""
    if isinstance(job, RestorerJob):
        return nn.ModuleDict({"network": job.network})
    return nn.ModuleDict(
        {"controller": job.model.controller, "rule": nn.ParameterList([job.scale, job.bias])}
    )


def _step(job: Job, batch: Batch, optimiser: torch.optim.Optimizer, step: int) -> dict[str, float]:
    run = job.run
    for group in optimiser.param_groups:
        group["lr"] = run.learning_rate * cosine(step, run.steps, warmup=run.warmup, floor=1e-3)
    generator = torch.Generator().manual_seed(run.seed * 1_000_003 + step)
    with torch.autocast("cpu", torch.bfloat16, enabled=run.precision == "bf16"):
        loss, figures = job.loss(batch, generator)
    if not torch.isfinite(loss):
        raise DataError(
            f"the loss is {loss.item()} at step {step}", hint="lower learning_rate, or use precision=fp32"
        )
    optimiser.zero_grad()
    loss.backward()
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    norm = nn.utils.clip_grad_norm_(weights, run.clip_norm)
    optimiser.step()
    return {"loss": loss.item(), **figures, "norm": norm.item()}


def _validate(job: Job, average: AveragedModel, val: Sequence[Batch]) -> dict[str, float]:
    """Figures of the averaged weights; the weights in training are put back afterwards."""
    learning = _learning(job)
    kept = {name: value.clone() for name, value in learning.state_dict().items()}
    learning.load_state_dict(average.module.state_dict())
    with torch.autocast("cpu", torch.bfloat16, enabled=job.run.precision == "bf16"):
        figures = job.validate(val)
    learning.load_state_dict(kept)
    return figures
