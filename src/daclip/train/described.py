"""The job of a run by its description, with random weights: nothing is loaded and nothing fetched.

What a run will take can so be told before the runs that it builds on.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from daclip import checkpoints, clip, models
from daclip.errors import DataError, ModelError
from daclip.models import ModelFolder
from daclip.train.controller import WORDS, ControllerJob
from daclip.train.presets import PRESETS, BackboneRun, ControllerRun, RestorerRun, Run
from daclip.train.restorer import RestorerJob

Description = dict[str, Any]

_BRANCHES = ("tone", "shade", "fill", "veil")
"""Parts that change next to nothing when they are new: a run may add them to the network it starts from."""


def described_job(run: ControllerRun | RestorerRun) -> ControllerJob | RestorerJob:
    """The job of a run.

    A model that is not there is described by the preset whose run folder is named: `runs/controller` by
    `controller`. Raises DataError where the name says neither.
    """
    encoder = _encoder(run.encoder)
    if isinstance(run, ControllerRun):
        daclip = _daclip(encoder)
        width = encoder["embed_dim"] if encoder["name"] == "timm" else encoder["config"]["embed_dim"]
        return ControllerJob(run, daclip, torch.zeros(len(WORDS), width))
    if run.start:
        run = replace(run, network=grown(_network(run.start), run.network))
    return RestorerJob(
        run,
        _daclip(encoder) if run.network.get("context_dim") else None,
        checkpoints.build_network(run.network),
        initial=checkpoints.build_network(_network(run.initial)) if run.initial else None,
    )


def find_model(name: str) -> ModelFolder:
    """The model of a run folder, or a model by folder, bundled name or hub id, from the cache only."""
    finished = Path(name) / "model"
    try:
        return models.find(finished if finished.is_dir() else name, offline=True)
    except ModelError as error:
        raise DataError(
            f"{name}: neither a finished run nor a model ({error.message})",
            hint="train that first, or name a model: encoder=compact-encoder",
        ) from error


def grown(old: Description, new: Description) -> Description:
    """The form of a network that goes on from weights of the form `old`: that, and the new branches."""
    if old["name"] != new["name"]:
        return old
    return {**old, **{key: True for key in _BRANCHES if new.get(key)}}


def _encoder(name: str) -> Description:
    """The encoder of a model by its name, as `checkpoints.build_encoder` takes it."""
    if name.startswith("open_clip:"):
        config = clip.read_clip_config(name.split(":")[1])
        return {"name": "open_clip", "config": config}
    found = _found(name)
    if isinstance(found, ModelFolder):
        assert isinstance(found.encoder_config.encoder, dict)
        return found.encoder_config.encoder
    if isinstance(found, BackboneRun):
        return {"name": "timm", "embed_dim": found.embed_dim, "text": True}
    # the compact text tower stays behind with the backbone
    return {key: value for key, value in _encoder(found.encoder).items() if key != "text"}


def _network(name: str) -> Description:
    """The restorer of a model by its name, as `checkpoints.build_network` takes it."""
    found = _found(name)
    network = found.config.network if isinstance(found, ModelFolder) else getattr(found, "network", None)
    if network is None:
        raise DataError(f"{name}: holds no restorer", hint="name compact, or a folder with one")
    return network


def _found(name: str) -> ModelFolder | Run:
    """The model, or the preset that would make it."""
    try:
        return find_model(name)
    except DataError:
        if (make := PRESETS.get(name.removeprefix("runs/"))) is None:
            raise
        return make()


def _daclip(description: Description) -> clip.DaClip:
    towers = {key: value for key, value in description.items() if key != "text"}
    daclip = checkpoints.build_encoder(towers)
    if description.get("text"):
        with torch.device("cpu"):  # its weights are in a package, and read
            daclip.text_tower = clip.MiniLmText(description["embed_dim"]).requires_grad_(False).eval()
    return daclip
