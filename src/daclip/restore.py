"""Restorer: a photo in, a better photo and a Detection out. The path of a photo, steps 2 and 4."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Num, UInt8, UInt16

from daclip import detect as detection
from daclip import engine as engines
from daclip import image, light, models, sampling, tiling, vocabulary
from daclip.detect import Detection, Embeddings
from daclip.diffusion import IRSDE
from daclip.errors import ModelError, PhotoError, UsageError
from daclip.image import Format, Photo
from daclip.light import Light
from daclip.models import ModelFolder
from daclip.tiling import Tile

Strength = int | float | Mapping[str, int | float]
"""How far to go, 0 to 1: one number, or one for each degradation; degradations not named go all the way."""

Progress = Callable[[int, int], object]
"""Called with the number of network calls done and of all; what it raises cancels the run."""

Pixels = UInt8[np.ndarray, "h w 3"] | UInt16[np.ndarray, "h w 3"] | Float32[np.ndarray, "h w 3"]
View = Literal["many", "centre"]
PhotoEmbeddings = Embeddings[Float32[np.ndarray, "n d"]]


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A photo after a run. `full` are its pixels at strength 1, None when nothing was computed.

    Args:
        photo: as it came.
        action: `restored`, or `unchanged` with the `reason`.
        detection: what was found; None when nobody looked.
        brought_out: what was found in the answer, where that was treated in its turn, see
            ModelConfig.brings_out.
        applied: strength of each degradation that was treated.
        strength: the one strength they come to, weighted by their probabilities.
        sampler, steps, seed: how the pixels came about; no sampler for one-pass models.
        notes: what a person should know, such as a tile that did not fit.
    """

    photo: Photo
    action: Literal["restored", "unchanged"]
    reason: str = ""
    detection: Detection | None = None
    brought_out: Detection | None = None
    applied: Mapping[str, float]
    strength: float
    full: Pixels | None = None
    sampler: str | None = None
    steps: int = 0
    seed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def pixels(self) -> Pixels:
        """The result in the photo's own depth, sRGB: mu + strength (full - mu), strip by strip."""
        if self.full is None or self.action == "unchanged":
            return _blend(self.photo, None, 0.0)
        return self.full if self.strength == 1 else _blend(self.photo, self.full, self.strength)

    def probability(self, name: str) -> float:
        """How sure it is that the degradation was there: in the photo, or brought out by the restoration."""
        looks = [found for found in (self.detection, self.brought_out) if found]
        return max((found.probability(name) for found in looks), default=0.0)

    def at(self, strength: Strength) -> "Restored":
        """The same run at another strength, without a new run."""
        if self.full is None:
            return self
        applied = {name: _strength_of(strength, name) for name in self.applied}
        together = _together(applied, self.probability)
        action, reason = ("restored", "") if together > 0 else ("unchanged", "strength is 0")
        return replace(self, applied=applied, strength=together, action=action, reason=reason)

    def record(self) -> dict[str, Any]:
        """What was found and done, as JSON values: the part that all answers and ledgers share."""
        found, photo = self.detection, self.photo
        return {
            "action": self.action,
            "width": photo.width,
            "height": photo.height,
            "bits": photo.bits,
            "detected": found.record() if found else [],
            "applied": [{"name": name, "strength": strength} for name, strength in self.applied.items()],
            "sampler": self.sampler,
            "steps": self.steps,
            "seed": self.seed,
            "warnings": [*photo.warnings, *self.notes],
        }

    def save(
        self,
        path: Path | str,
        *,
        format: Format | None = None,
        quality: int | None = None,
        strip_metadata: bool = False,
        overwrite: bool = False,
    ) -> Path:
        """Write the result, see `image.write`; the path written comes back.

        A file left unchanged is copied byte for byte, unless another format or stripping is asked for.
        """
        target = image.output_path(self.photo, Path(path), format=format)
        if self._may_be_copied(target) and not strip_metadata:
            assert self.photo.path is not None
            return image.copy(self.photo.path, target, overwrite=overwrite)
        return image.write(
            self.photo,
            self.pixels,
            Path(path),
            format=format,
            quality=quality,
            strip_metadata=strip_metadata,
            overwrite=overwrite,
        )

    def _may_be_copied(self, target: Path) -> bool:
        photo, own = self.photo, image.output_format(self.photo)
        is_same_format = own == photo.format and image.output_path(photo, target, format=own) == target
        return self.action == "unchanged" and photo.path is not None and is_same_format


class Restorer:
    """Holds one model ready to restore photos. Thread-safe.

    Args:
        model: bundled name, folder or hub id.
        device, engine, precision, threads: see `daclip.engine.load`.
        memory: limit for the whole process, such as `512MB` or `2GB`; sets the size of tiles. None: 2 GB, or
            what the model itself takes and 1 GB more.
    """

    def __init__(
        self,
        model: str | Path | ModelFolder = "compact",
        *,
        device: str = "auto",
        memory: str | int | None = None,
        threads: int = 0,
        engine: str = "auto",
        precision: str = "auto",
    ) -> None:
        self.folder = model if isinstance(model, ModelFolder) else models.find(model)
        self.memory_bytes = default_memory(self.folder) if memory is None else parse_bytes(memory)
        self.engine = engines.load(
            self.folder, device=device, engine=engine, precision=precision, threads=threads
        )
        self._fixed_bytes = _fixed_bytes(self.folder)

    def encode(self, photo: Any, *, views: View = "many") -> PhotoEmbeddings:
        """Embeddings of the photo's views: the whole and native-size crops, or the published centre crop."""
        config = self.folder.encoder_config
        photo, side = _photo_of(photo), config.view_side
        seen = tiling.centre_view(photo, side)[None] if views == "centre" else tiling.views(photo, side)
        normalised = (seen - np.array(config.mean, np.float32)) / np.array(config.std, np.float32)
        found = self.engine.encode(np.ascontiguousarray(normalised.transpose(0, 3, 1, 2)))
        return replace(found, tone=tiling.tone(seen), light=self._light(photo))

    def _light(self, photo: Photo) -> Light | None:
        """What light the shadows of a photo lack, where the model can tell."""
        if self.folder.shade is None:
            return None
        shadow, lacks = self.engine.find_shadows(_planes(tiling.reduced(photo, light.LONGEST)))
        return Light(shadow=shadow[0, 0], lacks=_pixels(lacks))

    def condition(self, seen: PhotoEmbeddings) -> PhotoEmbeddings:
        """What the network is told of one photo, from the embeddings of its views: one row each.

        Where it is told the tone, that follows the content embedding in its row.
        """
        content = mean_of_views(seen.content)
        if (self.folder.config.network or {}).get("tone"):
            if seen.tone is None:
                raise UsageError("embeddings without the tone of the photo", hint="take those of encode()")
            content = np.concatenate([content, seen.tone], axis=1)
        return Embeddings(content=content, degradation=mean_of_views(seen.degradation))

    def detect(
        self,
        photo: Any,
        *,
        threshold: float = 0.5,
        embeddings: PhotoEmbeddings | None = None,
        views: View = "many",
    ) -> Detection:
        """What is wrong with a photo; kinds of photo, and embeddings, as for `restore`."""
        seen = embeddings or self.encode(photo, views=views)
        surely = None if seen.light is None else seen.light.surely
        return detection.detect(seen.degradation, self.folder.texts, threshold=threshold, shadow=surely)

    def restore(
        self,
        photo: Any,
        *,
        task: str | Sequence[str] = "auto",
        strength: Strength = 1.0,
        sampler: str | None = None,
        steps: int | None = None,
        seed: int = 0,
        embeddings: PhotoEmbeddings | None = None,
        views: View = "many",
        mask: Photo | None = None,
        tile: int | None = None,
        on_progress: Progress | None = None,
    ) -> Restored:
        """The photo restored, or left alone where `auto` finds nothing to do.

        Args:
            photo: path, bytes, Photo, Pillow image, numpy array ("h w", "h w 1|3|4"; uint8, uint16, float in
                [0, 1]) or torch tensor ("c h w", any device).
            task: `auto`, or degradations to treat whether found or not: names, or a comma list.
            strength: see Strength; 0 returns before anything is decoded.
            sampler: for diffusion models; None takes the model's own.
            steps: network calls of a diffusion model; None takes the model's own.
            seed: same seed, same pixels.
            embeddings: of this photo, from `encode`, to save computing them again.
            views: what the encoder sees; `centre` is the published way.
            mask: a photo of the same size, white where it is to be filled; the rest stays. The task is
                then `uncompleted`, unless another is named.
            tile: side of a tile in pixels, instead of the largest that the memory allows.
            on_progress: see Progress.

        Raises:
            UsageError: an argument that cannot mean anything, such as a sampler for a one-pass model.
            PhotoError: the photo cannot be decoded, does not fit the memory, or the model gave nonsense.
        """
        photo = _photo_of(photo)
        run = self._run(sampler, steps, seed)
        texts = self.folder.texts
        known = [name for name in texts.names if name != vocabulary.CLEAN]
        named = _named("uncompleted" if mask is not None and task == "auto" else task, known)
        _check_strength(strength, known)
        if strength == 0:
            return _unchanged(photo, run, "strength is 0", None)
        side = tile or self._tile_side(photo)  # before anything is decoded: it may not fit
        seen = embeddings or self.encode(photo, views=views)
        found = self.detect(photo, embeddings=seen)
        names = named or found.found
        if not names:
            clean = f"{vocabulary.CLEAN} {found.probability(vocabulary.CLEAN):.2f}"
            return _unchanged(photo, run, f"no known degradation found ({clean})", found)
        applied = {name: _strength_of(strength, name) for name in names}
        together = _together(applied, found.probability)
        if together == 0:
            return _unchanged(photo, run, "strength is 0", found)
        shadows = seen.light if vocabulary.SHADOWED in names else None
        if shadows is not None and set(names) == {vocabulary.SHADOWED}:
            run, told = replace(run, sampler=None, steps=0), None
        else:
            told = self._told(seen, names, found)
        awaited = () if named else self._awaited(names, strength)
        tell = _part(on_progress, 0) if awaited else on_progress
        full, notes = self._in_tiles(
            photo, told, run, mask=mask, shadows=shadows, side=side, on_progress=tell
        )
        done = Restored(
            photo=photo,
            action="restored",
            detection=found,
            applied=applied,
            strength=together,
            full=full,
            sampler=run.sampler,
            steps=run.steps,
            seed=seed,
            notes=notes,
        )
        if not awaited:
            return done
        return self._once_more(done, awaited, run, strength, side, views, on_progress)

    def _awaited(self, names: Sequence[str], strength: Strength) -> tuple[str, ...]:
        """What the removal of these degradations may bring out, and is to be treated then."""
        brings_out = self.folder.config.brings_out
        awaited = [word for name in names for word in brings_out.get(name, ()) if word not in names]
        return tuple(word for word in dict.fromkeys(awaited) if _strength_of(strength, word) > 0)

    def _once_more(
        self,
        done: Restored,
        awaited: Sequence[str],
        run: "_Run",
        strength: Strength,
        side: int,
        views: View,
        on_progress: Progress | None,
    ) -> Restored:
        """The answer restored in its turn, where what was awaited is found in it."""
        assert done.full is not None
        answer = replace(image.from_array(done.full), path=done.photo.path)
        seen = self.encode(answer, views=views)
        found = self.detect(answer, embeddings=seen)
        names = [name for name in awaited if name in found.found]
        if not names:
            if on_progress is not None:
                on_progress(1, 1)
            return done
        told = self._told(seen, names, found)
        tell = _part(on_progress, 1)
        full, notes = self._in_tiles(answer, told, run, mask=None, shadows=None, side=side, on_progress=tell)
        again = replace(done, full=full, brought_out=found, notes=tuple(dict.fromkeys((*done.notes, *notes))))
        applied = {**done.applied, **{name: _strength_of(strength, name) for name in names}}
        return replace(again, applied=applied, strength=_together(applied, again.probability))

    def __call__(
        self,
        photo: Any,
        *,
        task: str | Sequence[str] = "auto",
        strength: Strength = 1.0,
        sampler: str | None = None,
        steps: int | None = None,
        seed: int = 0,
        on_progress: Progress | None = None,
    ) -> Any:
        """The restored photo as the kind it came in, see `restore`; for a path or bytes, a Photo.

        Tensors may also be "b c h w" here; they come back on their device.
        """
        options: dict[str, Any] = {
            "task": task,
            "strength": strength,
            "sampler": sampler,
            "steps": steps,
            "seed": seed,
            "on_progress": on_progress,
        }
        return _as_it_came(photo, lambda one: self.restore(one, **options))

    def _told(self, seen: PhotoEmbeddings, names: Sequence[str], found: Detection) -> PhotoEmbeddings:
        """What the network is told of a photo, some damage of which is to be treated.

        Of damage what the photo itself shows, where that is what is treated; else it is turned towards the
        words, for it says how strong the damage is: further, and with those words silenced first, where it
        shows damage that is not to be treated. A model that has `word_share` 1 is told the words alone.
        """
        condition, texts = self.condition(seen), self.folder.texts
        own, shown = condition.degradation, {*found.found, *found.doubtful}
        if texts.rule == "sigmoid":
            own = detection.voiced(own, found, texts)
        if shown == set(names):
            return replace(condition, degradation=own)
        share = self.folder.config.word_share
        words = detection.of_words(names, texts, length=float(np.linalg.norm(own)))
        if share == 1:
            return replace(condition, degradation=words)
        if beside := [name for name in texts.names if name in shown - set(names)]:
            own, share = detection.silenced(own, beside, texts), max(share, _SHARE_OF_SOME)
        return replace(condition, degradation=detection.turned(own, words, share=share))

    def _run(self, sampler: str | None, steps: int | None, seed: int) -> "_Run":
        """The settings that turn into pixels, checked against the kind of model."""
        config = self.folder.config
        if config.kind == "encoder":
            raise ModelError(
                f"{self.folder.name} is an encoder alone", hint="it detects; restore with another model"
            )
        if config.kind == "one-pass":
            if sampler is not None or steps not in (None, 1):
                raise UsageError(
                    f"{self.folder.name} restores in one pass, without sampler and steps",
                    hint="leave them out, or take a diffusion model",
                )
            return _Run(sampler=None, steps=1, seed=seed)
        name = sampler or config.sampler or "mrs"
        if name not in sampling.SAMPLERS:
            raise UsageError(f'unknown sampler "{name}"', hint=f"known: {', '.join(sampling.SAMPLERS)}")
        if steps is None:
            return _Run(sampler=name, steps=config.steps, times=config.times, seed=seed)
        if steps < 1:
            raise UsageError(f"{steps} steps restore nothing", hint="steps from 1")
        return _Run(sampler=name, steps=steps, seed=seed)

    def _in_tiles(
        self,
        photo: Photo,
        condition: PhotoEmbeddings | None,
        run: "_Run",
        *,
        mask: Photo | None,
        shadows: Light | None,
        side: int,
        on_progress: Progress | None,
    ) -> tuple[Pixels, tuple[str, ...]]:
        """The restored pixels, and notes. The one place that meets a lack of memory: the tile is halved."""
        config = self.folder.config
        notes: list[str] = []
        while True:
            tiles = tiling.plan(
                photo.height,
                photo.width,
                memory_bytes=side**2 * config.bytes_per_pixel,
                bytes_per_pixel=config.bytes_per_pixel,
                multiple=config.multiple,
                overlap=config.overlap,
            )
            try:
                return self._pass(photo, tiles, condition, run, mask, shadows, on_progress), tuple(notes)
            except MemoryError as error:
                side = max(max(one.height, one.width) for one in tiles)
                if side <= self._smallest_side:
                    raise PhotoError(
                        "no-memory", photo.path, f"not even a tile of {side} px fits the memory that is free"
                    ) from error
                half = max(side // 2, self._smallest_side)
                notes.append(f"a tile of {side} px did not fit, using {half} px; --memory sets a start")
                side = half

    def _pass(
        self,
        photo: Photo,
        tiles: Sequence[Tile],
        condition: PhotoEmbeddings | None,
        run: "_Run",
        mask: Photo | None,
        shadows: Light | None,
        on_progress: Progress | None,
    ) -> Pixels:
        """All tiles once: steps e to g of the path of a photo.

        Without a condition the network is not asked: what was in the shadow alone is whole when it is lit.
        """
        canvas = tiling.Canvas(tiles, photo.dtype)
        before, after = _Range(), _Range()
        for number, tile in enumerate(tiles):

            def tell(done: int, calls: int, first: int = number) -> None:
                if on_progress is not None:
                    on_progress(first * calls + done, len(tiles) * calls)

            own = mu = photo.crop(tile.top, tile.left, tile.height, tile.width)
            if shadows is not None:
                mu = shadows.lit(own, top=tile.top, left=tile.left, height=photo.height, width=photo.width)
            hole = None if mask is None else mask.crop(tile.top, tile.left, tile.height, tile.width)
            # published: what is to be filled is white
            seen = mu if hole is None else mu + hole * (1 - mu)
            if condition is None:
                pixels = seen
                tell(1, 1)
            else:
                pixels = self._restore_tile(seen, tile, condition, run, tell)
            if not np.isfinite(pixels).all():
                reason = "the model gave numbers that are not finite"
                raise PhotoError("model", photo.path, reason, hint="try --precision fp32")
            before.see(own)
            after.see(pixels)
            pixels = np.clip(pixels, 0, 1)
            canvas.add(tile, pixels if hole is None else own + hole * (pixels - own))
        if after.is_constant and not before.is_constant:
            reason = "the model gave a picture of one colour"
            raise PhotoError("model", photo.path, reason, hint="nothing was kept; try another model")
        return canvas.pixels()

    def _restore_tile(
        self,
        mu: Float32[np.ndarray, "h w 3"],
        tile: Tile,
        condition: PhotoEmbeddings,
        run: "_Run",
        tell: Progress,
    ) -> Float32[np.ndarray, "h w 3"]:
        """The clean tile, unclamped: the one fork between the two kinds of restorer."""
        planes, content, degradation = _planes(mu), condition.content, condition.degradation
        config = self.folder.config
        if run.sampler is None:
            clean = self.engine.predict_clean(planes, content, degradation)
            tell(1, 1)
            return _pixels(clean)

        def draw(step: int) -> Float32[np.ndarray, "1 3 h w"]:
            return _planes(tiling.noise_field(tile, run.seed, step))

        # the bias of the published objective hurts few large steps; its own samplers stay as published
        unbias = config.objective == "published" and run.sampler == "mrs"
        sample = sampling.SAMPLERS[run.sampler]
        sde = IRSDE(**(config.sde or {}))
        steps = [*run.times, 0] if run.times else run.steps
        planes = self.begun(planes, condition)
        predict = self.predictor(sde, planes, content, degradation)
        return _pixels(sample(sde, predict, planes, draw, steps=steps, unbias=unbias, on_progress=tell))

    def begun(
        self, mu: Float32[np.ndarray, "1 3 h w"], condition: PhotoEmbeddings
    ) -> Float32[np.ndarray, "1 3 h w"]:
        """What a diffusion goes on from: the degraded planes, or what its initial model makes of them."""
        if self.folder.initial is None:
            return mu
        return self.engine.predict_clean(mu, condition.content, condition.degradation).clip(0, 1)

    def predictor(
        self,
        sde: IRSDE,
        mu: Float32[np.ndarray, "1 3 h w"],
        content: Float32[np.ndarray, "1 k"],
        degradation: Float32[np.ndarray, "1 d"],
    ) -> sampling.Predict:
        """What a sampler asks about the planes of `begun`: the noise in a state at a time (diffusion)."""
        predicts_clean = self.folder.config.objective == "x0"

        def predict(x: Float32[np.ndarray, "1 3 h w"], t: Float32[np.ndarray, "1"]) -> np.ndarray:
            found = self.engine.predict_at(x, mu, t, content, degradation)
            return sde.noise_from_x0(x, found, mu, t) if predicts_clean else found

        return predict

    @property
    def _smallest_side(self) -> int:
        return 2 * self.folder.config.overlap + self.folder.config.multiple

    def _tile_side(self, photo: Photo) -> int:
        """The side of the largest square tile that keeps the whole process within the memory.

        A tile takes bytes_per_pixel for each of its pixels, and the canvas a band of float rows as high as
        the tile: the side a solves bytes_per_pixel a² + band a = what is left.
        """
        # the photo as decoded, up to four bands, and the result
        kept = photo.width * photo.height * (4 * photo.bits // 8 + 3 * photo.dtype.itemsize)
        per_pixel, band = self.folder.config.bytes_per_pixel, 16 * photo.width
        left = max(self.memory_bytes - self._fixed_bytes - kept, 0)
        side = int((-band + (band**2 + 4 * per_pixel * left) ** 0.5) / (2 * per_pixel))
        multiple = self.folder.config.multiple
        padded = -(-max(photo.width, photo.height) // multiple) * multiple
        least = min(self._smallest_side, padded)
        if side < least:
            needed = self._fixed_bytes + kept + per_pixel * least**2 + band * least
            raise PhotoError(
                "no-memory",
                photo.path,
                f"{photo.width} x {photo.height} pixels do not fit {self.memory_bytes // 1_000_000} MB",
                hint=f"the smallest that works is --memory {-(-needed // 10_000_000) * 10}MB",
            )
        return side


@dataclass(frozen=True, kw_only=True)
class _Run:
    sampler: str | None
    steps: int
    times: tuple[int, ...] = ()
    seed: int


def _part(on_progress: Progress | None, number: int) -> Progress | None:
    """The progress of one of two runs over a photo, the first (0) or the second (1), as that of both."""
    if on_progress is None:
        return None
    return lambda done, total: on_progress(number * total + done, 2 * total)


class _Range:
    """The smallest and largest value seen."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf

    def see(self, pixels: Float32[np.ndarray, "h w 3"]) -> None:
        self.low, self.high = min(self.low, float(pixels.min())), max(self.high, float(pixels.max()))

    @property
    def is_constant(self) -> bool:
        return self.low == self.high


def default_memory(folder: ModelFolder, *, budget: int = 2_000_000_000) -> int:
    """The limit in bytes where none is named: the budget, or what a large model takes and 1 GB more."""
    own = _fixed_bytes(folder)
    return max(budget, own + 1_000_000_000) if own > 1_000_000_000 else budget


def _fixed_bytes(folder: ModelFolder) -> int:
    """Libraries and their buffers; weights once as read and once as the engine lays them out."""
    return _LIBRARY_BYTES + 2 * _weight_bytes(folder)


def parse_strength(text: str) -> Strength:
    """`0.5`, or `noisy=0.4,rainy=1`."""
    try:
        if "=" not in text:
            return float(text)
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        return {vocabulary.degradation(name): float(number) for name, _, number in pairs}
    except ValueError as error:
        raise UsageError(f'strength "{text}" is no number', hint="write 0.5, or noisy=0.4,rainy=1") from error


def parse_bytes(text: str | int) -> int:
    """The number of bytes of `512MB` (decimal), `1.5GiB` (binary) or a plain number.

    >>> parse_bytes("2GB")
    2000000000
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", str(text).lower())
    if not found or float(found[1]) <= 0:
        raise UsageError(f'"{text}" is no amount of memory', hint="write 512MB, 2GB or 1.5GiB")
    prefix = found[2] or ""
    base = 1024 if prefix.endswith("i") else 1000
    return int(float(found[1]) * base ** (" kmgt".index(prefix[0]) if prefix else 0))


def _named(task: str | Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The degradations a user named, () for auto."""
    words = task if isinstance(task, str) else ",".join(task)
    return () if words.strip().lower() == "auto" else vocabulary.degradations(words, known=known)


def _check_strength(strength: Strength, known: Sequence[str]) -> None:
    numbers = strength if isinstance(strength, Mapping) else {"strength": strength}
    for name, number in numbers.items():
        if not 0 <= number <= 1:
            raise UsageError(
                f"{name} {number:g} is not between 0 and 1", hint="0 changes nothing, 1 goes all the way"
            )
    if isinstance(strength, Mapping):
        for name in strength:
            vocabulary.degradation(name, known=known)


def _strength_of(strength: Strength, name: str) -> float:
    if not isinstance(strength, Mapping):
        return float(strength)
    by_name = {vocabulary.ALIASES.get(word, word): number for word, number in strength.items()}
    return float(by_name.get(name, 1.0))


def _together(applied: Mapping[str, float], probability: Callable[[str], float]) -> float:
    """One strength: the mean over what is treated, weighted by how probable each degradation is."""
    strengths = list(applied.values())
    if len(set(strengths)) == 1:  # exactly, not up to rounding
        return strengths[0]
    weights = [1e-6 + probability(name) for name in applied]
    return float(np.average(strengths, weights=weights))


def _unchanged(photo: Photo, run: _Run, reason: str, found: Detection | None) -> Restored:
    return Restored(
        photo=photo,
        action="unchanged",
        reason=reason,
        detection=found,
        applied={},
        strength=0.0,
        sampler=run.sampler,
        steps=run.steps,
        seed=run.seed,
    )


def mean_of_views(vectors: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "1 d"]:
    """The mean of the views in direction and in length.

    The restorer is trained on single, un-normalised views; a plain mean would be shorter than any of them.
    """
    mean = vectors.mean(axis=0, keepdims=True)
    length = np.linalg.norm(mean)
    wanted = np.linalg.norm(vectors, axis=1).mean()
    return mean if length == 0 or len(vectors) == 1 else mean * np.float32(wanted / length)


def _weight_bytes(folder: ModelFolder) -> int:
    places = {folder.path, folder.encoder_path, *([folder.initial] if folder.initial else [])}
    files = [path for place in places for path in place.iterdir()]
    return sum(path.stat().st_size for path in files if path.suffix in (".onnx", ".safetensors"))


def _planes(pixels: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "1 3 h w"]:
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def _pixels(planes: Float32[np.ndarray, "1 3 h w"]) -> Float32[np.ndarray, "h w 3"]:
    return planes[0].transpose(1, 2, 0)


def _blend(photo: Photo, full: Pixels | None, strength: float) -> Pixels:
    """The blend mu + strength (full - mu) in the photo's depth; by strips, without a whole float copy."""
    result = np.empty((photo.height, photo.width, 3), photo.dtype)
    rows = max(1, 2_000_000 // photo.width)
    white = 255 if photo.dtype == np.uint8 else 65535
    for top in range(0, photo.height, rows):
        mu = photo.crop(top, 0, min(rows, photo.height - top), photo.width) * np.float32(white)
        if full is not None:
            mu += np.float32(strength) * (full[top : top + rows] - mu)
        result[top : top + rows] = np.rint(mu).clip(0, white)
    return result


def _photo_of(given: Any) -> Photo:
    """A photo from what a user holds: path, bytes, Photo, Pillow image, numpy array, or tensor "c h w"."""
    if isinstance(given, Photo):
        return given
    if isinstance(given, str | Path | bytes):
        return image.read(given)
    if isinstance(given, np.ndarray):
        return image.from_array(given)
    if hasattr(given, "getbands"):  # Pillow, which the base install does not have
        return image.from_pil(given)
    if _is_tensor(given):
        plain = given.detach().cpu()
        # floats go through float32, for numpy knows no bfloat16
        planes = np.from_dlpack(plain.float() if plain.is_floating_point() else plain)
        return image.from_array(np.ascontiguousarray(planes.transpose(1, 2, 0)))
    kind = type(given).__name__
    raise UsageError(f"a photo cannot be made of {kind}", hint="give a path, bytes, PIL, numpy or torch")


def _as_it_came(given: Any, restore: Callable[[Photo], Restored]) -> Any:
    """The restored photo as the kind it was given."""
    if _is_tensor(given) and given.ndim == 4:
        return given.new_tensor(np.stack([_planes_of(restore(_photo_of(one))) for one in given]))
    done = restore(_photo_of(given))
    if _is_tensor(given):
        return given.new_tensor(_planes_of(done))
    if isinstance(given, np.ndarray):
        return image.to_array(done.photo, done.pixels, ndim=given.ndim)
    if hasattr(given, "getbands"):
        return image.to_pil(done.photo, done.pixels, like=given)
    if done.action == "unchanged":
        return done.photo
    return replace(done.photo, decode=lambda: image.finish(done.photo, done.pixels))


def _is_tensor(given: Any) -> bool:
    """A torch tensor, known by its methods: this half never imports torch."""
    return hasattr(given, "__dlpack__") and hasattr(given, "new_tensor")


def _planes_of(done: Restored) -> Num[np.ndarray, "c h w"]:
    return image.to_array(done.photo, done.pixels).transpose(2, 0, 1)


_SHARE_OF_SOME = 0.6
"""Least share of the words where not all that a photo shows is treated; more smears mild damage."""

_LIBRARY_BYTES = 300_000_000
"""Python, numpy, vips and an engine without a model, measured with benchmarks/restore.py."""
