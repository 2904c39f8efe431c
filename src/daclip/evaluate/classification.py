"""How well a method says what is wrong: top-1, confusion matrix, calibration (the paper's Figure 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from daclip.evaluate.cases import UNKNOWN
from daclip.evaluate.measure import Measurement
from daclip.evaluate.tables import Table, order, share


@dataclass(frozen=True, kw_only=True)
class Classification:
    """What was said of photos of which one knows what is wrong.

    Args:
        words: that are true of some photos.
        answers: that were given or could have been.
        confusion: how often each answer was the likeliest (columns) for each true word (rows).
        calibration_error: expected distance of the likeliest word's probability from how often it is right.
    """

    name: str
    words: tuple[str, ...]
    answers: tuple[str, ...]
    confusion: Int[np.ndarray, "k m"]
    calibration_error: float

    @property
    def accuracy(self) -> dict[str, float]:
        """Top-1 for each true word; 0 for one the method has no answer for."""
        right = {
            word: int(self.confusion[row, self.answers.index(word)]) if word in self.answers else 0
            for row, word in enumerate(self.words)
        }
        return {word: right[word] / int(self.confusion[row].sum()) for row, word in enumerate(self.words)}

    @property
    def mean_accuracy(self) -> float:
        """Top-1, words weighed alike."""
        return float(np.mean(list(self.accuracy.values())))


def classify(name: str, said: Sequence[tuple[str, Mapping[str, float]]]) -> Classification:
    """The figures of a list of (true word, probabilities); not of an empty one."""
    words = tuple(sorted({word for word, _ in said}, key=order))
    answers = tuple(sorted({answer for _, known in said for answer in known}, key=order))
    confusion = np.zeros((len(words), len(answers)), np.int64)
    confidences: list[float] = []
    is_right: list[bool] = []
    for word, known in said:
        answer = max(known, key=known.__getitem__)
        confusion[words.index(word), answers.index(answer)] += 1
        confidences.append(known[answer])
        is_right.append(answer == word)
    return Classification(
        name=name,
        words=words,
        answers=answers,
        confusion=confusion,
        calibration_error=calibration_error(confidences, is_right),
    )


def calibration_error(confidences: Sequence[float], is_right: Sequence[bool], *, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017): |share right - mean confidence|, over equal bins.

    >>> round(calibration_error([0.9, 0.9, 0.9, 0.9], [True, True, True, False]), 3)
    0.15
    """
    sure, right = np.asarray(confidences, np.float64), np.asarray(is_right, np.float64)
    bin_of = np.minimum((sure * bins).astype(int), bins - 1)
    return float(
        sum(
            abs(float(right[bin_of == one].sum() - sure[bin_of == one].sum())) / len(sure)
            for one in np.unique(bin_of)
        )
    )


def of_measurements(measurements: Sequence[Measurement]) -> list[Classification]:
    """What each method said that says anything, of photos of which one knows what is wrong."""
    found: list[Classification] = []
    for method in dict.fromkeys(one.method for one in measurements):
        said = [
            (one.degradation, one.probabilities)
            for one in measurements
            if one.method == method and one.probabilities and one.degradation != UNKNOWN
        ]
        if said:
            found.append(classify(method, said))
    return found


def table(classifications: Sequence[Classification]) -> Table:
    """Confusion matrices under each other: a row for each true word, a column for each answer."""
    answers = sorted({answer for one in classifications for answer in one.answers}, key=order)
    lines: list[tuple[str, ...]] = []
    notes: list[str] = []
    for one in classifications:
        for row, word in enumerate(one.words):
            counts = dict(zip(one.answers, one.confusion[row].tolist(), strict=True))
            cells = [str(counts[answer]) if counts.get(answer) else "." for answer in answers]
            lines.append((one.name, word, *cells, share(one.accuracy[word])))
        notes.append(
            f"{one.name}: top-1 {one.mean_accuracy:.1%}, words weighed alike; "
            f"expected calibration error {one.calibration_error:.3f}"
        )
    return Table(
        title="What is wrong (rows) and what was said (columns)",
        head=("method", "true", *answers, "top-1"),
        lines=tuple(lines),
        notes=tuple(notes),
    )
