"""A photo in, a better photo and a Detection out, on a toy model with known answers."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from daclip import image, models
from daclip.detect import Embeddings, detect, of_words, silenced
from daclip.errors import ModelError, PhotoError, UsageError
from daclip.restore import Restored, Restorer, default_memory, parse_bytes
from toy_model import TEXTS, mended, write_toy_model


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_model(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture(scope="module")
def restorer(toy: Path) -> Restorer:
    return Restorer(toy, precision="fp32")


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> Restorer:
    return Restorer(
        write_toy_model(tmp_path_factory.mktemp("models") / "toysde", "diffusion"), precision="fp32"
    )


def scene(height: int, width: int, *, light: float = 1.0, noise: float = 0.0) -> np.ndarray:
    """A smooth photo "h w 3", uint8."""
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    waves = 0.5 + 0.3 * np.sin(rows / 17) + 0.2 * np.cos(columns / 23)
    pixels = np.stack([waves, 0.9 * waves, 0.8 * waves + 0.1], axis=2) * light
    pixels += noise * np.random.default_rng(0).standard_normal(pixels.shape)
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8)


def dark(height: int = 90, width: int = 120) -> image.Photo:
    return image.from_array(scene(height, width, light=0.2))


def test_a_dark_photo_is_found_dark_and_gets_brighter(restorer: Restorer) -> None:
    done = restorer.restore(dark())
    assert done.action == "restored"
    assert done.applied == {"low-light": 1.0}
    assert done.detection is not None
    assert done.detection.probability("low-light") > 0.9
    assert done.pixels.mean() > 1.3 * done.photo.own.mean()
    brighten = float(restorer.encode(done.photo).degradation[:, 0].mean())
    expected = mended(done.photo.own.astype(np.float32) / 255, brighten, 0.0) * 255
    assert np.abs(done.pixels - expected).max() <= 1


def test_a_noisy_photo_gets_smoother(restorer: Restorer) -> None:
    noisy = image.from_array(scene(90, 120, noise=0.2))
    done = restorer.restore(noisy)
    assert done.applied == {"noisy": 1.0}
    assert (
        np.diff(done.pixels.astype(float), axis=0).std()
        < 0.6 * np.diff(noisy.own.astype(float), axis=0).std()
    )


def test_a_clean_photo_is_left_alone_with_a_reason(restorer: Restorer) -> None:
    clean = image.from_array(scene(90, 120))
    done = restorer.restore(clean)
    assert (done.action, done.applied, done.strength) == ("unchanged", {}, 0.0)
    assert done.reason.startswith("no known degradation found (clean 0.9")
    np.testing.assert_array_equal(done.pixels, clean.own)


def test_strength_zero_does_not_even_decode(restorer: Restorer) -> None:
    def refuse() -> np.ndarray:
        raise AssertionError("decoded")

    done = restorer.restore(replace(dark(), decode=refuse), strength=0)
    assert (done.action, done.reason) == ("unchanged", "strength is 0")


@pytest.mark.parametrize("strength", [0.25, 0.5, 0.9])
def test_a_run_blended_again_is_the_run_at_that_strength(restorer: Restorer, strength: float) -> None:
    whole = restorer.restore(dark())
    again, run = whole.at(strength), restorer.restore(dark(), strength=strength)
    np.testing.assert_array_equal(again.pixels, run.pixels)
    mu = whole.photo.own.astype(float)
    assert np.abs(again.pixels - (mu + strength * (whole.pixels - mu))).max() <= 0.5 + 1e-3
    np.testing.assert_array_equal(again.at(1).pixels, whole.pixels)


def test_at_nought_a_run_is_the_photo_bit_for_bit(restorer: Restorer) -> None:
    whole = restorer.restore(dark())
    none = whole.at(0)
    assert none.action == "unchanged"
    np.testing.assert_array_equal(none.pixels, whole.photo.own)
    np.testing.assert_array_equal(none.at(1).pixels, whole.pixels)


def test_strength_may_differ_by_degradation(restorer: Restorer) -> None:
    done = restorer.restore(dark(), task="low-light,noisy", strength={"noise": 0.4})
    assert done.applied == {"low-light": 1.0, "noisy": 0.4}
    # low-light is nearly certain, so its strength rules
    assert 0.99 < done.strength <= 1
    none = restorer.restore(dark(), strength={"low-light": 0})
    assert none.action == "unchanged"


def test_a_named_task_replaces_what_was_found(restorer: Restorer) -> None:
    clean = image.from_array(scene(90, 120))
    done = restorer.restore(clean, task="noise")
    assert done.applied == {"noisy": 1.0}
    length = np.linalg.norm(restorer.encode(clean).degradation, axis=1).mean()
    expected = mended(clean.own.astype(np.float32) / 255, 0.0, float(length)) * 255
    assert np.abs(done.pixels - expected).max() <= 1


def test_several_tasks_share_the_embedding(restorer: Restorer) -> None:
    clean = image.from_array(scene(90, 120))
    length = np.linalg.norm(restorer.encode(clean).degradation, axis=1).mean() / np.sqrt(2)
    done = restorer.restore(clean, task=["noisy", "low-light"])
    expected = mended(clean.own.astype(np.float32) / 255, float(length), float(length)) * 255
    assert np.abs(done.pixels - expected).max() <= 1


@pytest.mark.parametrize("size", [(200, 333), (64, 500), (97, 101)])
def test_tiles_give_the_pixels_of_the_whole(restorer: Restorer, size: tuple[int, int]) -> None:
    photo = dark(*size)
    calls: list[tuple[int, int]] = []
    whole = restorer.restore(photo)
    tiled = restorer.restore(photo, tile=64, on_progress=lambda done, total: calls.append((done, total)))
    np.testing.assert_array_equal(tiled.pixels, whole.pixels)
    assert len(calls) > 1
    assert calls[-1] == (len(calls), len(calls))


@pytest.mark.parametrize("name", ["posterior", "sde", "ode", "mrs"])
def test_diffusion_tiles_share_one_noise_field(sampler: Restorer, name: str) -> None:
    photo = dark(120, 150)
    whole = sampler.restore(photo, sampler=name, steps=5, seed=3)
    tiled = sampler.restore(photo, sampler=name, steps=5, seed=3, tile=64)
    assert (whole.sampler, whole.steps, whole.seed) == (name, 5, 3)
    difference = np.abs(tiled.pixels.astype(int) - whole.pixels.astype(int))
    assert difference.max() <= 1
    if name in ("posterior", "mrs"):  # these end in the clean photo; Euler's steps leave noise
        brighten = float(sampler.encode(photo).degradation[:, 0].mean())
        assert (
            np.abs(whole.pixels - mended(photo.own.astype(np.float32) / 255, brighten, 0.0) * 255).max() <= 2
        )


def test_a_model_that_predicts_the_clean_photo_samples_as_one_that_predicts_its_noise(
    sampler: Restorer, tmp_path: Path
) -> None:
    other = Restorer(write_toy_model(tmp_path / "toyx0", "diffusion", objective="x0"), precision="fp32")
    photo = dark()
    for name in ("posterior", "sde", "ode", "mrs"):
        one, same = (each.restore(photo, sampler=name, steps=5, seed=3) for each in (sampler, other))
        assert np.abs(one.pixels.astype(int) - same.pixels).max() <= 1
        assert np.abs(same.pixels.astype(int) - photo.own).mean() > 5


def test_a_model_with_its_own_times_calls_its_network_at_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_toy_model(tmp_path / "timed", "diffusion", steps=3, times=(90, 20, 4))
    restorer, seen = Restorer(folder, precision="fp32"), list[float]()
    predict_at = restorer.engine.predict_at

    def watched(x: np.ndarray, mu: np.ndarray, t: np.ndarray, *told: np.ndarray) -> np.ndarray:
        seen.append(float(t[0]))
        return predict_at(x, mu, t, *told)

    monkeypatch.setattr(restorer.engine, "predict_at", watched)
    assert restorer.restore(dark()).steps == 3
    assert seen == [90, 20, 4]
    seen.clear()
    assert restorer.restore(dark(), steps=2).steps == 2
    assert seen == [100, 50]


def test_the_seed_decides_the_pixels(sampler: Restorer) -> None:
    photo = dark()
    first, same, other = (sampler.restore(photo, sampler="sde", seed=seed).pixels for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert (first != other).mean() > 0.3


def test_progress_of_a_diffusion_run_counts_network_calls(sampler: Restorer) -> None:
    calls: list[tuple[int, int]] = []
    sampler.restore(
        dark(100, 100), steps=3, tile=64, on_progress=lambda done, total: calls.append((done, total))
    )
    total = calls[0][1]
    assert total % 3 == 0
    assert calls == [(number, total) for number in range(1, total + 1)]


def test_raising_in_progress_cancels(restorer: Restorer) -> None:
    class Cancelled(Exception):
        pass

    def cancel(done: int, total: int) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        restorer.restore(dark(), on_progress=cancel)


def watched(restorer: Restorer, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """What its network is told of the damage from now on."""
    told: list[np.ndarray] = []
    predict = restorer.engine.predict_clean

    def listening(mu: np.ndarray, content: np.ndarray, degradation: np.ndarray) -> np.ndarray:
        told.append(degradation)
        return predict(mu, content, degradation)

    monkeypatch.setattr(restorer.engine, "predict_clean", listening)
    return told


def test_a_doubtful_word_is_not_treated_and_the_network_told_the_others(
    restorer: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = watched(restorer, monkeypatch)
    photo, seen = dark(), restorer.encode(dark())
    found = detect(seen.degradation, restorer.folder.texts)
    restorer.restore(photo, embeddings=seen)
    monkeypatch.setattr("daclip.detect.detect", lambda *_, **__: replace(found, doubtful=("noisy",)))
    done = restorer.restore(photo, embeddings=seen)
    assert list(done.applied) == list(found.found)
    own, words = told
    np.testing.assert_array_equal(own, restorer.condition(seen).degradation)
    length = float(np.linalg.norm(own))
    np.testing.assert_array_equal(words, of_words(found.found, restorer.folder.texts, length=length))
    assert np.abs(own - words).max() > 0.01


def test_words_are_told_beside_what_the_photo_shows_where_the_model_says_so(
    restorer: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them, and without what is not to be treated, where the photo shows that."""
    config = replace(restorer.folder.config, word_share=0.25)
    sharing = Restorer(replace(restorer.folder, config=config), precision="fp32")
    told = watched(sharing, monkeypatch)
    photo, seen = dark(), sharing.encode(dark())
    own, texts = sharing.condition(seen).degradation, sharing.folder.texts
    found = detect(seen.degradation, texts).found
    other = next(name for name in texts.names if name not in (*found, "clean"))
    for task in ("auto", [*found], [*found, other], other):
        sharing.restore(photo, embeddings=seen, task=task)
    np.testing.assert_array_equal(told[0], own)
    np.testing.assert_array_equal(told[1], own)
    length = float(np.linalg.norm(own))
    for got, names, shown, share in (
        (told[2], [*found, other], own, 0.25),
        (told[3], [other], silenced(own, found, texts), 0.6),
    ):
        turned = (1 - share) * shown + share * of_words(names, texts, length=length)
        np.testing.assert_allclose(got, turned / np.linalg.norm(turned) * length, rtol=1e-5, atol=1e-6)
    assert not set(detect(told[3], texts).found) & set(found)


def test_what_light_brings_out_is_treated_in_its_turn(
    restorer: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(restorer.folder.config, brings_out={"low-light": ("noisy",)})
    again = Restorer(replace(restorer.folder, config=config), precision="fp32")
    photo, calls = dark(), list[tuple[int, int]]()
    once = restorer.restore(photo)
    twice = restorer.restore(once.pixels)
    quiet = again.restore(photo, on_progress=lambda *call: calls.append(call))
    assert calls == [(1, 2), (1, 1)]
    assert quiet.applied == {"low-light": 1}
    assert quiet.brought_out is None
    np.testing.assert_array_equal(quiet.pixels, once.pixels)

    looks = [detect(np.array([row], np.float32), TEXTS) for row in ([1, 0, 0, 0], [0, 1, 0, 0]) * 2]
    looks = [*looks, looks[0], looks[0]]
    monkeypatch.setattr("daclip.detect.detect", lambda *_, **__: looks.pop(0))
    done = again.restore(photo, on_progress=lambda *call: calls.append(call))
    assert calls[2:] == [(1, 2), (2, 2)]
    assert done.applied == {"low-light": 1, "noisy": 1}
    assert done.detection is not None
    assert done.detection.found == ("low-light",)
    assert done.probability("noisy") > 0.9
    np.testing.assert_array_equal(done.pixels, twice.pixels)
    assert done.at({"noisy": 0}).applied == {"low-light": 1, "noisy": 0}
    half = again.restore(photo, strength={"noisy": 0.5})
    assert half.applied == {"low-light": 1, "noisy": 0.5}
    assert 0.74 < half.strength < 0.76
    for options in ({"task": "low-light"}, {"strength": {"noisy": 0}}):
        np.testing.assert_array_equal(again.restore(photo, **options).pixels, once.pixels)


def test_embeddings_can_be_given_and_then_nothing_is_encoded(restorer: Restorer) -> None:
    clean = image.from_array(scene(60, 60))
    given = Embeddings(
        content=np.zeros((1, 4), np.float32), degradation=np.array([[0, 0.5, 0, 0]], np.float32)
    )
    done = restorer.restore(clean, embeddings=given)
    assert done.applied == {"noisy": 1.0}
    assert np.abs(done.pixels - mended(clean.own.astype(np.float32) / 255, 0, 0.5) * 255).max() <= 1


def test_views_are_averaged_in_direction_and_in_length(restorer: Restorer) -> None:
    clean = image.from_array(scene(60, 60))
    given = Embeddings(
        content=np.zeros((6, 4), np.float32),
        degradation=np.array([*[[0.6, 0, 0, 0]] * 5, [0, 0.6, 0, 0]], np.float32),
    )
    done = restorer.restore(clean, embeddings=given, task="auto")
    first, second = 0.6 * np.array([5, 1]) / np.sqrt(26)
    expected = mended(clean.own.astype(np.float32) / 255, first, second) * 255
    assert done.action == "restored"
    assert np.abs(done.pixels - expected).max() <= 1


def test_only_few_step_samplers_take_off_the_published_bias(sampler: Restorer) -> None:
    published = Restorer(
        replace(sampler.folder, config=replace(sampler.folder.config, objective="published")),
        precision="fp32",
    )
    photo = dark(40, 40)
    for name, same in (("posterior", True), ("sde", True), ("ode", True), ("mrs", False)):
        one, other = (one.restore(photo, sampler=name, steps=4).pixels for one in (sampler, published))
        assert np.array_equal(one, other) == same


def test_a_mask_keeps_everything_outside_it(restorer: Restorer) -> None:
    photo = image.from_array(scene(80, 80))
    mask = np.zeros((80, 80), np.uint8)
    mask[20:40, 30:50] = 255
    done = restorer.restore(photo, task="noisy", mask=image.from_array(mask), tile=48)
    np.testing.assert_array_equal(done.pixels[mask == 0], photo.own[mask == 0])
    # what is to be filled is white for the network, and this toy only smooths
    assert done.pixels[22:38, 32:48].min() == 255


def test_colours_under_full_transparency_stay(restorer: Restorer) -> None:
    alpha = np.full((60, 60, 1), 255, np.uint8)
    alpha[:30] = 0
    photo = image.from_array(np.concatenate([scene(60, 60, light=0.2), alpha], axis=2))
    back = image.to_array(photo, restorer.restore(photo).pixels)
    np.testing.assert_array_equal(back[:30], photo.own[:30])
    assert (back[30:, :, :3] > photo.own[30:, :, :3]).any()
    np.testing.assert_array_equal(back[:, :, 3], photo.own[:, :, 3])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("bands", [0, 1, 3, 4])
def test_numpy_comes_back_as_it_went(restorer: Restorer, dtype: type, bands: int) -> None:
    pixels = scene(50, 70, light=0.2)
    shape = {0: pixels[:, :, 0], 1: pixels[:, :, :1], 3: pixels, 4: np.dstack([pixels, pixels[:, :, :1]])}[
        bands
    ]
    given = (
        shape
        if dtype == np.uint8
        else (shape.astype(np.uint16) * 257 if dtype == np.uint16 else shape / dtype(255))
    )
    given = given.astype(dtype)
    back = restorer(given)
    assert (back.dtype, back.shape) == (given.dtype, given.shape)
    assert back[..., :3].mean() > 1.2 * given[..., :3].mean()
    if bands == 4:
        np.testing.assert_array_equal(back[..., 3], given[..., 3])


def test_pillow_comes_back_as_pillow(restorer: Restorer) -> None:
    from PIL import Image

    for mode in ("RGB", "L", "RGBA"):
        given = Image.fromarray(scene(50, 70, light=0.2)).convert(mode)
        back = restorer(given)
        assert (type(back).__name__, back.mode, back.size) == ("Image", mode, given.size)


def test_a_path_or_bytes_come_back_as_a_photo(restorer: Restorer, tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "dark.png"
    Image.fromarray(scene(50, 70, light=0.2)).save(path)
    wanted = restorer.restore(image.read(path)).pixels
    for given in (path, str(path), path.read_bytes(), image.read(path)):
        back = restorer(given)
        assert isinstance(back, image.Photo)
        np.testing.assert_array_equal(back.own, wanted)
        np.testing.assert_array_equal(restorer.restore(given).pixels, wanted)
        assert restorer.detect(given).found == ("low-light",)


@pytest.mark.torch
@pytest.mark.slow
def test_torch_tensors_come_back_as_they_went(restorer: Restorer) -> None:
    import torch

    pixels = torch.from_numpy(scene(50, 70, light=0.2)).permute(2, 0, 1)
    for given in (
        pixels,
        pixels / 255,
        (pixels / 255).half(),
        (pixels / 255).bfloat16(),
        (pixels / 255)[None].repeat(2, 1, 1, 1),
    ):
        back = restorer(given)
        assert (back.dtype, back.shape, back.device) == (given.dtype, given.shape, given.device)
        assert back.float().mean() > 1.2 * given.float().mean()


def test_what_is_no_photo_is_refused(restorer: Restorer) -> None:
    with pytest.raises(UsageError, match="a photo cannot be made of list"):
        restorer([[1, 2], [3, 4]])


def test_saving_an_unchanged_photo_copies_its_bytes(restorer: Restorer, tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "clean.jpg"
    Image.fromarray(scene(90, 120)).save(path, quality=60)
    done = restorer.restore(image.read(path))
    assert done.action == "unchanged"
    assert done.save(tmp_path / "copy.jpg").read_bytes() == path.read_bytes()
    assert done.save(tmp_path / "other.png").read_bytes()[1:4] == b"PNG"
    assert done.save(tmp_path / "bare.jpg", strip_metadata=True).read_bytes() != path.read_bytes()


def test_saving_a_restored_photo_writes_its_pixels(restorer: Restorer, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(scene(90, 120, light=0.2)).save(tmp_path / "dark.png")
    done = restorer.restore(tmp_path / "dark.png")
    np.testing.assert_array_equal(image.read(done.save(tmp_path / "bright.png")).own, done.pixels)


def test_flags_that_make_no_sense_for_the_model_say_so(restorer: Restorer, sampler: Restorer) -> None:
    photo = dark(40, 40)
    with pytest.raises(UsageError, match="one pass, without sampler and steps"):
        restorer.restore(photo, sampler="mrs")
    with pytest.raises(UsageError, match="one pass, without sampler and steps"):
        restorer.restore(photo, steps=4)
    with pytest.raises(UsageError, match='unknown sampler "ddim"'):
        sampler.restore(photo, sampler="ddim")
    with pytest.raises(UsageError, match="0 steps"):
        sampler.restore(photo, steps=0)
    with pytest.raises(UsageError, match=r"strength 1\.5 is not between 0 and 1"):
        restorer.restore(photo, strength=1.5)
    with pytest.raises(UsageError, match='unknown degradation "snow"'):
        restorer.restore(photo, task="snow")
    with pytest.raises(UsageError, match='unknown degradation "fog"'):
        restorer.restore(photo, strength={"fog": 1})


def test_an_encoder_alone_detects_and_does_not_restore(tmp_path: Path) -> None:
    eye = Restorer(write_toy_model(tmp_path / "eye", "encoder"))
    assert eye.detect(dark()).found == ("low-light",)
    with pytest.raises(ModelError, match="eye is an encoder alone"):
        eye.restore(dark())


def test_the_published_view_is_one_centre_crop(restorer: Restorer) -> None:
    assert restorer.encode(dark(100, 400), views="centre").degradation.shape == (1, 4)
    assert len(restorer.encode(dark(100, 400)).degradation) > 2


def test_a_photo_too_large_for_the_memory_names_what_works(toy: Path) -> None:
    small = Restorer(toy, memory="320MB")
    photo = replace(dark(), width=9000, height=9000)
    with pytest.raises(
        PhotoError, match=r"9000 x 9000 pixels do not fit 320 MB; the smallest .* --memory (\d+)MB"
    ) as caught:
        small.restore(photo)
    assert caught.value.kind == "no-memory"


class Weak:
    """An engine with little memory: the failure nobody can cause on purpose."""

    def __init__(self, engine: object, most: int) -> None:
        self.engine, self.most, self.tried = engine, most, []

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)

    def predict_clean(self, mu: np.ndarray, content: np.ndarray, degradation: np.ndarray) -> np.ndarray:
        self.tried.append(mu.shape[2:])
        if mu.shape[2] * mu.shape[3] > self.most:
            raise MemoryError("too much")
        return self.engine.predict_clean(mu, content, degradation)


def test_out_of_memory_halves_the_tile_says_so_and_goes_on(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restorer = Restorer(toy, precision="fp32")
    photo = dark(300, 300)
    whole = restorer.restore(photo)
    weak = Weak(restorer.engine, 80 * 80)
    monkeypatch.setattr(restorer, "engine", weak)
    done = restorer.restore(photo)
    np.testing.assert_array_equal(done.pixels, whole.pixels)
    assert done.notes[0].startswith("a tile of 300 px did not fit, using 150 px")
    assert len(done.notes) == 2
    weak.most = 10
    with pytest.raises(PhotoError, match="not even a tile of") as caught:
        restorer.restore(photo)
    assert caught.value.kind == "no-memory"


@pytest.mark.parametrize(("value", "words"), [(np.nan, "not finite"), (0.5, "picture of one colour")])
def test_nonsense_from_a_model_is_an_error_not_a_picture(
    toy: Path, monkeypatch: pytest.MonkeyPatch, value: float, words: str
) -> None:
    restorer = Restorer(toy)

    class Broken(Weak):
        def predict_clean(self, mu: np.ndarray, content: np.ndarray, degradation: np.ndarray) -> np.ndarray:
            return np.full_like(mu, value)

    monkeypatch.setattr(restorer, "engine", Broken(restorer.engine, 0))
    with pytest.raises(PhotoError, match=words) as caught:
        restorer.restore(dark())
    assert caught.value.kind == "model"
    black = image.from_array(np.zeros((40, 40, 3), np.uint8))
    if value == 0.5:  # a black photo may become a grey one
        assert isinstance(restorer.restore(black, task="low-light"), Restored)


def test_memory_is_read_in_decimal_and_binary_units() -> None:
    assert [parse_bytes(text) for text in ("2GB", "512mb", "1.5GiB", "1000", 7, "3 k")] == [
        2_000_000_000,
        512_000_000,
        3 * 2**29,
        1000,
        7,
        3000,
    ]
    for text in ("", "GB", "-1GB", "two", "0"):
        with pytest.raises(UsageError, match="no amount of memory"):
            parse_bytes(text)


def test_a_model_without_class_texts_is_named(tmp_path: Path) -> None:
    config = models.read_config(write_toy_model(tmp_path / "toy"))
    models.write_config(replace(config, texts=None), tmp_path / "toy")
    with pytest.raises(ModelError, match="no class texts"):
        Restorer(tmp_path / "toy").restore(dark())


def test_the_whole_way_of_a_photo_needs_no_torch(toy: Path, tmp_path: Path) -> None:
    code = f"""
import sys
blocked = ("torch", "torchvision", "open_clip", "timm", "transformers", "accelerate", "cv2", "PIL")
sys.modules.update(dict.fromkeys(blocked))
import numpy as np
from daclip import image
from daclip.restore import Restorer
photo = image.from_array(np.full((64, 64, 3), 20, np.uint8) + np.arange(64, dtype=np.uint8)[:, None] // 8)
print(Restorer({str(toy)!r}).restore(photo).save({str(tmp_path / "out.png")!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(tmp_path / "out.png"), done.stderr
    assert TEXTS.names == ("low-light", "noisy", "clean")


def test_a_large_model_gets_room_for_tiles_beyond_its_own_weights(tmp_path: Path) -> None:
    folder = models.find(write_toy_model(tmp_path / "large"))
    assert default_memory(folder) == 2_000_000_000
    assert default_memory(folder, budget=500_000_000) == 500_000_000
    with (folder.path / "model.safetensors").open("ab") as weights:
        weights.truncate(2_000_000_000)  # a hole: takes no room on disk
    assert default_memory(folder) > 2 * 2_000_000_000 + 1_000_000_000
    assert Restorer(folder).memory_bytes == default_memory(folder)


def test_one_restorer_serves_many_threads(restorer: Restorer) -> None:
    photos = [scene(60 + 7 * number, 80, light=0.2) for number in range(8)]
    wanted = [restorer(photo) for photo in photos]
    with ThreadPoolExecutor(4) as pool:
        for expected, got in zip(wanted, pool.map(restorer, photos), strict=True):
            np.testing.assert_array_equal(got, expected)


def test_pillow_keeps_what_it_carries(restorer: Restorer) -> None:
    from PIL import Image

    given = Image.fromarray(scene(50, 70, light=0.2))
    given.info |= {"dpi": (300, 300), "exif": b"Exif\0\0made up"}
    assert restorer(given).info == given.info


def test_bytes_of_a_file_come_back_in_its_depth(restorer: Restorer, tmp_path: Path) -> None:
    deep = scene(50, 70, light=0.2).astype(np.uint16) * 257
    image.write(image.from_array(deep), deep, tmp_path / "deep.png")
    back = restorer((tmp_path / "deep.png").read_bytes())
    assert (back.bits, back.own.dtype) == (16, np.uint16)


def test_progress_is_told_in_the_thread_that_asked(restorer: Restorer) -> None:
    told: list[tuple[int, int, int]] = []
    restorer(scene(50, 70, light=0.2), on_progress=lambda *done: told.append((*done, threading.get_ident())))
    assert told == [(1, 1, threading.get_ident())]


def test_shadows_are_lifted_at_any_size_and_where_there_is_nothing_else_without_a_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    restorer = Restorer("compact")
    small = image.read(Path(models.__file__).parent / "photos" / "shadowed.jpg")
    side = (small.width, small.height)
    large = cv2.resize(small.own, (3 * side[0], 3 * side[1]), interpolation=cv2.INTER_CUBIC)

    def asked(*_: np.ndarray) -> np.ndarray:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(restorer.engine, "predict_clean", asked)
    wanted, whole, tiled = (
        restorer.restore(photo, tile=tile) for photo, tile in ((small, None), (large, None), (large, 512))
    )
    assert wanted.applied == whole.applied == tiled.applied == {"shadowed": 1.0}
    assert (wanted.sampler, wanted.steps) == (None, 0)
    assert np.abs(tiled.pixels.astype(int) - whole.pixels).max() <= 1
    again = cv2.resize(whole.pixels, side, interpolation=cv2.INTER_AREA).astype(int)
    lifted = np.abs(wanted.pixels.astype(int) - small.own).mean()
    assert lifted > 4 * np.abs(again - wanted.pixels).mean()
