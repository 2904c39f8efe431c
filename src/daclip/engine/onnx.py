"""ONNX Runtime: runs exported graphs everywhere, part of the base install."""

from pathlib import Path
from typing import cast

import numpy as np
import onnxruntime
from jaxtyping import Float32
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

from daclip.detect import Embeddings
from daclip.engine.graphs import loaded
from daclip.errors import ModelError, UsageError
from daclip.models import ModelFolder

Feeds = dict[str, np.ndarray]
Session = onnxruntime.InferenceSession


class OnnxEngine:
    """Runs the graphs of a model with ONNX Runtime, in the precision of the graphs.

    `auto` is fp32: int8 is a fifth faster with VNNI, and its sums may not fit their 16 bits without.
    """

    name = "onnx"

    def __init__(self, folder: ModelFolder, *, device: str, precision: str, threads: int) -> None:
        if precision not in ("auto", "fp32", "int8"):
            raise UsageError(
                f"ONNX Runtime computes these graphs in fp32 or int8, not {precision}",
                hint="try --engine openvino or torch",
            )
        if device not in ("auto", "cpu") and not reaches(device):
            raise UsageError(
                f'this ONNX Runtime has no device "{device}"',
                hint="use --device cpu, or --engine torch for a GPU",
            )
        self.device = device if device != "auto" else "cuda" if reaches("cuda") else "cpu"
        self.precision = "fp32" if precision == "auto" else precision
        graphs = folder.graphs | (folder.int8_graphs if precision == "int8" else {})
        sessions = loaded(lambda _, graph: _session(graph, self.device, threads), graphs)
        self._encoder, self._shade = sessions["encoder"], sessions.get("shade")
        self._restorer = sessions.get("restorer")
        self._one_pass = sessions.get("initial", self._restorer)

    def encode(self, views: Float32[np.ndarray, "n 3 s s"]) -> Embeddings[Float32[np.ndarray, "n d"]]:
        """Embeddings of normalised views, un-normalised."""
        content, degradation = _run(self._encoder, ["content", "degradation"], {"views": views})
        return Embeddings(content=content, degradation=degradation)

    def find_shadows(
        self, mu: Float32[np.ndarray, "b 3 h w"]
    ) -> tuple[Float32[np.ndarray, "b 1 h w"], Float32[np.ndarray, "b 3 h w"]]:
        """Logits of the shadows in small photos, and what they lack, see light.Light; always in fp32."""
        assert self._shade is not None
        shadow, lacks = _run(self._shade, ["shadow", "lacks"], {"mu": mu})
        return shadow, lacks

    def predict_clean(
        self,
        mu: Float32[np.ndarray, "b 3 h w"],
        content: Float32[np.ndarray, "b k"],
        degradation: Float32[np.ndarray, "b d"],
    ) -> Float32[np.ndarray, "b 3 h w"]:
        """The clean photo, by the model of one pass."""
        assert self._one_pass is not None
        return _run(self._one_pass, ["clean"], {"mu": mu, "content": content, "degradation": degradation})[0]

    def predict_at(
        self,
        x: Float32[np.ndarray, "b 3 h w"],
        mu: Float32[np.ndarray, "b 3 h w"],
        t: Float32[np.ndarray, "b"],
        content: Float32[np.ndarray, "b k"],
        degradation: Float32[np.ndarray, "b d"],
    ) -> Float32[np.ndarray, "b 3 h w"]:
        """What a diffusion restorer sees in the state x at time t: the noise, or the clean photo."""
        assert self._restorer is not None
        feeds = {"x": x, "mu": mu, "t": t, "content": content, "degradation": degradation}
        return _run(self._restorer, ["predicted"], feeds)[0]


def reaches(device: str) -> bool:
    """True when the installed ONNX Runtime can compute on the device."""
    return (
        device.partition(":")[0] == "cuda"
        and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    )


def _session(graph: Path, device: str, threads: int) -> Session:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # a pattern is one block for all tensors of one shape: 1040 against 670 bytes per pixel, in the same time
    options.enable_mem_pattern = False
    options.log_severity_level = 3  # warnings about graphs are for whoever exports them, not for a user
    kind, _, number = device.partition(":")
    cuda = [("CUDAExecutionProvider", {"device_id": int(number or 0)})]
    try:
        return Session(graph, options, [*(cuda if kind == "cuda" else []), "CPUExecutionProvider"])
    except Exception as error:  # the library has no common base for what a bad file can raise
        raise ModelError(f"{graph}: ONNX Runtime cannot load it ({_first_line(error)})") from error


def _run(session: Session, outputs: list[str], feeds: Feeds) -> list[np.ndarray]:
    """The outputs for those feeds that the graph has inputs for; an exporter drops what is not used."""
    names = {value.name for value in session.get_inputs()}
    try:
        answers = session.run(outputs, {name: array for name, array in feeds.items() if name in names})
        return cast("list[np.ndarray]", answers)
    except (Fail, RuntimeException) as error:
        if "alloc" in str(error).lower():
            raise MemoryError(_first_line(error)) from error
        raise


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
