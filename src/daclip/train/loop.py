"""The training loop: draws in order, steps, averages of the weights, checkpoints, validation.

Everything a step needs follows from (seed, number of the draw): which photos, which cuts, which views, which
noise. So a run that was killed goes on from its last checkpoint with the losses it would have had, and
several processes make the update that one makes with the whole batch.
"""

import ctypes
import json
import logging
import math
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from torchvision.utils import save_image

from daclip.data import DataSet, start_method
from daclip.errors import DaclipError, DataError, UsageError
from daclip.train import resume, winograd
from daclip.train.batch import Batch, collate
from daclip.train.controller import ControllerJob
from daclip.train.optim import optimiser
from daclip.train.presets import CONTRASTS, ControllerRun, Loop, RestorerRun
from daclip.train.restorer import RestorerJob

_LOG = logging.getLogger("daclip")

Job = ControllerJob | RestorerJob
Log = Callable[[dict[str, Any]], None]
Writer = Callable[[Path], object]


def processes(loop: Loop, folder: Path) -> Accelerator:
    """The processes of a run, and the device of this one.

    Raises UsageError where the device or a tracker is not there, or the batch cannot be shared out.
    """
    if loop.device not in ("auto", "cpu", "cuda"):
        raise UsageError(
            f"device={loop.device}: training takes auto, cpu or cuda",
            hint="CUDA_VISIBLE_DEVICES=1 in front of the command chooses the second card",
        )
    if loop.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device={loop.device}: PyTorch finds no such device", hint="use device=cpu")
    trackers = ["all", *(each.value for each in get_available_trackers())]
    for name in loop.trackers:
        if name not in trackers:  # accelerate would pass over some without a word
            raise UsageError(
                f'trackers: "{name}" is not installed, or unknown', hint=f"here are {', '.join(trackers)}"
            )
    accelerator = Accelerator(
        cpu=loop.device == "cpu" or not torch.cuda.is_available(),
        log_with=[*loop.trackers] or None,
        project_dir=folder,
        # while the first validates, which may take a diffusion hours, the others wait for its gradients
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )
    parts = accelerator.num_processes * loop.accumulate
    if loop.batch % parts:
        raise UsageError(
            f"batch={loop.batch} cannot be shared by {accelerator.num_processes} processes"
            f" in {loop.accumulate} parts each",
            hint=f"use a multiple of {parts}",
        )
    return accelerator


def fit(
    job: Job,
    *,
    accelerator: Accelerator,
    data: DataSet,
    val: Sequence[Batch],
    folder: Path,
    log: Log,
    write_model: Writer,
) -> None:
    """Train until the run's last step; afterwards the job holds the averaged weights.

    Checkpoints, pictures of the validations, `best`, the model that validated best, and the last one,
    `model`, go to the folder. In a run of several processes only the first one logs and writes.

    Args:
        job: what learns.
        accelerator: see `processes`.
        data: what batches are drawn from.
        val: batches to validate on.
        folder: of the run.
        log: told the figures of a step.
        write_model: writes the job's weights, as they are then, as a model folder.

    Raises DataError where loss or gradients are not finite, or a checkpoint does not fit the job.
    """
    loop = job.run.loop
    if accelerator.is_main_process and loop.accumulate > 1 and _contrasts(job.run):
        _LOG.warning("accumulate=%d: photos are contrasted with those of their part alone", loop.accumulate)
    learner = Learner(job, accelerator)
    start = learner.go_on(folder)
    track = _tracker(accelerator, job.run)
    source = batches(
        data,
        size=regions_per_step(job.run),
        start=start,
        stop=loop.steps,
        workers=loop.workers,
        share=(accelerator.process_index, accelerator.num_processes),
        pinned=accelerator.device.type == "cuda",
    )
    began = monotonic()
    for done, batch in enumerate(source, start + 1):
        told = learner.step(batch, done - 1)
        is_last = done == loop.steps
        logs, validates, saves = (
            done % every == 0 or is_last for every in (loop.log_every, loop.validate_every, loop.save_every)
        )
        if logs or validates or saves:
            learner.check()
        if not accelerator.is_main_process:
            continue
        if logs:
            figures = {name: value for name, each in told.items() if not math.isnan(value := float(each))}
            rate = (done - start) * loop.batch / (monotonic() - began)
            log({"step": done, **figures, "per_second": round(rate, 1)})
            track("train", figures, done)
        if validates:
            figures = learner.validate(val, done, folder, write_model)
            log({"step": done, "val": figures})
            track("val", figures, done)
        if saves:
            resume.save(folder, done, learner.state(), keep=loop.keep)
    job.learning().load_state_dict(learner.average.module.state_dict())
    if accelerator.is_main_process:
        write_model(folder / "model")
    accelerator.wait_for_everyone()
    accelerator.end_training()


def _contrasts(run: ControllerRun | RestorerRun) -> bool:
    """Whether a loss depends on what else is in the batch."""
    return isinstance(run, ControllerRun) and (run.degradation in CONTRASTS or run.content in CONTRASTS)


def _keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next one; new memory costs a page fault every 4 KiB."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""As in malloc.h."""


class Learner:
    """The weights that learn, their average, their optimiser, and the best validation so far."""

    def __init__(self, job: Job, accelerator: Accelerator) -> None:
        self.job, self.accelerator = job.to(accelerator.device), accelerator
        self.loop = job.run.loop
        if accelerator.device.type == "cpu":
            _keep_freed_memory()
            if self.loop.precision == "fp32":
                for network in job.networks():
                    winograd.quicken(network)
        self.learning = job.learning()
        self.optimiser = optimiser(job.named_parameters(), self.loop)
        self.average = AveragedModel(self.learning)
        self._mix = get_ema_multi_avg_fn(self.loop.ema)
        self._weights: list[Tensor] = [*self.learning.parameters()]
        self._averages: list[Tensor] = [*self.average.module.parameters()]
        # float16 alone underflows; its scale is part of the state
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=self.loop.precision == "fp16")
        self.best = -float("inf")
        self._unchecked: tuple[int, Tensor, Tensor] | None = None
        if self.loop.compile:
            for network in job.networks():
                network.compile(dynamic=False)  # few sizes, and kernels for any size are slower

    def go_on(self, folder: Path) -> int:
        """Load the newest checkpoint, where there is one, and return how many steps are done."""
        state = resume.load(folder)
        if state is None:
            return 0
        try:
            self.learning.load_state_dict(state["weights"])
            self.average.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.scaler.load_state_dict(state["scaler"])
            self.best = state["best"]
        except (KeyError, RuntimeError, ValueError) as error:
            raise DataError(
                f"{folder}: its checkpoint belongs to another network",
                hint="use another folder, or --fresh",
            ) from error
        return int(state["step"])

    def state(self) -> dict[str, Any]:
        """What `go_on` needs."""
        return {
            "weights": self.learning.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best": self.best,
        }

    def step(self, batch: Batch, number: int) -> dict[str, float | Tensor]:
        """One update of the weights; figures for the log, those of the last part.

        Nothing in it waits for the device: a GPU has its next kernels before it is through with these.
        """
        loop = self.loop
        for group in self.optimiser.param_groups:
            group["lr"] = self.job.learning_rate(number)
        self.optimiser.zero_grad()
        loss = torch.zeros((), device=self.accelerator.device)
        figures: Mapping[str, float | Tensor] = {}
        for part in batch.parts(loop.accumulate):
            with self.autocast():
                mean, figures = self.job(part.to(self.accelerator.device), number / loop.steps)
            self.scaler.scale(mean / loop.accumulate).backward()
            loss += mean.detach() / loop.accumulate
        weights = [weight for group in self.optimiser.param_groups for weight in group["params"]]
        loss = self._mean_over_processes(loss, weights)
        # after the mean, so that every process knows when one of them overflowed
        self.scaler.unscale_(self.optimiser)
        norms = [
            # a part without gradients, one that rests, has its zero on the CPU
            nn.utils.clip_grad_norm_(part, loop.clip_norm or float("inf")).to(loss.device)
            for part in self.job.separate(weights)
        ]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        self.check()
        self._unchecked = (number, loss, norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.job.after_step()
        self._update_average()
        return {"loss": loss, **figures, "norm": norm}

    def _update_average(self) -> None:
        """As AveragedModel does it, which would wait for the device to tell it how often it has."""
        if not self.average.n_averaged:
            self.average.update_parameters(self.learning)
            return
        self._mix(self._averages, self._weights, self.average.n_averaged)
        for kept, now in zip(self.average.module.buffers(), self.learning.buffers(), strict=True):
            kept.copy_(now)
        self.average.n_averaged += 1

    def check(self) -> None:
        """Raise DataError where the last step was not one of numbers; the device must be through with it.

        To be asked before the weights are used or kept: a checkpoint must never hold what is no number.
        """
        if self._unchecked is None:
            return
        number, loss, norm = self._unchecked
        self._unchecked = None
        # a step in float16 may overflow, and the scaler then leaves it out
        if not torch.isfinite(loss) or not (torch.isfinite(norm) or self.scaler.is_enabled()):
            raise DataError(
                f"the loss is {loss.item()} and its gradient {norm.item()} at step {number}",
                hint="start over (--fresh) with a lower learning_rate, or with precision=fp32",
            )

    def _mean_over_processes(self, loss: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """The mean loss; the gradients are replaced by their mean, all in one message."""
        if self.accelerator.num_processes == 1:
            return loss
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        flat = torch.cat([loss.reshape(1), *(gradient.flatten() for gradient in gradients)])
        flat = self.accelerator.reduce(flat, "mean")
        assert isinstance(flat, Tensor)
        for gradient, mean in zip(
            gradients, flat[1:].split([gradient.numel() for gradient in gradients]), strict=True
        ):
            gradient.copy_(mean.view_as(gradient))
        return flat[0]

    def validate(
        self, val: Sequence[Batch], step: int, folder: Path, write_model: Writer
    ) -> dict[str, float]:
        """Figures of the averaged weights, their pictures, and the model where it is the best so far."""
        with self._averaged():
            with self.autocast():
                figures, pictures = self.job.validate(val, self.accelerator.device)
            if pictures is not None:
                (folder / "pictures").mkdir(exist_ok=True)
                save_image(pictures, folder / "pictures" / f"{step:08d}.png", nrow=6, padding=4)
            if (goal := self.job.goal(figures)) > self.best:
                self.best = goal
                write_model(folder / "best")
        return figures

    @contextmanager
    def _averaged(self) -> Generator[None]:
        """The job with the averaged weights; those in training are put back afterwards."""
        kept = {name: value.clone() for name, value in self.learning.state_dict().items()}
        self.learning.load_state_dict(self.average.module.state_dict())
        self.job.eval()
        try:
            yield
        finally:
            self.job.train()
            self.learning.load_state_dict(kept)

    def autocast(self) -> torch.autocast:
        """The precision of the run."""
        kind = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.loop.precision]
        return torch.autocast(self.accelerator.device.type, kind, enabled=kind is not None)


def _tracker(
    accelerator: Accelerator, run: ControllerRun | RestorerRun
) -> Callable[[str, dict[str, float], int], None]:
    """A function that tells the run's trackers the figures of a step."""
    if not run.loop.trackers:
        return lambda _, figures, step: None
    flat = {**asdict(run), **asdict(run.loop)}
    plain = (int, float, str)
    settings = {
        name: value if isinstance(value, plain) else json.dumps(value) for name, value in flat.items()
    }
    accelerator.init_trackers("tracked", config=settings)

    def track(prefix: str, figures: dict[str, float], step: int) -> None:
        accelerator.log({f"{prefix}/{name}": value for name, value in figures.items()}, step=step)

    return track


# ---- data


PREFETCHED = 4
"""Batches that each worker makes ahead."""

VAL_BATCH = 16
"""Regions of a batch of a validation."""


class _Batches(Dataset[Batch | DaclipError]):
    """A data set as the loader wants it: the batch of some numbers.

    An error is handed over as a value: torch would make a text of its traceback, and fail on a PhotoError.
    """

    def __init__(self, data: DataSet) -> None:
        self.data = data

    def __getitem__(self, indices: Sequence[int]) -> Batch | DaclipError:
        try:
            return collate([(index, self.data.draw(index)) for index in indices])
        except DaclipError as error:
            return error


def batches(
    data: DataSet,
    *,
    size: int,
    start: int,
    stop: int,
    workers: int,
    share: tuple[int, int] = (0, 1),
    pinned: bool = False,
) -> Iterator[Batch]:
    """Batches number `start` to `stop` - 1 of the data, each the same after any interruption.

    Args:
        data: what is drawn from.
        size: draws of a batch, over all processes.
        start: number of the first batch.
        stop: number behind the last one.
        workers: processes that draw.
        share: number of this process and of all; each gets its part of every batch.
        pinned: in memory that a CUDA device copies from while the processor goes on.

    Raises PhotoError or DataError for a photo that cannot be drawn, from a worker, too.
    """
    process, processes = share
    own = size // processes
    first = [batch * size + process * own for batch in range(start, stop)]
    loader = DataLoader(
        _Batches(data),
        sampler=[range(index, index + own) for index in first],
        batch_size=None,  # they come as batches
        num_workers=workers,
        prefetch_factor=PREFETCHED if workers else None,
        multiprocessing_context=start_method() if workers else None,
        pin_memory=pinned,
    )
    for drawn in loader:
        if isinstance(drawn, DaclipError):
            raise drawn
        yield drawn


def regions_per_step(run: ControllerRun | RestorerRun) -> int:
    """Draws a step takes from the data."""
    return run.loop.batch // run.patches_per_region if isinstance(run, RestorerRun) else run.loop.batch
