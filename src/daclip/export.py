"""Model folder -> graphs `encoder.onnx`, `restorer.onnx` and `shade.onnx` beside its weights, checked.

What they compute is compared with torch.

The graphs hold structure only: their weights stay in `model.safetensors`, read from there in the stored
precision and cast to float32 when a session starts. So a folder holds each weight once, for every engine.
"""

import json
import shutil
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import onnx
import torch
from jaxtyping import Float
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file
from torch import Tensor, nn

from daclip import calibrate, checkpoints, engine, models
from daclip.checkpoints import WEIGHTS, Model
from daclip.clip import DaClip
from daclip.errors import ModelError
from daclip.models import ModelFolder
from daclip.networks.conditioning import TONES
from daclip.networks.drunet import DRUNet
from daclip.networks.shade import Shade


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A folder with graphs, and how far each differs from torch on random input, by its name.

    Differences are relative to the largest value. `lost` is what 8-bit integers cost on degraded photos, in
    dB, where a restorer was calibrated now.
    """

    folder: Path
    differences: dict[str, float]
    lost: float | None = None


def export(
    source: str | Path, folder: Path | None = None, *, photos: str = "", tolerance: float = 1e-4
) -> Exported:
    """Write the graphs of a model, run them, and compare with torch.

    Args:
        source: run folder, model folder, bundled name or hub id.
        folder: where the model is copied, with its encoder, before its graphs are written; None writes them
            into the source, where an encoder that is another folder's is left alone.
        photos: clean photos or pairs to calibrate a restorer with, so that it can compute in 8-bit integers;
            empty: as it was calibrated before, if it was.
        tolerance: largest difference allowed.

    Raises ModelError, and leaves no graphs, when one differs from torch by more than the tolerance, or 8-bit
    integers cost more than `MOST_LOST`; and where a model it names was not exported yet.
    """
    finished = Path(source) / "model"
    found = models.find(finished if finished.is_dir() else source)
    if folder is not None:
        found = models.find(_copied(found, folder))
    for graph in found.graphs.values():
        if graph.parent != found.path and not graph.is_file():
            raise ModelError(f"{graph}: not there", hint=f"`daclip export {graph.parent}` first")
    if photos:
        models.write_config(replace(found.config, int8=calibrate.ranges(found, photos)), found.path)
        found = models.find(found.path)
    graphs = _graphs(checkpoints.load(found), found)
    try:
        for graph in graphs:
            _write(graph, found)
        differences, lost = _compared(graphs, found, tolerance), None
        if photos and (lost := calibrate.loss(models.find(found.path), photos)) > MOST_LOST:
            raise ModelError(f"{found.path}: 8-bit integers cost {lost:.2f} dB", hint="leave --calibrate out")
        return Exported(folder=found.path, differences=differences, lost=lost)
    except ModelError:
        for graph in graphs:
            for suffix in (".onnx", models.INT8):
                (found.path / graph.name).with_suffix(suffix).unlink(missing_ok=True)
        raise


MOST_LOST = 0.05
"""dB of PSNR that 8-bit integers may cost."""


def _copied(found: ModelFolder, folder: Path) -> Path:
    """A copy that holds its encoder, with the model it goes on from beside it: they stand alone."""
    if found.initial is not None and found.source == "folder" and found.initial.parent == found.path.parent:
        shutil.copytree(found.initial, folder.parent / found.initial.name, dirs_exist_ok=True)
    config = replace(found.config, encoder=found.encoder_config.encoder, texts=found.texts)
    model = replace(checkpoints.load(found), config=config)
    card = found.path / "README.md"
    return checkpoints.save_pretrained(
        model, folder, card=card.read_text(encoding="utf-8") if card.is_file() else None
    )


# ---- what is exported


class _Encoder(nn.Module):
    """A DA-CLIP as a graph: views in, the two embeddings out."""

    def __init__(self, encoder: DaClip) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Content and degradation embeddings."""
        found = self.encoder.encode(views)
        return found.content, found.degradation


class _Shade(nn.Module):
    """What finds shadows as a graph, its weights named as in the folder."""

    def __init__(self, shade: Shade) -> None:
        super().__init__()
        self.network = nn.ModuleDict({"shade": shade})

    def forward(self, mu: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the shadows, and what they lack."""
        return self.network["shade"](mu)


class _Restorer(nn.Module):
    """A restorer as a graph, its inputs in the order of the engine's protocol."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        """The clean photo, or the noise."""
        *images, content, degradation = inputs
        return self.network(*images, content=content, degradation=degradation)


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """One graph of a folder: the module it is made from, and the names and shapes of what goes in and out."""

    name: Literal["encoder", "restorer", "shade"]
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def examples(self, found: ModelFolder, *, seed: int) -> list[Tensor]:
        """Random inputs: three views, or two photos of odd size with embeddings."""
        generator = torch.Generator().manual_seed(seed)
        side, width = found.encoder_config.view_side, found.texts.embeddings.shape[1]
        tones = TONES if (found.config.network or {}).get("tone") else 0
        made: dict[str, Tensor] = {
            "views": torch.randn(3, 3, side, side, generator=generator),
            "x": torch.rand(2, 3, 61, 83, generator=generator),
            "mu": torch.rand(2, 3, 61, 83, generator=generator),
            "t": torch.tensor([7.0, 61.5]),
            "content": torch.randn(2, width + tones, generator=generator),
            "degradation": torch.randn(2, width, generator=generator),
        }
        return [made[name] for name in self.inputs]

    def shapes(self) -> tuple[Any, ...]:
        """Which axes of the inputs vary, nested as the arguments of the module are."""
        free = torch.export.Dim.DYNAMIC
        photo: dict[int, Any] = {0: free, 2: free, 3: free}
        axes = tuple(photo if name in ("x", "mu") else {0: free} for name in self.inputs)
        return (axes,) if self.name == "restorer" else axes


_INPUTS = {
    "one-pass": ("mu", "content", "degradation"),
    "diffusion": ("x", "mu", "t", "content", "degradation"),
}


def _graphs(model: Model, found: ModelFolder) -> list[_Graph]:
    """The graphs of what a folder itself holds."""
    graphs: list[_Graph] = []
    if found.encoder_path == found.path:
        outputs = ("content", "degradation")
        encoder = _Encoder(model.daclip).eval()
        graphs.append(_Graph(name="encoder", module=encoder, inputs=("views",), outputs=outputs))
    if model.network is not None:
        inputs = _INPUTS[found.config.kind]
        output = "clean" if found.config.kind == "one-pass" else "predicted"
        restorer = _Restorer(model.network).eval()
        graphs.append(_Graph(name="restorer", module=restorer, inputs=inputs, outputs=(output,)))
    if found.shade == found.path:
        shade = cast("DRUNet", model.network).shade
        assert shade is not None
        outputs = ("shadow", "lacks")
        graphs.append(_Graph(name="shade", module=_Shade(shade).eval(), inputs=("mu",), outputs=outputs))
    return graphs


# ---- writing


@torch.no_grad()  # what a branch is captured from has gradients otherwise
def _write(graph: _Graph, found: ModelFolder) -> None:
    """Write one graph, its weights pointing at the weight file beside it."""
    program = torch.onnx.export(
        graph.module,
        tuple(graph.examples(found, seed=0)),
        dynamo=True,
        # it would fold transposed copies of the weights into the graph; engines do that when they load
        optimize=False,
        input_names=graph.inputs,
        output_names=graph.outputs,
        dynamic_shapes=graph.shapes(),
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    _forget_origin(proto)
    _share_weights(proto, found.path / WEIGHTS)
    target = found.path / f"{graph.name}.onnx"
    _save(proto, target)
    if graph.name == "restorer" and found.config.int8:
        _compute_in_int8(proto, found)
        _save(proto, target.with_suffix(models.INT8))


def _save(proto: onnx.ModelProto, target: Path) -> None:
    unfinished = target.with_suffix(".part")
    onnx.save_model(proto, str(unfinished))
    unfinished.replace(target)


def _compute_in_int8(proto: onnx.ModelProto, found: ModelFolder) -> None:
    """Round what calibrated convolutions are given and give, and their weights, to 8-bit integers.

    Weights by channel, maps as a whole, from the lowest to the highest value of their range. The graph says
    so by pairs of nodes that round and undo it (QDQ), which engines fuse with the convolution.
    """
    weights = load_file(found.path / WEIGHTS)
    nodes: list[onnx.NodeProto] = []

    def rounded(name: str, result: str, scale: np.ndarray, zero: np.ndarray) -> str:
        """Rounds what has this name; the name of the result."""
        numbers = [f"{result}.scale", f"{result}.zero"]
        for array, its_name in zip((scale, zero), numbers, strict=True):
            proto.graph.initializer.append(numpy_helper.from_array(array, its_name))
        nodes.append(helper.make_node("QuantizeLinear", [name, *numbers], [f"{result}.rounded"], axis=0))
        nodes.append(helper.make_node("DequantizeLinear", [f"{result}.rounded", *numbers], [result], axis=0))
        return result

    for node in proto.graph.node:
        weight = node.input[1] if node.op_type == "Conv" else ""
        name = weight.removeprefix("network.").removesuffix(".weight")
        if name not in found.config.int8:
            nodes.append(node)
            continue
        low, high, least, most = found.config.int8[name]
        largest = np.abs(weights[weight].astype(np.float32)).max(axis=(1, 2, 3))
        by_channel = np.maximum(largest / 127, 1e-12).astype(np.float32)
        node.input[0] = rounded(node.input[0], f"{name}.given", *_steps(low, high))
        node.input[1] = rounded(weight, f"{name}.kernel", by_channel, np.zeros(len(largest), np.int8))
        result, node.output[0] = node.output[0], f"{name}.answer"
        nodes.append(node)
        rounded(node.output[0], result, *_steps(least, most))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _steps(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Size of the 255 steps of a range, and which of them is zero."""
    scale = np.float32(max(high - low, 1e-6) / 255)
    return np.asarray(scale), np.asarray(np.uint8(np.rint(-low / scale)))


def _forget_origin(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes: stack traces, with paths of this machine, in every node."""
    del model.metadata_props[:]
    for graph in _graphs_within(model.graph):
        del graph.metadata_props[:], graph.value_info[:]
        for each in (*graph.node, *graph.input, *graph.output):
            del each.metadata_props[:]
            each.doc_string = ""
        for tensor in graph.initializer:
            del tensor.metadata_props[:]


def _graphs_within(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph, and those of its branches."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs_within(attribute.g)


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


_ONNX_TYPES: dict[str, int] = {
    "F32": TensorProto.FLOAT,
    "F16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
}


def _places(weights: Path) -> dict[str, _Place]:
    """Where each tensor of a safetensors file lies: 8 bytes of header length, header in JSON, data."""
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


# ---- checking


def _compared(graphs: Sequence[_Graph], found: ModelFolder, tolerance: float) -> dict[str, float]:
    """How far the graphs just written differ from their modules. Raises ModelError beyond the tolerance."""
    running = engine.load(models.find(found.path), engine="onnx", precision="fp32", threads=1)
    differences: dict[str, float] = {}
    for graph in graphs:
        inputs = graph.examples(found, seed=1)
        with torch.no_grad():
            wanted = graph.module(*inputs)
        arrays = [tensor.numpy() for tensor in inputs]
        if graph.name == "encoder":
            got = running.encode(*arrays)
            pairs = [(got.content, wanted[0]), (got.degradation, wanted[1])]
        elif graph.name == "shade":
            pairs = list(zip(running.find_shadows(*arrays), wanted, strict=True))
        else:
            predict = running.predict_at if found.config.kind == "diffusion" else running.predict_clean
            pairs = [(predict(*arrays), wanted)]
        difference = max(_difference(*pair) for pair in pairs)
        if not difference <= tolerance:
            raise ModelError(
                f"{found.path / graph.name}.onnx: differs from torch by {difference:.2g} of the largest value"
            )
        differences[graph.name] = difference
    return differences


def _difference(got: Float[np.ndarray, "..."], wanted: Float[Tensor, "..."]) -> float:
    return float(np.abs(got - wanted.numpy()).max() / wanted.abs().max())
