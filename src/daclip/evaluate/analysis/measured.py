"""What `daclip evaluate` has measured."""

from daclip.errors import UsageError
from daclip.evaluate import classification, plots
from daclip.evaluate.analysis.subject import Study, Subject
from daclip.evaluate.tables import (
    summarise,
    table,
)


def results(subject: Subject) -> Study:
    """Tables, bars, radar plots and confusion matrices of finished runs of `daclip evaluate`."""
    if len(subject.trained) == len(subject.runs):
        raise UsageError("the study results without runs", hint="name --output folders of daclip evaluate")
    found = subject.joined.findings
    rows = summarise(found.measurements, found.features)
    said = classification.of_measurements(found.measurements)
    return Study(
        title="Restorers, degradation by degradation",
        words="From the measurements of finished runs. `gain` is of PSNR, in dB.",
        tables=(table(rows), *([classification.table(said)] if said else [])),
        figures={f"results-{name}": figure for name, figure in plots.of_results(rows, said).items()},
    )
