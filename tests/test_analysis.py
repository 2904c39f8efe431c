"""Studies of a toy model: every one has its rows, and those with a known answer have it."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from daclip import checkpoints, cli, detect
from daclip.errors import DataError, ModelError, UsageError
from daclip.evaluate import analysis
from daclip.evaluate.analysis import STUDIES, Subject, context, encoder, training
from daclip.evaluate.cases import files_sha256
from daclip.models import read_config
from toy_model import write_toy_model
from toy_training import NETWORK, toy_encoder, write_encoder, write_photos

WEIGHTS = Path(__file__).parents[2] / "shared" / "data" / "weights"

pytestmark = [pytest.mark.torch]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-pass restorer of random weights with its encoder, which has a text tower, in torch alone."""
    folder = tmp_path_factory.mktemp("models") / "toy"
    encoder = read_config(write_encoder(folder.parent / "encoder"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = checkpoints.build_network(NETWORK)
        with torch.no_grad():
            for name, weight in network.named_parameters():
                if "mlp" in name:  # what tells the network of its contexts starts at zero
                    weight.add_(0.15 * torch.randn(weight.shape))
    config = replace(encoder, kind="one-pass", network=NETWORK, multiple=8, overlap=8)
    return checkpoints.save_pretrained(
        checkpoints.Model(daclip=toy_encoder(), network=network, config=config), folder
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), 2)


def cells(study: analysis.Study, table: int = 0) -> dict[str, dict[str, str]]:
    """The cells of a table by the first of each line and the heading."""
    chosen = study.tables[table]
    return {line[0]: dict(zip(chosen.head, line, strict=True)) for line in chosen.lines}


@pytest.mark.slow
def test_contexts_are_taken_away_one_by_one(model: Path, photos: Path) -> None:
    study = analysis.contexts(Subject(model=str(model), photos=photos, limit=1))
    rows = cells(study)
    assert list(rows) == [
        *("none", "content only", "degradation only", "both", "text oracle", "wrong word"),
        *("plain content", "content of the clean photo", "prompt module off"),
    ]
    assert len(study.tables[0].head) == 1 + 10 + 2
    # this network listens to both, so no two contexts give the same
    means = [row["noisy"] + row["rainy"] + row["mean"] for row in rows.values()]
    assert len(set(means)) >= 5


@pytest.mark.slow
def test_a_context_is_what_its_name_says(model: Path, photos: Path) -> None:
    subject = Subject(model=str(model), photos=photos, limit=1)
    case = subject.cases("x", ["noisy"])[0]
    photo, clean = case.read()
    assert clean is not None
    own = subject.embed(photo)
    middle = detect.Embeddings(content=own.content * 0, degradation=own.degradation * 0)
    known = list(subject.restorer.folder.texts.names[:10])
    found = context._contexts_of(subject, "noisy", photo, clean, own, middle, known)
    np.testing.assert_array_equal(found["degradation only"].content, middle.content)
    np.testing.assert_array_equal(found["content only"].degradation, middle.degradation)
    texts = subject.restorer.folder.texts
    for name, word in (("text oracle", "noisy"), ("wrong word", "shadowed")):
        told = found[name].degradation[0]
        row = texts.embeddings[texts.names.index(word)]
        assert told @ row == pytest.approx(np.linalg.norm(told) * np.linalg.norm(row), rel=1e-5)
        assert np.linalg.norm(told) == pytest.approx(np.linalg.norm(own.degradation), rel=1e-5)
    assert not np.allclose(found["plain content"].content, own.content)


@pytest.mark.slow
def test_words_and_points_of_plain_and_controlled_embeddings(model: Path, photos: Path) -> None:
    subject = Subject(model=str(model), photos=photos, limit=2)
    said = analysis.words(subject)
    assert list(cells(said)) == ["controlled", "plain"]
    assert sum(int(cell) for line in said.tables[1].lines for cell in line[2:-1] if cell != ".") == 2 * 22
    seen = analysis.embeddings(subject)
    assert list(cells(seen)) == ["degradation embedding", "plain embedding"]
    assert len(seen.figures["embeddings"].axes) == 4


def test_neighbours_and_projection_of_known_points() -> None:
    rng = np.random.default_rng(0)
    corners = np.repeat(np.eye(5)[:3], 6, axis=0) + rng.normal(0, 0.01, (18, 5))
    labels = np.repeat(["a", "b", "c"], 6)
    unit = detect.unit(corners.astype(np.float32))
    assert encoder._neighbours_agree(unit, labels) == 1
    assert encoder._neighbours_agree(unit, np.array(list("abc" * 6))) < 0.7
    flat = encoder.pca(unit)
    assert flat.shape == (18, 2)
    # three corners lie in a plane: hardly anything is lost
    assert np.square(flat).sum() == pytest.approx(np.square(unit - unit.mean(0)).sum(), rel=0.01)
    assert encoder.pca(np.zeros((1, 4), np.float32)).shape == (1, 2)


@pytest.mark.slow
def test_severities_and_mixtures_have_their_lines(model: Path, photos: Path) -> None:
    subject = Subject(model=str(model), photos=photos, limit=1)
    rows = cells(analysis.severities(subject))
    assert list(rows) == ["0.05 (unseen)", "0.1 (unseen)", "0.2", "0.4", "0.6", "0.8", "1"]
    cosines = [float(row["plain cosine"]) for row in rows.values()]
    assert cosines[0] > cosines[-1], "a heavier degradation leaves less of the content"
    mixed = cells(analysis.mixtures(subject))
    assert "low-light, noisy" in mixed
    assert len(mixed) == 6


@pytest.mark.slow
def test_a_photo_finds_its_caption(model: Path, photos: Path, tmp_path: Path) -> None:
    captions = tmp_path / "captions.csv"
    lines = [f"{path},val,a photo of {path.stem},number {path.stem}" for path in sorted(photos.iterdir())]
    captions.write_text(
        "\n".join(["file,split,caption1,caption2", *lines, f"{lines[0]}".replace("val", "train")])
    )
    assert [len(own) for _, own in encoder.read_captions(captions)] == [2, 2]
    subject = Subject(model=str(model), captions=captions, limit=2)
    rows = cells(analysis.retrieval(subject))
    assert len(rows) == 11
    assert {row["controlled R@10"] for row in rows.values()} == {"100%"}, "four captions, ten places"
    (tmp_path / "empty.csv").write_text("file,caption1\n")
    with pytest.raises(DataError, match="no photos with captions"):
        encoder.read_captions(tmp_path / "empty.csv")


def test_captions_need_a_text_tower(photos: Path) -> None:
    subject = Subject(captions=photos)
    with pytest.raises(ModelError, match="no text tower, so captions have no embeddings; --backbone"):
        analysis.retrieval(subject)


@pytest.mark.slow
def test_more_calls_bring_samplers_nearer_to_the_answer(photos: Path, tmp_path: Path) -> None:
    diffusion = write_toy_model(tmp_path / "toy", "diffusion")
    subject = Subject(model=str(diffusion), photos=photos, limit=2, calls=(2, 4, 20), precision="fp32")
    study = analysis.samplers(subject)
    assert study.tables[0].head == ("sampler", "calls", "PSNR", "PSNR 95 %", "s/photo")
    rows = {line[:2]: line[2:] for line in study.tables[0].lines}
    level = {key: float(cells[0]) for key, cells in rows.items()}
    for name in ("sde (Euler)", "ode (Euler)"):
        assert level[name, "20"] > level[name, "2"]
    # its noise is exact, so an exponential integrator is there at once
    assert level["mrs, order 1", "2"] == pytest.approx(level["posterior", "20"], abs=0.1)
    # the toy is shipped with four calls of the posterior
    assert rows["as shipped: posterior", "4"][:2] == rows["posterior", "4"][:2]
    assert len(rows) == 6 * 3 + 1
    low, high = map(float, rows["posterior", "4"][1].split(" to "))
    assert low < level["posterior", "4"] < high
    timed = write_toy_model(tmp_path / "timed", "diffusion", sampler="mrs", times=(40, 10))
    subject = Subject(model=str(timed), photos=photos, limit=1, calls=(2,), precision="fp32")
    assert analysis.samplers(subject).tables[0].lines[-1][:2] == (
        "as shipped: mrs, order 2, times 40 10",
        "2",
    )
    with pytest.raises(UsageError, match="samplers need a diffusion model"):
        analysis.samplers(Subject(photos=photos))


def test_curves_of_a_log_with_steps_done_again(tmp_path: Path) -> None:
    lines = [{"step": 50, "loss": 2.0}, {"step": 100, "loss": 9.0}, {"step": 100, "loss": 1.0}]
    lines.append({"step": 100, "val": {"gain": 0.5, "psnr/noisy": 20.0}})
    (tmp_path / "a").mkdir()
    log = tmp_path / "a" / "log.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 150, "lo')
    assert [line["loss"] for line in training.read_log(log) if "loss" in line] == [2.0, 1.0]
    study = analysis.curves(Subject(runs=(tmp_path / "a",)))
    assert cells(study)["a"] == {
        "run": "a",
        "steps": "100",
        "last loss": "1.000",
        "last validation": "gain 0.500",
    }
    assert list(study.figures) == ["curves-gain", "curves-loss"]
    with pytest.raises(DataError, match="cannot be read"):
        analysis.curves(Subject(runs=(tmp_path / "b",)))


def test_runs_with_and_without_contexts_are_compared_at_their_last_validation(tmp_path: Path) -> None:
    for name, first, last in (("none", 0.1, 0.4), ("both", 0.2, 1.5)):
        (tmp_path / name).mkdir()
        lines: list[object] = [{"step": 10, "loss": 2.0}]
        for step, gain in ((10, first), (20, last)):
            words = {"hazy": 2 * gain, "mixed": 0.0, "clean": -0.5}
            figures = {f"psnr/{word}": 20 + won for word, won in words.items()}
            figures |= {f"input/{word}": 20.0 for word in words} | {"gain": gain}
            lines.append({"step": step, "val": figures})
        (tmp_path / name / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    study = analysis.curves(Subject(runs=(tmp_path / "none", tmp_path / "both")))
    assert cells(study, 1) == {
        "none": {"run": "none", "hazy": "+0.80", "mixed": "+0.00", "mean": "+0.40"},
        "both": {"run": "both", "hazy": "+3.00", "mixed": "+0.00", "mean": "+1.50"},
    }
    drawn = {
        str(line.get_label()): list(line.get_xydata())  # pyright: ignore[reportArgumentType]
        for line in study.figures["curves-gain"].axes[0].get_lines()
    }
    assert np.array(drawn["none"]).tolist() == [[10, 0.1], [20, 0.4]]
    assert np.array(drawn["both"]).tolist() == [[10, 0.2], [20, 1.5]]


def test_figures_of_finished_evaluations_come_from_their_folders(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    toy = write_toy_model(tmp_path / "toy")
    for names in ("noisy", "low-light,rainy"):
        words = [
            "evaluate",
            "--model",
            toy,
            "--photos",
            photos,
            "--only",
            names,
            "--output",
            tmp_path / names,
        ]
        assert cli.run([str(word) for word in words]) == 0
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    runs = (tmp_path / "noisy", tmp_path / "trained", tmp_path / "low-light,rainy")
    subject = Subject(runs=runs)
    assert analysis.possible(subject) == ["results", "curves"]
    study = analysis.results(subject)
    assert [line[1] for line in study.tables[0].lines] == ["low-light", "noisy", "rainy", *["average"] * 2]
    assert set(cells(study, 1)) == {"toy"}
    assert list(study.figures) == [
        *("results-bars-psnr", "results-radar-psnr", "results-bars-ssim", "results-radar-ssim"),
        "results-words-toy",
    ]
    capfd.readouterr()
    page = tmp_path / "page.md"
    assert cli.run(["analyse", *map(str, runs), "--output", str(page)]) == 0
    text = page.read_text()
    assert "## Restorers, degradation by degradation" in text
    assert f"{runs[0]}: `daclip evaluate --model {toy} --photos {photos} --only noisy`" in text
    assert "![results-radar-psnr](page/results-radar-psnr.svg)" in text
    assert text.count("## ") == 2


def test_the_command_writes_a_page_study_by_study(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from daclip.cli import analyse

    assert tuple(STUDIES) == analyse.STUDIES
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    page = tmp_path / "page.md"
    page.write_text("# Ours\n\nKept.\n\n## Training curves\n\nold\n\n## Mixtures\n\nkept too\n")
    run: Callable[..., int] = lambda *words: cli.run([str(word) for word in words])  # noqa: E731
    assert run("analyse", tmp_path / "run", "--output", page) == 0
    text = page.read_text()
    assert text.startswith("# Ours\n\nKept.\n\n## Training curves\n\nFrom the logs")
    assert text.endswith("## Mixtures\n\nkept too\n")
    assert f"`daclip analyse {tmp_path / 'run'} --studies curves`" in text
    assert f"protocol as in the logs; data {tmp_path / 'run'} (sha256 " in text
    assert "95 % intervals" not in text, "there are none"
    assert (tmp_path / "page" / "curves-loss.svg").read_text().startswith("<?xml")
    capfd.readouterr()
    assert run("analyse") == 2
    assert run("analyse", tmp_path / "run", "--output", tmp_path / "folder") == 2
    assert "a Markdown file, not a folder" in capfd.readouterr().err
    assert run("analyse", tmp_path / "run", "--studies", "vibes") == 2
    assert 'no study "vibes"' in capfd.readouterr().err


def test_a_section_says_where_its_figures_are_from(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    toy = write_toy_model(tmp_path / "toy", "diffusion")
    words = [
        "analyse",
        "--model",
        str(toy),
        "--photos",
        str(photos),
        "--studies",
        "mixtures",
        "--limit",
        "1",
        "-v",
    ]
    assert cli.run(words) == 0
    out, err = capfd.readouterr()
    first = sorted(photos.iterdir())[0]
    sha256 = files_sha256([("photo", first)])[:12]
    facts = (
        f"protocol rgb, 8 bits; data {photos}, 1 photos, degraded on the fly (wild, seed 0) (sha256 {sha256})"
    )
    assert facts in out
    assert re.search(
        r"; toy weights \w{12}, \w+ \w+\. .*; \d+ s in all, peak \d+ MB.\n\n`daclip analyse ", out
    )
    assert "mixtures: low-light, noisy: " in err


@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the weights of LPIPS are not in ../shared/data/weights")
def test_samplers_are_compared_by_lpips_where_its_weights_are(photos: Path, tmp_path: Path) -> None:
    toy = write_toy_model(tmp_path / "toy", "diffusion")
    subject = Subject(model=str(toy), photos=photos, limit=1, calls=(2,), metric_weights=WEIGHTS)
    study = analysis.samplers(subject)
    assert study.tables[0].head[4:6] == ("LPIPS", "LPIPS 95 %")
    figures = {line[0]: float(line[4]) for line in study.tables[0].lines}
    assert 0 < figures["posterior"] < figures["sde (Euler)"], "two steps of Euler leave noise"
    assert list(study.figures) == ["samplers-psnr", "samplers-lpips"]
    assert "; lpips weights " in analysis.caption(subject, "samplers", command="x", seconds=1.0).lines()[0]
    with pytest.raises(DataError, match=r"no lpips: .*alexnet_features.safetensors: not there"):
        analysis.samplers(Subject(model=str(toy), photos=photos, metric_weights=tmp_path))
