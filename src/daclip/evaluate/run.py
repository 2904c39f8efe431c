"""A whole evaluation: what was planned, in a folder that can be gone on with, over one process or several."""

import json
import os
import signal
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from jaxtyping import Float32

from daclip import image
from daclip.errors import DaclipError, DataError, UsageError
from daclip.evaluate import peers
from daclip.evaluate.cases import Case, data_sha256, file_name, lonely, pairs
from daclip.evaluate.measure import Measured, Measurement, Metrics, Outcome, attempt, load_metrics, plain
from daclip.evaluate.peers import Method
from daclip.evaluate.tables import Caption
from daclip.metrics import Pixels8
from daclip.restore import Restorer


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides the figures of an evaluation, as plain values: a process can build it anew.

    Args:
        models: names or folders of our models.
        peers: names or weight files, with a name of one's own or not, see `peers.find`.
        commands: see `peers.command`.
        data: folder of pairs, or of photos without truth. Either this or `photos`.
        photos: folder of clean photos, degraded on the fly by `settings`, `severity` and `seed`.
        only: degradations, all where empty.
        limit: photos of each degradation.
        timeout: seconds that a command may take for a photo.
        task: `named` tells the models the degradation.
        sampler, steps: of diffusion models.
    """

    models: tuple[str, ...] = ("compact",)
    peers: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    timeout: float = 600.0
    data: str | None = None
    photos: str | None = None
    only: tuple[str, ...] = ()
    limit: int | None = None
    settings: Literal["wild", "paper"] = "wild"
    severity: float = 0.7
    seed: int = 0
    metrics: tuple[str, ...] = ("psnr", "ssim")
    metric_weights: str | None = None
    protocol: str = "rgb"
    task: Literal["auto", "named"] = "auto"
    sampler: str | None = None
    steps: int | None = None
    device: str = "auto"
    engine: str = "auto"
    precision: str = "auto"

    def cases(self) -> list[Case]:
        """The photos to measure on. Raises UsageError unless there is one source of them."""
        if (self.data is None) == (self.photos is None):
            raise UsageError(
                "nothing to measure on" if self.data is None else "--data and --photos exclude each other",
                hint="name --data (pairs) or --photos (clean ones)",
            )
        if self.data is not None:
            return pairs(Path(self.data), only=self.only, limit=self.limit)
        assert self.photos is not None
        from daclip.evaluate import synthetic  # it needs OpenCV, an extra

        return synthetic.degraded(
            Path(self.photos),
            names=self.only or synthetic.DEGRADATIONS,
            settings=self.settings,
            severity=self.severity,
            seed=self.seed,
            limit=self.limit,
        )

    def methods(self, *, threads: int = 0) -> list[Method]:
        """Everybody who is measured. Two of one name get the names they were given."""
        found: list[Method] = []
        for name in self.models:
            restorer = Restorer(
                name, device=self.device, engine=self.engine, precision=self.precision, threads=threads
            )
            taken = restorer.folder.name in [method.name for method in found]
            found.append(
                peers.restorer_method(
                    restorer,
                    task=self.task,
                    sampler=self.sampler if restorer.folder.config.kind == "diffusion" else None,
                    steps=self.steps if restorer.folder.config.kind == "diffusion" else None,
                    name=name if taken else None,
                )
            )
        found += [peers.find(name, device=self.device) for name in self.peers]
        found += [peers.command(text, timeout=self.timeout) for text in self.commands]
        names = [method.name for method in found]
        if doubles := sorted(
            {name for name in names if names.count(name) > 1} | {"input", "truth"} & set(names)
        ):
            raise UsageError(
                f'two methods would be called "{doubles[0]}"',
                hint="write NAME=FILE, NAME=TOOL ..., or rename a folder",
            )
        if not found:
            raise UsageError("nobody to measure", hint="name a --model, a --peer or a --command")
        return found

    def load_metrics(self) -> tuple[Metrics, list[str]]:
        """The metrics, and a line for each that had to be left out."""
        weights = None if self.metric_weights is None else Path(self.metric_weights)
        return load_metrics(self.metrics, protocol=self.protocol, weights=weights)

    def decisive(self) -> dict[str, Any]:
        """What may not differ when a run is gone on with; photos and methods may be added."""
        values = asdict(self)
        for name in ("models", "peers", "commands", "timeout", "only", "limit", "device"):
            del values[name]
        # of the metrics those that could be loaded decide, see Ledger
        del values["metrics"], values["metric_weights"]
        return values


@dataclass(kw_only=True)
class Findings:
    """What a run has found so far: measurements, FID's features and kept pictures.

    Args:
        features: by name of the picture (input, truth, a method) and of the photo.
    """

    measurements: list[Measurement] = field(default_factory=list)
    features: dict[tuple[str, str], Float32[np.ndarray, "d"]] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """What all measurements took, added over processes and calls."""
        return sum(one.seconds_in_all for one in self.measurements)

    @property
    def peak_mb(self) -> int:
        """The most memory one of the processes has held."""
        return max((one.peak_mb for one in self.measurements), default=0)


MEASUREMENTS = "measurements.jsonl"


class Ledger:
    """The folder of a run: settings, a line for each photo that is done, pictures to show, its caption.

    `settings.json`, `measurements.jsonl`, `features/<photo>.npz`, `photos/<method>/<photo>.png` and, of a run
    that came to its end, `caption.json`.
    """

    def __init__(self, folder: Path, plan: Plan, metrics: Metrics, weights: Mapping[str, str]) -> None:
        self.folder = folder
        self._lines = folder / MEASUREMENTS
        decisive = plan.decisive() | {"metrics": metrics.names, "daclip": version("daclip")}
        decisive |= {f"weights of {name}": sha for name, sha in metrics.weights.items()}
        self._settle(json.loads(json.dumps(decisive)), weights)

    def _settle(self, wanted: Mapping[str, Any], weights: Mapping[str, str]) -> None:
        """Write the settings, or refuse a folder that has others."""
        path = self.folder / "settings.json"
        stored = self._stored(path)
        if stored is not None:
            known: dict[str, str] = stored.pop("weights", {})
            pairs = {name: (stored.get(name), value) for name, value in wanted.items()}
            pairs |= {f"weights of {name}": (known.get(name, sha), sha) for name, sha in weights.items()}
            differing = [(name, *both) for name, both in pairs.items() if both[0] != both[1]]
            if differing:
                name, before, now = differing[0]
                raise UsageError(
                    f"{self.folder} was measured with another {name} ({told(before)}, now {told(now)})",
                    hint="name another --output, or the same settings",
                )
            weights = {**known, **weights}
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_whole(path, json.dumps({**wanted, "weights": dict(weights)}, indent=1) + "\n")

    def _stored(self, path: Path) -> dict[str, Any] | None:
        try:
            return cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            if self._lines.exists():
                raise UsageError(
                    f"{self._lines} without settings.json", hint="name another --output"
                ) from None
            return None
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error})", hint="name another --output") from error

    def read(self, cases: Sequence[Case], methods: Sequence[str]) -> Findings:
        """What was found of these cases in earlier runs; photos that have changed since do not count."""
        if self._lines.exists():
            text = self._lines.read_text(encoding="utf-8")
            if _whole(text) != text:
                _write_whole(self._lines, _whole(text))
        return found_in(self.folder, {case.name: data_sha256([case]) for case in cases}, methods)

    def write(self, case: Case, done: Measured) -> None:
        """One photo is done: its features, then its lines, at once on disk."""
        if done.features:
            path = self.folder / "features" / f"{file_name(case.name)}.npz"
            path.parent.mkdir(exist_ok=True)
            known: dict[str, Any] = {}
            if path.is_file():
                with np.load(path) as stored:
                    known = {name: stored[name] for name in stored.files}
            np.savez(path, allow_pickle=False, **{**known, **done.features})
        stamp = data_sha256([case])
        lines = [
            json.dumps(
                asdict(one) | {"before": plain(one.before), "after": plain(one.after), "data_sha256": stamp}
            )
            for one in done.measurements
        ]
        with self._lines.open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())


def found_in(folder: Path, stamps: Mapping[str, str], methods: Collection[str]) -> Findings:
    """What the folder of a run holds of these methods on these photos, each photo with its data_sha256."""
    path, findings = folder / MEASUREMENTS, Findings()
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for line in map(json.loads, _whole(text).splitlines()):
        stamp = line.pop("data_sha256")
        if stamps.get(line["photo"]) == stamp and line["method"] in methods:
            line["before"], line["after"] = _numbers(line["before"]), _numbers(line["after"])
            findings.measurements.append(Measurement(**line))
    for photo in {one.photo for one in findings.measurements}:
        path = folder / "features" / f"{file_name(photo)}.npz"
        if path.is_file():
            with np.load(path) as stored:
                findings.features |= {(name, photo): stored[name] for name in stored.files}
    return findings


def _whole(text: str) -> str:
    """Lines without the last one where a kill has cut it."""
    return text[: text.rfind("\n") + 1]


def keep_pictures(folder: Path, case: Case, pictures: Mapping[str, Pixels8]) -> None:
    """Write the pictures of a case to `photos/<input, truth or method>/<photo>.png`."""
    for name, pixels in pictures.items():
        path = picture_path(folder, name, case.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        image.write(image.from_array(pixels), pixels, path, overwrite=True)


def picture_path(folder: Path, picture: str, photo: str) -> Path:
    """Where a picture of a photo is kept."""
    return folder / "photos" / file_name(picture) / f"{file_name(photo)}.png"


def _numbers(figures: Mapping[str, float | None]) -> dict[str, float]:
    return {name: np.inf if value is None else value for name, value in figures.items()}


def told(value: Any) -> str:
    """A setting for people."""
    return ", ".join(map(str, cast("list[Any]", value))) if isinstance(value, list) else str(value)


def _write_whole(path: Path, text: str) -> None:
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


# ---- carrying it out


@dataclass(frozen=True, kw_only=True)
class Task:
    """One case with the methods that have not been measured on it yet."""

    case: Case
    methods: tuple[str, ...]
    keep: bool


class Run:
    """A plan being carried out in a folder.

    Args:
        plan: what to measure.
        folder: see Ledger.
        workers: processes; each computes with one thread where there are several.
        keep: keep the pictures of every photo, and not only of those without truth and of the first of each
            degradation.
    """

    def __init__(self, plan: Plan, folder: Path, *, workers: int = 1, keep: bool = False) -> None:
        self.plan, self.folder, self.workers = plan, folder, workers
        self.cases = plan.cases()
        self.metrics, self.left_out = plan.load_metrics()
        if names := lonely(self.cases):
            self.left_out.append(f"no truth, so restored and not scored: {', '.join(names)}")
        self.methods = plan.methods(threads=1 if workers > 1 else 0)
        self.weights = {method.name: method.weights for method in self.methods}
        self._ledger = Ledger(folder, plan, self.metrics, self.weights)
        self._names = [method.name for method in self.methods]
        self.findings = self._ledger.read(self.cases, self._names)
        self.tasks = self._tasks(keep)

    def _tasks(self, keep: bool) -> list[Task]:
        done = {(one.photo, one.method) for one in self.findings.measurements}
        shown = {case.name for case in first_of_each(self.cases)}
        tasks: list[Task] = []
        for case in self.cases:
            missing = tuple(name for name in self._names if (case.name, name) not in done)
            if missing:
                # without a truth the restored photo is all there is
                kept = keep or case.name in shown or (len(case.files) == 1 and self.plan.photos is None)
                tasks.append(Task(case=case, methods=missing, keep=kept))
        return tasks

    def carry_out(self) -> Iterator[tuple[Case, float, DaclipError | None]]:
        """Measure what is missing; each case as it is done, with its megapixels and its error or None."""
        for task, outcome in self._outcomes():
            if isinstance(outcome, DaclipError):
                yield task.case, 0.0, outcome
                continue
            self._ledger.write(task.case, outcome)
            self.findings.measurements += outcome.measurements
            self.findings.features |= {(name, task.case.name): row for name, row in outcome.features.items()}
            height, width, _ = outcome.pictures["input"].shape
            yield task.case, height * width / 1e6, outcome.error

    def conclude(self, caption: Caption) -> None:
        """Keep where the table is from, and the hash of each photo it is of, so that runs can be joined."""
        measured = {one.photo for one in self.findings.measurements}
        photos = {case.name: data_sha256([case]) for case in self.cases if case.name in measured}
        whole = json.dumps({**asdict(caption), "photos": photos}, indent=1, ensure_ascii=False)
        _write_whole(self.folder / "caption.json", whole + "\n")

    def shown(self) -> list[Case]:
        """The first measured case of each degradation; pictures of it that were not kept are made again."""
        measured = {one.photo for one in self.findings.measurements}
        cases = first_of_each([case for case in self.cases if case.name in measured])
        for case in cases:
            missing = tuple(
                name for name in self._names if not picture_path(self.folder, name, case.name).is_file()
            )
            if missing:
                _attempt(Task(case=case, methods=missing, keep=True), self.methods, self.metrics, self.folder)
        return cases

    def _outcomes(self) -> Iterator[tuple[Task, Outcome]]:
        if self.workers == 1 or len(self.tasks) < 2:
            for task in self.tasks:
                yield task, _attempt(task, self.methods, self.metrics, self.folder)
            return
        numbers = {case.name: number for number, case in enumerate(self.cases)}
        pool = ProcessPoolExecutor(
            min(self.workers, len(self.tasks)),
            mp_context=get_context("spawn"),
            initializer=_prepare,
            initargs=(self.plan, self.folder),
        )
        try:
            given = {
                pool.submit(_work, numbers[task.case.name], task.methods, task.keep): task
                for task in self.tasks
            }
            for future in as_completed(given):
                yield given[future], future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process died",
                hint="perhaps of lack of memory; what is done is kept, take fewer --workers",
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def first_of_each(cases: Sequence[Case]) -> list[Case]:
    """The first case of each degradation."""
    return list({case.degradation: case for case in reversed(cases)}.values())[::-1]


def _attempt(task: Task, methods: Sequence[Method], metrics: Metrics, folder: Path) -> Outcome:
    outcome = attempt(task.case, [method for method in methods if method.name in task.methods], metrics)
    if task.keep and isinstance(outcome, Measured):
        keep_pictures(folder, task.case, outcome.pictures)
    return outcome


# ---- inside a worker process: built once, used for every photo


@dataclass(frozen=True, kw_only=True)
class _Bench:
    cases: list[Case]
    methods: list[Method]
    metrics: Metrics
    folder: Path


_bench: list[_Bench] = []


def _prepare(plan: Plan, folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the run
    _one_thread()
    metrics, _ = plan.load_metrics()
    _bench.append(_Bench(cases=plan.cases(), methods=plan.methods(threads=1), metrics=metrics, folder=folder))


def _one_thread() -> None:
    """One thread for each library that is loaded or may be: the processes share the cores already."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)


def _work(number: int, methods: tuple[str, ...], keep: bool) -> Outcome:
    bench = _bench[0]
    task = Task(case=bench.cases[number], methods=methods, keep=keep)
    outcome = _attempt(task, bench.methods, bench.metrics, bench.folder)
    if isinstance(outcome, Measured):  # the size is all that is asked of the pictures
        outcome = Measured(
            measurements=outcome.measurements,
            pictures={"input": outcome.pictures["input"]},
            features=outcome.features,
            error=outcome.error,
        )
    return outcome
