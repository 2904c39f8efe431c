"""Our modules <-> model folders: from_pretrained, save_pretrained, push_to_hub, convert.

A folder holds `config.json`, `model.safetensors` (encoder under `encoder.`, restorer under `network.`)
and a card `README.md`; daclip.models describes and finds it.
"""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import huggingface_hub
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from daclip import clip, models, official
from daclip.clip import ClipConfig, DaClip, MiniLmText
from daclip.detect import ClassTexts
from daclip.errors import ModelError
from daclip.models import ModelConfig, ModelFolder
from daclip.networks.airnet import AirNet
from daclip.networks.drunet import DiffusionDRUNet, DRUNet
from daclip.networks.nafnet import NAFNet
from daclip.networks.nafnet_refusion import RefusionNAFNet
from daclip.networks.promptir import PromptIR
from daclip.networks.restormer import Restormer
from daclip.networks.unet import UNet
from daclip.vocabulary import DEGRADATIONS

WEIGHTS = "model.safetensors"

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model folder in memory: its encoder, its restorer (None for an encoder alone) and its description."""

    daclip: DaClip
    network: nn.Module | None
    config: ModelConfig


def from_pretrained(
    name: str | Path,
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    local_files_only: bool = False,
    token: str | None = None,
) -> Model:
    """The model of a bundled name, a folder or a hub id: float32, on the CPU, in evaluation mode.

    Args:
        name: searched as a bundled name, a folder, in the hub's cache and on the hub, in this order.
        revision: branch, tag or commit on the hub.
        cache_dir: where downloads are kept; by default where the hub's own variables say.
        local_files_only: never use the network.
        token: of the hub, for private models.

    Raises:
        ModelError: not found, or files that do not fit each other.
    """
    found = models.find(name, revision=revision, cache_dir=cache_dir, offline=local_files_only, token=token)
    return load(found)


def load(found: ModelFolder) -> Model:
    """The model of a folder that was found."""
    encoder = found.encoder_config.encoder
    if isinstance(encoder, str):
        raise ModelError(f"{found.encoder_path}: its encoder is again a name, {encoder}")
    towers = {key: value for key, value in encoder.items() if key != "text"}
    daclip = _part("encoder.", lambda: build_encoder(towers), found.encoder_path)
    if encoder.get("text"):
        daclip.text_tower = _compact_text(found.encoder_path, encoder["embed_dim"])
    description = found.config.network
    network = None
    if description is not None:
        network = _part("network.", lambda: build_network(description), found.path)
    return Model(daclip=daclip, network=network, config=found.config)


def build_encoder(description: dict[str, Any]) -> DaClip:
    """A DA-CLIP by its description, with random weights.

    {"name": "open_clip", "config": open_clip model configuration, "pairing": ...} or
    {"name": "timm", "embed_dim": ...}, the compact one (with "text": true in a folder that also holds the
    projection of its text tower, whose frozen part has its own package).
    """
    return _build(ENCODERS, description)


def build_network(description: dict[str, Any]) -> nn.Module:
    """A restorer by its description, {"name": key of NETWORKS, arguments of it}, with random weights."""
    return _build(NETWORKS, description)


def _build(table: dict[str, Callable[..., Module]], description: dict[str, Any]) -> Module:
    arguments = dict(description)
    name = arguments.pop("name", None)
    if name not in table:
        raise ModelError(f'unknown network "{name}" in config.json', hint=f"known: {', '.join(table)}")
    try:
        inspect.signature(table[name]).bind(**arguments)
    except TypeError as error:
        raise ModelError(f"config.json of {name}: {error}", hint="mend the file, or update daclip") from error
    return table[name](**arguments)


def _part(prefix: str, build: Callable[[], Module], folder: Path) -> Module:
    """The encoder or the restorer of a folder; other weights in the file are not looked at."""
    path = folder / WEIGHTS
    try:
        weights = load_file(path)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: not there", hint="the torch engine and training need it") from error
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read ({error})", hint="is the download complete?") from error
    own = {name: value for name, value in weights.items() if name.startswith(prefix)}
    return official.filled(build, own, path, name_in_file=lambda name: prefix + name)


def _compact_text(folder: Path, embed_dim: int) -> MiniLmText:
    """The compact text tower, with the projection stored in the folder."""
    tower = MiniLmText(embed_dim)
    weights = load_file(folder / WEIGHTS)
    tower.projection.load_state_dict(
        {name: weights[f"text.{name}"].float() for name in tower.projection.state_dict()}
    )
    return tower.requires_grad_(False).eval()


# ---- writing


def save_pretrained(model: Model, folder: str | Path, *, card: str | None = None) -> Path:
    """Write a model folder, in the dtype of its config, and return its path.

    The encoder is left out where the config names another folder for it. Of the compact text tower only the
    projection is written, and only where the config says "text": the rest comes from its own package.

    Args:
        model: what to write.
        folder: made where it does not exist; files in it are replaced.
        card: text of README.md; without one a card that states no figures.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = _DTYPES[model.config.dtype]
    parts: dict[str, Tensor] = {}
    if not isinstance(model.config.encoder, str):
        stored = model.daclip.state_dict().items()
        if isinstance(tower := model.daclip.text_tower, MiniLmText):
            stored = [(key, value) for key, value in stored if not key.startswith("text_tower.")]
            if model.config.encoder.get("text"):
                parts = {f"text.{key}": value for key, value in tower.projection.state_dict().items()}
        parts |= {f"encoder.{key}": value for key, value in stored}
    if model.network is not None:
        parts |= {f"network.{key}": value for key, value in model.network.state_dict().items()}
    weights = {
        key: value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype).contiguous()
        for key, value in parts.items()
    }
    # renamed into place: a reader, or an interrupted write, never meets half a file
    unfinished = folder / f"{WEIGHTS}.part"
    save_file(weights, unfinished, metadata={"format": "pt"})
    unfinished.chmod(0o644)  # safetensors keeps files to their owner; models are shared
    unfinished.replace(folder / WEIGHTS)
    models.write_config(model.config, folder)
    (folder / "README.md").write_text(card or _plain_card(model.config), encoding="utf-8")
    return folder


def push_to_hub(
    folder: str | Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a model folder to the hub, where the repository is made if need be; return the commit's address.

    Args:
        folder: with config.json and model.safetensors.
        repository: `owner/name`.
        private: for a repository that is made.
        revision: branch to write to.
        token: of the hub; by default HF_TOKEN or the saved login.
    """
    models.read_config(Path(folder))
    api = huggingface_hub.HfApi(token=token, library_name="daclip")
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        return api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            commit_message="Upload daclip model",
            ignore_patterns=["*.part"],
        ).commit_url
    except (huggingface_hub.errors.HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{repository}: not uploaded ({reason})", hint="HF_TOKEN needs write access"
        ) from error


# ---- published files


def convert(files: Sequence[str | Path], folder: str | Path, *, config: ClipConfig | None = None) -> Path:
    """Turn published files into a model folder: a DA-CLIP and a restorer, in any order, or a DA-CLIP alone.

    A restorer that needs no embeddings (IR-SDE, Refusion, NAFNet, Restormer, AirNet, PromptIR) may come
    alone; the bundled encoder then detects.

    Args:
        files: as published, see daclip.official.
        folder: to write.
        config: open_clip model configuration, where the DA-CLIP's shapes do not tell it.

    Returns:
        The folder, with the ten class texts: one-pass for NAFNet, Restormer, AirNet and PromptIR; else
        diffusion with the published schedule, posterior sampler, 100 steps.
    """
    encoders = [file for file in files if official.is_daclip(file)]
    restorers = [file for file in files if file not in encoders]
    if len(encoders) > 1 or len(restorers) > 1 or not files:
        raise ModelError(
            f"{len(encoders)} DA-CLIP and {len(restorers)} restorer files",
            hint="give one of each, or one file",
        )
    network, description = official.network_of(restorers[0]) if restorers else (None, None)
    if encoders:
        daclip, encoder = official.daclip_of(encoders[0], config)
        described = ModelConfig(
            kind="encoder", encoder=encoder, texts=class_texts(daclip), view_side=_side(encoder["config"])
        )
    else:
        daclip, described = _bundled_encoder(restorers[0], description)
    if description is not None:
        _check_widths(described, description, files)
        memory = BYTES_PER_PIXEL[description["name"]]
        described = replace(described, kind="one-pass", network=description, bytes_per_pixel=memory)
        if description["name"] in _DIFFUSION:
            described = replace(
                described,
                kind="diffusion",
                sde={"max_sigma": 50 / 255, "steps": 100, "schedule": "cosine", "eps": 0.005},
                objective="published",
                sampler="posterior",
                steps=100,
            )
    model = Model(daclip=daclip, network=network, config=described)
    return save_pretrained(model, folder, card=_converted_card(files))


def _bundled_encoder(file: str | Path, description: dict[str, Any] | None) -> tuple[DaClip, ModelConfig]:
    """For a restorer without embeddings: the encoder of this package, which says what is wrong."""
    if description is not None and description.get("context_dim") is not None:
        raise ModelError(f"{file}: this restorer needs its DA-CLIP", hint="give both files")
    name = "compact-encoder"
    own = from_pretrained(name)
    # its own dtype is not that of the weights converted beside it
    return own.daclip, replace(own.config, encoder=name, texts=None, dtype="float32")


def _check_widths(config: ModelConfig, description: dict[str, Any], files: Sequence[str | Path]) -> None:
    """Raise ModelError unless the restorer is one of ours that can use the encoder's embeddings."""
    named = ", ".join(map(str, files))
    if description["name"] not in BYTES_PER_PIXEL:
        raise ModelError(f"{named}: a network of another project", hint="published restorers are converted")
    wanted = description.get("context_dim")
    width = None if config.texts is None else config.texts.embeddings.shape[1]
    if wanted is not None and width != wanted:
        raise ModelError(
            f"{named}: embeddings are {width} wide, the restorer takes {wanted}",
            hint="universal-ir belongs to ViT-B-32, wild-ir to ViT-L-14",
        )


def class_texts(daclip: DaClip, names: Sequence[str] = DEGRADATIONS) -> ClassTexts:
    """The words with their text embeddings, read by the published rule: softmax over 100 times the cosine."""
    with torch.inference_mode():
        embeddings = daclip.encode_text(list(names)).cpu().numpy().astype(np.float32)
    return ClassTexts(names=tuple(names), embeddings=embeddings)


def _side(config: dict[str, Any]) -> int:
    side = config["vision_cfg"].get("image_size", 224)
    return side if isinstance(side, int) else side[0]


def _converted_card(files: Sequence[str | Path]) -> str:
    sources = "".join(f"- `{Path(file).name}`, sha256 `{_sha256(Path(file))}`\n" for file in files)
    return (
        _CARD_HEAD
        + "# Converted DA-CLIP files\n\n"
        + "Weights of other authors, converted unchanged by `daclip models convert`.\n\n"
        + f"## Source\n\n{sources}\n"
        + "The code they belong to (Algolzw/daclip-uir, Algolzw/image-restoration-sde) is MIT; "
        + "the terms of the weights and of their training data are those of their authors.\n"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain_card(config: ModelConfig) -> str:
    words = ", ".join(config.texts.names) if config.texts else "those of its encoder"
    return (
        _CARD_HEAD
        + f"# A daclip model ({config.kind})\n\nWords it knows: {words}.\n\nIts quality was not measured.\n"
    )


_CARD_HEAD = """---
license: other
license_name: not-stated
library_name: daclip
pipeline_tag: image-to-image
tags: [da-clip]
---
"""

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# Working memory of one tile on a CPU in float32, measured at 512 x 512: 3300 (universal-ir), 2800 (wild-ir),
# 4900 (IR-SDE, depth 4), 2100 (Refusion); at 192 x 192: 8500 (Restormer), 8600 (PromptIR), 5400 (AirNet).
# NAFNet, at width 64: by what `compact-nafnet` takes.
BYTES_PER_PIXEL = {
    "unet": 5000,
    "nafnet-refusion": 2200,
    "nafnet": 5500,
    "restormer": 9000,
    "airnet": 5500,
    "promptir": 9000,
}
_DIFFUSION = ("unet", "nafnet-refusion")


def _open_clip(*, config: dict[str, Any], pairing: Literal["reversed", "straight"] = "reversed") -> DaClip:
    return clip.vit(config, pairing=pairing)


def _timm(*, embed_dim: int) -> DaClip:
    return clip.compact(embed_dim, pretrained=False)


ENCODERS: dict[str, Callable[..., DaClip]] = {"open_clip": _open_clip, "timm": _timm}

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "drunet": DRUNet,
    "drunet-diffusion": DiffusionDRUNet,
    "nafnet": NAFNet,
    "nafnet-refusion": RefusionNAFNet,
    "restormer": Restormer,
    "airnet": AirNet,
    "promptir": PromptIR,
}
