"""Whoever restores, through one interface: our models, spandrel's files, commands, OpenCV, nobody."""

import hashlib
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, UInt, UInt8

from daclip import image, models
from daclip.errors import DaclipError, ModelError, PhotoError, UsageError, missing_extra
from daclip.image import Photo
from daclip.metrics import Pixels8
from daclip.restore import Restorer
from daclip.vocabulary import CLEAN


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a method makes of a photo: pixels, the words' probabilities if it tells, if it changed nothing."""

    pixels: Pixels8
    probabilities: Mapping[str, float] | None = None
    is_unchanged: bool = False


@dataclass(frozen=True, kw_only=True)
class Method:
    """Anything that restores: a name, the hash of its weights, and a function of photo and degradation."""

    name: str
    weights: str
    restore: Callable[[Photo, str], Answer]


# ---- our models


def restorer_method(
    restorer: Restorer,
    *,
    task: Literal["auto", "named"] = "auto",
    sampler: str | None = None,
    steps: int | None = None,
    name: str | None = None,
) -> Method:
    """A model as a method. `named` tells it the degradation instead of letting it look."""
    folder = restorer.folder
    weights = models.weights_sha256(folder)[:12]
    if folder.encoder_path != folder.path:
        encoder = models.find(folder.encoder_path)
        weights += f" with encoder {models.weights_sha256(encoder)[:12]}"
    if folder.initial is not None:
        weights += f" after {models.weights_sha256(models.find(folder.initial))[:12]}"
    known = folder.texts.names

    def restore(photo: Photo, degradation: str) -> Answer:
        told = task == "named" and degradation != CLEAN and degradation in known
        done = restorer.restore(photo, task=degradation if told else "auto", sampler=sampler, steps=steps)
        found = done.detection
        return Answer(
            pixels=_eight_bit(done.pixels),
            probabilities=None if found is None else dict(found.ranked()),
            is_unchanged=done.action == "unchanged",
        )

    engine = f"{restorer.engine.name} {restorer.engine.precision}"
    return Method(name=name or folder.name, weights=f"{weights}, {engine}", restore=restore)


def _eight_bit(pixels: UInt[np.ndarray, "h w 3"]) -> Pixels8:
    """Pixels of 8 or 16 bits rounded to 8."""
    return pixels if pixels.dtype == np.uint8 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


# ---- peers


def find(name: str, *, device: str = "auto") -> Method:
    """The peer of a name in CLASSICS, or of a weight file that spandrel reads; `NAME=FILE` names it.

    Raises UsageError for neither, ModelError for a file that cannot be used.
    """
    if name in CLASSICS:
        return _classic(name)
    if Path(name).is_file():
        return _file(Path(name), device=device)
    own, rest = _own_name(name)
    if own is not None:
        return replace(find(rest, device=device), name=own)
    near = get_close_matches(name, CLASSICS, n=1)
    meant = f'did you mean "{near[0]}"? ' if near else ""
    raise UsageError(f'no peer "{name}"', hint=f"{meant}a weight file, or one of {', '.join(CLASSICS)}")


def _own_name(text: str) -> tuple[str | None, str]:
    """The name before `=` that a peer is given, None without one, and the rest."""
    found = re.match(r"([\w.+-]+)=(.+)", text, flags=re.DOTALL)
    return (None, text) if found is None else (found[1], found[2])


def _classic(name: str) -> Method:
    function = CLASSICS[name]
    if name == "identity":
        return Method(name=name, weights="none", restore=lambda photo, _: _answer(_pixels(photo), photo))
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise missing_extra(error, f"the peer {name}") from error

    def restore(photo: Photo, degradation: str) -> Answer:
        with _blamed(photo):
            return _answer(function(_pixels(photo), degradation), photo)

    return Method(name=name, weights=f"none, OpenCV {cv2.__version__}", restore=restore)


def _pixels(photo: Photo) -> Pixels8:
    return photo.crop_8bit(0, 0, photo.height, photo.width)


def _answer(pixels: Pixels8, photo: Photo) -> Answer:
    return Answer(pixels=pixels, is_unchanged=bool(np.array_equal(pixels, _pixels(photo))))


def _file(path: Path, *, device: str) -> Method:
    """A network of another project: whole photo in one piece, padded as its size wants it."""
    try:
        import spandrel
        import torch

        from daclip import official
    except ModuleNotFoundError as error:
        raise missing_extra(error, f"the peer {path.name}") from error
    if find_spec("spandrel_extra_arches") is not None:  # networks whose licences forbid some uses
        import_module("spandrel_extra_arches").install(ignore_duplicates=True)
    try:
        network = spandrel.ModelLoader("cpu").load_from_state_dict(official.read_state(path))
    except (spandrel.UnsupportedModelError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"{path}: no network that spandrel reads",
            hint="give a DA-CLIP or IR-SDE to --model, another program to --command; "
            "MPRNet, MIRNet-v2 and others need `pip install spandrel_extra_arches`",
        ) from error
    if not isinstance(network, spandrel.ImageModelDescriptor):
        raise ModelError(f"{path}: {network.architecture.name} wants a mask too", hint="use --command")
    if (network.input_channels, network.output_channels, network.scale) != (3, 3, 1):
        kind = f"{network.input_channels} channels in, {network.output_channels} out, scale {network.scale}"
        raise ModelError(f"{path}: {kind}", hint="a peer takes and gives RGB photos of one size")
    place = torch.device(
        "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")
    )
    network.to(place).eval()

    def restore(photo: Photo, _: str) -> Answer:
        mu = photo.crop(0, 0, photo.height, photo.width).transpose(2, 0, 1)[None]
        with _blamed(photo), torch.inference_mode():
            clean: Any = network(torch.from_numpy(np.ascontiguousarray(mu)).to(place))
            return _answer(_rounded(clean[0].float().cpu().numpy().transpose(1, 2, 0)), photo)

    weights = f"{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}, spandrel {network.architecture.name}"
    return Method(name=path.stem, weights=weights, restore=restore)


@contextmanager
def _blamed(photo: Photo) -> Generator[None]:
    """What goes wrong inside is an error of this photo; the others go on."""
    try:
        yield
    except DaclipError:
        raise
    except Exception as error:  # other people's code has no common base for what it can raise
        said = " ".join(str(error).split()) or "without a word"
        raise PhotoError("model", photo.path, f"{type(error).__name__} ({said})") from error


def _rounded(pixels: Float32[np.ndarray, "h w 3"]) -> Pixels8:
    return np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)


def command(text: str, *, timeout: float = 600.0) -> Method:
    """Any program as a method: `tool {in} {out}`, run without a shell on PNG files; `NAME=tool ...` names it.

    Raises UsageError without both places or program; while it runs, PhotoError when the program fails, takes
    more than `timeout` seconds or writes nothing.
    """
    name, line = _own_name(text)
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UsageError(f'--command "{text}": {error}') from error
    if not words or any(not any(place in word for word in words) for place in ("{in}", "{out}")):
        raise UsageError(f'--command "{text}" lacks {{in}} or {{out}}', hint='write "tool {in} {out}"')
    if shutil.which(words[0]) is None:
        raise UsageError(f"--command: no program {words[0]}", hint="name it with its folder")

    def restore(photo: Photo, _: str) -> Answer:
        with tempfile.TemporaryDirectory(prefix="daclip-") as folder:
            places = {"{in}": Path(folder) / "in.png", "{out}": Path(folder) / "out.png"}
            plain = image.from_array(_pixels(photo))
            image.write(plain, plain.own, places["{in}"])
            _run([_filled(word, places) for word in words], photo, timeout)
            if not places["{out}"].is_file():
                raise PhotoError("model", photo.path, f"{words[0]} wrote no {{out}}", hint="see --command")
            return _answer(_pixels(image.read(places["{out}"])), photo)

    return Method(name=name or Path(words[0]).name, weights=f"command {shlex.join(words)}", restore=restore)


def _filled(word: str, places: Mapping[str, Path]) -> str:
    for place, path in places.items():
        word = word.replace(place, str(path))
    return word


def _run(words: list[str], photo: Photo, timeout: float) -> None:
    try:
        process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
        )
    except OSError as error:
        raise PhotoError("model", photo.path, f"{words[0]} cannot be run ({error.strerror})") from error
    with process:
        try:
            _, said = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            reason = f"{words[0]} took more than {timeout:g} s and was stopped"
            raise PhotoError("model", photo.path, reason, hint="--timeout") from error
        finally:
            if process.poll() is None:
                _kill(process.pid)
    if process.returncode:
        last = (said.strip().splitlines() or ["without a word"])[-1]
        raise PhotoError("model", photo.path, f"{words[0]} ended with {process.returncode}: {last}")


def _kill(pid: int) -> None:
    """End a program that was not waited for yet, and all that it has begun."""
    import psutil

    program = psutil.Process(pid)
    for each in (*program.children(recursive=True), program):
        with suppress(psutil.NoSuchProcess):
            each.kill()


# ---- classics; each takes pixels and the name of the degradation


def non_local_means(pixels: Pixels8, _: str) -> Pixels8:
    """Non-local means (Buades et al. 2005) with a strength after the noise that is measured in the photo."""
    import cv2

    sigma = noise_level(pixels)
    strength = float(np.clip(0.9 * sigma, 1, 40))
    bgr = cv2.fastNlMeansDenoisingColored(
        cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), None, strength, strength, 7, 15
    )
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def noise_level(pixels: Pixels8) -> float:
    """Standard deviation of the noise in grey levels, by a Laplacian few edges touch (Immerkær 1996)."""
    import cv2

    grey = pixels.astype(np.float32).mean(axis=2)
    mask = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    strength = np.abs(cv2.filter2D(grey, -1, mask)).mean()
    # the mean of three channels has 1/sqrt(3) of the noise of one
    return float(np.sqrt(np.pi / 2) / 6 * strength * np.sqrt(3))


def dark_channel(pixels: Pixels8, _: str) -> Pixels8:
    """Dehazing by the dark channel prior (He et al. 2009): patches of 15, omega 0.95, guided refinement."""
    import cv2

    unit = pixels.astype(np.float32) / 255
    patch = cv2.getStructuringElement(cv2.MORPH_RECT, (15, 15))
    dark = cv2.erode(unit.min(axis=2), patch)
    brightest = np.argsort(dark, axis=None)[-max(dark.size // 1000, 1) :]
    air = np.maximum(unit.reshape(-1, 3)[brightest].mean(axis=0), 0.1)
    transmission = 1 - 0.95 * cv2.erode((unit / air).min(axis=2), patch)
    transmission = _guided(np.asarray(transmission, np.float32), unit.mean(axis=2, dtype=np.float32))
    return _rounded((unit - air) / np.maximum(transmission, 0.1)[..., None] + air)


def _guided(
    plane: Float32[np.ndarray, "h w"], guide: Float32[np.ndarray, "h w"]
) -> Float32[np.ndarray, "h w"]:
    """The plane with the edges of the guide (guided filter, He et al. 2010; radius 30, epsilon 1e-3)."""
    import cv2

    def mean(values: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.blur(values, (61, 61)))

    centre, target = mean(guide), mean(plane)
    slope = (mean(guide * plane) - centre * target) / (mean(guide * guide) - centre**2 + 1e-3)
    return (mean(slope) * guide + mean(target - slope * centre)).astype(np.float32)


def clahe(pixels: Pixels8, _: str) -> Pixels8:
    """Contrast-limited adaptive histogram equalisation of the lightness, 8 x 8 fields, limit 2."""
    import cv2

    lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(lab[..., 0])
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.uint8)


def telea(pixels: Pixels8, _: str) -> Pixels8:
    """Inpainting by fast marching (Telea 2004) where one flat colour fills so much that it must be a hole."""
    import cv2

    hole = guessed_hole(pixels)
    if not hole.any():
        return pixels
    grown = cv2.dilate(hole.astype(np.uint8), np.ones((3, 3), np.uint8))
    return np.asarray(cv2.inpaint(pixels, grown, 3, cv2.INPAINT_TELEA), np.uint8)


def guessed_hole(pixels: Pixels8) -> UInt8[np.ndarray, "h w"]:
    """1 where a pixel has the most frequent colour of the photo, if that is 2 % of the photo and more."""
    packed = pixels.astype(np.uint32) @ np.array([1, 256, 65536], np.uint32)
    colours, counts = np.unique(packed, return_counts=True)
    is_filled = counts.max() >= 0.02 * packed.size
    return ((packed == colours[counts.argmax()]) & is_filled).astype(np.uint8)


def classics(pixels: Pixels8, degradation: str) -> Pixels8:
    """The classic for the degradation, which it is told; the photo itself where there is none."""
    return _CLASSIC_FOR.get(degradation, _identity)(pixels, degradation)


def _identity(pixels: Pixels8, _: str) -> Pixels8:
    return pixels


_CLASSIC_FOR: dict[str, Callable[[Pixels8, str], Pixels8]] = {
    "noisy": non_local_means,
    "hazy": dark_channel,
    "low-light": clahe,
    "uncompleted": telea,
}

CLASSICS: dict[str, Callable[[Pixels8, str], Pixels8]] = {
    "identity": _identity,
    "non-local-means": non_local_means,
    "dark-channel": dark_channel,
    "clahe": clahe,
    "telea": telea,
    "classics": classics,
}
"""Peers by name. `classics` is told what is wrong; the others do what they do to every photo."""
