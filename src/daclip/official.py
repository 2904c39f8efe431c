"""Published files -> our modules: safe reading, architecture from shapes, every key accounted for.

Reads what the training code of DA-CLIP, IR-SDE, Refusion, Restormer, AirNet and PromptIR writes, in every
wrapper it or its users put around the weights. Nothing is unpickled beyond an allow-list.
"""

import _codecs
import logging
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from daclip.clip import ClipConfig, DaClip, read_clip_config, vit
from daclip.errors import ModelError
from daclip.networks import airnet, nafnet, nafnet_refusion, promptir, restormer, unet

_LOG = logging.getLogger("daclip")

State = dict[str, Tensor]


def load_daclip(path: str | Path, config: ClipConfig | None = None) -> DaClip:
    """The DA-CLIP of a published file, float32, on the CPU, in evaluation mode.

    Args:
        path: `daclip_ViT-B-32.pt` and the like; bare or nested, with or without prefixes and aliases.
        config: open_clip model configuration (name, dict or JSON file) where shapes do not tell it: heads not
            64 wide, QuickGELU. Without it ViT-B-32, ViT-L-14 and their kind are recognised.

    Raises:
        ModelError: the file cannot be read, is of another kind, or does not fit; `details` name every key.
    """
    return daclip_of(path, config)[0]


def daclip_of(path: str | Path, config: ClipConfig | None = None) -> tuple[DaClip, dict[str, Any]]:
    """The DA-CLIP of a published file and its description, as `config.json` of a model folder keeps it."""
    path = Path(path)
    state = read_state(path)
    if (kind := _kind(state)) != "daclip":
        raise ModelError(f"{path}: {_KINDS[kind]}, not a DA-CLIP file", hint=_HINTS[kind])
    state = _one_image_tower(state, path)
    values = clip_config(state, path) if config is None else read_clip_config(config)
    model = filled(lambda: vit(values, pairing="reversed"), state, path, name_in_file=published_name)
    return model, {"name": "open_clip", "config": values, "pairing": "reversed"}


def is_daclip(path: str | Path) -> bool:
    """True for a file with a controller, which load_daclip reads; False for what load_network may read."""
    return _kind(read_state(Path(path))) == "daclip"


def load_network(path: str | Path) -> nn.Module:
    """The restorer of a published file, float32, on the CPU, in evaluation mode.

    Diffusion networks (universal-ir, wild-ir, IR-SDE, Refusion) are called as
    `network(x, mu, t, content=..., degradation=...)`, t a float tensor of shape b; one-pass networks
    (NAFNet, Restormer, AirNet, PromptIR) as `network(mu)`, and so are networks of other projects (SCUNet,
    SwinIR, ...), which spandrel builds.

    Raises:
        ModelError: the file cannot be read, is of another kind, or does not fit; `details` name every key.
    """
    return network_of(path)[0]


def network_of(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The restorer of a published file and its description, as `config.json` of a model folder keeps it."""
    path = Path(path)
    state = read_state(path)
    kind = _kind(state)
    if kind in ("daclip", "clip"):
        raise ModelError(f"{path}: {_KINDS[kind]}, not a restorer", hint=_HINTS[kind])
    if kind == "spandrel":
        return _by_spandrel(state, path), {"name": "spandrel"}
    state = {key: value for key, value in state.items() if not key.startswith(_UNUSED.get(kind, ()))}
    try:
        arguments = _ARGUMENTS[kind](state)
    except ModelError as error:
        raise ModelError(f"{path}: {error.message}", hint=error.hint) from error
    return filled(lambda: _NETWORKS[kind](arguments), state, path), {"name": kind, **arguments}


# ---- reading


def read_state(path: Path) -> State:
    """The weights in a file by name, on the CPU, wrappers and prefixes taken off.

    Tensors of torch files are mapped, not read, so an optimizer beside them costs no memory.
    """
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for key in ("state_dict", "params_ema", "params"):
        if isinstance(content.get(key), dict):
            content = cast("dict[str, Any]", content[key])
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    for ema in ("ema_model.", "online_model."):
        if chosen := {key.removeprefix(ema): value for key, value in state.items() if key.startswith(ema)}:
            state = chosen
            break
    if not state:
        held = ", ".join(sorted(map(str, content))[:6]) or "nothing"
        raise ModelError(
            f"{path}: no weights in it, only {held}", hint="a .state file is not a model; take its _G.pth"
        )
    state = {_WRAPPERS.sub("", key): value for key, value in state.items()}
    if all(key.startswith("net.") for key in state):  # PromptIR is trained as a part of a Lightning module
        state = {key.removeprefix("net."): value for key, value in state.items()}
    return state


_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
"""Prefixes of data parallel and compiled modules."""


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(_allowed()):
            content: Any = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"holds {found[1]}, which weights do not need" if found else "cannot be read as weights"
        raise ModelError(
            f"{path}: {what}; nothing was loaded", hint="get the file from its author again"
        ) from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:
        # wrong bytes make the reader fail in any way: IndexError, struct.error, AssertionError, ...
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ModelError(f"{path}: cannot be read ({reason})", hint="is the download complete?") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: a {type(content).__name__}, not weights by name")
    return cast("dict[str, Any]", content)


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return cast("dict[str, Any]", load_file(path))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read ({error})", hint="is the download complete?") from error


def _allowed() -> list[Any]:
    """What the pickle of a training checkpoint needs beyond tensors: the learning rate is a NumPy float64.

    published: its schedule is computed by NumPy. Files written with NumPy 1 and 2 spell the module otherwise.
    """
    scalar = cast("Callable[..., Any]", np.float64(0).__reduce__()[0])
    kinds = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.bool_)]
    spellings = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [*spellings, np.dtype, *kinds, (_codecs.encode, "_codecs.encode")]


# ---- which network


def _kind(state: Mapping[str, Tensor]) -> str:
    """What the weights are of, by names that only one kind has."""
    if any(key.startswith("visual_control.") for key in state):
        return "daclip"
    if "token_embedding.weight" in state or "text.token_embedding.weight" in state:
        return "clip"
    if "init_conv.weight" in state:
        return "unet"
    if "intro.weight" in state and "time_mlp.1.weight" in state:
        return "nafnet-refusion"
    if "intro.weight" in state and "middle_blks.0.norm1.weight" in state:
        return "nafnet"
    if "E.E.queue" in state and "R.head.0.weight" in state:
        return "airnet"
    if "noise_level1.attn.temperature" in state:
        return "promptir"
    if "latent.0.attn.temperature" in state and "reduce_chan_level2.weight" in state:
        return "restormer"
    return "spandrel"


_KINDS = {
    "daclip": "a DA-CLIP",
    "clip": "a plain CLIP without controller",
    "unet": "a U-Net restorer",
    "nafnet-refusion": "a Refusion restorer",
    "nafnet": "a NAFNet",
    "airnet": "an AirNet restorer",
    "promptir": "a PromptIR restorer",
    "restormer": "a Restormer",
    "spandrel": "a network without controller",
}

_HINTS = {
    "daclip": "read it with load_daclip",
    "clip": "daclip.clip.vit starts a DA-CLIP from CLIP weights",
    "unet": "read it with load_network",
    "nafnet-refusion": "read it with load_network",
    "nafnet": "read it with load_network",
    "airnet": "read it with load_network",
    "promptir": "read it with load_network",
    "restormer": "read it with load_network",
    "spandrel": "if it restores, read it with load_network",
}

_ARGUMENTS: dict[str, Callable[[State], dict[str, Any]]] = {
    "unet": unet.arguments_of,
    "nafnet-refusion": nafnet_refusion.arguments_of,
    "nafnet": nafnet.arguments_of,
    "airnet": airnet.arguments_of,
    "promptir": promptir.arguments_of,
    "restormer": restormer.arguments_of,
}

_NETWORKS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "unet": lambda arguments: unet.UNet(**arguments),
    "nafnet-refusion": lambda arguments: nafnet_refusion.RefusionNAFNet(**arguments),
    "nafnet": lambda arguments: nafnet.NAFNet(**arguments),
    "airnet": lambda arguments: airnet.AirNet(**arguments),
    "promptir": lambda arguments: promptir.PromptIR(**arguments),
    "restormer": lambda arguments: restormer.Restormer(**arguments),
}

_UNUSED: dict[str, tuple[str, ...]] = {"promptir": promptir.UNUSED}


def _by_spandrel(state: State, path: Path) -> nn.Module:
    import spandrel  # here: it takes seconds to import, and only files of other projects need it

    try:
        return spandrel.ModelLoader("cpu").load_from_state_dict(state).model.eval()
    except (spandrel.UnsupportedModelError, RuntimeError, KeyError) as error:
        first = ", ".join(list(state)[:3])
        raise ModelError(
            f"{path}: no network we know has these weights ({first}, ... {len(state)} in all)",
            hint="published restorers, and what spandrel reads, are known",
        ) from error


# ---- DA-CLIP files


def clip_config(state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """The open_clip model configuration that shapes tell: heads are 64 wide, GELU is exact."""
    try:
        conv = state["clip.visual.conv1.weight"]
        positions = state["clip.visual.positional_embedding"].shape[0]
        width, patch = conv.shape[0], conv.shape[-1]
        text = state["clip.token_embedding.weight"]
        text_hidden = state["clip.transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
        hidden = state["clip.visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
        vision = {
            "image_size": patch * math.isqrt(positions - 1),
            "layers": _blocks(state, "clip.visual.transformer.resblocks."),
            "width": width,
            "patch_size": patch,
            "mlp_ratio": hidden / width,
        }
        words = {
            "context_length": state["clip.positional_embedding"].shape[0],
            "vocab_size": text.shape[0],
            "width": text.shape[1],
            "heads": text.shape[1] // 64,
            "layers": _blocks(state, "clip.transformer.resblocks."),
            "mlp_ratio": text_hidden / text.shape[1],
        }
        embed_dim = state["clip.text_projection"].shape[1]
    except KeyError as error:
        raise ModelError(f"{path}: {error.args[0]} is missing, so the architecture cannot be told") from error
    if width % 64 or text.shape[1] % 64:
        raise ModelError(
            f"{path}: towers {width} and {text.shape[1]} wide, so the number of heads cannot be told",
            hint="pass config=, the open_clip model configuration",
        )
    return {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": words}


def _blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(key[len(prefix) :].partition(".")[0]) for key in state if key.startswith(prefix))


def _one_image_tower(state: State, path: Path) -> State:
    """The state with the frozen image tower under one name, `clip.visual.`.

    published: the tower is registered twice, and its loader lets `visual.` win where a file holds two.
    """
    aliases = {f"clip.{key}": key for key in state if key.startswith("visual.")}
    differing = [
        alias
        for name, alias in aliases.items()
        if name in state and not torch.equal(state[name], state[alias])
    ]
    if differing:
        _LOG.warning(
            "%s: visual.* and clip.visual.* differ (%s, ... %d in all); visual.* is used, as published",
            path,
            differing[0],
            len(differing),
        )
    renamed = {name: state[alias] for name, alias in aliases.items()}
    return {**{key: value for key, value in state.items() if not key.startswith("visual.")}, **renamed}


def published_name(ours: str) -> str:
    """The name in a published file of one of DaClip's parameters."""
    for start, published in _PUBLISHED_NAMES.items():
        if ours.startswith(start):
            return published + ours[len(start) :]
    return ours


_PUBLISHED_NAMES = {
    "image_tower.visual.": "clip.visual.",
    "text_tower.clip.": "clip.",
    "controller.zeros.": "visual_control.transformer.zero_modules.",
    "controller.tower.visual.transformer.": "visual_control.transformer.transformer.",
    "controller.tower.visual.": "visual_control.",
}


# ---- filling


def _same_name(name: str) -> str:
    return name


Module = TypeVar("Module", bound=nn.Module)


def filled(
    build: Callable[[], Module], state: State, path: Path, *, name_in_file: Callable[[str], str] = _same_name
) -> Module:
    """A module with the weights of a file, each exactly once and in the right shape; in evaluation mode.

    Raises ModelError that counts missing, unexpected and misshaped weights; `details` name them all.
    """
    with torch.device("meta"):  # no memory and no random start for weights that come from the file
        module = build()
    own = module.state_dict()
    wanted = {name_in_file(name): name for name in own}
    _check_weights(state, {name: tuple(own[ours].shape) for name, ours in wanted.items()}, path)
    weights = {ours: state[name].to(own[ours].dtype, copy=True) for name, ours in wanted.items()}
    module.load_state_dict(weights, assign=True)
    assert not any(buffer.is_meta for buffer in module.buffers()), "a buffer that is in no file stayed empty"
    return module.eval()


def _check_weights(state: State, wanted: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Raise ModelError unless the weights are exactly the wanted names in the wanted shapes."""
    faults = {
        "missing": [name for name in wanted if name not in state],
        "unexpected": [name for name in state if name not in wanted],
        "misshaped": [
            f"{name} {_shape(state[name].shape)} instead of {_shape(shape)}"
            for name, shape in wanted.items()
            if name in state and tuple(state[name].shape) != shape
        ],
    }
    if any(faults.values()):
        counts = [
            f"{len(names)} weights {fault} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
            for fault, names in faults.items()
            if names
        ]
        raise ModelError(
            f"{path}: {'; '.join(counts)}",
            hint="all are in --verbose; is it a file of another model?",
            details=tuple(f"{fault}: {name}" for fault, names in faults.items() for name in names),
        )


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
