"""Training: `train(run, folder)` carries out one of the runs of PRESETS and leaves a model folder behind.

A run folder holds `run.json` (the settings), `log.jsonl` (figures by step, with seconds), the newest
checkpoints, and at the end `model/`, a model folder with the averaged weights.
"""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import torch

from daclip import checkpoints, clip, models
from daclip.data import CleanPhotos, list_photos, split
from daclip.detect import ClassTexts
from daclip.errors import DataError, ModelError
from daclip.models import ModelConfig, ModelFolder
from daclip.networks.nafnet import NAFNet
from daclip.train import loop, resume
from daclip.train.backbone import Progress, train_backbone
from daclip.train.batch import Batch
from daclip.train.controller import WORDS, ControllerJob
from daclip.train.presets import PRESETS, BackboneRun, ControllerRun, RestorerRun, Run, preset
from daclip.train.restorer import RestorerJob

__all__ = ["PRESETS", "BackboneRun", "ControllerRun", "RestorerRun", "Run", "preset", "train"]


def train(run: Run, folder: Path, *, log: loop.Log, on_progress: Progress, fresh: bool = False) -> Path:
    """Carry out a run and return its model folder; the same call again goes on where it stopped.

    Args:
        run: what to do.
        folder: of the run, made where it does not exist.
        log: given the figures of a step, as they are written to the folder's log.
        on_progress: told how far the work before the first step is.
        fresh: start over, whatever the folder holds.
    """
    # both decide how sums are split, so a run says it, and no machine's default
    torch.set_num_threads(run.threads)
    cv2.setNumThreads(run.threads)
    folder.mkdir(parents=True, exist_ok=True)
    if fresh:
        resume.forget(folder)
    log = _kept(folder / "log.jsonl", log)
    with torch.random.fork_rng(devices=[]):
        if isinstance(run, BackboneRun):
            model = _backbone(run, folder, log, on_progress)
        elif isinstance(run, ControllerRun):
            model = _controller(run, folder, log)
        else:
            model = _restorer(run, folder, log)
    return checkpoints.save_pretrained(model, folder / "model")


def _kept(path: Path, log: loop.Log) -> loop.Log:
    """The log, which also writes each line to a file, with the seconds the run has taken so far.

    After an interruption the steps since the last checkpoint appear twice, with equal losses.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    lines = [line for line in lines if line.endswith("}")]  # a full disk may have cut the last one
    began = time.monotonic() - (json.loads(lines[-1])["seconds"] if lines else 0.0)

    def keep(figures: dict[str, Any]) -> None:
        figures = {**figures, "seconds": round(time.monotonic() - began, 1)}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")
        log(figures)

    return keep


# ---- stages


def _backbone(run: BackboneRun, folder: Path, log: loop.Log, on_progress: Progress) -> checkpoints.Model:
    (folder / "run.json").write_text(json.dumps(asdict(run), indent=1) + "\n", encoding="utf-8")
    model, figures = train_backbone(run, on_progress)
    log({"val": figures})
    with torch.no_grad():
        texts = ClassTexts(names=WORDS, embeddings=model.encode_text(list(WORDS)).numpy())
    config = ModelConfig(
        kind="encoder",
        encoder={"name": "timm", "embed_dim": run.embed_dim},
        view_side=clip.COMPACT_SIDE,
        mean=clip.COMPACT_MEAN,
        std=clip.COMPACT_STD,
        texts=texts,
        dtype="float16",
    )
    return checkpoints.Model(daclip=model, network=None, config=config)


def _controller(run: ControllerRun, folder: Path, log: loop.Log) -> checkpoints.Model:
    found = _find_encoder(run.encoder)
    config, words = found.encoder_config, found.texts
    if words.names != WORDS:
        raise DataError(f"{found.path}: knows the words {', '.join(words.names)}, not {', '.join(WORDS)}")
    daclip = checkpoints.load(found).daclip.to(memory_format=torch.channels_last)
    job = ControllerJob(run, daclip, torch.from_numpy(words.embeddings), mean=config.mean, std=config.std)
    data, val = _photos(run)
    loop.fit(job, data=data, val=val, folder=folder, log=log)
    scale, bias = float(job.scale.detach().exp()), float(job.bias.detach())
    texts = replace(words, rule="sigmoid", scale=scale, bias=bias)
    return checkpoints.Model(daclip=daclip, network=None, config=replace(config, texts=texts))


def _restorer(run: RestorerRun, folder: Path, log: loop.Log) -> checkpoints.Model:
    found = _find_encoder(run.encoder)
    encoder = found.encoder_config
    torch.manual_seed(run.seed)
    network = checkpoints.build_network(run.network)
    if not isinstance(network, NAFNet):
        raise DataError(f"network {run.network['name']} is not trained here", hint='known: "nafnet"')
    _check_width(run, found.texts)
    daclip = checkpoints.load(found).daclip.to(memory_format=torch.channels_last)
    job = RestorerJob(run, daclip, network, mean=encoder.mean, std=encoder.std)
    data, val = _photos(run)
    loop.fit(job, data=data, val=val, folder=folder, log=log)
    config = ModelConfig(
        kind="one-pass",
        encoder=_carried(found),
        network=run.network,
        view_side=encoder.view_side,
        mean=encoder.mean,
        std=encoder.std,
        texts=found.texts if found.source == "folder" else None,
        multiple=network.multiple,
        # 836 measured for OpenVINO in float32 and 671 for ONNX Runtime at width 40 and half resolution
        bytes_per_pixel=round(850 * (network.intro.out_channels / 40) * (2 / network.shuffle) ** 2),
        dtype="float16",
    )
    return checkpoints.Model(daclip=daclip, network=network, config=config)


def _find_encoder(name: str) -> ModelFolder:
    """The model of a run folder, or a model by folder, bundled name or hub id, from the cache only."""
    finished = Path(name) / "model"
    try:
        return models.find(finished if finished.is_dir() else name, offline=True)
    except ModelError as error:
        raise DataError(
            f"{name}: neither a finished run nor a model ({error.message})",
            hint="train that first, or name a model: encoder=compact-encoder",
        ) from error


def _carried(found: ModelFolder) -> dict[str, Any] | str:
    """How a restorer holds its encoder: in its own folder, or by name where everybody can find it by name."""
    if found.source == "folder":
        return found.encoder_config.encoder
    return found.config.encoder if isinstance(found.config.encoder, str) else found.name


def _check_width(run: RestorerRun, texts: ClassTexts) -> None:
    """Raise DataError unless the network takes embeddings as wide as the encoder's."""
    width, wanted = texts.embeddings.shape[1], run.network.get("context_dim")
    if wanted is not None and wanted != width:
        raise DataError(f"the network takes embeddings {wanted} wide, {run.encoder} gives {width}")


def _photos(run: ControllerRun | RestorerRun) -> tuple[CleanPhotos, list[Batch]]:
    """What a run draws from, and its fixed validation batches from photos it never draws."""
    chosen, held_out = split(list_photos(Path(run.data)))
    if not held_out:  # a few photos, none of which the hash holds out
        chosen, held_out = chosen[1:], chosen[:1]
    if not chosen:
        raise DataError(f"{run.data}: a single photo", hint="training needs one more to validate on")
    weights = tuple(run.shares.values())
    data = CleanPhotos(
        photos=chosen, region=run.region, seed=run.seed, names=tuple(run.shares), weights=weights
    )
    val = replace(data, photos=held_out, seed=run.seed + 1, weights=None, clean_share=0.1, mixture_share=0.1)
    size = min(16, run.validate_regions)
    stop = run.validate_regions // size
    return data, list(loop.batches(val, size=size, start=0, stop=stop, workers=run.workers))
