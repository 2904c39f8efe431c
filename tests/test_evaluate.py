"""Tables of a toy model with known answers: what is counted, averaged, named and refused."""

import csv
import io
import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from daclip import cli, evaluate, image
from daclip.degradations import DEGRADE, replay
from daclip.errors import DataError, UsageError
from daclip.evaluate import Answer, Case, Measurement, Method, Panel, synthetic
from daclip.evaluate.measure import Measured
from daclip.metrics import frechet, psnr, ssim
from daclip.restore import Restorer
from daclip.vocabulary import DEGRADATIONS
from toy_model import write_toy_model

PHOTOS = Path(evaluate.__file__).parents[1] / "photos"


def scene(seed: int = 0, *, light: float = 1.0, noise: float = 0.0) -> np.ndarray:
    """A smooth photo of 40 x 60, uint8."""
    rows, columns = np.mgrid[:40, :60].astype(np.float64)
    waves = 0.5 + 0.3 * np.sin(rows / 7 + seed) + 0.2 * np.cos(columns / 11)
    pixels = np.stack([waves, 0.9 * waves, 0.8 * waves + 0.1], axis=2) * light
    pixels += noise * np.random.default_rng(seed).standard_normal(pixels.shape)
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8)


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return image.write(image.from_array(pixels), pixels, path, format="png")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_model(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Two dark photos, one noisy, in the published layout."""
    for seed in (0, 1):
        write(tmp_path / "low-light" / "GT" / f"{seed}.png", scene(seed))
        write(tmp_path / "low-light" / "LQ" / f"{seed}.png", scene(seed, light=0.2))
    write(tmp_path / "noisy" / "GT" / "a.png", scene(3))
    write(tmp_path / "noisy" / "LQ" / "a.png", scene(3, noise=0.2))
    return tmp_path


@pytest.fixture
def daclip(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line: exit code, stdout, stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = cli.run([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return run


def half(photo: image.Photo, degradation: str) -> Answer:
    return Answer(pixels=photo.own // 2, probabilities={"noisy": 0.8, "low-light": 0.1})


HALVES = Method(name="halves", weights="none", restore=half)
METRICS, _ = evaluate.load_metrics(["psnr", "ssim"])


def measured(cases: list[Case], method: Method = HALVES) -> list[Measurement]:
    found: list[Measurement] = []
    for _, outcome in evaluate.evaluate(cases, [method], METRICS):
        assert isinstance(outcome, Measured)
        found += outcome.measurements
    return found


def test_each_pair_is_measured_before_and_after(pairs: Path) -> None:
    first = measured(evaluate.pairs(pairs))[0]
    dark, clean = scene(0, light=0.2), scene(0)
    assert (first.method, first.degradation, first.photo) == ("halves", "low-light", "low-light/LQ/0.png")
    assert first.before == {"psnr": psnr(dark, clean), "ssim": ssim(dark, clean)}
    assert first.after == {"psnr": psnr(dark // 2, clean), "ssim": ssim(dark // 2, clean)}


def test_the_average_weighs_degradations_alike(pairs: Path) -> None:
    rows = {(row.method, row.degradation): row for row in evaluate.summarise(measured(evaluate.pairs(pairs)))}
    assert list(rows) == [
        ("halves", "low-light"),
        ("halves", "noisy"),
        ("halves", "average"),
        ("identity", "average"),
    ]
    dark, noisy, average = (rows["halves", name] for name in ("low-light", "noisy", "average"))
    assert (dark.photos, noisy.photos, average.photos) == (2, 1, 3)
    assert average.after["psnr"] == pytest.approx((dark.after["psnr"] + noisy.after["psnr"]) / 2)
    assert average.gain == pytest.approx(average.after["psnr"] - average.before["psnr"])
    assert (dark.named, noisy.named, average.named) == (0.0, 1.0, 0.5)
    assert rows["identity", "average"].after == average.before
    assert rows["identity", "average"].gain == 0


def test_a_model_is_measured_by_what_it_makes_of_the_photo(pairs: Path, toy: Path) -> None:
    restorer = Restorer(toy, precision="fp32")
    method = evaluate.restorer_method(restorer)
    dark = measured(evaluate.pairs(pairs, only=["low-light"], limit=1), method)[0]
    done = restorer.restore(image.from_array(scene(0, light=0.2)))
    assert dark.after["psnr"] == psnr(done.pixels.astype(np.uint8), scene(0)) > dark.before["psnr"]
    assert (dark.likeliest, dark.is_unchanged) == ("low-light", False)


def test_told_the_degradation_the_model_does_not_choose(pairs: Path, toy: Path) -> None:
    method = evaluate.restorer_method(Restorer(toy, precision="fp32"), task="named")
    photo = image.from_array(scene(0))
    assert method.restore(photo, "low-light").pixels.mean() > scene(0).mean() + 1
    assert method.restore(photo, "clean").is_unchanged


def test_clean_photos_tell_how_many_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "a.png", scene(0))
    write(tmp_path / "b.png", scene(1))

    def spoil_one(photo: image.Photo, _: str) -> Answer:
        is_first = np.array_equal(photo.own, scene(0))
        return Answer(pixels=photo.own if is_first else photo.own // 2, is_unchanged=is_first)

    method = Method(name="spoils", weights="none", restore=spoil_one)
    row, *others = evaluate.summarise(measured(synthetic.degraded(tmp_path, names=["clean"]), method))
    assert not others, "clean photos take no part in the average"
    assert (row.degradation, row.left_alone, row.gain, row.before["psnr"]) == ("clean", 0.5, None, None)
    assert row.after["psnr"] == psnr(scene(1) // 2, scene(1)), "of those that were altered"


def test_another_size_is_named_and_the_rest_is_measured(pairs: Path) -> None:
    write(pairs / "noisy" / "LQ" / "small.png", scene(4)[:30])
    write(pairs / "noisy" / "GT" / "small.png", scene(4))
    outcomes = {case.name: out for case, out in evaluate.evaluate(evaluate.pairs(pairs), [HALVES], METRICS)}
    assert "60 x 30 pixels, but" in str(outcomes["noisy/LQ/small.png"])
    assert "has 60 x 40" in str(outcomes["noisy/LQ/small.png"])
    assert sum(isinstance(outcome, Measured) for outcome in outcomes.values()) == 3


def test_suffixes_of_a_pair_may_differ(pairs: Path) -> None:
    truth = pairs / "noisy" / "GT" / "a.png"
    image.write(image.read(truth), scene(3), truth.with_suffix(".tif"))
    truth.unlink()
    assert len(measured(evaluate.pairs(pairs, only=["noisy"]))) == 1


def test_folders_without_pairs_are_refused(pairs: Path) -> None:
    with pytest.raises(DataError, match="no photos in <degradation>/LQ"):
        evaluate.pairs(pairs / "noisy")
    with pytest.raises(DataError, match="no folder snowy/LQ"):
        evaluate.pairs(pairs, only=["snowy"])


def test_unknown_metrics_and_protocols_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='unknown metric "niqe"'):
        evaluate.load_metrics(["niqe"])
    with pytest.raises(UsageError, match='unknown protocol "x"'):
        evaluate.load_metrics(["psnr"], protocol="x")
    metrics, left_out = evaluate.load_metrics(["psnr", "lpips"], weights=tmp_path)
    assert list(metrics.functions) == ["psnr"]
    assert "alexnet_features.safetensors: not there" in left_out[0]


def test_photos_degraded_on_the_fly_do_not_depend_on_their_neighbours(tmp_path: Path) -> None:
    write(tmp_path / "b.png", scene(1))
    alone = synthetic.degraded(tmp_path, names=["noisy", "hazy"], seed=5)
    first = alone[0].read()
    write(tmp_path / "a.png", scene(0))
    among = synthetic.degraded(tmp_path, names=["hazy", "noisy"], seed=5)
    other = synthetic.degraded(tmp_path, names=["noisy"], seed=6)[1]
    same = among[3].read()
    assert (alone[0].name, among[3].name) == ("noisy: b.png", "noisy: b.png")
    np.testing.assert_array_equal(first[0].own, same[0].own)
    np.testing.assert_array_equal(first[1], scene(1))
    assert not np.array_equal(first[0].own, other.read()[0].own)
    assert len(synthetic.degraded(tmp_path, limit=1)) == len(DEGRADATIONS)


def test_the_hash_of_the_data_changes_with_a_name_or_a_byte(pairs: Path) -> None:
    before = evaluate.data_sha256(evaluate.pairs(pairs))
    assert evaluate.data_sha256(evaluate.pairs(pairs)) == before
    assert evaluate.data_sha256(evaluate.pairs(pairs, limit=1)) != before
    photo = pairs / "noisy" / "LQ" / "a.png"
    content = bytearray(photo.read_bytes())
    content[-1] ^= 1
    photo.write_bytes(content)
    assert evaluate.data_sha256(evaluate.pairs(pairs)) != before


HEAD = ["method", "degradation", "photos", "PSNR in", "PSNR", "PSNR 95 %", "gain"]
HEAD += ["SSIM in", "SSIM", "SSIM 95 %", "named", "left alone", "s/photo"]
Door = Callable[..., tuple[int, str, str]]


def test_evaluate_prints_a_table_with_where_it_is_from(
    daclip: Door, pairs: Path, toy: Path, tmp_path: Path
) -> None:
    common = ("evaluate", "--model", toy, "--data", pairs, "--precision", "fp32")
    code, out, err = daclip(*common, "--sheet", tmp_path / "sheet.png")
    assert (code, err) == (0, f"note: {tmp_path / 'sheet.png'} written\n")
    caption, table = out.split("\n\n")
    assert caption.startswith("protocol rgb, 8 bits; data ")
    assert f"made by: daclip evaluate --model {toy} --data {pairs} --precision fp32" in caption
    head, *lines = table.strip().split("\n")
    assert re.split(r"\s{2,}", head) == HEAD
    assert [line.split()[:3] for line in lines] == [
        ["toy", "low-light", "2"],
        ["toy", "noisy", "1"],
        ["toy", "average", "3"],
        ["identity", "average", "3"],
    ]
    assert image.read(tmp_path / "sheet.png").width > 3 * 360, "input, output and truth beside each other"


def test_all_formats_tell_the_same(daclip: Door, pairs: Path, toy: Path) -> None:
    common = ("evaluate", "--model", toy, "--data", pairs, "--precision", "fp32", "--protocol", "rgb-crop4")
    told = {layout: daclip(*common, "--format", layout)[1] for layout in ("json", "csv", "markdown")}
    document = json.loads(told["json"])
    assert (document["schema"], document["protocol"]) == ("daclip.evaluate/2", "rgb-crop4")
    assert len(document["measurements"]) == 3
    gains = [f"{row['gain']:+.2f}" for row in document["rows"]]
    lines = list(csv.DictReader(io.StringIO(told["csv"])))
    assert [f"{float(line['gain']):+.2f}" for line in lines] == gains
    assert {line["data_sha256"] for line in lines} == {document["data_sha256"]}
    table = told["markdown"].split("\n\n")[0].split("\n")[2:]
    assert [row.split("|")[7].strip(" *") for row in table] == gains


def test_a_photo_equal_to_its_truth_is_null_in_json(daclip: Door, toy: Path, tmp_path: Path) -> None:
    write(tmp_path / "a.png", scene(0))
    arguments = ("evaluate", "--model", toy, "--photos", tmp_path, "--only", "clean", "--format", "json")
    document = json.loads(daclip(*arguments)[1])
    assert document["measurements"][0]["after"] == {"psnr": None, "ssim": pytest.approx(1)}
    assert [row["left_alone"] for row in document["rows"]] == [1.0]


def test_evaluate_goes_on_after_a_bad_photo_and_exits_with_one(daclip: Door, pairs: Path, toy: Path) -> None:
    (pairs / "noisy" / "LQ" / "broken.png").write_bytes(b"")
    write(pairs / "noisy" / "GT" / "broken.png", scene(5))
    code, out, err = daclip("evaluate", "--model", toy, "--data", pairs, "--metrics", "psnr,lpips")
    assert code == 1
    assert "broken.png: file is empty" in err
    assert "warning: no lpips:" in err
    assert "average" in out


def test_evaluate_wants_one_kind_of_data(daclip: Door, toy: Path) -> None:
    code, _, err = daclip("evaluate", "--model", toy)
    assert code == 2
    assert err.startswith("error: nothing to measure on; name --data (pairs) or --photos")
    code, _, err = daclip("evaluate", "--model", toy, "--data", "a", "--photos", "b")
    assert code == 2
    assert "exclude each other" in err


def test_score_compares_files_and_folders(daclip: Door, tmp_path: Path) -> None:
    write(tmp_path / "clean" / "a.png", scene(0))
    write(tmp_path / "clean" / "b.png", scene(1))
    write(tmp_path / "mine" / "a.restored.png", scene(0) // 2)
    write(tmp_path / "mine" / "b.png", scene(1) // 2)
    _, out, _ = daclip("score", tmp_path / "mine", tmp_path / "clean")
    figures = [f"psnr {psnr(scene(n) // 2, scene(n)):.2f}" for n in (0, 1)]
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[1] for line in lines[:2]] == figures
    levels = [psnr(scene(n) // 2, scene(n)) for n in (0, 1)]
    between = f"({min(levels):.2f} to {max(levels):.2f})"
    assert lines[2][:2] == ["mean of 2 (rgb)", f"psnr {np.mean(levels):.2f} {between}"]
    facts = "\n".join(out.splitlines()[3:])
    assert facts.startswith(
        f"protocol rgb, 8 bits; data {tmp_path / 'mine'} against {tmp_path / 'clean'} (sha256 "
    )
    assert re.search(r"bootstrap over photos; daclip [\d.]+; \d+ s in all, peak \d+ MB\n", facts)
    assert facts.endswith(f"made by: daclip score {tmp_path / 'mine'} {tmp_path / 'clean'}")
    _, out, _ = daclip("score", tmp_path / "mine", tmp_path / "clean", "--json")
    mean = json.loads(out.splitlines()[2])
    assert (mean["mean_of"], mean["psnr"], mean["protocol"]) == (2, pytest.approx(np.mean(levels)), "rgb")
    assert mean["intervals"]["psnr"] == pytest.approx([min(levels), max(levels)])
    assert f"(sha256 {mean['data_sha256'][:12]})" in facts
    _, out, _ = daclip("score", tmp_path / "mine" / "b.png", tmp_path / "clean" / "b.png", "--json")
    assert json.loads(out)["psnr"] == psnr(scene(1) // 2, scene(1))


def test_equal_photos_have_no_psnr_and_are_left_out_of_its_mean(daclip: Door, tmp_path: Path) -> None:
    for number, name in enumerate("ab"):
        write(tmp_path / "clean" / f"{name}.png", scene(number))
        write(tmp_path / "mine" / f"{name}.png", scene(number) // (2 - number))
    _, out, err = daclip("score", tmp_path / "mine", tmp_path / "clean")
    level = f"psnr {psnr(scene(0) // 2, scene(0)):.2f}"
    assert [line.split("\t")[1] for line in out.splitlines()[:3]] == [level, "psnr inf", level]
    assert "note: 1 of 2 photos equal their clean ones and have no PSNR" in err
    _, out, _ = daclip("score", tmp_path / "clean", tmp_path / "clean")
    assert out.splitlines()[2].split("\t")[:2] == ["mean of 2 (rgb)", "psnr -"]


def test_score_gives_fid_of_a_folder(daclip: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the weights of Inception are not at hand: the mean colour instead of its features
    def load_metrics(*_: object, **__: object) -> tuple[evaluate.Metrics, list[str]]:
        see = lambda pixels: pixels.mean(axis=(0, 1), dtype=np.float32)  # noqa: E731
        return evaluate.Metrics(protocol="rgb", functions={}, features=see), []

    monkeypatch.setattr(evaluate, "load_metrics", load_metrics)
    for number, name in enumerate("abc"):
        write(tmp_path / "clean" / f"{name}.png", scene(number))
        write(tmp_path / "mine" / f"{name}.png", scene(number) // 2 + 80)
    _, out, _ = daclip("score", tmp_path / "mine", tmp_path / "clean", "--metrics", "fid")
    sides = [
        np.stack([image.mean(axis=(0, 1)) for image in images])
        for images in (
            [scene(number) // 2 + 80 for number in range(3)],
            [scene(number) for number in range(3)],
        )
    ]
    name, figure = out.splitlines()[3].split("\t")
    assert (name, figure) == ("mean of 3 (rgb)", f"fid {frechet(*sides):.2f}")
    _, out, err = daclip(
        "score", tmp_path / "mine" / "a.png", tmp_path / "clean" / "a.png", "--metrics", "fid"
    )
    assert "warning: no fid: it compares two photos and more" in err


def test_score_names_what_cannot_be_compared(daclip: Door, tmp_path: Path) -> None:
    write(tmp_path / "clean" / "b.png", scene(1))
    write(tmp_path / "mine" / "a.png", scene(0))
    write(tmp_path / "mine" / "b.png", scene(1)[:30])
    code, _, err = daclip("score", tmp_path / "mine", tmp_path / "clean")
    assert code == 1
    assert "no photo a.* in" in err
    assert "60 x 30 pixels, but its clean photo has 60 x 40" in err
    write(tmp_path / "clean" / "a.png", scene(0))
    (tmp_path / "mine" / "b.png").unlink()
    write(tmp_path / "mine" / "b.png", scene(0))
    (tmp_path / "mine" / "notes.txt").write_text("which is which")
    code, out, err = daclip("score", tmp_path / "mine", tmp_path / "clean")
    assert code == 0
    assert "note: no photos and left out: notes.txt\n" in err
    assert "mean of 2" in out
    code, _, err = daclip("score", tmp_path / "mine", tmp_path / "clean" / "b.png")
    assert code == 2
    assert "a folder and a file" in err


def test_a_sheet_shows_every_picture_whole_on_white() -> None:
    red = np.zeros((100, 50, 3), np.uint8) + np.array([200, 0, 0], np.uint8)
    blue = np.zeros((50, 100, 3), np.uint8) + np.array([0, 0, 200], np.uint8)
    sheet = evaluate.draw(
        [Panel(pictures=[("before <1 & 2>", red), ("", blue)])] * 3, columns=2, tile=(100, 100)
    )
    assert sheet.shape[1] < 4 * 100 + 60
    for colour, pixels in (((200, 0, 0), 3 * 100 * 50), ((0, 0, 200), 3 * 50 * 100)):
        assert (np.abs(sheet.astype(int) - colour).sum(axis=2) < 6).sum() == pixels
    assert np.flatnonzero(np.abs(sheet[50].astype(int) - (200, 0, 0)).sum(axis=1) < 6)[0] == 25, "centred"
    assert (sheet == 255).all(axis=2).sum() > 3 * 2 * 5000 / 2
    assert (sheet.sum(axis=2) < 200).any(), "words in black"


def test_the_example_photos_are_one_of_each_and_small() -> None:
    photos = image.find_photos([PHOTOS])
    assert sorted(path.stem for path in photos) == sorted(DEGRADATIONS)
    assert sum(path.stat().st_size for path in PHOTOS.iterdir()) < 1_500_000
    records = json.loads((PHOTOS / "records.json").read_text())
    text = (PHOTOS / "README.md").read_text()
    for path in photos:
        photo = image.read(path)
        assert 400 <= max(photo.width, photo.height) <= 640
        assert records[path.name]["record"]["names"] == [path.stem]
        assert path.name in text, "source and licence are told"
    assert set(DEGRADATIONS) <= set(DEGRADE)


@pytest.mark.parametrize("name", ["noisy", "low-light", "uncompleted", "snowy"])
def test_an_example_photo_is_what_its_record_makes_of_the_clean_one(name: str) -> None:
    import skimage

    entry = json.loads((PHOTOS / "records.json").read_text())[f"{name}.jpg"]
    package, _, place = entry["source"].partition("/")
    assert package == "skimage"
    clean = image.read(Path(skimage.__file__).parent / place)
    again = replay(clean.crop(0, 0, clean.height, clean.width), entry["record"])
    stored = image.read(PHOTOS / f"{name}.jpg").own
    assert psnr(np.rint(again * 255).astype(np.uint8), stored) > 30


@pytest.mark.slow
def test_the_before_after_example_draws_every_photo(toy: Path, tmp_path: Path) -> None:
    example = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "before_after.py"))
    example["main"](str(tmp_path / "sheet.png"), str(toy))
    sheet = image.read(tmp_path / "sheet.png")
    assert sheet.width > 4 * 300, "two photos beside each other, before and after"
    assert sheet.height > 5 * 200
