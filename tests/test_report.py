"""The trust report says what happened, where, and how sure it is; on a toy model with known answers."""

import json
import re
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daclip import image, models, report
from daclip.cli import run
from daclip.restore import Restored, Restorer
from toy_model import write_toy_model


@pytest.fixture(scope="module")
def restorer(tmp_path_factory: pytest.TempPathFactory) -> Restorer:
    return Restorer(write_toy_model(tmp_path_factory.mktemp("models") / "toy"), engine="onnx")


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> Restorer:
    return Restorer(write_toy_model(tmp_path_factory.mktemp("models") / "toysde", "diffusion"), engine="onnx")


def grey(height: int, width: int, level: int = 40) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def changed_to(photo: image.Photo, after: np.ndarray, *, seed: int = 0) -> Restored:
    """A run whose answer is known."""
    return Restored(
        photo=photo,
        action="restored",
        applied={"low-light": 1.0},
        strength=1.0,
        full=after,
        sampler="posterior",
        steps=4,
        seed=seed,
    )


def make(restored: Restored, restorer: Restorer, **options: Any) -> report.Report:
    return report.make(restored, restorer, name="photo.png", sha256="00ff", **options)


@pytest.mark.parametrize("size", [(7, 9), (480, 480), (481, 333), (1, 1300)])
def test_the_map_shows_where_and_how_far_the_photo_changed(size: tuple[int, int], restorer: Restorer) -> None:
    before = grey(*size)
    after = before.copy()
    after[: size[0] // 2 + 1, : size[1] // 3] += 60
    told = make(changed_to(image.from_array(before), after), restorer)
    assert told.change is not None
    part = (size[0] // 2 + 1) * (size[1] // 3) / (size[0] * size[1])
    assert told.change.part_seen == pytest.approx(part)
    assert told.change.mean == pytest.approx(60 * part, rel=1e-3)
    assert told.change.largest == pytest.approx(60)
    side = told.change.cell_side
    assert told.change.cells.shape == (-(-size[0] // side), -(-size[1] // side))
    assert told.change.cells[0, 0] == pytest.approx(60, abs=0.01)
    assert told.change.cells[0, -1] == 0
    assert told.before.shape[:2] == told.change.cells.shape


def test_the_places_shown_are_those_that_changed_most(restorer: Restorer) -> None:
    before = grey(1000, 1500)
    after = before.copy()
    after[900:950, 1400:1450] += 100
    told = make(changed_to(image.from_array(before), after), restorer)
    first = told.places[0]
    assert first.top <= 900 < 950 <= first.top + first.after.shape[0]
    assert first.left <= 1400 < 1450 <= first.left + first.after.shape[1]
    assert first.after.max() == 140
    assert (first.before == 40).all()


def test_seeds_that_agree_have_no_spread_and_those_that_do_not_have_theirs(sampler: Restorer) -> None:
    photo = image.from_array(grey(20, 30))
    levels = {0: 50, 1: 60, 2: 70, 3: 80}

    def again(seed: int) -> Restored:
        after = grey(20, 30, 90)
        after[:, 15:] = levels[seed]
        return changed_to(photo, after, seed=seed)

    told = make(again(0), sampler, again=again)
    assert told.spread is not None
    assert told.spread.cells[0, 0] == 0
    assert told.spread.cells[0, -1] == pytest.approx(np.std(list(levels.values()), ddof=1), rel=1e-5)
    assert told.record["seeds"]["runs"] == 4


def test_a_real_diffusion_model_is_run_again_with_other_seeds(sampler: Restorer) -> None:
    photo = image.from_array(grey(24, 40, 20))
    asked: list[int] = []

    def again(seed: int) -> Restored:
        asked.append(seed)
        return sampler.restore(photo, task="low-light", seed=seed)

    told = make(again(5), sampler, again=again, runs=3)
    assert asked == [5, 6, 7]
    assert told.spread is not None
    assert told.record["seed"] == 5


def test_a_one_pass_model_has_one_answer(restorer: Restorer) -> None:
    done = restorer.restore(image.from_array(grey(24, 40, 20)), strength=0.5)
    told = make(done, restorer, again=lambda seed: pytest.fail("no seed takes part in it"))
    assert told.spread is None
    assert told.record["seeds"] is None
    assert told.change is not None
    difference = np.abs(done.pixels.astype(float) - done.photo.own).mean()
    assert told.change.mean == pytest.approx(difference, abs=0.07)  # binned in eighths of a level


class Resources(HTMLParser):
    """What a page would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("link", "iframe", "object") or (
            tag == "script" and given.get("type") != "application/json"
        ):
            self.found.append(tag)
        self.found += [
            text for key in ("src", "href") if (text := given.get(key) or "").find("data:") != 0 and text
        ]


def test_the_page_stands_alone_and_holds_its_figures_as_json(restorer: Restorer) -> None:
    done = restorer.restore(image.from_array(grey(24, 40, 20)))
    name = "<b>&</script>.png"
    page = report.to_html(report.make(done, restorer, name=name, sha256="00ff"))
    resources = Resources()
    resources.feed(page)
    assert resources.found == []
    assert "<b>" not in page
    data = re.search(r'<script type="application/json" id="report">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    record = json.loads(data[1])
    assert record["schema"] == "daclip.report/1"
    assert record["input"] == name
    assert record["model"] == {"name": "toy", "kind": "one-pass", "sha256": "00ff"}
    assert record["detected"][0]["name"] == "low-light"
    assert set(record["probabilities"]) == {"low-light", "noisy", "clean"}
    pictures = [image.read(b64decode(one)) for one in re.findall(r"data:image/webp;base64,([^\"]+)", page)]
    assert [(one.width, one.height) for one in pictures] == 3 * [(40, 24)]


def test_a_photo_left_alone_is_reported_as_such(restorer: Restorer) -> None:
    done = restorer.restore(image.from_array(grey(40, 40, 200)))
    assert done.action == "unchanged"
    told = make(done, restorer)
    assert told.after is None
    assert "Left as it was: no known degradation found" in report.to_html(told)


@pytest.fixture
def dark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    pixels = grey(30, 50, 30)
    image.write(image.from_array(pixels), pixels, tmp_path / "dark.jpg")
    return tmp_path / "dark.jpg"


def test_restore_writes_the_page_beside_the_photo_and_words_into_its_xmp(
    restorer: Restorer, dark: Path
) -> None:
    call = ["restore", "dark.jpg", "--model", str(restorer.folder.path), "--engine", "onnx", "-q"]
    assert run([*call, "--report"]) == 0
    page = dark.with_name("dark.restored.jpg.report.html").read_text(encoding="utf-8")
    sha256 = models.weights_sha256(restorer.folder)
    assert sha256 in page
    told = image.read("dark.restored.jpg").metadata["xmp-data"]
    assert isinstance(told, bytes)
    assert f'ModelSHA256="{sha256}"'.encode() in told
    assert b'Treated="low-light 1"' in told
    # once more: the words are replaced, not heaped
    assert (
        run(["restore", "dark.restored.jpg", "--task", "low-light", *call[2:], "--report", "-o", "b.jpg"])
        == 0
    )
    again = image.read("b.jpg").metadata["xmp-data"]
    assert isinstance(again, bytes)
    assert again.count(b"ModelSHA256") == 1


@pytest.mark.parametrize("flag", ["--no-report-xmp", "--strip-metadata"])
def test_the_words_in_the_xmp_can_be_turned_off(restorer: Restorer, dark: Path, flag: str) -> None:
    call = ["restore", "dark.jpg", "--model", str(restorer.folder.path), "--engine", "onnx", "-q", "--report"]
    assert run([*call, flag]) == 0
    assert dark.with_name("dark.restored.jpg.report.html").exists()
    assert "xmp-data" not in image.read("dark.restored.jpg").metadata


def test_a_report_needs_a_file_to_lie_beside(dark: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["restore", "dark.jpg", "-o", "-", "--report"]) == 2
    assert "stdout" in capsys.readouterr().err


def test_notes_keep_the_xmp_of_others_and_never_outgrow_a_jpeg() -> None:
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" dc:source="a scan"/>'
        b"</rdf:RDF></x:xmpmeta>"
    )
    photo = replace(image.from_array(grey(8, 8)), metadata={"xmp-data": xmp})
    told = image.with_notes(photo, {"Model": "toy"}).metadata["xmp-data"]
    assert isinstance(told, bytes)
    assert b'source="a scan"' in told
    assert b'Model="toy"' in told
    large = replace(photo, metadata={"xmp-data": xmp.replace(b"a scan", b"s" * 65_000)})
    assert image.with_notes(large, {"Model": "toy" * 300}) is large
    broken = replace(photo, metadata={"xmp-data": b"<no xml"})
    assert image.with_notes(broken, {"Model": "toy"}).metadata["xmp-data"] == b"<no xml"
