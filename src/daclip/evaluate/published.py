"""The figures of the DA-CLIP paper's Tables 2 and 3, as reference rows beside what is measured here.

They are as printed: another machine, the complete test sets, partly the figures of the methods' own papers.
FID and LPIPS: lower is better. PAPER 4.1, 4.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from daclip.errors import UsageError
from daclip.evaluate.tables import AVERAGE, Row, Table, between, number, partial_averages
from daclip.vocabulary import DEGRADATIONS

PROTOCOL = "rgb-crop4"
"""Under which the published code measures; figures of another protocol do not belong beside it."""


@dataclass(frozen=True)
class Published:
    """One printed line."""

    method: str
    psnr: float
    ssim: float
    lpips: float
    fid: float


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """One table of the paper: its data, the degradation it tests (None: all ten), its lines, what to know."""

    number: str
    data: str
    degradation: str | None
    lines: tuple[Published, ...]
    notes: tuple[str, ...] = ()


TABLES: dict[str, PaperTable] = {
    "unified": PaperTable(
        number="Table 3",
        data="average of ten test sets",
        degradation=None,
        lines=(
            Published("NAFNet", 26.34, 0.847, 0.159, 55.68),
            Published("NAFNet + Degradation", 27.02, 0.856, 0.146, 48.27),
            Published("NAFNet + DA-CLIP", 27.22, 0.861, 0.145, 47.94),
            Published("Restormer", 26.43, 0.850, 0.157, 54.03),
            Published("AirNet", 25.62, 0.844, 0.182, 64.86),
            Published("PromptIR", 27.14, 0.859, 0.147, 48.26),
            Published("IR-SDE", 23.64, 0.754, 0.167, 49.18),
            Published("DA-CLIP", 27.01, 0.794, 0.127, 34.89),
        ),
    ),
    "rain100h": PaperTable(
        number="Table 2a",
        data="Rain100H, 100 photos",
        degradation="rainy",
        lines=(
            Published("JORDER", 26.25, 0.835, 0.197, 94.58),
            Published("PReNet", 29.46, 0.899, 0.128, 52.67),
            Published("MPRNet", 30.41, 0.891, 0.158, 61.59),
            Published("MAXIM", 30.81, 0.903, 0.133, 58.72),
            Published("IR-SDE", 31.65, 0.904, 0.047, 18.64),
            Published("DA-CLIP", 33.91, 0.926, 0.031, 11.79),
        ),
        notes=(
            "PSNR and SSIM of the others are those usually printed, of the Y channel; "
            "whether the paper's own are of RGB, as measured here, is not verified",
        ),
    ),
    "lol": PaperTable(
        number="Table 2b",
        data="LOL, 15 photos",
        degradation="low-light",
        lines=(
            Published("EnlightenGAN", 17.61, 0.653, 0.372, 94.71),
            Published("MIRNet", 24.14, 0.830, 0.250, 69.18),
            Published("URetinex-Net", 19.84, 0.824, 0.237, 52.38),
            Published("MAXIM", 23.43, 0.863, 0.098, 48.59),
            Published("IR-SDE", 20.45, 0.787, 0.129, 47.28),
            Published("DA-CLIP", 23.77, 0.830, 0.083, 34.03),
        ),
    ),
    "gopro": PaperTable(
        number="Table 2c",
        data="GoPro, 1,111 photos",
        degradation="motion-blurry",
        lines=(
            Published("DeepDeblur", 29.08, 0.913, 0.135, 15.14),
            Published("DeblurGAN", 28.70, 0.858, 0.178, 27.02),
            Published("DeblurGAN-v2", 29.55, 0.934, 0.117, 13.40),
            Published("MAXIM", 32.86, 0.940, 0.089, 11.57),
            Published("IR-SDE", 30.70, 0.901, 0.064, 6.32),
            Published("DA-CLIP", 30.88, 0.903, 0.058, 6.15),
        ),
    ),
    "reside6k": PaperTable(
        number="Table 2d",
        data="RESIDE-6k, 1,000 photos",
        degradation="hazy",
        lines=(
            Published("GCANet", 26.59, 0.935, 0.052, 11.52),
            Published("GridDehazeNet", 25.86, 0.944, 0.048, 10.62),
            Published("DehazeFormer", 30.29, 0.964, 0.045, 7.58),
            Published("MAXIM", 29.12, 0.932, 0.043, 8.12),
            Published("IR-SDE", 25.25, 0.906, 0.060, 8.33),
            Published("DA-CLIP", 30.16, 0.936, 0.030, 5.52),
        ),
    ),
}
"""Tables 2a-2d and 3 by name. `DA-CLIP` is the paper's own method."""


def beside(name: str, rows: Sequence[Row]) -> Table:
    """The table of the paper with the rows measured here under it, laid out and averaged as the paper does.

    Raises UsageError for rows of another protocol than the paper's, or without the degradation.
    """
    paper = TABLES[name]
    if other := sorted({row.protocol for row in rows} - {PROTOCOL}):
        raise UsageError(
            f"{paper.number} is of the protocol {PROTOCOL}, the rows of {other[0]}",
            hint=f"--protocol {PROTOCOL}",
        )
    wanted = paper.degradation or AVERAGE
    measured = [row for row in rows if row.degradation == wanted and row.after]
    if not measured:
        raise UsageError(f"nothing measured on {wanted} photos", hint=f"{paper.number} needs them")
    known = [metric for metric in _METRICS if any(row.intervals.get(metric) for row in measured)]
    printed = [
        (
            line.method,
            "published",
            "-",
            *_cells(line.psnr, line.ssim, line.lpips, line.fid),
            *("-" for _ in known),
        )
        for line in paper.lines
    ]
    own = [
        (
            *(row.method, "measured", str(row.scored), *_cells(*(row.after.get(key) for key in _METRICS))),
            *(between(row.intervals.get(metric), _DIGITS[metric]) for metric in known),
        )
        for row in measured
    ]
    return Table(
        title=f"{paper.number}: {paper.data}",
        head=(
            *("method", "source", "photos", *(metric.upper() for metric in _METRICS)),
            *(f"{metric.upper()} 95 %" for metric in known),
        ),
        lines=(*printed, *own),
        strong=frozenset(range(len(printed), len(printed) + len(own))),
        notes=_notes(paper, rows),
    )


_DIGITS = {"psnr": 2, "ssim": 3, "lpips": 3, "fid": 2}
"""As the paper prints them."""

_METRICS = tuple(_DIGITS)


def _cells(psnr: float | None, ssim: float | None, lpips: float | None, fid: float | None) -> tuple[str, ...]:
    return tuple(
        number(value, digits)
        for value, digits in zip((psnr, ssim, lpips, fid), _DIGITS.values(), strict=True)
    )


def _notes(paper: PaperTable, rows: Sequence[Row]) -> tuple[str, ...]:
    notes = [
        f"published rows are as printed, of {paper.data}; measured rows are of the data named above",
        *paper.notes,
        "measured LPIPS is of 8-bit photos, that of the published code of the unrounded output; "
        "the tool and size of the published FID are unknown",
    ]
    if paper.degradation is None:
        notes += partial_averages(rows, DEGRADATIONS, "degradations")
    return tuple(notes)
