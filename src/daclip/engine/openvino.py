"""OpenVINO: the fastest way through exported graphs on most processors, extra [openvino]."""

import hashlib
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock

import numpy as np
import openvino
import platformdirs
from jaxtyping import Float32

from daclip.detect import Embeddings
from daclip.engine.graphs import loaded
from daclip.errors import ModelError, UsageError
from daclip.models import ModelFolder

_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
"""What is not in 8-bit integers by its graph is in float."""


class OpenVinoEngine:
    """Runs the graphs of a model with OpenVINO on the processor.

    The encoder and what finds shadows always compute in fp32: it costs little, and what is found wrong with
    a photo must not depend on the machine. `auto` precision takes int8 for a restorer that was calibrated for
    it, else bf16 where the processor has units for it (AMX), else fp32.
    """

    name = "openvino"
    device = "cpu"

    def __init__(self, folder: ModelFolder, *, device: str, precision: str, threads: int) -> None:
        if device not in ("auto", "cpu"):
            raise UsageError(f'openvino runs on the cpu here, not "{device}"', hint="try --engine torch")
        core = openvino.Core()
        int8_graphs = folder.int8_graphs
        self.precision = _precision(core, precision, is_calibrated=bool(int8_graphs))
        graphs = folder.graphs | (int8_graphs if self.precision == "int8" else {})
        looks = ("encoder", "shade")
        compiled = loaded(
            lambda name, graph: _Graph(core, graph, "fp32" if name in looks else self.precision, threads),
            graphs,
        )
        self._encoder, self._shade = compiled["encoder"], compiled.get("shade")
        self._restorer = compiled.get("restorer")
        self._one_pass = compiled.get("initial", self._restorer)

    def encode(self, views: Float32[np.ndarray, "n 3 s s"]) -> Embeddings[Float32[np.ndarray, "n d"]]:
        """Embeddings of normalised views, un-normalised."""
        content, degradation = self._encoder.run(["content", "degradation"], {"views": views})
        return Embeddings(content=content, degradation=degradation)

    def find_shadows(
        self, mu: Float32[np.ndarray, "b 3 h w"]
    ) -> tuple[Float32[np.ndarray, "b 1 h w"], Float32[np.ndarray, "b 3 h w"]]:
        """Logits of the shadows in small photos, and what they lack, see light.Light; always in fp32."""
        assert self._shade is not None
        shadow, lacks = self._shade.run(["shadow", "lacks"], {"mu": mu})
        return shadow, lacks

    def predict_clean(
        self,
        mu: Float32[np.ndarray, "b 3 h w"],
        content: Float32[np.ndarray, "b k"],
        degradation: Float32[np.ndarray, "b d"],
    ) -> Float32[np.ndarray, "b 3 h w"]:
        """The clean photo, by the model of one pass."""
        assert self._one_pass is not None
        return self._one_pass.run(["clean"], {"mu": mu, "content": content, "degradation": degradation})[0]

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
        return self._restorer.run(["predicted"], feeds)[0]


class _Graph:
    """One compiled graph with dynamic shapes, and the requests that threads borrow to run it."""

    def __init__(self, core: openvino.Core, path: Path, precision: str, threads: int) -> None:
        settings: dict[str, str | int] = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            with _without_links(path) as plain:
                self._compiled = _compiled(core, plain, settings, may_be_kept=plain == path)
        except RuntimeError as error:
            raise ModelError(f"{path}: OpenVINO cannot load it ({_last_line(error)})") from error
        self._inputs = {name for port in self._compiled.inputs for name in port.get_names()}
        self._idle: list[openvino.InferRequest] = []
        self._lock = Lock()

    def run(self, outputs: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs for those feeds that the graph has inputs for; an exporter drops what is not used."""
        given = {name: array for name, array in feeds.items() if name in self._inputs}
        try:
            with self._request() as request:
                request.infer(given)
                # copied, for the request's own memory is used again by the next run
                answers = [request.get_tensor(name).data.copy() for name in outputs]
        except RuntimeError as error:
            if "alloc" in str(error).lower():
                raise MemoryError(_last_line(error)) from error
            raise
        if not all(answer.size for answer in answers):  # seen once, in the run after one that had no memory
            raise MemoryError("OpenVINO gave an empty answer")
        return answers

    @contextmanager
    def _request(self) -> Generator[openvino.InferRequest]:
        with self._lock:
            request = self._idle.pop() if self._idle else self._compiled.create_infer_request()
        yield request
        with self._lock:  # not after an error: a request that ran out of memory is dropped
            self._idle.append(request)


def _compiled(
    core: openvino.Core, graph: Path, settings: Mapping[str, str | int], *, may_be_kept: bool
) -> openvino.CompiledModel:
    """The graph, compiled: kept for the next time, for it takes a second, and a tenth of that to read.

    OpenVINO's own cache, a folder for each graph: it does not notice other weights, and what one process
    writes another must not read half.
    """
    name = str(graph)
    if not may_be_kept:
        return core.compile_model(name, "CPU", dict(settings))
    place = _kept() / _name(graph, settings)
    if place.is_dir():
        with suppress(OSError, RuntimeError):  # damaged
            place.touch()
            return core.compile_model(name, "CPU", {**settings, "CACHE_DIR": str(place)})
        shutil.rmtree(place, ignore_errors=True)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=place.parent, prefix=".", ignore_cleanup_errors=True) as unfinished:
            compiled = core.compile_model(name, "CPU", {**settings, "CACHE_DIR": unfinished})
            with suppress(OSError):  # another process was quicker
                os.rename(unfinished, place)
    except OSError:  # nowhere to write
        return core.compile_model(name, "CPU", dict(settings))
    with suppress(OSError):  # others tidy up, too
        for old in sorted(place.parent.iterdir(), key=lambda each: each.stat().st_mtime)[:-_MOST_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    return compiled


_MOST_KEPT = 16
"""Compiled graphs in the cache; some 15 MB each."""


def _kept() -> Path:
    """The folder of compiled graphs."""
    own = os.environ.get("DACLIP_CACHE")
    return Path(own or platformdirs.user_cache_path("daclip")) / "openvino"


def _name(graph: Path, settings: Mapping[str, str | int]) -> str:
    """Of a graph in the cache: another for other files, settings, or an other OpenVINO."""
    files = [graph, *graph.parent.glob("*.safetensors"), *graph.parent.glob("*.data")]
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(files)]
    told = repr((stats, sorted(settings.items()), openvino.__version__))
    return hashlib.sha256(told.encode()).hexdigest()[:32]


@contextmanager
def _without_links(graph: Path) -> Generator[Path]:
    """The graph and its weights as plain files of one folder.

    OpenVINO refuses weights that a link leads out of the graph's folder; the cache of the hub is all links.
    """
    files = [
        path for path in graph.parent.iterdir() if path.name.endswith((".onnx", ".data", ".safetensors"))
    ]
    if not any(path.is_symlink() for path in files):
        yield graph
        return
    with TemporaryDirectory(prefix="daclip-", ignore_cleanup_errors=True) as folder:
        for path in files:
            plain = Path(folder) / path.name
            try:
                os.link(path.resolve(), plain)
            except OSError:  # another file system
                shutil.copyfile(path, plain)
        yield Path(folder) / graph.name


def _precision(core: openvino.Core, wanted: str, *, is_calibrated: bool) -> str:
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if wanted == "auto":
        if is_calibrated and "INT8" in able:
            return "int8"
        return "bf16" if "BF16" in able and _has_amx() else "fp32"
    if wanted != "fp32" and wanted.upper() not in able:
        raise UsageError(f"this processor does not compute {wanted}", hint="use --precision auto")
    return wanted


def _has_amx() -> bool:
    """True where Linux says that the processor multiplies matrices of bf16; vectors of them gain nothing."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
