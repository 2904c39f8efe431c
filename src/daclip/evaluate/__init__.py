"""`daclip evaluate`, `daclip score`: restorers on photos whose clean version is known, as honest tables."""

from daclip.evaluate.run import (
    Answer,
    Case,
    Measurement,
    Method,
    data_sha256,
    evaluate,
    metric_functions,
    pairs,
    restorer_method,
    scores,
)
from daclip.evaluate.sheet import Panel, draw
from daclip.evaluate.tables import FORMATS, Caption, Row, summarise

__all__ = [
    "FORMATS",
    "Answer",
    "Caption",
    "Case",
    "Measurement",
    "Method",
    "Panel",
    "Row",
    "data_sha256",
    "draw",
    "evaluate",
    "metric_functions",
    "pairs",
    "restorer_method",
    "scores",
    "summarise",
]
