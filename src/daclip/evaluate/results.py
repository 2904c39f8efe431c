"""The results of an evaluation in every form: text, Markdown, CSV, JSON, LaTeX, one HTML page."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from daclip.errors import UsageError
from daclip.evaluate import classification, page, published, tables
from daclip.evaluate.classification import Classification
from daclip.evaluate.measure import Measurement, plain
from daclip.evaluate.sheet import Panel
from daclip.evaluate.tables import Caption, FeatureTable, Row, Table

SCHEMA = "daclip.evaluate/2"

ROWS, WORDS = "rows", "words"
TABLES = (ROWS, WORDS, *published.TABLES)
"""What can be shown: all rows, what was said of the photos, or a table of the paper."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything an evaluation has found; `shown` is the table to tell, one of TABLES."""

    measurements: Sequence[Measurement]
    rows: Sequence[Row]
    caption: Caption
    shown: str = ROWS
    panels: Sequence[Panel] = ()

    @property
    def classifications(self) -> list[Classification]:
        """What each method said that says anything."""
        return classification.of_measurements(self.measurements)

    def table(self) -> Table:
        """The table to tell. Raises UsageError where the measurements do not give it."""
        if self.shown == ROWS:
            return tables.table(self.rows)
        if self.shown == WORDS:
            if not self.classifications:
                raise UsageError(
                    "nobody said what is wrong with photos of which it is known",
                    hint="--table words needs a --model, and photos in folders of their degradation",
                )
            return classification.table(self.classifications)
        return published.beside(self.shown, self.rows)


def results(
    measurements: Sequence[Measurement],
    features: FeatureTable,
    caption: Caption,
    *,
    shown: str = ROWS,
    panels: Sequence[Panel] = (),
) -> Results:
    """The results of some measurements, in the order of the methods."""
    rows = tables.summarise(measurements, features)
    return Results(measurements=measurements, rows=rows, caption=caption, shown=shown, panels=panels)


def _in_layout(layout: str) -> Callable[[Results], str]:
    def told(given: Results) -> str:
        table = given.table()
        return tables.LAYOUTS[layout](table, given.caption.lines(intervals=table.has_intervals))

    return told


def comma_separated(given: Results) -> str:
    """CSV: rows in full precision, other tables as they are told."""
    if given.shown == ROWS:
        return tables.exact_rows(given.rows, given.caption)
    return _in_layout("csv")(given)


def as_json(given: Results) -> str:
    """Everything, photo by photo too; a PSNR of a photo equal to its truth is null."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        **asdict(given.caption),
        "rows": [asdict(row) for row in given.rows],
        "classification": [_classification(one) for one in given.classifications],
        "measurements": [
            asdict(one) | {"before": plain(one.before), "after": plain(one.after)}
            for one in given.measurements
        ],
    }
    if given.shown in published.TABLES:
        given.table()  # it refuses what does not belong together
        document["published"] = asdict(published.TABLES[given.shown])
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)


def _classification(one: Classification) -> dict[str, Any]:
    return {
        "name": one.name,
        "words": one.words,
        "answers": one.answers,
        "confusion": one.confusion.tolist(),
        "accuracy": one.accuracy,
        "mean_accuracy": one.mean_accuracy,
        "calibration_error": one.calibration_error,
    }


def html(given: Results) -> str:
    """One page with tables, plots and pictures, and nothing outside it."""
    shown = [] if given.shown in (ROWS, WORDS) else [given.table()]
    said = given.classifications
    return page.page(
        title="Evaluation",
        facts=given.caption.lines(),
        tables=[*shown, tables.table(given.rows), *([classification.table(said)] if said else [])],
        figures=page.figures_of(given.rows, said),
        panels=given.panels,
    )


FORMATS: dict[str, Callable[[Results], str]] = {
    "text": _in_layout("text"),
    "markdown": _in_layout("markdown"),
    "csv": comma_separated,
    "json": as_json,
    "latex": _in_layout("latex"),
    "html": html,
}


def write_plots(given: Results, folder: Path) -> list[Path]:
    """Bars and radar plot of each metric, and the confusion matrices, as SVG files (extra [plots])."""
    from daclip.evaluate import plots

    folder.mkdir(parents=True, exist_ok=True)
    figures = plots.of_results(given.rows, given.classifications)
    return [plots.write(figure, folder / f"{name}.svg") for name, figure in figures.items()]
