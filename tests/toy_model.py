"""A model folder of real graphs whose answers a test can know: it sees darkness and noise, and mends both.

The encoder measures two things of a view, its mean brightness and the mean strength of its Laplacian. Dark
views are low-light, rough ones noisy, all others clean. The restorer brightens by the first number of the
degradation embedding and smooths by the second.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from daclip.detect import ClassTexts
from daclip.diffusion import IRSDE
from daclip.models import ModelConfig, write_config

SIDE = 32
TEXTS = ClassTexts(
    names=("low-light", "noisy", "clean"),
    embeddings=np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], dtype=np.float32),
    rule="softmax",
    scale=20.0,
)


def write_toy_model(folder: Path, kind: str = "one-pass", **settings: Any) -> Path:
    """Write config and graphs; `settings` are further fields of the config."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = None if kind != "encoder" and isinstance(settings.get("encoder"), str) else TEXTS
    if kind == "diffusion":
        settings = {"sde": {}, "objective": "noise", "sampler": "posterior", "steps": 4, **settings}
    values = {
        "encoder": {"name": "toy"},
        "view_side": SIDE,
        "multiple": 8,
        "overlap": 8,
        "bytes_per_pixel": 200,
    }
    write_config(
        ModelConfig(kind=kind, mean=(0.5,) * 3, std=(0.5,) * 3, texts=texts, **{**values, **settings}), folder
    )
    if not isinstance(settings.get("encoder"), str):
        _save(_encoder(), folder / "encoder.onnx")
    if kind == "one-pass":
        _save(_one_pass(), folder / "restorer.onnx")
    if kind == "diffusion":
        _save(_diffusion(settings["objective"]), folder / "restorer.onnx")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A toy\nBrightens and smooths.\n")
    return folder


def mended(mu: np.ndarray, brighten: float, smooth: float) -> np.ndarray:
    """What the one-pass graph computes, in numpy: mu of shape h w 3."""
    padded = np.pad(mu, ((1, 1), (1, 1), (0, 0)), mode="edge")
    height, width, _ = mu.shape
    blurred = sum(padded[i : i + height, j : j + width] for i in range(3) for j in range(3)) / 9
    smooth = min(max(smooth, 0), 1)
    smoothed = mu * (1 - smooth) + blurred * smooth
    return np.clip(smoothed + brighten * smoothed * (1 - smoothed), 0, 1)


def _encoder() -> onnx.ModelProto:
    laplace = np.zeros((1, 1, 3, 3), np.float32)
    laplace[0, 0] = [[0, -1, 0], [-1, 4, -1], [0, -1, 0]]
    constants = {
        "grey": np.full((1, 3, 1, 1), 1 / 3, np.float32),
        "laplace": laplace,
        "axes": np.array([1, 2, 3], np.int64),
        # degradation = relu(-1.0 * brightness - 0.2), relu(3 * roughness - 0.9), 0.2, 0
        "weight": np.array([[-1, 0, 0, 0], [0, 3, 0, 0]], np.float32),
        "bias": np.array([-0.2, -0.9, 0.2, 0], np.float32),
        "content_weight": np.array([[1, 0, 0, 0], [0, 1, 0, 0]], np.float32),
        "content_bias": np.array([0, 0, 0, 1], np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["views", "grey"], ["intensity"]),
        helper.make_node("ReduceMean", ["intensity", "axes"], ["brightness2"], keepdims=0),
        helper.make_node("Conv", ["intensity", "laplace"], ["edges"]),
        helper.make_node("Abs", ["edges"], ["strength"]),
        helper.make_node("ReduceMean", ["strength", "axes"], ["roughness2"], keepdims=0),
        helper.make_node("Unsqueeze", ["brightness2", "one"], ["brightness"]),
        helper.make_node("Unsqueeze", ["roughness2", "one"], ["roughness"]),
        helper.make_node("Concat", ["brightness", "roughness"], ["measured"], axis=1),
        helper.make_node("Gemm", ["measured", "weight", "bias"], ["raw"]),
        helper.make_node("Relu", ["raw"], ["degradation"]),
        helper.make_node("Gemm", ["measured", "content_weight", "content_bias"], ["content"]),
    ]
    constants["one"] = np.array([1], np.int64)
    inputs = [_value("views", ["n", 3, SIDE, SIDE])]
    return _model(nodes, inputs, [_value("content", ["n", 4]), _value("degradation", ["n", 4])], constants)


def _mend() -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Nodes from `mu` and `degradation` to `mended`."""
    box = np.zeros((3, 1, 3, 3), np.float32) + np.float32(1 / 9)
    constants = {
        "box": box,
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "zero": np.array(0, np.float32),
        "unit": np.array(1, np.float32),
        "two": np.array([2, 3], np.int64),
        "halves": np.array([1, 1, 2], np.int64),
    }
    nodes = [
        helper.make_node("Split", ["degradation", "halves"], ["brighten2", "smooth2", "rest"], axis=1),
        helper.make_node("Unsqueeze", ["brighten2", "two"], ["brighten"]),
        helper.make_node("Clip", ["smooth2", "zero", "unit"], ["smooth3"]),
        helper.make_node("Unsqueeze", ["smooth3", "two"], ["smooth"]),
        helper.make_node("Pad", ["mu", "pads"], ["padded"], mode="edge"),
        helper.make_node("Conv", ["padded", "box"], ["blurred"], group=3),
        helper.make_node("Sub", ["blurred", "mu"], ["difference"]),
        helper.make_node("Mul", ["difference", "smooth"], ["change"]),
        helper.make_node("Add", ["mu", "change"], ["smoothed"]),
        helper.make_node("Sub", ["unit", "smoothed"], ["headroom"]),
        helper.make_node("Mul", ["smoothed", "headroom"], ["room"]),
        helper.make_node("Mul", ["room", "brighten"], ["light"]),
        helper.make_node("Add", ["smoothed", "light"], ["bright"]),
        helper.make_node("Clip", ["bright", "zero", "unit"], ["mended"]),
    ]
    return nodes, constants


def _one_pass() -> onnx.ModelProto:
    nodes, constants = _mend()
    # the content embedding takes part with weight nought, so that it stays an input of the graph
    nodes += [
        helper.make_node("ReduceSum", ["content", "all"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Unsqueeze", ["nothing", "two"], ["nothing4"]),
        helper.make_node("Add", ["mended", "nothing4"], ["clean"]),
    ]
    constants["all"] = np.array([1], np.int64)
    inputs = [_value("mu", ["b", 3, "h", "w"]), _value("content", ["b", 4]), _value("degradation", ["b", 4])]
    return _model(nodes, inputs, [_value("clean", ["b", 3, "h", "w"])], constants)


def _diffusion(objective: str) -> onnx.ModelProto:
    """The exact noise when the mended photo is the clean one: (x - mu - (mended - mu) alpha_t) / sbar_t.

    For the objective x0 the mended photo itself, state and time taking part with weight nought.
    """
    sde = IRSDE()
    times = np.arange(sde.steps + 1.0)
    nodes, constants = _mend()
    constants |= {
        "alphas": np.array(sde.alpha(times), np.float32),
        "sigmas": np.array(np.maximum(sde.sigma_bar(times), 1e-6), np.float32),
        "spread": np.array([1, 2, 3], np.int64),
        "all": np.array([1], np.int64),
    }
    nodes += [
        helper.make_node("Cast", ["t"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["alphas", "index"], ["alpha1"]),
        helper.make_node("Gather", ["sigmas", "index"], ["sigma1"]),
        helper.make_node("Unsqueeze", ["alpha1", "spread"], ["alpha"]),
        helper.make_node("Unsqueeze", ["sigma1", "spread"], ["sigma"]),
        helper.make_node("Sub", ["x", "mu"], ["y"]),
        helper.make_node("Sub", ["mended", "mu"], ["y0"]),
        helper.make_node("Mul", ["y0", "alpha"], ["drift"]),
        helper.make_node("Sub", ["y", "drift"], ["scaled"]),
        helper.make_node("Div", ["scaled", "sigma"], ["exact"]),
        helper.make_node("ReduceSum", ["content", "all"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Unsqueeze", ["nothing", "two"], ["nothing4"]),
    ]
    if objective == "x0":
        nodes.append(helper.make_node("Mul", ["exact", "zero"], ["none"]))
        nodes.append(helper.make_node("Sum", ["mended", "none", "nothing4"], ["predicted"]))
    else:
        nodes.append(helper.make_node("Add", ["exact", "nothing4"], ["predicted"]))
    photo = ["b", 3, "h", "w"]
    inputs = [_value("x", photo), _value("mu", photo), _value("t", ["b"])]
    inputs += [_value("content", ["b", 4]), _value("degradation", ["b", 4])]
    return _model(nodes, inputs, [_value("predicted", photo)], constants)


def _value(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _model(nodes: Any, inputs: Any, outputs: Any, constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "toy", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def _save(model: onnx.ModelProto, path: Path) -> None:
    path.write_bytes(model.SerializeToString())
