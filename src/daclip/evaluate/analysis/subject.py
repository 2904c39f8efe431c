"""What a study looks at, and what it gives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from matplotlib.figure import Figure

from daclip import checkpoints, detect, metrics, sampling, tiling
from daclip.detect import Embeddings
from daclip.diffusion import IRSDE
from daclip.errors import DataError, UsageError
from daclip.evaluate import synthetic
from daclip.evaluate.cases import Case
from daclip.evaluate.joined import Joined, join
from daclip.evaluate.measure import Metrics, load_metrics
from daclip.evaluate.run import MEASUREMENTS
from daclip.evaluate.tables import (
    Table,
)
from daclip.image import Photo
from daclip.metrics import Pixels8
from daclip.restore import Restorer, mean_of_views

One = Embeddings[Float32[np.ndarray, "1 d"]]
"""The embeddings of one photo, its views already averaged."""


SAMPLERS: dict[str, Callable[..., Any]] = {
    "posterior": sampling.posterior,
    "sde (Euler)": sampling.sde,
    "ode (Euler)": sampling.ode,
    "mrs, order 1": lambda *given, **options: sampling.mrs(*given, order=1, **options),
    "mrs, order 2": lambda *given, **options: sampling.mrs(*given, order=2, **options),
    "mrs, order 3": lambda *given, **options: sampling.mrs(*given, order=3, **options),
}

OWN_SAMPLERS = {"posterior": "posterior", "sde": "sde (Euler)", "ode": "ode (Euler)", "mrs": "mrs, order 2"}
"""What `sampling.SAMPLERS` are called here."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a study found: a heading, what is compared, tables, and figures by file name."""

    title: str
    words: str
    tables: tuple[Table, ...]
    figures: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(kw_only=True)
class Subject:
    """The model and the photos that a study looks at.

    Args:
        model: name or folder.
        photos: folder of clean photos, None for studies that need none.
        limit: photos of each degradation.
        severity, seed: of the degradations.
        captions: CSV of photos with captions, for `retrieval`.
        backbone: folder of a DA-CLIP with a text tower of the same space; None for the model's own.
        runs: folders of training runs, for `curves`, and of finished `daclip evaluate` runs, for `results`.
        calls: numbers of network calls, for `samplers`.
        metric_weights: folder with the weights of LPIPS, for `samplers`; without it there is none.
        on_progress: told after every photo of a study: study, photo, photos of the study.
    """

    model: str = "compact"
    photos: Path | None = None
    limit: int = 8
    severity: float = 0.7
    seed: int = 0
    captions: Path | None = None
    backbone: str | None = None
    runs: tuple[Path, ...] = ()
    calls: tuple[int, ...] = (5, 10, 20, 50, 100)
    metric_weights: Path | None = None
    device: str = "auto"
    engine: str = "auto"
    precision: str = "auto"
    on_progress: Callable[[str, str, int], object] = lambda study, photo, photos: None

    @cached_property
    def restorer(self) -> Restorer:
        """The model, ready to restore."""
        return Restorer(self.model, device=self.device, engine=self.engine, precision=self.precision)

    @cached_property
    def torch_model(self) -> checkpoints.Model:
        """The model in torch, for what no graph computes. Raises ModelError without weights."""
        return checkpoints.load(self.restorer.folder)

    @cached_property
    def metrics(self) -> Metrics:
        """PSNR, and LPIPS where there are weights. Raises DataError for a folder without them."""
        names = ("psnr",) if self.metric_weights is None else ("psnr", "lpips")
        found, left_out = load_metrics(names, weights=self.metric_weights)
        if left_out:
            raise DataError(left_out[0])
        return found

    @cached_property
    def joined(self) -> Joined:
        """Those of the runs that have measured photos, as one."""
        return join([run for run in self.runs if not _is_training(run)], command="")

    @property
    def trained(self) -> list[Path]:
        """Those of the runs that have trained a network."""
        return [run for run in self.runs if _is_training(run)]

    def cases(self, study: str, names: Sequence[str], *, severity: float | None = None) -> list[Case]:
        """Photos degraded on the fly."""
        if self.photos is None:
            raise UsageError(
                f"the study {study} without photos", hint="name a folder of clean ones by --photos"
            )
        chosen = self.severity if severity is None else severity
        return synthetic.degraded(self.photos, names=names, severity=chosen, seed=self.seed, limit=self.limit)

    def embed(self, photo: Photo) -> One:
        """The embeddings of a photo as the restorer uses them."""
        return self.restorer.condition(self.restorer.encode(photo))

    def embed_content(self, photo: Photo) -> Float32[np.ndarray, "1 d"]:
        """The content embedding of a photo, under control."""
        return mean_of_views(self.restorer.encode(photo).content)

    def embed_plain(self, photo: Photo) -> Float32[np.ndarray, "n d"]:
        """Embeddings of the photo's views by the frozen tower without control, un-normalised."""
        config = self.restorer.folder.encoder_config
        views = tiling.views(photo, config.view_side)
        normalised = (views - np.array(config.mean, np.float32)) / np.array(config.std, np.float32)
        pixels = torch.from_numpy(np.ascontiguousarray(normalised.transpose(0, 3, 1, 2)))
        with torch.inference_mode():
            return self.torch_model.daclip.encode_plain(pixels).float().numpy()

    def restore(self, photo: Photo, context: One, *, restorer: Restorer | None = None) -> Pixels8:
        """The photo restored with the context given, in one piece, whatever is found in it."""
        chosen = restorer or self.restorer
        mu = as_planes(photo)
        if chosen.folder.config.kind == "one-pass":
            clean = chosen.engine.predict_clean(mu, context.content, context.degradation)
        else:
            name, steps = own_sampler(chosen)
            clean = self.sampled(chosen.begun(mu, context), context, name, steps, restorer=chosen)
        return as_eight_bit(clean)

    def sampled(
        self,
        mu: Float32[np.ndarray, "1 3 h w"],
        context: One,
        name: str,
        steps: int | Sequence[int],
        *,
        restorer: Restorer | None = None,
    ) -> Float32[np.ndarray, "1 3 h w"]:
        """What a diffusion model makes of `mu` by a sampler of SAMPLERS, not clamped."""
        chosen = restorer or self.restorer
        config = chosen.folder.config
        sde = IRSDE(**(config.sde or {}))
        predict = chosen.predictor(sde, mu, context.content, context.degradation)
        # as Restorer does it
        unbias = config.objective == "published" and name.startswith("mrs")
        return SAMPLERS[name](sde, predict, mu, _noise(mu, self.seed), steps=steps, unbias=unbias)

    def word(self, name: str, *, like: One) -> Float32[np.ndarray, "1 d"]:
        """The text embedding of a word the model knows, as long as the degradation embedding given."""
        length = float(np.linalg.norm(like.degradation))
        return detect.of_words([name], self.restorer.folder.texts, length=length)


def _is_training(run: Path) -> bool:
    """Whether a run folder is not one of `daclip evaluate`; what is neither is named when its log is read."""
    return not (run / MEASUREMENTS).is_file()


def own_sampler(restorer: Restorer) -> tuple[str, int | list[int]]:
    """The sampler of a diffusion model, by its name in SAMPLERS, and its calls or times."""
    config = restorer.folder.config
    return OWN_SAMPLERS[config.sampler or "mrs"], [*config.times, 0] if config.times else config.steps


def as_planes(photo: Photo) -> Float32[np.ndarray, "1 3 h w"]:
    """The photo as the network takes it, in [0, 1]."""
    pixels = photo.crop(0, 0, photo.height, photo.width)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def as_eight_bit(planes: Float32[np.ndarray, "1 3 h w"]) -> Pixels8:
    """Planes as they would be stored."""
    return np.rint(planes[0].transpose(1, 2, 0).clip(0, 1) * 255).astype(np.uint8)


def _noise(mu: Float32[np.ndarray, "1 3 h w"], seed: int) -> Callable[[int], Float32[np.ndarray, "1 3 h w"]]:
    tile = tiling.Tile(top=0, left=0, height=mu.shape[2], width=mu.shape[3])
    return lambda step: np.ascontiguousarray(tiling.noise_field(tile, seed, step).transpose(2, 0, 1)[None])


def gain_over(restored: Pixels8, photo: Photo, clean: Pixels8) -> float:
    """PSNR of the result less that of the photo, in dB; what is equal to the truth counts 100."""
    degraded = photo.crop_8bit(0, 0, photo.height, photo.width)
    return min(metrics.psnr(restored, clean), 100.0) - min(metrics.psnr(degraded, clean), 100.0)


def read_truth(case: Case) -> tuple[Photo, Pixels8]:
    """The photo of a case made here, and its truth."""
    photo, clean = case.read()
    assert clean is not None, "photos made here have a truth"
    return photo, clean


def has_weights(subject: Subject) -> bool:
    """Whether the model's encoder can be computed in torch, too."""
    return (subject.restorer.folder.encoder_path / checkpoints.WEIGHTS).is_file()
