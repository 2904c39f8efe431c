"""Plans, ledgers and frames of a batch, in this process; its workers are tested in doors/."""

import itertools
import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from daclip import batch
from daclip.batch import Recipe, Record, Task, frames, work
from daclip.errors import DataError, PhotoError, UsageError
from toy_model import write_toy_model

MODEL = {"name": "toy", "sha256": "0"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    toy = write_toy_model(tmp_path_factory.mktemp("models") / "toy")
    return Recipe(model=str(toy), engine="onnx")


def photo(path: Path, *, brightness: int = 30) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(brightness).integers(0, 9, (40, 48, 3))
    Image.fromarray((brightness + noise).astype(np.uint8)).save(path)
    return path


def in_this_process(tasks: Iterator[Task | None], recipe: Recipe, *, workers: int) -> Generator[Record]:
    """An executor without processes."""
    assert workers == 1
    restorer = recipe.restorer()
    for task in tasks:
        if task is not None:
            yield work.work(restorer, recipe, task)


def run(source: Path, output: Path, recipe: Recipe, **options: bool) -> list[Record]:
    found = batch.plan(source, output, format=recipe.format)
    retry, overwrite = options.get("retry_failed", False), options.get("overwrite", False)
    with batch.opened(output, recipe.settings(), MODEL, anew=overwrite) as manifest:
        todo = batch.unfinished(found.tasks, manifest, retry_failed=retry)
        return list(batch.run(todo, recipe, manifest, in_this_process, workers=1, overwrite=overwrite))


def names(records: list[Record]) -> list[str]:
    return [record["input"] for record in records]


def lines(output: Path) -> list[Record]:
    return [json.loads(line) for line in (output / batch.MANIFEST).read_bytes().splitlines()]


def test_the_tree_is_mirrored_and_the_manifest_holds_hashes_and_reports(
    tmp_path: Path, recipe: Recipe
) -> None:
    photo(tmp_path / "in" / "a.png")
    photo(tmp_path / "in" / "sub" / "b c.jpg")
    records = run(tmp_path / "in", tmp_path / "out", recipe)
    assert names(records) == ["a.png", "sub/b c.jpg"]
    header, *rows = lines(tmp_path / "out")
    assert (header["schema"], header["model"], header["settings"]["seed"]) == ("daclip.batch/1", MODEL, 0)
    assert rows == records
    for row in rows:
        assert row["action"] == "restored"
        assert row["sha256"] == work.sha256(tmp_path / "in" / row["input"])
        assert row["output_sha256"] == work.sha256(tmp_path / "out" / row["output"])
        assert row["detected"][0]["name"] == "low-light"


def test_a_second_run_does_only_what_is_new_changed_or_lost(tmp_path: Path, recipe: Recipe) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    for name in ("kept", "touched", "changed", "lost"):
        photo(source / f"{name}.png")
    run(source, output, recipe)
    assert run(source, output, recipe) == []
    os.utime(source / "touched.png", (1, 1))  # same content: the hash says so
    photo(source / "changed.png", brightness=40)
    (output / "lost.png").unlink()
    photo(source / "new.png")
    assert names(run(source, output, recipe)) == ["changed.png", "lost.png", "new.png"]
    assert len(lines(output)) == 1 + 5, "one line of each photo"
    assert run(source, output, recipe) == []


def test_a_failed_photo_waits_until_it_is_asked_for_or_changes(tmp_path: Path, recipe: Recipe) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    (bad := photo(source / "bad.png")).write_text("none")
    (record,) = run(source, output, recipe)
    assert (record["action"], record["output"], record["error"]["kind"]) == ("failed", None, "not-an-image")
    assert run(source, output, recipe) == []
    assert names(run(source, output, recipe, retry_failed=True)) == ["bad.png"]
    photo(bad)
    (record,) = run(source, output, recipe)
    assert record["action"] == "restored"


def test_what_a_kill_left_is_taken_up_again(tmp_path: Path, recipe: Recipe) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    for name in ("done", "begun", "written"):
        photo(source / "sub" / f"{name}.png")
    run(source, output, recipe)
    # as after a kill: one photo half-written, one written but without its line, and a torn line
    (output / "sub" / "begun.png").unlink()
    (output / "sub" / ".daclip-0123.tmp").write_text("half")
    header, *rows = (output / batch.MANIFEST).read_bytes().splitlines(keepends=True)
    begun = [b'{"input": "sub/%s.png", "action": "started"}\n' % name for name in (b"begun", b"written")]
    done = next(row for row in rows if b"done" in row)
    (output / batch.MANIFEST).write_bytes(b"".join([header, done, *begun, rows[0][:-20]]))
    again = run(source, output, recipe)
    assert [(record["input"], record["action"]) for record in again] == [
        ("sub/begun.png", "restored"),
        ("sub/written.png", "restored"),
    ]
    assert list(output.rglob("*.tmp")) == []
    assert names(lines(output)[1:]) == ["sub/done.png", "sub/begun.png", "sub/written.png"]


def test_a_file_of_somebody_else_is_never_replaced_unless_asked(tmp_path: Path, recipe: Recipe) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    photo(source / "a.png")
    before = photo(output / "a.png", brightness=99).read_bytes()
    (record,) = run(source, output, recipe)
    assert record["error"]["kind"] == "exists"
    (record,) = run(source, output, recipe, retry_failed=True)
    assert record["error"]["kind"] == "exists"
    assert (output / "a.png").read_bytes() == before
    (record,) = run(source, output, recipe, overwrite=True)
    assert record["action"] == "restored"
    assert (output / "a.png").read_bytes() != before


def test_other_settings_or_another_model_are_refused_by_name(tmp_path: Path, recipe: Recipe) -> None:
    output = tmp_path / "out"
    with batch.opened(output, recipe.settings(), MODEL):
        pass
    with (
        pytest.raises(UsageError, match="another seed, strip-metadata; use the same"),
        batch.opened(output, recipe.settings() | {"seed": 1, "strip_metadata": True}, MODEL),
    ):
        pass
    with (
        pytest.raises(UsageError, match="another model"),
        batch.opened(output, recipe.settings(), {"name": "toy", "sha256": "1"}),
    ):
        pass


def test_two_batches_do_not_write_into_one_folder(tmp_path: Path, recipe: Recipe) -> None:
    with (
        batch.opened(tmp_path, recipe.settings(), MODEL),
        pytest.raises(DataError, match="another batch is writing here"),
        batch.opened(tmp_path, recipe.settings(), MODEL),
    ):
        pass


def test_a_file_that_is_no_manifest_is_left_as_it_is(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / batch.MANIFEST).write_text("shopping list\n")
    with (
        pytest.raises(DataError, match="line 1 is no line of a manifest"),
        batch.opened(tmp_path, recipe.settings(), MODEL),
    ):
        pass
    assert (tmp_path / batch.MANIFEST).read_text() == "shopping list\n"


def test_names_of_any_bytes_come_back_from_the_manifest(tmp_path: Path, recipe: Recipe) -> None:
    odd = os.fsdecode(b"gr\xfcn \xe2\x82\xac \n.png")
    photo(tmp_path / "in" / "a.png").rename(tmp_path / "in" / odd)
    assert names(run(tmp_path / "in", tmp_path / "out", recipe)) == [odd]
    assert run(tmp_path / "in", tmp_path / "out", recipe) == []
    assert (tmp_path / "out" / odd).exists()


def test_two_photos_that_would_become_one_file_are_told_apart_before_work(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b.png", "c.gif", "c.jpg", "d.gif"):
        photo(tmp_path / "in" / name)
    found = batch.plan(tmp_path / "in", tmp_path / "out")
    assert [task.name for task in found.tasks] == ["a.jpg", "a.png", "b.png", "c.jpg", "d.gif"]
    assert names(found.refused) == ["c.gif"]
    found = batch.plan(tmp_path / "in", tmp_path / "out", format="webp")
    assert names(found.refused) == ["a.png", "c.jpg"]


def test_links_out_of_the_folder_are_refused_and_the_output_inside_is_no_input(tmp_path: Path) -> None:
    source = tmp_path / "in"
    photo(source / "a.png")
    photo(source / "mended" / "a.png")
    photo(tmp_path / "secret" / "b.png")
    (source / "link").symlink_to(tmp_path / "secret")
    found = batch.plan(source, source / "mended")
    assert [task.name for task in found.tasks] == ["a.png"]
    assert names(found.refused) == ["link/b.png"]
    with pytest.raises(UsageError, match="is input and output"):
        batch.plan(source, source)


def test_a_batch_that_would_fill_the_disk_is_not_begun(tmp_path: Path) -> None:
    task = Task(name="a.jpg", source=photo(tmp_path / "a.jpg"), target=tmp_path / "out" / "a.jpg")
    batch.check_disk([task], tmp_path / "out")
    os.truncate(task.source, 10**13)  # sparse: of this size in name only
    with pytest.raises(PhotoError, match=r"needs about 20,000,000 MB, [\d,]+ MB free\); nothing was"):
        batch.check_disk([task], tmp_path / "out")


def test_a_watched_folder_gives_each_photo_once_it_stopped_growing(tmp_path: Path, recipe: Recipe) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    known = Task(name="old.png", source=photo(source / "old.png"), target=output / "old.png")
    with batch.opened(output, recipe.settings(), MODEL) as manifest:
        coming = batch.watch(source, output, manifest, begun=[known], seconds=0.0)
        assert list(itertools.islice(coming, 3)) == [None] * 3
        new = photo(source / "new.png")
        next(coming)
        photo(new, brightness=50)
        assert next(coming) is None, "it changed between two looks"
        taken = [task.name for task in itertools.islice(coming, 6) if task is not None]
        assert taken == ["new.png"]


def test_frames_come_out_restored_and_in_order(tmp_path: Path, recipe: Recipe) -> None:
    film = np.stack([np.full((40, 48, 3), 20 + 3 * number, np.uint8) for number in range(7)])
    (tmp_path / "in.rgb").write_bytes(film.tobytes())
    with (tmp_path / "in.rgb").open("rb") as source, (tmp_path / "out.rgb").open("wb") as sink:
        assert frames.restore(source, sink, recipe, width=48, height=40, workers=2) == 7
    result = np.fromfile(tmp_path / "out.rgb", np.uint8).reshape(film.shape)
    restorer = recipe.restorer()
    for frame, restored in zip(film, result, strict=True):
        np.testing.assert_array_equal(restored, restorer(frame))
    assert (np.diff(result.mean(axis=(1, 2, 3))) > 0).all()


def test_a_film_that_ends_within_a_frame_says_so_after_the_whole_ones(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "in.rgb").write_bytes(np.full((2, 40, 48, 3), 30, np.uint8).tobytes()[:-10])
    with (
        (tmp_path / "in.rgb").open("rb") as source,
        (tmp_path / "out.rgb").open("wb") as sink,
        pytest.raises(PhotoError, match=r"ends within frame 2 \(5,750 of 5,760 bytes\).*48x40 rgb24"),
    ):
        frames.restore(source, sink, recipe, width=48, height=40)
    assert (tmp_path / "out.rgb").stat().st_size == 5760
