"""Training: `train(run, folder)` carries out one of the runs of PRESETS and leaves a model folder behind.

A run folder holds `run.json` (the settings), `log.jsonl` (figures by step, with seconds), the newest
checkpoints, pictures of the validations, `best/`, the model that validated best, and at the end `model/`, the
model with the averaged weights of the last step; and `initial/`, where these go on from a model of a folder.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from torch import nn

from daclip import checkpoints, clip
from daclip.data import CleanPhotos, DataSet, Pairs, Split, check_headers, open_data
from daclip.degradations import WILD_IR_NAMES
from daclip.detect import ClassTexts
from daclip.diffusion import IRSDE
from daclip.errors import DataError, UsageError
from daclip.models import ModelConfig, ModelFolder
from daclip.networks.drunet import DRUNet
from daclip.train import loop, resume
from daclip.train.backbone import Progress, train_backbone
from daclip.train.batch import Batch
from daclip.train.controller import WORDS, ControllerJob
from daclip.train.described import find_model, grown
from daclip.train.estimate import Estimate, estimate_run
from daclip.train.presets import (
    CONTRASTS,
    KINDS,
    ONE_PASS,
    PRESETS,
    BackboneRun,
    ControllerRun,
    Loop,
    RestorerRun,
    Run,
    preset,
    read_run,
)
from daclip.train.restorer import RestorerJob
from daclip.vocabulary import CLEAN, DEGRADATIONS

__all__ = [
    "PRESETS",
    "BackboneRun",
    "ControllerRun",
    "Estimate",
    "Loop",
    "RestorerRun",
    "Run",
    "controller_parts",
    "data_sets",
    "estimate",
    "preset",
    "restorer_parts",
    "resumed",
    "train",
]


def train(run: Run, folder: Path, *, log: loop.Log, on_progress: Progress, fresh: bool = False) -> Path:
    """Carry out a run and return its model folder; the same call again goes on where it stopped.

    Raises UsageError where the folder holds a run with settings that give other results.

    Args:
        run: what to do.
        folder: of the run, made where it does not exist.
        log: given the figures of a step, as they are written to the folder's log.
        on_progress: told how far the work before the first step is.
        fresh: start over, and remove what an older run wrote to the folder.
    """
    if fresh:
        _check_places(run, folder)
    else:
        _check_settings(run, folder)
    if isinstance(run, BackboneRun):
        _set_threads(run)
        log = _begun(run, folder, log, fresh=fresh)
        with torch.random.fork_rng(devices=[]):
            return checkpoints.save_pretrained(_backbone(run, log, on_progress), folder / "model")
    accelerator = loop.processes(run.loop, folder)
    _set_threads(run)
    with torch.random.fork_rng(devices=[]):
        job, model = _PARTS[type(run)](run)
        data, val = data_sets(run, on_progress)
        # only now, when all that the run needs is there
        if accelerator.is_main_process:
            log = _begun(run, folder, log, fresh=fresh)
        accelerator.wait_for_everyone()

        def write_model(path: Path) -> None:
            checkpoints.save_pretrained(model(), path)
            if isinstance(run, RestorerRun) and (initial := _initial(run)) and initial.source == "folder":
                shutil.copytree(initial.path, folder / _INITIAL, dirs_exist_ok=True)

        loop.fit(
            job,
            accelerator=accelerator,
            data=data,
            val=val,
            folder=folder,
            log=log,
            write_model=write_model,
        )
    return folder / "model"


def resumed(folder: Path) -> Run:
    """The run that was begun in a folder. Raises UsageError where none was, or it cannot be read."""
    path = folder / "run.json"
    if not path.exists():
        raise UsageError(f"{folder}: no run was begun there", hint="name a preset, and -o this folder")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        return read_run(settings.pop("kind"), settings)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UsageError(
            f"{path}: cannot be read ({error})", hint="a preset with --fresh starts over"
        ) from error


def estimate(run: Run) -> Estimate:
    """Parameters, memory and seconds per step of a run; nothing is fetched, and no photo read.

    A model of an earlier run that is not there yet is taken as its preset describes it.
    """
    _set_threads(run)
    with torch.random.fork_rng(devices=[]):
        return estimate_run(run)


def _set_threads(run: Run) -> None:
    """Decide how sums are split: a run says it, and no machine's default."""
    threads = run.threads if isinstance(run, BackboneRun) else run.loop.threads
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


def _check_settings(run: Run, folder: Path) -> None:
    """Raise UsageError where a folder holds a run whose results would be others."""
    if not (folder / "run.json").exists():
        return
    before, now = dict(_flat(_as_json(resumed(folder)))), dict(_flat(_as_json(run)))
    changed = ["kind"]
    if before["kind"] == now["kind"]:
        names = {**before, **now}
        changed = [name for name in names if not _are_alike(name, before.get(name), now.get(name))]
    if changed:
        old, new = (
            ", ".join(f"{name}={json.dumps(each.get(name))}" for name in changed) for each in (before, now)
        )
        raise UsageError(
            f"{folder} holds a run with {old}; asked for is {new}",
            hint="use another folder, --fresh to start over, or --resume to go on as it began",
        )


def _check_places(run: Run, folder: Path) -> None:
    """Raise UsageError where the run needs a model that would be removed for it."""
    for name in ("encoder", "start", "initial"):
        place = Path(getattr(run, name, "") or "?")
        if place.exists() and place.resolve().is_relative_to(folder.resolve()):
            raise UsageError(
                f"{name}={place} lies in the folder that --fresh empties", hint="use another folder"
            )


def _are_alike(name: str, before: Any, now: Any) -> bool:
    """Whether a run with one value of a setting can go on with another."""
    if name == "steps":
        return now >= before
    if name in ("data", "encoder", "start", "initial"):
        return Path(before or "").resolve() == Path(now or "").resolve()  # runs/eyes/ is runs/eyes
    return before == now or name in _CHANGE_NOTHING


_CHANGE_NOTHING = frozenset(
    {
        "cache_mb",
        "checkpoint_activations",
        "compile",
        "device",
        "keep",
        "log_every",
        "save_every",
        "threads",
        "trackers",
        "validate_every",
        "workers",
    }
)
"""Settings by which no result differs but in its last digits."""


def _flat(settings: dict[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """All settings by the names they are changed by; those inside of one as `network.width`."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(cast("dict[str, Any]", value), "" if name == "loop" else f"{name}.")
        else:
            yield within + name, value


def _begun(run: Run, folder: Path, log: loop.Log, *, fresh: bool) -> loop.Log:
    """The log of a run whose folder is ready: emptied of an older run where `fresh`, with the settings."""
    folder.mkdir(parents=True, exist_ok=True)
    if fresh:
        resume.forget(folder)
    _write_run(run, folder)
    return _kept(folder / "log.jsonl", log)


def _write_run(run: Run, folder: Path) -> None:
    part = folder / "run.part"
    part.write_text(json.dumps(_as_json(run), indent=1) + "\n", encoding="utf-8")
    part.replace(folder / "run.json")


def _as_json(run: Run) -> dict[str, Any]:
    kind = next(name for name, each in KINDS.items() if isinstance(run, each))
    return {"kind": kind, **asdict(run)}


def _kept(path: Path, log: loop.Log) -> loop.Log:
    """The log, which also writes each line to a file, with the seconds the run has taken so far.

    After an interruption the steps since the last checkpoint appear twice, with equal losses.
    """
    content = path.read_bytes() if path.exists() else b""
    whole, newline, cut = content.rpartition(b"\n")
    if cut:  # by a kill or a full disk; the next line would be glued to it
        os.truncate(path, len(whole + newline))
    lines = whole.splitlines()
    began = time.monotonic() - (json.loads(lines[-1])["seconds"] if lines else 0.0)

    def keep(figures: dict[str, Any]) -> None:
        figures = {**figures, "seconds": round(time.monotonic() - began, 1)}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")
        log(figures)

    return keep


# ---- stages: the job, and the model folder its weights make


Parts = tuple[loop.Job, Callable[[], checkpoints.Model]]


def _backbone(run: BackboneRun, log: loop.Log, on_progress: Progress) -> checkpoints.Model:
    model, figures = train_backbone(run, on_progress)
    log({"val": figures})
    return checkpoints.Model(
        daclip=model,
        network=None,
        config=ModelConfig(
            kind="encoder",
            encoder={"name": "timm", "embed_dim": run.embed_dim, "text": True},
            view_side=clip.COMPACT_SIDE,
            mean=clip.COMPACT_MEAN,
            std=clip.COMPACT_STD,
            texts=_texts_of(model, WORDS),
            dtype="float16",
        ),
    )


def controller_parts(run: ControllerRun) -> Parts:
    """The job of a controller run, and a function that gives the model its weights make."""
    daclip, config = _start(run.encoder)
    _check_view(run, daclip)
    words = _words(run)
    texts = config.texts
    if texts is None or texts.names != words:
        if daclip.text_tower is None:
            known = "" if texts is None else f", only {', '.join(texts.names)}"
            raise DataError(
                f"{run.encoder}: has no text tower to read the words {', '.join(words)}{known}",
                hint="start from the backbone: encoder=runs/compact-backbone",
            )
        texts = _texts_of(daclip, words)
    if run.start == "tower":
        daclip.controller = clip.Controller(daclip.image_tower)
    daclip = daclip.to(memory_format=torch.channels_last)
    embeddings = torch.from_numpy(texts.embeddings)
    job = ControllerJob(run, daclip, embeddings, words=words, mean=config.mean, std=config.std)
    if run.start == "controller" and run.degradation == texts.rule == "sigmoid":
        job.say_as(texts)

    def model() -> checkpoints.Model:
        if run.degradation == "sigmoid":
            scale, bias = float(job.scale.detach().exp()), float(job.bias.detach())
            ruled = replace(texts, rule="sigmoid", scale=scale, bias=bias)
        else:
            ruled = replace(texts, rule="softmax", scale=float(daclip.logit_scale.detach().exp()))
        assert isinstance(config.encoder, dict)
        # the compact text tower stays behind: the words are in the config
        encoder = {key: value for key, value in config.encoder.items() if key != "text"}
        finished = replace(config, texts=ruled, encoder=encoder)
        return checkpoints.Model(daclip=daclip, network=None, config=finished)

    return job, model


def restorer_parts(run: RestorerRun) -> Parts:
    """The job of a restorer run, and a function that gives the model its weights make."""
    torch.manual_seed(run.loop.seed)
    run, network = _network(run)
    found = find_model(run.encoder)
    encoder = found.encoder_config
    daclip = None
    if run.network.get("context_dim"):
        _check_width(run, found.texts)
        daclip = checkpoints.load(found).daclip.to(memory_format=torch.channels_last)
        _check_view(run, daclip)
        _tell_word(network, found)
    if isinstance(network, DRUNet) and network.shade is not None:
        network.shade.begin()
    initial = _initial(run)
    if initial is not None and not _are_equal(initial.texts, found.texts):
        raise DataError(
            f"{run.initial} is told by another encoder than {run.encoder}", hint="take one for both"
        )
    job = RestorerJob(
        run,
        daclip,
        network,
        initial=None if initial is None else checkpoints.load(initial).network,
        texts=found.texts,
        mean=encoder.mean,
        std=encoder.std,
    )
    config = ModelConfig(
        kind="one-pass" if run.objective in ONE_PASS else "diffusion",
        encoder=_carried(found),
        network=run.network,
        view_side=encoder.view_side,
        mean=encoder.mean,
        std=encoder.std,
        texts=found.texts if found.source == "folder" else None,
        word_share=_WORD_SHARE,
        brings_out={"low-light": ("noisy",)},
        multiple=network.multiple if isinstance(network.multiple, int) else 16,
        bytes_per_pixel=_bytes_per_pixel(run),
        overlap=_overlap(run),
        dtype="float16",
    )
    if run.objective not in ONE_PASS:
        sampler = "posterior" if run.objective == "published" or run.sample_times else "mrs"
        config = replace(
            config,
            initial=None if initial is None else _INITIAL if initial.source == "folder" else initial.name,
            sde=asdict(IRSDE(**run.sde)),
            objective=run.objective,
            sampler=sampler,
            steps=len(run.sample_times) or run.sample_steps,
            times=tuple(run.sample_times),
            # both networks keep their maps, and see the same tiles
            multiple=max(config.multiple, initial.config.multiple if initial else 1),
            bytes_per_pixel=config.bytes_per_pixel + (initial.config.bytes_per_pixel if initial else 0),
        )

    def model() -> checkpoints.Model:
        seeing = daclip or checkpoints.load(found).daclip
        return checkpoints.Model(daclip=seeing, network=network, config=config)

    return job, model


_WORD_SHARE = 0.4
"""With more, damage that is weak is treated as if it were strong."""


def _network(run: RestorerRun) -> tuple[RestorerRun, nn.Module]:
    """The network that learns, random or of the model the run starts from, and the run with its form."""
    if not run.start:
        return run, checkpoints.build_network(run.network)
    found = find_model(run.start)
    network = checkpoints.load(found).network
    if found.config.network is None or network is None:
        raise DataError(f"{run.start}: holds no restorer", hint="start=compact, or a folder with one")
    description = grown(found.config.network, run.network)
    if description != found.config.network:
        weights = network.state_dict()
        network = checkpoints.build_network(description)
        network.load_state_dict({**network.state_dict(), **weights})
    return replace(run, network=description), network.requires_grad_(True).train()


def _tell_word(network: nn.Module, encoder: ModelFolder) -> None:
    """The veil of a DRUNet, where it has one, hears the encoder's own word for haze."""
    veil = network.veil if isinstance(network, DRUNet) else None
    if veil is None:
        return
    texts, word = encoder.texts, "hazy"
    if word not in texts.names or texts.rule != "sigmoid":
        raise DataError(
            f'{encoder.path.name}: has no word "{word}" that is independent of others, '
            "which the network's veil needs",
            hint="take an encoder trained with degradation=sigmoid, or a network without veil",
        )
    text = torch.from_numpy(texts.embeddings[texts.names.index(word)])
    veil.listen(text, scale=texts.scale, bias=texts.bias)


def _initial(run: RestorerRun) -> ModelFolder | None:
    """The one-pass restorer a diffusion goes on from, where it has one."""
    if not run.initial:
        return None
    found = find_model(run.initial)
    network = found.config.network or {}
    if found.config.kind != "one-pass":
        raise DataError(f"{run.initial}: not a restorer of one pass", hint="initial=compact, or another")
    for key in ("context_dim", "tone"):  # both are told the same
        if network.get(key) != run.network.get(key):
            raise DataError(f"{run.initial} has {key} {network.get(key)}, the network {run.network.get(key)}")
    return found


def _are_equal(one: ClassTexts, other: ClassTexts) -> bool:
    """Whether two models know the same words by the same embeddings, up to those digits that are stored."""
    return one.names == other.names and np.allclose(one.embeddings, other.embeddings, atol=1e-5)


def _start(encoder: str) -> tuple[clip.DaClip, ModelConfig]:
    """The DA-CLIP a controller starts from: open_clip's own towers, or a model."""
    if not encoder.startswith("open_clip:"):
        found = find_model(encoder)
        return checkpoints.load(found).daclip, found.encoder_config
    name, _, tag = encoder.removeprefix("open_clip:").partition(":")
    daclip = clip.vit(name, pretrained=tag or None)
    config = clip.read_clip_config(name)
    side = config["vision_cfg"].get("image_size", 224)
    return daclip, ModelConfig(
        kind="encoder", encoder={"name": "open_clip", "config": config}, view_side=side
    )


def _texts_of(daclip: clip.DaClip, words: Sequence[str]) -> ClassTexts:
    """The words and their text embeddings."""
    with torch.no_grad():
        return ClassTexts(names=tuple(words), embeddings=daclip.encode_text(list(words)).float().numpy())


def _carried(found: ModelFolder) -> dict[str, Any] | str:
    """How a restorer holds its encoder: in its own folder, or by name where everybody can find it by name."""
    if found.source == "folder":
        return found.encoder_config.encoder
    return found.config.encoder if isinstance(found.config.encoder, str) else found.name


def _bytes_per_pixel(run: RestorerRun) -> int:
    """Working memory of the restorer for each pixel of a tile, as measured on a CPU in float32."""
    width = run.network.get("width", 32)
    if run.network["name"] == "nafnet":
        # 836 measured for OpenVINO and 671 for ONNX Runtime at width 40 and half resolution
        return round(850 * (width / 40) * (2 / run.network.get("shuffle", 1)) ** 2)
    if run.network["name"].startswith("drunet"):
        # whole processes held 673 (ONNX Runtime) and 1,062 MiB (OpenVINO) for a megapixel
        return round(
            900 * (run.network.get("widths", [64])[0] / 48) * (2 / run.network.get("shuffle", 1)) ** 2
        )
    known = checkpoints.BYTES_PER_PIXEL[run.network["name"]]
    if run.network["name"] == "unet":
        return round(known * width / 64 / (4 if run.network.get("half_resolution") else 1))
    return known


def _overlap(run: RestorerRun) -> int:
    """Pixels that tiles share."""
    # DRUNet hears of 132 pixels around one: sharing 96 cost at most 1 of 255 levels, 64 cost 5;
    # NAFNet at the size of `compact` sees 59
    return 96 if run.network["name"].startswith("drunet") else 64


def _check_width(run: RestorerRun, texts: ClassTexts) -> None:
    """Raise DataError unless the network takes embeddings as wide as the encoder's."""
    width, wanted = texts.embeddings.shape[1], run.network.get("context_dim")
    if wanted is not None and wanted != width:
        raise DataError(f"the network takes embeddings {wanted} wide, {run.encoder} gives {width}")


def _check_view(run: ControllerRun | RestorerRun, daclip: clip.DaClip) -> None:
    """Raise UsageError for views that a transformer, which knows its patches by their number, cannot see."""
    if isinstance(daclip.image_tower, clip.VitTower):
        side, _ = cast("tuple[int, int]", daclip.image_tower.visual.image_size)
        if run.view != side:
            raise UsageError(f"view={run.view}: {run.encoder} sees {side} pixels", hint=f"use view={side}")


# ---- data


def data_sets(
    run: ControllerRun | RestorerRun, on_progress: Progress = lambda *_: None
) -> tuple[DataSet, list[Batch]]:
    """What a run draws from, and its fixed validation batches from photos it never draws.

    Raises DataError where captions are missing that the run needs, or a pair has two sizes.
    """
    seed, count = run.loop.seed, run.loop.validate_regions
    data = _opened(run, "train", seed)
    val = _opened(run, "val", seed + 1)
    for each in (data, val):
        if isinstance(run, ControllerRun) and run.content in CONTRASTS:
            _check_captions(run, each)
        if isinstance(each, Pairs):
            check_headers(each.pairs, partial(on_progress, "pairs looked at"))
    if isinstance(val, CleanPhotos):
        val = replace(val, weights=None, alike=1, clean_share=0.1, mixture_share=0.1)
    size = min(loop.VAL_BATCH, count)
    stop = -(-count // size)
    *whole, last = loop.batches(val, size=size, start=0, stop=stop, workers=run.loop.workers)
    return data, [*whole, last.part(0, count - (stop - 1) * size)]


def _opened(run: ControllerRun | RestorerRun, split: Split, seed: int) -> CleanPhotos | Pairs:
    words_needed = 2 if isinstance(run, ControllerRun) else 1
    data = open_data(run.data, split=split, region=run.region, seed=seed, words_needed=words_needed)
    data = replace(data, cache_bytes=run.loop.cache_mb * 10**6 // max(1, run.loop.workers))
    is_wild = run.degrade == "wild-ir"
    if isinstance(data, Pairs):
        return replace(data, grey_share=0.2 if is_wild else 0.0)
    return replace(
        data,
        grey_share=0.1 if is_wild else 0.0,
        degrade=run.degrade,
        names=tuple(run.shares),
        weights=tuple(run.shares.values()),
        clean_share=run.clean_share,
        mixture_share=run.mixture_share,
        tone_share=run.tone_share,
        stored_share=run.stored_share,
        alike=loop.regions_per_step(run) if isinstance(run, RestorerRun) and run.alike else 1,
    )


def _check_captions(run: ControllerRun, data: CleanPhotos | Pairs) -> None:
    """Raise DataError unless every photo has a caption."""
    if isinstance(data, Pairs):
        captions = [pair.caption for pair in data.pairs]
    else:
        captions = data.captions or [None] * len(data.photos)
    if missing := sum(not caption for caption in captions):
        raise DataError(
            f"{run.data}: {missing} of {len(captions)} photos have no caption",
            hint=f"content={run.content} compares with captions, content=clean needs none",
        )


def _words(run: ControllerRun) -> tuple[str, ...]:
    """What can be wrong in the data: the paper's words, or those of wild-IR, then one's own, and "clean"."""
    data = open_data(run.data, words_needed=2)
    known = WILD_IR_NAMES if run.degrade == "wild-ir" else DEGRADATIONS
    if isinstance(data, Pairs):
        found = {name for pair in data.pairs for name in pair.names}
    else:
        found = set(run.shares) if run.degrade == "ten" else set[str]()
    return (*known, *sorted(found - {*known, CLEAN}), CLEAN)


_INITIAL = "initial"
"""Where a run keeps the model that its network goes on from, beside its own."""

_PARTS: dict[type, Callable[[Any], Parts]] = {ControllerRun: controller_parts, RestorerRun: restorer_parts}
