"""(a), (b), (c): training curves."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from daclip.errors import DataError, UsageError
from daclip.evaluate import plots
from daclip.evaluate.analysis.subject import (
    Study,
    Subject,
)
from daclip.evaluate.tables import (
    Table,
    order,
)
from daclip.vocabulary import CLEAN


def curves(subject: Subject) -> Study:
    """Loss and validation figures of training runs against their steps."""
    if not subject.trained:
        raise UsageError("the study curves without runs", hint="name folders of training runs")
    names = _short_names(subject.trained)
    logs = {names[run]: read_log(run / "log.jsonl") for run in subject.trained}
    lines: list[tuple[str, ...]] = []
    drawn: dict[str, dict[str, plots.Curve]] = {}
    for name, log in logs.items():
        losses = [(line["step"], line["loss"]) for line in log if "loss" in line]
        drawn.setdefault("loss", {})[name] = _smooth(losses)
        checks = [(line["step"], line["val"]) for line in log if "val" in line and "step" in line]
        for key in {key for _, found in checks for key in found if "/" not in key}:
            points = [(step, found[key]) for step, found in checks if key in found]
            drawn.setdefault(key, {})[name] = ([p[0] for p in points], [p[1] for p in points])
        last = max((line["step"] for line in log if "step" in line), default=0)
        final = {key: value for key, value in (checks[-1][1] if checks else {}).items() if "/" not in key}
        told = ", ".join(f"{key} {value:.3f}" for key, value in sorted(final.items())) or "-"
        lines.append((name, str(last), f"{losses[-1][1]:.3f}" if losses else "-", told))
    head = ("run", "steps", "last loss", "last validation")
    return Study(
        title="Training curves",
        words="From the logs of training runs; losses averaged over 20 lines. Another loss shows as a jump. "
        "Validations compare between runs of the same data, seed and `validate_regions`.",
        tables=(Table(head=head, lines=tuple(lines), words=1), *_last_gains(logs)),
        figures={
            f"curves-{key}": plots.curves(found, x="step", y=key) for key, found in sorted(drawn.items())
        },
    )


def _last_gains(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[Table, ...]:
    """What restorers won at their last validation, by degradation; no table where none was trained."""
    last = {name: [line["val"] for line in log if "val" in line][-1:] for name, log in logs.items()}
    known = {name: found[0] for name, found in last.items() if found and "gain" in found[0]}
    pairs = {name: [key[6:] for key in found if key.startswith("input/")] for name, found in known.items()}
    names = sorted({word for words in pairs.values() for word in words if word != CLEAN}, key=order)
    if not names:
        return ()
    lines = [
        (
            name,
            *(
                f"{found[f'psnr/{word}'] - found[f'input/{word}']:+.2f}" if word in pairs[name] else "-"
                for word in names
            ),
            f"{found['gain']:+.2f}",
        )
        for name, found in known.items()
    ]
    title = "Gain in PSNR at the last validation, dB"
    return (Table(title=title, head=("run", *names, "mean"), lines=tuple(lines), words=1),)


def _short_names(runs: Sequence[Path]) -> dict[Path, str]:
    names = [run.resolve().name for run in runs]
    return {run: name if names.count(name) == 1 else str(run) for run, name in zip(runs, names, strict=True)}


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a training log; steps done again after an interruption count once, the later ones."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror})",
            hint="name folders of `daclip train` or `daclip evaluate`",
        ) from error
    found: dict[tuple[Any, bool], dict[str, Any]] = {}
    for line in lines:
        try:
            figures: Any = json.loads(line)
        except ValueError:  # a full disk may have cut it
            continue
        found[figures.get("step"), "val" in figures] = figures
    return list(found.values())


def _smooth(pairs: Sequence[tuple[int | float, int | float]], *, over: int = 20) -> plots.Curve:
    values = [value for _, value in pairs]
    return [step for step, _ in pairs], [
        fmean(values[max(0, position - over + 1) : position + 1]) for position in range(len(values))
    ]
