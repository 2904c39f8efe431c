"""PyTorch: runs the weights themselves on any device torch knows; the only stair from a photo to torch."""

from collections.abc import Generator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from jaxtyping import Float32

from daclip import checkpoints, models
from daclip.detect import Embeddings
from daclip.errors import UsageError
from daclip.models import ModelFolder

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine:
    """Runs the weights of a model folder with torch; `auto` precision is fp32, halves go through autocast."""

    name = "torch"

    def __init__(self, folder: ModelFolder, *, device: str, precision: str, threads: int) -> None:
        if precision == "int8":
            raise UsageError("torch does not compute in int8 here", hint="try --engine openvino")
        self._device = _device(device)
        self.device = str(self._device)
        self.precision = "fp32" if precision == "auto" else precision
        if threads and self._device.type == "cpu":
            torch.set_num_threads(threads)
        model = checkpoints.load(folder)
        self._encoder = model.daclip.to(self._device).eval()
        self._restorer = None if model.network is None else model.network.to(self._device).eval()
        self._one_pass = self._restorer
        if folder.initial is not None:
            initial = checkpoints.load(models.find(folder.initial)).network
            assert initial is not None
            self._one_pass = initial.to(self._device).eval()
        shades = [getattr(each, "shade", None) for each in (self._restorer, self._one_pass)]
        self._shade = next((each for each in shades if each is not None), None)

    @property
    def network(self) -> torch.nn.Module | None:
        """The restorer itself, for those who look into it."""
        return self._restorer

    @torch.inference_mode()
    def encode(self, views: Float32[np.ndarray, "n 3 s s"]) -> Embeddings[Float32[np.ndarray, "n d"]]:
        """Embeddings of normalised views, un-normalised; always in fp32."""
        with _memory_errors():
            found = self._encoder.encode(self._tensor(views))
        return Embeddings(content=_array(found.content), degradation=_array(found.degradation))

    @torch.inference_mode()
    def find_shadows(
        self, mu: Float32[np.ndarray, "b 3 h w"]
    ) -> tuple[Float32[np.ndarray, "b 1 h w"], Float32[np.ndarray, "b 3 h w"]]:
        """Logits of the shadows in small photos, and what they lack, see light.Light; always in fp32."""
        assert self._shade is not None
        with _memory_errors():
            shadow, lacks = self._shade(self._tensor(mu))
        return _array(shadow), _array(lacks)

    @torch.inference_mode()
    def predict_clean(
        self,
        mu: Float32[np.ndarray, "b 3 h w"],
        content: Float32[np.ndarray, "b k"],
        degradation: Float32[np.ndarray, "b d"],
    ) -> Float32[np.ndarray, "b 3 h w"]:
        """The clean photo, by the model of one pass."""
        assert self._one_pass is not None
        with _memory_errors(), self._autocast():
            return _array(
                self._one_pass(
                    self._tensor(mu), content=self._tensor(content), degradation=self._tensor(degradation)
                )
            )

    @torch.inference_mode()
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
        with _memory_errors(), self._autocast():
            return _array(
                self._restorer(
                    self._tensor(x),
                    self._tensor(mu),
                    self._tensor(t),
                    content=self._tensor(content),
                    degradation=self._tensor(degradation),
                )
            )

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def _autocast(self) -> torch.autocast | nullcontext[None]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self._device.type, dtype=_DTYPES[self.precision])


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = (str(error).strip().splitlines() or ["unknown"])[0]
        raise UsageError(f'no device "{wanted}" ({reason})', hint="`daclip doctor` lists devices") from error
    return device


def _array(tensor: torch.Tensor) -> Float32[np.ndarray, "..."]:
    return tensor.float().cpu().numpy()


@contextmanager
def _memory_errors() -> Generator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise MemoryError(str(error).splitlines()[0]) from error
    except RuntimeError as error:  # the CPU allocator has no class of its own
        if "can't allocate memory" not in str(error):
            raise
        raise MemoryError(str(error).splitlines()[0]) from error
