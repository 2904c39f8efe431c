"""`daclip evaluate`, `daclip score`, `daclip analyse`: restorers on photos whose clean version is known.

`run.Plan` says what is measured, `run.Run` measures it, `joined.join` reads finished runs back, `results`
tells it. `synthetic` (extra [data]), `plots` (extra [plots]) and `analysis` (extra [torch]) are imported by
their names.
"""

from daclip.evaluate.cases import Case, data_sha256, files_sha256, pairs
from daclip.evaluate.joined import Joined, join
from daclip.evaluate.measure import Measurement, Metrics, evaluate, load_metrics, peak_megabytes, scores
from daclip.evaluate.peers import Answer, Method, restorer_method
from daclip.evaluate.results import FORMATS, TABLES, Results, results, write_plots
from daclip.evaluate.run import Findings, Plan, Run, picture_path
from daclip.evaluate.sheet import Panel, best_median_worst, draw
from daclip.evaluate.tables import Caption, Row, summarise

__all__ = [
    "FORMATS",
    "TABLES",
    "Answer",
    "Caption",
    "Case",
    "Findings",
    "Joined",
    "Measurement",
    "Method",
    "Metrics",
    "Panel",
    "Plan",
    "Results",
    "Row",
    "Run",
    "best_median_worst",
    "data_sha256",
    "draw",
    "evaluate",
    "files_sha256",
    "join",
    "load_metrics",
    "pairs",
    "peak_megabytes",
    "picture_path",
    "restorer_method",
    "results",
    "scores",
    "summarise",
    "write_plots",
]
