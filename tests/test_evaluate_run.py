"""Runs go on where they were, refuse other settings, share the work out, and tell it in every form."""

import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from daclip import cli, evaluate, image
from daclip.cli.evaluate import PAPER_TABLES, command
from daclip.errors import UsageError
from daclip.evaluate import Measurement, classification, published, tables
from daclip.evaluate.cases import UNKNOWN
from daclip.evaluate.measure import Metrics, peak_megabytes
from daclip.evaluate.run import Ledger
from daclip.metrics import LPIPS_FILES, psnr
from test_evaluate import scene, write
from toy_model import write_toy_model

SHARED = Path(__file__).parents[2] / "shared"
PAPER, WEIGHTS = SHARED / "PAPER.md", SHARED / "data" / "weights"

Door = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_model(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Three dark photos and a noisy one, in the published layout."""
    root = tmp_path / "pairs"
    for seed in (0, 1, 2):
        write(root / "low-light" / "GT" / f"{seed}.png", scene(seed))
        write(root / "low-light" / "LQ" / f"{seed}.png", scene(seed, light=0.2))
    write(root / "noisy" / "GT" / "a.png", scene(3))
    write(root / "noisy" / "LQ" / "a.png", scene(3, noise=0.2))
    return root


@pytest.fixture
def daclip(capfd: pytest.CaptureFixture[str]) -> Door:
    """The command line: exit code, stdout, stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = cli.run([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return run


def one(method: str = "m", degradation: str = "noisy", photo: str = "a", **values: object) -> Measurement:
    settings: dict[str, object] = {
        "protocol": "rgb",
        "before": {"psnr": 20.0},
        "after": {"psnr": 22.0},
        "is_unchanged": False,
        "seconds": 1.0,
    }
    return Measurement(method=method, degradation=degradation, photo=photo, **{**settings, **values})  # pyright: ignore[reportArgumentType]


def plan(pairs: Path, **changes: object) -> evaluate.Plan:
    settings: dict[str, object] = {"models": (), "peers": ("identity",), "data": str(pairs)}
    return evaluate.Plan(**{**settings, **changes})  # pyright: ignore[reportArgumentType]


def carried_out(run: evaluate.Run) -> list[str]:
    return [case.name for case, _, error in run.carry_out() if error is None]


# ---- intervals and protocols


def test_the_interval_is_that_of_the_normal_law_and_the_same_every_time() -> None:
    values = np.random.default_rng(0).normal(25, 3, 400)
    low, high = tables.bootstrap([values.tolist()]) or (0, 0)
    half = 1.96 * float(values.std()) / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05)
    assert tables.bootstrap([values.tolist()]) == (low, high)
    assert tables.bootstrap([values[::-1].tolist()]) == (low, high), "the order changes nothing"
    assert tables.bootstrap([[1.0], [2.0]]) is None, "one photo each says nothing"


def test_the_interval_of_the_average_draws_within_each_degradation() -> None:
    # the two levels are far apart: drawn together, the mean would move by whole dB
    low, high = tables.bootstrap([[10.0, 10.2] * 8, [30.0, 30.2] * 8]) or (0, 0)
    assert 20.0 < low < 20.1 < high < 20.2


def test_figures_of_two_protocols_make_no_table() -> None:
    with pytest.raises(UsageError, match="protocols rgb and y in one table"):
        evaluate.summarise([one(), one(photo="b", protocol="y")])


def test_fid_stands_beside_the_means_and_needs_two_photos() -> None:
    rng = np.random.default_rng(0)
    photos = [one(photo=name) for name in "abc"]
    features = {("truth", name): rng.normal(size=4).astype(np.float32) for name in "abc"}
    features |= {("m", name): features["truth", name] for name in "abc"}
    features |= {("input", name): features["truth", name] + np.float32(2) for name in "abc"}
    row = evaluate.summarise(photos, features)[0]
    assert row.after["fid"] == pytest.approx(0, abs=1e-6)
    assert row.before["fid"] == pytest.approx(4 * 2**2)
    assert "fid" not in evaluate.summarise(photos[:1], features)[0].after


# ---- words


def test_what_was_said_is_counted_by_true_word() -> None:
    said = [("noisy", {"noisy": 0.9, "rainy": 0.2}), ("noisy", {"noisy": 0.3, "rainy": 0.7})]
    found = classification.classify("m", [*said, ("rainy", {"noisy": 0.1, "rainy": 0.6})])
    assert (found.words, found.answers) == (("noisy", "rainy"), ("noisy", "rainy"))
    assert found.confusion.tolist() == [[1, 1], [0, 1]]
    assert found.accuracy == {"noisy": 0.5, "rainy": 1.0}
    assert found.mean_accuracy == 0.75
    # three bins of one photo: |1 - .9|, |0 - .7|, |1 - .6|
    assert found.calibration_error == pytest.approx((0.1 + 0.7 + 0.4) / 3)


def test_a_word_the_method_does_not_know_is_never_right() -> None:
    assert classification.classify("m", [("foggy", {"noisy": 1.0})]).accuracy == {"foggy": 0.0}


def test_evaluate_shows_what_was_said(daclip: Door, pairs: Path, toy: Path) -> None:
    code, out, _ = daclip("evaluate", "--model", toy, "--data", pairs, "--table", "words")
    assert code == 0
    assert "toy: top-1 100.0%" in out
    assert "95 % intervals" not in out, "there are none"
    lines = [line.split() for line in out.splitlines() if line.startswith("toy ")]
    assert lines[0][:2] + lines[0][-1:] == ["toy", "low-light", "100%"]


# ---- the paper's tables


def test_published_rows_stand_marked_beside_measured_ones(daclip: Door, pairs: Path, toy: Path) -> None:
    common = ("evaluate", "--model", toy, "--data", pairs, "--table", "lol")
    code, out, _ = daclip(*common)
    assert code == 0
    assert out.startswith("protocol rgb-crop4")
    lines = [re.split(r"\s{2,}", line) for line in out.splitlines()]
    assert ["MIRNet", "published", "-", "24.14", "0.830", "0.250", "69.18", "-", "-"] in lines
    measured = next(line for line in lines if line[:3] == ["toy", "measured", "3"])
    assert float(measured[3]) > 5
    assert measured[5:7] == ["-", "-"], "LPIPS and FID were not measured"
    low, high = map(float, measured[7].split(" to "))
    assert low < float(measured[3]) < high
    assert next(line for line in lines if line[0] == "method")[7:] == ["PSNR 95 %", "SSIM 95 %"]
    assert "measured LPIPS is of 8-bit photos" in out
    assert "Y channel" not in out, "that is of Rain100H alone"
    code, _, err = daclip(*common, "--protocol", "rgb")
    assert code == 2
    assert "of the protocol rgb-crop4, the rows of rgb" in err


def test_the_unified_table_says_of_how_many_degradations_it_is(daclip: Door, pairs: Path, toy: Path) -> None:
    _, out, _ = daclip("evaluate", "--model", toy, "--data", pairs, "--table", "unified")
    assert "toy: average of 2 of the 10 degradations" in out
    assert "identity" in out
    _, _, err = daclip("evaluate", "--model", toy, "--data", pairs, "--table", "gopro")
    assert "nothing measured on motion-blurry photos" in err


def test_the_command_knows_every_table() -> None:
    assert ("rows", "words", *PAPER_TABLES) == evaluate.TABLES


def test_the_rain_table_says_that_its_protocol_is_not_verified() -> None:
    row = evaluate.summarise([one(degradation="rainy", protocol="rgb-crop4")])[0]
    notes = " ".join(published.beside("rain100h", [row]).notes)
    assert "of the others are those usually printed, of the Y channel" in notes
    assert "not verified" in notes


@pytest.mark.skipif(not PAPER.is_file(), reason="the tables of the paper are not in ../shared/PAPER.md")
def test_the_published_tables_are_those_of_the_paper() -> None:
    text = PAPER.read_text(encoding="utf-8").partition("\n4.1 ")[2].partition("\n4.3 ")[0]
    printed: dict[str, set[tuple[str, ...]]] = {"Table 3": set()}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 7 and cells[0] not in ("table", "---"):
            printed.setdefault(f"Table {cells[0]}", set()).add((cells[2].partition(" (")[0], *cells[3:]))
        elif len(cells) == 5 and cells[0] not in ("method", "---"):
            printed["Table 3"].add((cells[0].partition(" (")[0], *cells[1:]))
    ours = {
        paper.number: {
            (one.method, f"{one.psnr:.2f}", f"{one.ssim:.3f}", f"{one.lpips:.3f}", f"{one.fid:.2f}")
            for one in paper.lines
        }
        for paper in published.TABLES.values()
    }
    assert ours == printed
    assert sum(map(len, ours.values())) == 32


def test_the_caption_names_the_weights_of_methods_and_metrics() -> None:
    caption = evaluate.Caption(
        protocol="rgb", data="pairs", data_sha256="0" * 64, weights={"toy": "a1"},
        metric_weights={"lpips": "b2"}, command="daclip evaluate", version="1.0", seconds=2.0, peak_mb=3,
    )  # fmt: skip
    assert caption.lines()[0].endswith("; toy weights a1; lpips weights b2")
    assert "metric_weights" in tables.exact_rows(evaluate.summarise([one()]), caption).split("\n")[0]


# ---- going on


def test_a_run_goes_on_where_it_was(pairs: Path, tmp_path: Path) -> None:
    first = evaluate.Run(plan(pairs, limit=1), tmp_path / "run")
    assert carried_out(first) == ["low-light/LQ/0.png", "noisy/LQ/a.png"]
    second = evaluate.Run(plan(pairs), tmp_path / "run")
    assert carried_out(second) == ["low-light/LQ/1.png", "low-light/LQ/2.png"]
    at_once = evaluate.Run(plan(pairs), tmp_path / "other")
    assert len(carried_out(at_once)) == 4
    figures = [
        sorted((found.photo, found.after["psnr"]) for found in run.findings.measurements)
        for run in (second, at_once)
    ]
    assert figures[0] == figures[1]


def test_the_cost_of_a_run_is_that_of_all_its_calls(daclip: Door, pairs: Path, toy: Path) -> None:
    slow = "import shutil, sys, time; time.sleep(0.2); shutil.copy(*sys.argv[1:])"
    common = ("evaluate", "--model", toy, "--data", pairs, "--only", "noisy", "--output", pairs / "run")
    tool = f"{sys.executable} -c {shlex.quote(slow)} {{in}} {{out}}"
    common = (*common, "--command", f"a={tool}", "--format", "json")
    first = json.loads(daclip(*common)[1])
    again = json.loads(daclip(*common)[1])
    assert first["seconds"] >= 0.2
    assert (again["seconds"], again["peak_mb"]) == (first["seconds"], first["peak_mb"])
    more = json.loads(daclip(*common, "--command", f"b={tool}")[1])
    assert more["seconds"] >= first["seconds"] + 0.2
    figures = [one["seconds_in_all"] for one in more["measurements"]]
    assert more["seconds"] == pytest.approx(sum(figures), abs=0.06)
    assert all(one["seconds_in_all"] > one["seconds"] for one in more["measurements"])


def test_the_memory_of_a_command_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    held = {resource.RUSAGE_SELF: 300_000, resource.RUSAGE_CHILDREN: 900_000}
    # a real child would start with the memory of this process on its account
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=held[who]))
    assert peak_megabytes() == (900_000 * 1024 if sys.platform != "darwin" else 900_000) // 1_000_000


def test_a_method_added_later_is_measured_alone(pairs: Path, tmp_path: Path) -> None:
    carried_out(evaluate.Run(plan(pairs), tmp_path / "run"))
    more = evaluate.Run(plan(pairs, peers=("identity", "clahe")), tmp_path / "run")
    assert {task.methods for task in more.tasks} == {("clahe",)}
    assert len(carried_out(more)) == 4
    assert {found.method for found in more.findings.measurements} == {"identity", "clahe"}


def test_other_settings_are_refused_and_a_changed_photo_is_measured_again(
    pairs: Path, tmp_path: Path
) -> None:
    carried_out(evaluate.Run(plan(pairs), tmp_path / "run"))
    with pytest.raises(UsageError, match=r"was measured with another protocol \(rgb, now y\); name another"):
        evaluate.Run(plan(pairs, protocol="y"), tmp_path / "run")
    with pytest.raises(UsageError, match=r"another metrics \(psnr, ssim, now psnr"):
        evaluate.Run(plan(pairs, metrics=("psnr",)), tmp_path / "run")
    write(pairs / "noisy" / "LQ" / "b.png", scene(3, noise=0.1))
    (pairs / "noisy" / "LQ" / "b.png").replace(pairs / "noisy" / "LQ" / "a.png")
    assert carried_out(evaluate.Run(plan(pairs), tmp_path / "run")) == ["noisy/LQ/a.png"]


def test_a_run_on_other_weights_of_a_metric_or_by_another_version_is_refused(
    pairs: Path, tmp_path: Path
) -> None:
    def settle(*names: str, **weights: str) -> None:
        metrics = Metrics(protocol="rgb", functions=dict.fromkeys(names, psnr), weights=weights)
        Ledger(tmp_path / "run", plan(pairs), metrics, {})

    settle("psnr", "lpips", lpips="a1")
    settle("psnr", "lpips", lpips="a1")
    with pytest.raises(UsageError, match=r"another metrics \(psnr, lpips, now psnr\)"):
        settle("psnr")
    with pytest.raises(UsageError, match=r"another weights of lpips \(a1, now b2\)"):
        settle("psnr", "lpips", lpips="b2")
    settings = tmp_path / "run" / "settings.json"
    settings.write_text(settings.read_text().replace(version("daclip"), "0.0.1"))
    with pytest.raises(UsageError, match=r"another daclip \(0.0.1, now "):
        settle("psnr", "lpips", lpips="a1")


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the weights of LPIPS are not in ../shared/data/weights")
def test_the_weights_of_a_metric_are_named_by_the_hash_of_their_files() -> None:
    metrics, _ = evaluate.load_metrics(["psnr", "lpips"], weights=WEIGHTS)
    files = [(WEIGHTS / name).read_bytes() for name in LPIPS_FILES]
    assert metrics.weights == {"lpips": " and ".join(sha256(file).hexdigest()[:12] for file in files)}


def test_a_line_cut_by_a_kill_is_measured_again(pairs: Path, tmp_path: Path) -> None:
    carried_out(evaluate.Run(plan(pairs), tmp_path / "run"))
    lines = tmp_path / "run" / "measurements.jsonl"
    lines.write_text(lines.read_text()[:-40])
    again = evaluate.Run(plan(pairs), tmp_path / "run")
    assert carried_out(again) == ["noisy/LQ/a.png"]
    assert len(evaluate.Run(plan(pairs), tmp_path / "run").findings.measurements) == 4


def test_a_method_that_fails_on_a_photo_takes_no_figure_from_the_others(
    daclip: Door, pairs: Path, toy: Path, tmp_path: Path
) -> None:
    script = tmp_path / "fussy.py"
    script.write_text(
        "import os, shutil, sys\n"
        f"if not os.path.exists({str(tmp_path / 'mended')!r}): sys.exit('only on Tuesdays')\n"
        "shutil.copy(*sys.argv[1:])\n"
    )
    fussy = f"{sys.executable} {script} {{in}} {{out}}"
    common = ("evaluate", "--model", toy, "--command", fussy, "--data", pairs, "--only", "noisy")
    common = (*common, "--output", tmp_path / "run")
    code, out, err = daclip(*common)
    assert code == 1
    name = Path(sys.executable).name
    assert f"error: noisy/LQ/a.png: {name}: {sys.executable} ended with 1: only on Tuesdays\n" in err
    assert re.search(r"^toy +noisy", out, flags=re.MULTILINE)
    (tmp_path / "mended").touch()
    first = (tmp_path / "run" / "measurements.jsonl").read_text()
    assert daclip(*common)[0] == 0
    lines = (tmp_path / "run" / "measurements.jsonl").read_text()
    assert lines.startswith(first)
    assert [json.loads(line)["method"] for line in lines.splitlines()] == ["toy", name]


def test_the_command_goes_on_too_and_says_so(daclip: Door, pairs: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    copy = (
        f"{sys.executable} -c \"import shutil,sys;shutil.copy(*sys.argv[1:]);open('{calls}','a').write('x')\""
    )
    common = (
        "evaluate",
        "--command",
        f"{copy} {{in}} {{out}}",
        "--data",
        pairs,
        "--output",
        tmp_path / "run",
    )
    common += ("--model", write_toy_model(tmp_path / "toy"))
    _, first, _ = daclip(*common)
    _, second, err = daclip(*common)
    assert calls.read_text() == "xxxx"
    assert "note: 4 of 4 photos were measured before" in err
    assert first.split("\n\n")[1] == second.split("\n\n")[1]


@pytest.mark.slow
def test_two_workers_find_what_one_finds(pairs: Path, tmp_path: Path, toy: Path) -> None:
    (pairs / "noisy" / "LQ" / "broken.png").write_bytes(b"")
    write(pairs / "noisy" / "GT" / "broken.png", scene(5))
    both = [
        evaluate.Run(plan(pairs, models=(str(toy),), precision="fp32"), tmp_path / str(n), workers=n)
        for n in (1, 2)
    ]
    outcomes = [{case.name: str(error or "") for case, _, error in run.carry_out()} for run in both]
    assert outcomes[0] == outcomes[1]
    assert "file is empty" in outcomes[1]["noisy/LQ/broken.png"], "errors come back from the workers"
    figures = [
        sorted((found.photo, found.method, found.after["psnr"]) for found in run.findings.measurements)
        for run in both
    ]
    assert figures[0] == figures[1]
    assert both[1].findings.peak_mb > 50


# ---- without truth


def test_photos_without_truth_are_restored_and_timed(daclip: Door, tmp_path: Path, toy: Path) -> None:
    write(tmp_path / "photos" / "dark.png", scene(0, light=0.2))
    common = ("evaluate", "--model", toy, "--precision", "fp32", "--data", tmp_path / "photos")
    code, out, err = daclip(*common, "--output", tmp_path / "run")
    assert code == 0
    head, *lines = [re.split(r"\s{2,}", line) for line in out.strip().split("\n\n")[1].split("\n")]
    assert head == ["method", "degradation", "photos", "left alone", "s/photo"], "nobody knows what is right"
    assert lines[0][:3] == ["toy", UNKNOWN, "1 (0 scored)"]
    assert "no photo has a clean version" in err
    assert f"the restored ones are in {tmp_path / 'run' / 'photos'}\n" in err
    made = image.read(next((tmp_path / "run" / "photos" / "toy").iterdir()))
    assert made.own.mean() > scene(0, light=0.2).mean() + 1
    _, out, err = daclip(*common, "--format", "json")
    assert "in no folder: name --output" in err
    document = json.loads(out)
    assert document["measurements"][0]["probabilities"]["low-light"] > 0.5
    assert document["classification"] == []
    code, _, err = daclip(*common, "--table", "words")
    assert code == 2
    assert "nobody said what is wrong with photos of which it is known" in err


def test_a_photo_that_lacks_its_truth_is_named_and_the_others_are_scored(
    daclip: Door, pairs: Path, toy: Path
) -> None:
    (pairs / "low-light" / "GT" / "1.png").unlink()
    code, out, err = daclip("evaluate", "--model", toy, "--data", pairs)
    assert code == 0
    assert "warning: no truth, so restored and not scored: low-light/1.png\n" in err
    assert re.search(r"^toy +low-light +3 \(2 scored\) ", out, flags=re.MULTILINE)


def test_a_folder_without_truths_has_none(pairs: Path) -> None:
    (pairs / "noisy" / "GT" / "a.png").unlink()
    assert [case.read()[1] for case in evaluate.pairs(pairs, only=["noisy"])] == [None]
    (pairs / "noisy" / "GT").rmdir()
    assert [case.read()[1] for case in evaluate.pairs(pairs, only=["noisy"])] == [None]


# ---- forms


def test_latex_is_escaped_and_whole(daclip: Door, pairs: Path, toy: Path) -> None:
    _, out, _ = daclip("evaluate", "--model", toy, "--data", pairs, "--format", "latex")
    assert out.count(r"\begin{tabular}") == out.count(r"\end{tabular}") == 1
    assert r"PSNR 95 \%" in out
    assert r"\textbf{average}" in out
    body = out[out.index(r"\toprule") : out.index(r"\bottomrule")]
    columns = {line.count(" & ") for line in body.splitlines() if line.endswith(r"\\")}
    assert len(columns) == 1


@pytest.mark.slow
def test_the_page_stands_alone(daclip: Door, pairs: Path, toy: Path) -> None:
    _, page, _ = daclip("evaluate", "--model", toy, "--data", pairs, "--peer", "identity", "--format", "html")
    assert page.startswith("<!doctype html>")
    assert page.count("data:image/jpeg;base64,") == 2 * 4, "input, two methods and truth of two photos"
    assert re.findall(r'alt="([^"]*)"', page)[:4] == ["low-light", "identity", "toy", "truth"]
    assert page.count("<svg") >= 3
    for attribute in re.findall(r'(?:src|href|xlink:href|url)\s*[=(]\s*["\']?([^"\'>)]*)', page):
        assert attribute.startswith(("data:", "#")), attribute
    assert "<script" not in page


@pytest.mark.slow
def test_plots_and_sheet_are_written(daclip: Door, pairs: Path, toy: Path, tmp_path: Path) -> None:
    fixed = ("--precision", "fp32", "--output", tmp_path / "run")
    common = ("evaluate", "--model", toy, "--data", pairs, *fixed)
    code, _, err = daclip(*common, "--plots", tmp_path / "plots", "--sheet", tmp_path / "sheet.png")
    assert code == 0, err
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert names == ["bars-psnr.svg", "bars-ssim.svg", "words-toy.svg"], "no radar of two spokes"
    before = {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()}
    daclip(*common, "--plots", tmp_path / "plots")
    assert {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()} == before
    assert image.read(tmp_path / "sheet.png").height > 2 * 240


def test_best_median_and_worst_are_by_the_psnr_of_one_method() -> None:
    found = [
        one(photo=f"{level}", method=name, before={"psnr": 10.0}, after={"psnr": level + other})
        for level in (12.0, 30.0, 20.0, 25.0, 9.0)
        for name, other in (("ours", 0.0), ("theirs", -level))
    ]
    assert evaluate.best_median_worst(found, method="ours") == {
        "30.0": "noisy, best: 30.0 dB",
        "20.0": "noisy, median: 20.0 dB",
        "9.0": "noisy, worst: 9.0 dB",
    }


def test_a_sheet_of_best_median_and_worst(daclip: Door, pairs: Path, toy: Path, tmp_path: Path) -> None:
    for name in ("b", "c", "d"):
        write(pairs / "noisy" / "LQ" / f"{name}.png", scene(7))
        write(pairs / "noisy" / "GT" / f"{name}.png", scene(8))
    drawn = ("--only", "noisy", "--sheet", tmp_path / "sheet.png")
    common = ("evaluate", "--model", toy, "--data", pairs, *drawn)
    assert daclip(*common, "--spread")[0] == 2
    code, _, err = daclip(*common, "--spread", "--keep", "--output", tmp_path / "run")
    assert code == 0, err
    sheet = image.read(tmp_path / "sheet.png")
    assert sheet.width > 3 * 3 * 240, "input, answer and truth of three photos in a row"
    assert sheet.height < 2 * 160
    joined = ("evaluate", tmp_path / "run", "--sheet", tmp_path / "again.png", "--spread")
    assert daclip(*joined)[0] == 0
    assert image.read(tmp_path / "again.png").width == sheet.width


def test_the_sheet_shows_the_first_photo_that_could_be_measured(daclip: Door, pairs: Path, toy: Path) -> None:
    (pairs / "noisy" / "LQ" / "Broken.png").write_bytes(b"")
    write(pairs / "noisy" / "GT" / "Broken.png", scene(5))
    common = ("evaluate", "--model", toy, "--data", pairs, "--only", "noisy", "--sheet", pairs / "sheet.png")
    code, _, err = daclip(*common, "--output", pairs / "run")
    assert code == 1
    assert f"note: {pairs / 'sheet.png'} written" in err
    assert image.read(pairs / "sheet.png").width > 3 * 360
    assert (pairs / "run" / "photos" / "toy" / "noisy_LQ_a.png.png").is_file()
    (pairs / "sheet.png").unlink()
    code, out, err = daclip(*common, "--limit", "1")
    assert (code, out) == (1, "")
    assert f"nothing was measured, so there is no table and no {pairs / 'sheet.png'}" in err
    assert not (pairs / "sheet.png").exists()


def test_a_radar_plot_leaves_out_what_was_not_measured() -> None:
    from daclip.evaluate import plots

    names = ("hazy", "rainy", "noisy", "snowy")
    levels = {"good": (30.0, 28.0, 26.0, None), "poor": (20.0, None, 24.0, None)}
    rows = evaluate.summarise(
        [
            one(method=method, degradation=name, before={"psnr": 10.0}, after={"psnr": level or np.inf})
            for method, known in levels.items()
            for name, level in zip(names, known, strict=True)
        ]
    )
    rows = [
        row for row in rows if row.method in levels and (row.method, row.degradation) != ("poor", "rainy")
    ]
    axes = plots.radar(rows, "psnr").axes[0]
    lines = {str(line.get_label()): np.asarray(line.get_ydata(), float) for line in axes.get_lines()}
    # in the paper's order: hazy, noisy, rainy, hazy again; nobody was measured on snow
    assert lines["good"] == pytest.approx([1, 1, 1, 1])
    assert lines["poor"] == pytest.approx([0.575, 0.15 + 0.85 * 14 / 16, np.nan, 0.575], nan_ok=True)
    assert [label.get_text().split("\n") for label in axes.get_xticklabels()] == [
        ["hazy", "30"],
        ["noisy", "26"],
        ["rainy", "28"],
    ]
    few = [row for row in rows if row.degradation not in ("hazy", "average")]
    assert list(plots.of_results(few, [])) == ["bars-psnr"]


def test_a_zoomed_picture_shows_the_same_place_in_all() -> None:
    quiet = np.full((120, 160, 3), 90, np.uint8)
    busy = quiet.copy()
    busy[60:105, 80:160] = np.random.default_rng(0).integers(0, 255, (45, 80, 3), dtype=np.uint8)
    panel = evaluate.Panel(pictures=[("input", quiet), ("truth", busy)])
    from daclip.evaluate.sheet import zoomed

    first, last = zoomed(panel, 0, width=160), zoomed(panel, 1, width=160)
    assert first.shape == last.shape
    assert last[-100:].std() > 40, "the detail, enlarged"
    assert first[-100:].std() < 2


def test_a_zoomed_picture_shows_the_same_place_in_a_picture_of_another_size() -> None:
    from daclip.evaluate.sheet import zoomed

    small = np.full((60, 80, 3), 90, np.uint8)
    small[40:, 60:] = np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8)
    large = small.repeat(3, axis=0).repeat(3, axis=1)
    panel = evaluate.Panel(pictures=[("input", large), ("tiny", small[:1, :1]), ("made", small)])
    assert zoomed(panel, 0, width=160)[-60:].std() > 40
    assert zoomed(panel, 2, width=160)[-60:].std() > 40
    assert zoomed(panel, 1, width=160).shape[1] == 160
    sheet = evaluate.draw([panel], zoom=True)
    assert sheet.shape[1] > 3 * 360


def test_the_command_that_is_told_gives_the_same_again(daclip: Door, pairs: Path, toy: Path) -> None:
    words = ("evaluate", "--model", toy, "--data", pairs, "--limit", "1", "--metrics", "psnr")
    _, out, _ = daclip(*words, "--quiet", "--workers", "1")
    line = next(line for line in out.splitlines() if line.startswith("made by: "))
    assert line == "made by: daclip " + " ".join(
        ["evaluate", "--model", str(toy), "--data", str(pairs), "--metrics", "psnr", "--limit", "1"]
    )


def test_two_methods_of_one_name_are_refused(pairs: Path, toy: Path, tmp_path: Path) -> None:
    again = write_toy_model(tmp_path / "again" / "toy")
    methods = plan(pairs, models=(str(toy), str(again)), peers=()).methods()
    assert [method.name for method in methods] == ["toy", str(again)]
    with pytest.raises(UsageError, match='two methods would be called "identity"'):
        plan(pairs, peers=("identity", "identity")).methods()
    both = plan(pairs, peers=("identity", "again=identity")).methods()
    assert [method.name for method in both] == ["identity", "again"]


def test_the_help_shows_its_examples_line_by_line(daclip: Door) -> None:
    _, out, _ = daclip("evaluate", "--help")
    assert "\n  daclip evaluate --data pairs/ --limit 5\n" in out


# ---- finished runs, joined


def finished(folder: Path, of: evaluate.Plan) -> Path:
    """The folder of a run that came to its end."""
    run = evaluate.Run(of, folder)
    carried_out(run)
    run.conclude(
        evaluate.Caption(
            protocol=of.protocol, data=str(of.data or of.photos), data_sha256=evaluate.data_sha256(run.cases),
            weights=run.weights, metric_weights={}, command=f"daclip evaluate {folder.name}",
            version=version("daclip"), seconds=run.findings.seconds, peak_mb=run.findings.peak_mb,
        )
    )  # fmt: skip
    return folder


def test_finished_runs_stand_in_one_table_as_if_they_were_one(
    daclip: Door, pairs: Path, tmp_path: Path
) -> None:
    dark = finished(tmp_path / "dark", plan(pairs, only=("low-light",), peers=("identity", "clahe")))
    noisy = finished(tmp_path / "noisy", plan(pairs, only=("noisy",), peers=("identity", "clahe")))
    whole = finished(tmp_path / "whole", plan(pairs, peers=("identity", "clahe")))
    code, joined, err = daclip("evaluate", dark, noisy, "--format", "json")
    assert (code, err) == (0, "")
    alone = json.loads(daclip("evaluate", whole, "--format", "json")[1])
    document = json.loads(joined)
    figures = [[{**row, "seconds": 0} for row in one["rows"]] for one in (document, alone)]
    assert figures[0] == figures[1]
    assert [row["degradation"] for row in figures[0]] == ["low-light", "noisy", "average"] * 2
    parts = document["parts"]
    assert list(parts) == [str(dark), str(noisy)]
    assert document["data_sha256"] == " and ".join(part["data_sha256"] for part in parts.values())
    assert document["seconds"] == pytest.approx(sum(part["seconds"] for part in parts.values()), abs=0.06)
    _, out, _ = daclip("evaluate", dark, noisy)
    sources = " and ".join(f"{pairs} (sha256 {part['data_sha256'][:12]})" for part in parts.values())
    assert out.startswith(f"protocol rgb, 8 bits; data {sources}; identity weights none; clahe weights none,")
    assert f"\n{dark}: `daclip evaluate dark`\n{noisy}: `daclip evaluate noisy`\n" in out
    assert f"\nmade by: daclip evaluate {dark} {noisy}\n" in out


def test_joined_runs_of_two_methods_count_none_twice(daclip: Door, pairs: Path, tmp_path: Path) -> None:
    both = finished(tmp_path / "both", plan(pairs, peers=("identity", "clahe")))
    more = finished(tmp_path / "more", plan(pairs, peers=("clahe", "non-local-means"), only=("noisy",)))
    _, out, _ = daclip("evaluate", both, more)
    rows = [line.split()[:3] for line in out.splitlines() if re.match(r"[\w-]+ +[\w-]+ +\d", line)]
    names = {"identity": 2, "clahe": 2, "non-local-means": 1}
    assert [row[0] for row in rows] == [name for name, count in names.items() for _ in range(count + 1)]
    assert {tuple(row[1:]) for row in rows} == {("low-light", "3"), ("noisy", "1"), ("average", "4"),
                                                ("average", "1")}  # fmt: skip
    assert "non-local-means: average of 1 of the 2 degradations here" in out
    sheet = tmp_path / "sheet.png"
    daclip("evaluate", both, more, "--sheet", sheet)
    assert image.read(sheet).width > 3 * 360, "the pictures come from the folders"


def test_runs_that_do_not_belong_together_are_not_joined(daclip: Door, pairs: Path, tmp_path: Path) -> None:
    first = finished(tmp_path / "first", plan(pairs))

    def refused(name: str, **changes: object) -> str:
        code, out, err = daclip("evaluate", first, finished(tmp_path / name, plan(pairs, **changes)))
        assert (code, out) == (2, "")
        return err

    assert "were measured with another protocol (rgb and y)" in refused("y", protocol="y")
    assert "another metrics (psnr, ssim and psnr)" in refused("psnr", metrics=("psnr",))
    assert "were measured on other low-light photos (3 and 2)" in refused("few", limit=2)
    write(pairs / "noisy" / "LQ" / "b.png", scene(3, noise=0.1))
    (pairs / "noisy" / "LQ" / "b.png").replace(pairs / "noisy" / "LQ" / "a.png")
    assert "on other noisy photos (1 and 1)" in refused("changed", only=("noisy",))
    settings = tmp_path / "changed" / "caption.json"
    settings.write_text(settings.read_text().replace('"identity": "none"', '"identity": "some"'))
    code, _, err = daclip("evaluate", finished(tmp_path / "again", plan(pairs)), tmp_path / "changed")
    assert code == 2
    assert "identity has other weights (none and some)" in err


def test_severity_and_seed_matter_only_to_photos_degraded_on_the_fly(
    daclip: Door, pairs: Path, tmp_path: Path
) -> None:
    clean = str(pairs / "noisy" / "GT")
    made = {"data": None, "photos": clean}
    first = finished(tmp_path / "first", plan(pairs, **made, only=("hazy",)))
    other = finished(tmp_path / "other", plan(pairs, **made, only=("rainy",), severity=0.3))
    code, _, err = daclip("evaluate", first, other)
    assert code == 2
    assert "another severity (0.7 and 0.3)" in err
    own = finished(tmp_path / "own", plan(pairs))
    code, out, _ = daclip("evaluate", own, other)
    assert code == 0
    assert re.search(r"^identity +rainy +1 ", out, flags=re.MULTILINE)


def test_a_run_that_was_not_ended_is_not_joined_and_finished_ones_are_not_measured(
    daclip: Door, pairs: Path, tmp_path: Path
) -> None:
    carried_out(evaluate.Run(plan(pairs), tmp_path / "run"))
    code, _, err = daclip("evaluate", tmp_path / "run")
    assert code == 1
    assert f"{tmp_path / 'run'}: no finished run of `daclip evaluate`; name its --output folder" in err
    done = finished(tmp_path / "done", plan(pairs))
    code, _, err = daclip("evaluate", done, "--limit", "1")
    assert code == 2
    assert "--limit beside finished runs" in err


def test_the_command_leaves_a_run_that_can_be_joined(daclip: Door, pairs: Path, toy: Path) -> None:
    words = ("evaluate", "--model", toy, "--data", pairs, "--limit", "1", "--precision", "fp32")
    _, first, _ = daclip(*words, "--output", pairs / "run")
    _, again, _ = daclip("evaluate", pairs / "run")
    assert again.split("\n\n")[1] == first.split("\n\n")[1]
    assert f"\n{pairs / 'run'}: `{first.partition('made by: ')[2].partition(chr(10))[0]}`\n" in again


def test_the_commands_of_the_page_of_results_can_be_given() -> None:
    page = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "results.py"))
    places = page["Places"](data="data", runs="runs/results", plots="docs/results", limit=None)
    quick = page["Places"](data="data", runs="runs/results", plots="docs/results", limit=2)

    def parsed(words: list[str]) -> dict[str, Any]:
        assert words[:2] == ["daclip", "evaluate"]
        return command.make_context("evaluate", words[2:]).params

    for run in page["RUNS"]:
        settings = parsed(places.measure(run))
        models = ("compact", "compact-sde") if run in ("wild", "clean") else ("compact",)
        assert (settings["names"], str(settings["output"])) == (models, f"runs/results/{run}")
        assert parsed(quick.measure(run))["limit"] == 2
    told = [(section, parsed(places.tell(section))) for section in page["SECTIONS"]]
    assert {run for section, _ in told for run in section.runs} == {*page["RUNS"]}
    assert {settings["shown"] for _, settings in told} == {"rows", "unified", "words"}
    for section, settings in told:
        runs = [parsed(places.measure(run)) for run in section.runs]
        assert len({(one["protocol"], one["settings"], one["metric_names"]) for one in runs}) == 1
        assert [str(path) for path in settings["runs"]] == [f"runs/results/{run}" for run in section.runs]
