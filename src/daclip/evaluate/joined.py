"""Run folders of `daclip evaluate`, read back and joined: what several runs have found, in one table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from daclip.errors import DataError, UsageError
from daclip.evaluate.run import Findings, found_in, picture_path, told
from daclip.evaluate.tables import Caption


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Several runs as one.

    Args:
        findings: what they found.
        caption: where it is from.
        shown: the first photo of each degradation, with its degradation: of these the runs keep pictures.
        folders: of the runs.
    """

    findings: Findings
    caption: Caption
    shown: Mapping[str, str]
    folders: tuple[Path, ...]

    def picture(self, name: str, photo: str) -> Path:
        """Where input, truth or a method's picture of a photo is kept, in the first run that kept it."""
        places = [picture_path(folder, name, photo) for folder in self.folders]
        return next((place for place in places if place.is_file()), places[0])


def join(folders: Sequence[Path], *, command: str) -> Joined:
    """The runs as if they were one: other methods on the same photos, or other degradations.

    A method that two of them have measured on a photo counts once. Raises UsageError where their figures do
    not belong into one table: where settings other than the data differ, where a degradation was measured on
    other photos, or where a method has other weights; DataError for a folder without a finished run.
    """
    runs = [_read(folder) for folder in dict.fromkeys(folders)]
    for first, second in combinations(runs, 2):
        _check(first, second)
    findings = Findings()
    done: set[tuple[str, str]] = set()
    for run in runs:
        new = [one for one in run.findings.measurements if (one.photo, one.method) not in done]
        done |= {(one.photo, one.method) for one in new}
        findings.measurements += new
        findings.features |= run.findings.features
    firsts = {name: next(iter(photos)) for run in reversed(runs) for name, photos in run.photos.items()}
    shown = {photo: name for name, photo in firsts.items()}
    return Joined(findings=findings, caption=_caption(runs, command), shown=shown, folders=tuple(folders))


@dataclass(frozen=True, kw_only=True)
class _Finished:
    """A run folder, read."""

    folder: Path
    settings: Mapping[str, Any]
    caption: Caption
    findings: Findings
    photos: Mapping[str, Mapping[str, str]]
    """The hash of each photo by degradation and name, in the order of the run."""


def _read(folder: Path) -> _Finished:
    try:
        settings, caption = (
            json.loads((folder / name).read_text(encoding="utf-8"))
            for name in ("settings.json", "caption.json")
        )
        stamps: dict[str, str] = caption.pop("photos")
        found = Caption(**caption)
        findings = found_in(folder, stamps, found.weights)
        degradations = {one.photo: one.degradation for one in findings.measurements}
        photos: dict[str, dict[str, str]] = {}
        for photo, stamp in stamps.items():
            photos.setdefault(degradations[photo], {})[photo] = stamp
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{folder}: no finished run of `daclip evaluate`",
            hint="name its --output folder, or give its command again to end it",
        ) from error
    return _Finished(folder=folder, settings=settings, caption=found, findings=findings, photos=photos)


_DATA = ("data", "photos", "weights")
_MAKING = ("settings", "severity", "seed")
"""Settings of photos degraded on the fly; they say nothing of pairs."""


def _check(first: _Finished, second: _Finished) -> None:
    """Raise UsageError unless the two may stand in one table."""
    both = f"{first.folder} and {second.folder}"
    ignored = _DATA if first.settings["photos"] and second.settings["photos"] else (*_DATA, *_MAKING)
    for name in dict.fromkeys((*first.settings, *second.settings)):
        values = [run.settings.get(name) for run in (first, second)]
        if name not in ignored and values[0] != values[1]:
            raise UsageError(
                f"{both} were measured with another {name} ({' and '.join(map(told, values))})",
                hint="join runs of the same settings",
            )
    for method, weights in first.caption.weights.items():
        if (other := second.caption.weights.get(method, weights)) != weights:
            raise UsageError(
                f"{both}: {method} has other weights ({weights} and {other})",
                hint="measure it with the same ones",
            )
    for degradation, photos in first.photos.items():
        others = second.photos.get(degradation, photos)
        if others != photos:
            raise UsageError(
                f"{both} were measured on other {degradation} photos ({len(photos)} and {len(others)})",
                hint="join runs of the same photos of each degradation",
            )


def _caption(runs: Sequence[_Finished], command: str) -> Caption:
    captions = [run.caption for run in runs]
    weights: dict[str, str] = {}
    for one in captions:
        weights |= one.weights
    return Caption(
        protocol=captions[0].protocol,
        data=" and ".join(dict.fromkeys(one.data for one in captions)),
        data_sha256=" and ".join(dict.fromkeys(one.data_sha256 for one in captions)),
        weights=weights,
        metric_weights=captions[0].metric_weights,
        command=command,
        version=captions[0].version,
        seconds=round(sum(one.seconds for one in captions), 1),
        peak_mb=max(one.peak_mb for one in captions),
        parts={str(run.folder): run.caption for run in runs},
    )
