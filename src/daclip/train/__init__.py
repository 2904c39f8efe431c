"""Training: `train(run, folder)` carries out one of the runs of `PRESETS` and leaves a model folder behind."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from daclip import checkpoints, clip
from daclip.data import CleanPhotos, list_photos, split
from daclip.detect import ClassTexts
from daclip.models import ModelConfig
from daclip.train import loop
from daclip.train.backbone import Progress, train_backbone
from daclip.train.controller import WORDS, Batch, ControllerJob
from daclip.train.presets import PRESETS, BackboneRun, ControllerRun, RestorerRun, Run, preset
from daclip.train.restorer import RestorerJob

__all__ = ["PRESETS", "BackboneRun", "ControllerRun", "RestorerRun", "Run", "run_named", "train"]


def run_named(
    name: str,
    overrides: Sequence[str] = (),
    *,
    data: Path | None,
    folder: Path,
    dry_run: bool,
    log: loop.Log,
    on_progress: Progress,
) -> None:
    """Carry out a preset with overrides; `data` stands for its photos or captions."""
    run = preset(name, overrides)
    if data is not None:
        run = replace(run, **{"captions" if isinstance(run, BackboneRun) else "data": str(data)})
    if dry_run:
        log({"preset": name, **asdict(run)})
    else:
        train(run, folder, log=log, on_progress=on_progress)


def train(run: Run, folder: Path, *, log: loop.Log, on_progress: Progress) -> None:
    """Carry out a run; the same call again goes on where it stopped. The finished model is in `folder/model`."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(run, BackboneRun):
        _backbone(run, folder, log, on_progress)
    elif isinstance(run, ControllerRun):
        _controller(run, folder, log)
    else:
        _restorer(run, folder, log)


def _backbone(run: BackboneRun, folder: Path, log: loop.Log, on_progress: Progress) -> None:
    (folder / "run.json").write_text(json.dumps(asdict(run), indent=1) + "\n", encoding="utf-8")
    model, figures = train_backbone(run, on_progress)
    log({"val": figures})
    texts = ClassTexts(names=WORDS, embeddings=model.encode_text(list(WORDS)).detach().numpy())
    model.text_tower = None
    config = replace(compact_encoder(run.embed_dim), texts=texts)
    checkpoints.save_pretrained(
        checkpoints.Model(daclip=model, network=None, config=config), folder / "model"
    )


def compact_encoder(embed_dim: int) -> ModelConfig:
    """The description of a compact encoder without words."""
    return ModelConfig(
        kind="encoder",
        encoder={"name": "compact", "embed_dim": embed_dim},
        view_side=clip.COMPACT_SIDE,
        mean=clip.COMPACT_MEAN,
        std=clip.COMPACT_STD,
        dtype="float16",
    )


def _controller(run: ControllerRun, folder: Path, log: loop.Log) -> None:
    torch.manual_seed(run.seed)
    start = checkpoints.from_pretrained(Path(run.encoder) / "model")
    job = ControllerJob(run, start.daclip, torch.from_numpy(start.config.texts.embeddings))
    data, val = _photos(run)
    loop.fit(job, data=data, val=val, folder=folder, log=log)
    texts = replace(
        start.config.texts,
        rule="sigmoid",
        scale=float(job.scale.detach().exp()),
        bias=float(job.bias.detach()),
    )
    config = replace(start.config, texts=texts)
    checkpoints.save_pretrained(
        checkpoints.Model(daclip=job.model, network=None, config=config), folder / "model"
    )


def _restorer(run: RestorerRun, folder: Path, log: loop.Log) -> None:
    torch.manual_seed(run.seed)
    encoder = checkpoints.from_pretrained(Path(run.encoder) / "model")
    network = checkpoints.build_network(run.network)
    job = RestorerJob(run, encoder.daclip, network)
    data, val = _photos(run)
    loop.fit(job, data=data, val=val, folder=folder, log=log)
    config = ModelConfig(
        kind="one-pass",
        encoder=str(Path(run.encoder) / "model"),
        network=run.network,
        mean=encoder.config.mean,
        std=encoder.config.std,
        view_side=encoder.config.view_side,
        dtype="float16",
    )
    checkpoints.save_pretrained(
        checkpoints.Model(daclip=None, network=network, config=config), folder / "model"
    )


def _photos(run: ControllerRun | RestorerRun) -> tuple[CleanPhotos, list[Batch]]:
    """What a run draws from, and its fixed validation batches from photos it never draws."""
    chosen, held_out = split(list_photos(Path(run.data)))
    weights = tuple(run.shares.values())
    data = CleanPhotos(
        photos=chosen, region=run.region, seed=run.seed, names=tuple(run.shares), weights=weights
    )
    val = replace(data, photos=held_out, seed=run.seed + 1, weights=None, clean_share=0.1, mixture_share=0.1)
    return data, list(loop.batches(val, size=16, start=0, stop=16, workers=run.workers))
