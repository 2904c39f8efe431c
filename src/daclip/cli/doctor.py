"""`daclip doctor`: what is installed, what it can do, and whether a photo comes through."""

import json
import os
import platform
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import click

from daclip.errors import DaclipError

EXTRAS = {
    "torch": ("torch", "train, convert, export, and run folders without graphs"),
    "data": ("cv2", "degrade photos, build data sets"),
    "openvino": ("openvino", "the fastest engine on most processors"),
    "ui": ("gradio", "the web page"),
    "serve": ("fastapi", "the server"),
    "ray": ("ray", "batches over machines"),
    "captions": ("transformers", "captions for training"),
    "heif": ("pillow_heif", "read HEIC photos"),
    "raw": ("rawpy", "read camera RAW"),
}
"""Each extra, a package by which to recognise it, and what it is for."""


@click.command(name="doctor", short_help="Show what is installed and whether it works.")
@click.option("--model", default="compact", show_default=True, help="The model to try.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def command(model: str, as_json: bool) -> int:
    """Show versions, engines, extras, memory, cache and settings, and restore a small photo.

    Ends with 1 if that photo does not come through.
    """
    report: dict[str, Any] = {"schema": "daclip.doctor/1"}
    for name, look in CHECKS.items():
        report[name] = look()
    report["trial"] = _trial(model)
    if as_json:
        click.echo(json.dumps(report))
    else:
        for line in _lines(report):
            click.echo(line)
    return 0 if report["trial"]["works"] else 1


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    packages = ["daclip", "numpy", "pyvips", "pyvips-binary", "onnxruntime", "click", "huggingface-hub"]
    own = {name: version(name) for name in packages if _is_there(name.replace("-", "_")) or name == "daclip"}
    return {"python": platform.python_version(), "system": platform.platform(), **own}


def _engines() -> dict[str, str]:
    import onnxruntime

    providers = (name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())
    found = {"onnx": f"{onnxruntime.__version__}: {', '.join(providers)}"}
    if _is_there("openvino"):
        import openvino

        able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        found["openvino"] = f"{openvino.__version__.split('-')[0]}: {', '.join(able)}"
    if _is_there("torch"):
        from importlib.metadata import version

        found["torch"] = version("torch")
    return found


def _formats() -> dict[str, str]:
    import pyvips

    vips = ".".join(str(pyvips.version(part)) for part in range(3))
    return {"vips": vips, "read and write": "JPEG PNG TIFF WebP AVIF", "read": _extra_formats()}


def _extra_formats() -> str:
    kinds = [name for package, name in (("pillow_heif", "HEIC"), ("rawpy", "RAW")) if _is_there(package)]
    return " ".join(kinds) or "nothing more"


def _extras() -> dict[str, str]:
    return {
        name: "installed" if _is_there(package) else f'missing ({purpose}): pip install "daclip[{name}]"'
        for name, (package, purpose) in EXTRAS.items()
    }


def _machine() -> dict[str, Any]:
    from daclip.cli.restore import free_memory, parse_memory

    return {
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory free": f"{free_memory() / 1e9:.1f} GB",
        "memory used at most": f"{parse_memory(None) / 1e9:.1f} GB (--memory)",
    }


def _cache() -> dict[str, Any]:
    from daclip import models

    folder = models.hub_cache()
    files = (
        [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        if folder.is_dir()
        else []
    )
    return {"folder": str(folder), "size": f"{sum(path.stat().st_size for path in files) / 1e6:.1f} MB"}


def _models() -> dict[str, str]:
    from daclip import models

    return {
        folder.name: f"{folder.config.kind}, {folder.source}"
        for folder in [*models.bundled(), *models.cached()]
    }


def _settings() -> dict[str, str]:
    """Variables that change what daclip does."""
    obeyed = {
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "OMP_NUM_THREADS",
        "CUDA_VISIBLE_DEVICES",
        "NO_COLOR",
    }
    obeyed |= {"FORCE_COLOR", "TMPDIR", "TORCH_HOME"}
    values = {
        name: value for name, value in os.environ.items() if name in obeyed or name.startswith("DACLIP_")
    }
    return {name: "set" if name.endswith("_KEY") else value for name, value in sorted(values.items())}


def _trial(model: str) -> dict[str, Any]:
    """A photo of 64 x 64, grey to black with noise, restored as low-light."""
    start = time.monotonic()
    try:
        import numpy as np

        from daclip import image
        from daclip.restore import Restorer

        restorer = Restorer(model)
        ramp = np.linspace(0, 60, 64 * 64 * 3).reshape(64, 64, 3)
        noise = np.random.Generator(np.random.PCG64(0)).normal(0, 4, ramp.shape)
        photo = image.from_array(np.clip(ramp + noise, 0, 255).astype(np.uint8))
        known = [name for name in restorer.folder.texts.names if name != "clean"]
        restorer.restore(photo, task=known[0])
    except (DaclipError, ImportError, OSError, RuntimeError) as error:
        return {"works": False, "model": model, "error": str(error)}
    seconds = round(time.monotonic() - start, 2)
    engine = restorer.engine
    return {
        "works": True,
        "model": model,
        "engine": engine.name,
        "precision": engine.precision,
        "seconds": seconds,
    }


def _lines(report: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for name, values in report.items():
        if name == "schema":
            continue
        lines.append(f"{name}:")
        lines += [f"  {key}: {value}" for key, value in values.items()] or ["  none"]
    return lines


def _is_there(package: str) -> bool:
    if package == "pyvips_binary":
        package = "_libvips"
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


CHECKS: dict[str, Callable[[], dict[str, Any]]] = {
    "versions": _versions,
    "engines": _engines,
    "formats": _formats,
    "extras": _extras,
    "machine": _machine,
    "cache": _cache,
    "models": _models,
    "settings": _settings,
}
