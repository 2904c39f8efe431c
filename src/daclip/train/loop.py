"""The training loop: draws in order, steps, averages of the weights, checkpoints, validation.

Everything a step needs follows from (seed, step): which photos, which cuts, which views. So a run that was
killed goes on from its last checkpoint with the losses it would have had.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from daclip.data import DataSet, Sample
from daclip.errors import DataError
from daclip.train import resume
from daclip.train.batch import Batch, collate
from daclip.train.controller import ControllerJob
from daclip.train.optim import cosine, weight_groups
from daclip.train.presets import ControllerRun, RestorerRun
from daclip.train.restorer import RestorerJob

Job = ControllerJob | RestorerJob
Log = Callable[[dict[str, Any]], None]


def fit(job: Job, *, data: DataSet, val: Sequence[Batch], folder: Path, log: Log) -> None:
    """Train until the run's last step; afterwards the job holds the averaged weights.

    Raises DataError when loss or gradients are not finite, or a checkpoint does not fit the job.
    """
    run = job.run
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(asdict(run), indent=1) + "\n", encoding="utf-8")
    optimiser = torch.optim.AdamW(
        weight_groups(job.named_parameters(), weight_decay=run.weight_decay),
        lr=run.learning_rate,
        betas=(0.9, 0.99),
    )
    learning = job.learning()
    average = AveragedModel(learning, multi_avg_fn=get_ema_multi_avg_fn(run.ema), use_buffers=False)
    start = _go_on(folder, learning, average, optimiser)
    began = time.monotonic()
    source = batches(data, size=regions_per_step(run), start=start, stop=run.steps, workers=run.workers)
    for done, batch in enumerate(source, start + 1):
        figures = _step(job, batch, optimiser, step=done - 1)
        average.update_parameters(learning)
        is_last = done == run.steps
        if done % run.log_every == 0 or is_last:
            rate = (done - start) * run.batch / (time.monotonic() - began)
            log({"step": done, **figures, "per_second": round(rate, 1)})
        if done % run.save_every == 0 or is_last:
            weights = {"weights": learning.state_dict(), "average": average.state_dict()}
            resume.save(folder, done, {**weights, "optimiser": optimiser.state_dict()})
        if done % run.validate_every == 0 or is_last:
            log({"step": done, "val": _validate(job, average, val)})
    learning.load_state_dict(average.module.state_dict())


def _go_on(
    folder: Path, learning: nn.Module, average: AveragedModel, optimiser: torch.optim.Optimizer
) -> int:
    """Load the newest checkpoint, where there is one, and return how many steps are done."""
    state = resume.load(folder)
    if state is None:
        return 0
    try:
        learning.load_state_dict(state["weights"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise DataError(
            f"{folder}: its checkpoint belongs to another network", hint="use another folder, or --fresh"
        ) from error
    return int(state["step"])


def _step(job: Job, batch: Batch, optimiser: torch.optim.Optimizer, *, step: int) -> dict[str, float]:
    """One update of the weights; figures for the log."""
    run = job.run
    for group in optimiser.param_groups:
        group["lr"] = run.learning_rate * cosine(step, run.steps, warmup=run.warmup, floor=1e-3)
    generator = torch.Generator().manual_seed(run.seed * 1_000_003 + step)
    with torch.autocast("cpu", torch.bfloat16, enabled=run.precision == "bf16"):
        loss, figures = job.loss(batch, generator)
    optimiser.zero_grad()
    loss.backward()
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    norm = nn.utils.clip_grad_norm_(weights, run.clip_norm)
    # before the update: a checkpoint must never hold weights that are not numbers
    if not (torch.isfinite(loss) and torch.isfinite(norm)):
        raise DataError(
            f"the loss is {loss.item()} and its gradient {norm.item()} at step {step}",
            hint="lower learning_rate, or use precision=fp32",
        )
    optimiser.step()
    return {"loss": loss.item(), **figures, "norm": norm.item()}


def _validate(job: Job, average: AveragedModel, val: Sequence[Batch]) -> dict[str, float]:
    """Figures of the averaged weights; the weights in training are put back afterwards."""
    learning = job.learning()
    kept = {name: value.clone() for name, value in learning.state_dict().items()}
    learning.load_state_dict(average.module.state_dict())
    with torch.autocast("cpu", torch.bfloat16, enabled=job.run.precision == "bf16"):
        figures = job.validate(val)
    learning.load_state_dict(kept)
    return figures


# ---- data


class _Draws(Dataset[Sample]):
    """A data set as the loader wants it."""

    def __init__(self, data: DataSet) -> None:
        self.data = data

    def __getitem__(self, index: int) -> Sample:
        return self.data.draw(index)


def batches(data: DataSet, *, size: int, start: int, stop: int, workers: int) -> Iterator[Batch]:
    """Batches number `start` to `stop` - 1 of the data, each the same after any interruption."""
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
