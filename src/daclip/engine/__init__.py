"""Who runs a model folder: the protocol all engines share, and the choice among them."""

import os
from importlib.util import find_spec
from typing import Literal, Protocol, cast, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float32

from daclip.detect import Embeddings
from daclip.errors import MissingExtra, ModelError, UsageError
from daclip.models import ModelFolder

EngineName = Literal["auto", "onnx", "openvino", "torch"]
Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]


@runtime_checkable
class Engine(Protocol):
    """Runs the networks of one model folder. Thread-safe. Arrays are float32; colours sRGB in [0, 1].

    Whatever a library says when memory runs out, an engine raises MemoryError.
    """

    name: str
    device: str
    precision: str

    def encode(self, views: Float32[np.ndarray, "n 3 s s"]) -> Embeddings[Float32[np.ndarray, "n d"]]:
        """Embeddings of normalised views, un-normalised."""
        ...

    def find_shadows(
        self, mu: Float32[np.ndarray, "b 3 h w"]
    ) -> tuple[Float32[np.ndarray, "b 1 h w"], Float32[np.ndarray, "b 3 h w"]]:
        """Logits of the shadows in small photos, and what they lack, see light.Light; with `shade` alone."""
        ...

    def predict_clean(
        self,
        mu: Float32[np.ndarray, "b 3 h w"],
        content: Float32[np.ndarray, "b k"],
        degradation: Float32[np.ndarray, "b d"],
    ) -> Float32[np.ndarray, "b 3 h w"]:
        """The clean photo, by a one-pass restorer: the model's own, or the one its diffusion goes on from."""
        ...

    def predict_at(
        self,
        x: Float32[np.ndarray, "b 3 h w"],
        mu: Float32[np.ndarray, "b 3 h w"],
        t: Float32[np.ndarray, "b"],
        content: Float32[np.ndarray, "b k"],
        degradation: Float32[np.ndarray, "b d"],
    ) -> Float32[np.ndarray, "b 3 h w"]:
        """What a diffusion restorer sees in the state x at time t: the noise, or the clean photo."""
        ...


def load(
    folder: ModelFolder,
    *,
    device: str = "auto",
    engine: str = "auto",
    precision: str = "auto",
    threads: int = 0,
) -> Engine:
    """The engine that runs a model folder.

    Args:
        folder: what to run.
        device: `auto` (never fails), `cpu`, `cuda`, `cuda:1`, `mps`.
        engine: `auto` takes OpenVINO where it is installed and ONNX Runtime else; torch only for a folder
            without exported graphs or a device the others do not reach.
        precision: `auto`, `fp32`, `bf16`, `fp16`, `int8`; `auto` is the fastest on the device.
        threads: for the arithmetic; 0 leaves it to OMP_NUM_THREADS or the library.

    Raises:
        MissingExtra: the engine asked for, or the only one that fits, is not installed.
        ModelError: the folder has no graphs for the engine asked for, or they cannot be loaded.
        UsageError: an unknown name, or a device that is not there.
    """
    _check("engine", engine, get_args(EngineName))
    _check("precision", precision, get_args(Precision))
    threads = threads or _threads_of_environment()
    chosen = _choose(folder, device, engine)
    if chosen != "torch" and not folder.is_exported:
        missing = [str(path) for path in folder.graphs.values() if not path.is_file()]
        raise ModelError(
            f"{', '.join(missing)}: not there", hint="`daclip export` writes graphs; or use --engine torch"
        )
    if precision == "int8" and chosen != "torch" and not folder.int8_graphs:
        raise ModelError(
            f"{folder.path}: not calibrated for int8", hint="`daclip export MODEL --calibrate PHOTOS` does it"
        )
    if chosen == "onnx":
        from daclip.engine.onnx import OnnxEngine

        return OnnxEngine(folder, device=device, precision=precision, threads=threads)
    _need(chosen)
    if chosen == "openvino":
        from daclip.engine.openvino import OpenVinoEngine

        return OpenVinoEngine(folder, device=device, precision=precision, threads=threads)
    from daclip.engine.torch import TorchEngine

    return TorchEngine(folder, device=device, precision=precision, threads=threads)


def _choose(folder: ModelFolder, device: str, engine: str) -> Literal["onnx", "openvino", "torch"]:
    if engine != "auto":
        return cast("Literal['onnx', 'openvino', 'torch']", engine)
    if not folder.is_exported:
        return "torch"
    if device not in ("auto", "cpu"):
        from daclip.engine.onnx import reaches

        return "onnx" if reaches(device) else "torch"
    return "openvino" if _is_installed("openvino") else "onnx"


def _need(engine: Literal["openvino", "torch"]) -> None:
    if not _is_installed(engine):
        raise MissingExtra(engine, f"running a model with {engine}")


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # blocked or half-removed packages
        return False


def _check(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f'unknown {what} "{value}"', hint=f"known: {', '.join(known)}")


def _threads_of_environment() -> int:
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(text) if text.isdigit() else 0
