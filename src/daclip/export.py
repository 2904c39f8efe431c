"""Model folder -> exported graphs `encoder.onnx` and `restorer.onnx` beside its weights, checked against torch.

The graphs hold structure only: their weights stay in `model.safetensors`, read from there in the stored precision and
cast to float32 when a session starts. So a folder holds each weight once, for torch and for every other engine.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from daclip import checkpoints, engine, models
from daclip.clip import DaClip
from daclip.errors import ModelError
from daclip.models import ModelConfig

WEIGHTS = "model.safetensors"

_ONNX_TYPES: dict[str, int] = {
    "F32": TensorProto.FLOAT,
    "F16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
}


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Largest difference between an exported graph and torch, relative to the largest value, on random input."""

    encoder: float | None
    restorer: float | None


def export(folder: Path, *, tolerance: float = 1e-4) -> Parity:
    """Write the graphs of a model folder into it, run them, and compare with torch.

    A folder whose encoder is another folder's gets the restorer alone. Raises ModelError when a graph differs from torch
    by more than the tolerance.
    """
    model = checkpoints.from_pretrained(folder)
    config = model.config
    if model.daclip is not None and not isinstance(config.encoder, str):
        _write(_Encoder(model.daclip), folder, "encoder", config)
    if model.network is not None:
        kind: Literal["one-pass", "diffusion"] = "diffusion" if config.kind == "diffusion" else "one-pass"
        _write(_Restorer(model.network, kind=kind), folder, "restorer", config)
    parity = _parity(model, folder)
    for part, difference in (("encoder", parity.encoder), ("restorer", parity.restorer)):
        if difference is not None and not difference <= tolerance:
            raise ModelError(
                f"{folder}: exported {part} differs from torch by {difference:.2g} of the largest value"
            )
    return parity


class _Encoder(nn.Module):
    """A DA-CLIP as a graph: views in, the two embeddings out."""

    def __init__(self, encoder: DaClip) -> None:
        super().__init__()
        self.encoder = encoder.eval()

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Content and degradation embeddings."""
        found = self.encoder.encode(views)
        return found.content, found.degradation


class _Restorer(nn.Module):
    """A restorer as a graph, its inputs in the order of the engine's protocol."""

    def __init__(self, network: nn.Module, *, kind: Literal["one-pass", "diffusion"]) -> None:
        super().__init__()
        self.network = network.eval()
        self.kind = kind

    def forward(self, *inputs: Tensor) -> Tensor:
        """The clean photo, or the noise."""
        *images, content, degradation = inputs
        return self.network(*images, content=content, degradation=degradation)


_INPUTS = {
    "encoder": ("views",),
    "one-pass": ("mu", "content", "degradation"),
    "diffusion": ("x", "mu", "t", "content", "degradation"),
}


def _examples(names: Sequence[str], config: ModelConfig, *, width: int, seed: int) -> list[Tensor]:
    """Random inputs of a graph: three views, or photos of odd size."""
    generator = torch.Generator().manual_seed(seed)
    side = config.view_side
    made: dict[str, Tensor] = {
        "views": torch.randn(3, 3, side, side, generator=generator),
        "x": torch.rand(2, 3, 61, 83, generator=generator),
        "mu": torch.rand(2, 3, 61, 83, generator=generator),
        "t": torch.tensor([7.0, 61.5]),
        "content": torch.randn(2, width, generator=generator),
        "degradation": torch.randn(2, width, generator=generator),
    }
    return [made[name] for name in names]


def _embed_dim(config: ModelConfig) -> int:
    return int(config.network["context_dim"]) if config.network else 0


def _write(
    module: _Encoder | _Restorer, folder: Path, part: Literal["encoder", "restorer"], config: ModelConfig
) -> None:
    """Export one graph and point its weights at the folder's weight file."""
    names = _INPUTS["encoder" if isinstance(module, _Encoder) else module.kind]
    outputs = ["content", "degradation"] if isinstance(module, _Encoder) else [_output(module.kind)]
    dynamic = torch.export.Dim.DYNAMIC
    axes: dict[str, dict[int, Any]] = {
        "views": {0: dynamic},
        "x": {0: dynamic, 2: dynamic, 3: dynamic},
        "mu": {0: dynamic, 2: dynamic, 3: dynamic},
        "t": {0: dynamic},
        "content": {0: dynamic},
        "degradation": {0: dynamic},
    }
    shapes = tuple(axes[name] for name in names)
    program = torch.onnx.export(
        module,
        tuple(_examples(names, config, width=_embed_dim(config), seed=0)),
        dynamo=True,
        input_names=list(names),
        output_names=outputs,
        dynamic_shapes=shapes if isinstance(module, _Encoder) else (shapes,),
        verbose=False,
    )
    assert program is not None
    graph = program.model_proto
    _share_weights(graph, folder / WEIGHTS)
    onnx.save_model(graph, str(folder / f"{part}.onnx"))


def _output(kind: str) -> str:
    return "noise" if kind == "diffusion" else "clean"


def _share_weights(model: onnx.ModelProto, weights: Path) -> None:
    """Replace each initialiser that the weight file holds by a reference into that file, cast to float32."""
    places = _places(weights)
    kept: list[TensorProto] = []
    casts: list[onnx.NodeProto] = []
    for tensor in model.graph.initializer:
        place = places.get(tensor.name)
        if place is None or tuple(tensor.dims) != place.shape:
            kept.append(tensor)
            continue
        stored = TensorProto(name=f"{tensor.name}.stored", data_type=place.onnx_type, dims=tensor.dims)
        stored.data_location = TensorProto.EXTERNAL
        for key, value in (("location", weights.name), ("offset", place.offset), ("length", place.length)):
            stored.external_data.add(key=key, value=str(value))
        kept.append(stored)
        casts.append(helper.make_node("Cast", [stored.name], [tensor.name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a weight lies in its file, in bytes."""

    shape: tuple[int, ...]
    onnx_type: int
    offset: int
    length: int


def _places(weights: Path) -> dict[str, _Place]:
    """Where each tensor of a safetensors file lies: 8 bytes of header length, the header in JSON, the data."""
    with weights.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = cast("dict[str, Any]", json.loads(file.read(size)))
    header.pop("__metadata__", None)
    return {
        name: _Place(
            shape=tuple(entry["shape"]),
            onnx_type=_ONNX_TYPES[entry["dtype"]],
            offset=8 + size + entry["data_offsets"][0],
            length=entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
        if entry["dtype"] in _ONNX_TYPES
    }


def _parity(model: checkpoints.Model, folder: Path) -> Parity:
    """Compare the graphs just written with the modules they were made from."""
    running = engine.load(models.find(folder), engine="onnx", precision="fp32")
    config = model.config
    encoder = restorer = None
    with torch.no_grad():
        if model.daclip is not None and (folder / "encoder.onnx").exists():
            (views,) = _examples(_INPUTS["encoder"], config, width=0, seed=1)
            wanted, got = model.daclip.encode(views), running.encode(views.numpy())
            encoder = max(
                _difference(got.content, wanted.content), _difference(got.degradation, wanted.degradation)
            )
        if model.network is not None:
            inputs = _examples(_INPUTS[config.kind], config, width=_embed_dim(config), seed=1)
            *images, content, degradation = inputs
            wanted = model.network(*images, content=content, degradation=degradation)
            arrays = [tensor.numpy() for tensor in inputs]
            run = running.predict_noise if config.kind == "diffusion" else running.predict_clean
            restorer = _difference(run(*arrays), wanted)
    return Parity(encoder=encoder, restorer=restorer)


def _difference(got: np.ndarray, wanted: Tensor) -> float:
    return float(np.abs(got - wanted.numpy()).max() / wanted.abs().max())
