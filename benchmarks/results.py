"""docs/results.md: the bundled models on photos that nobody trained on.

    python benchmarks/results.py ../shared/data > docs/results.md
    python benchmarks/results.py ../shared/data --limit 1 --plots /tmp/plots    a quick look

DATA holds tests/cbsd68, tests/live1 (the usual test sets), pairs/<degradation>/{LQ,GT} and weights/ (LPIPS).
Every table is made by the commands printed above it, word for word, the last ones by benchmarks/restore.py.
What is measured stays in the folder --runs, and several tables are told from it; stopped, the script goes on
there. Remove that folder to measure other weights. Run it in the folder that holds docs/ and benchmarks/.
"""

import argparse
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_BOTH = "--model compact --model compact-sde"
_METRICS = "--metrics psnr,ssim,lpips --metric-weights {data}/weights"
_PAPER = f"--model compact --settings paper {_METRICS}"

RUNS = {
    "wild": f"{_BOTH} --photos {{data}}/tests/cbsd68 --severity 0.7 --limit {{few}} --keep {_METRICS}",
    "pairs": f"--model compact --peer classics --data {{data}}/pairs {_METRICS}",
    "paper": f"{_PAPER} --photos {{data}}/tests/cbsd68 --limit {{few}} --protocol rgb-crop4",
    "noisy": f"{_PAPER} --photos {{data}}/tests/cbsd68 --only noisy",
    "jpeg": f"{_PAPER} --photos {{data}}/tests/live1 --only jpeg-compressed",
    "clean": f"{_BOTH} --photos {{data}}/tests/cbsd68 --only clean {_METRICS}",
}
"""What is measured, by the name of its folder."""

_SHEET = "best_median_worst.jpg"


@dataclass(frozen=True)
class Section:
    """A table: its heading, the runs it is of, how it is told, whether plots or a sheet are drawn of it."""

    title: str
    runs: tuple[str, ...]
    told: str = ""
    has_plots: bool = False
    has_sheet: bool = False


SECTIONS = (
    Section("Photos of CBSD68, degraded by this project at severity 0.7", ("wild",), has_sheet=True),
    Section("Pairs of others: real or benchmark degradations", ("pairs",)),
    Section("Degraded and measured as in the paper", ("paper",)),
    Section("The same in the layout of the paper's Table 3", ("paper",), "--table unified"),
    Section("CBSD68, sigma 50, stored as 8 bits", ("noisy",)),
    Section("LIVE1, JPEG quality 10", ("jpeg",)),
    Section("Clean photos in", ("clean",)),
    Section("What was said of the photos of severity 0.7 and of clean ones", ("wild", "clean"),
            "--table words", has_plots=True),
)  # fmt: skip

INTRODUCTION = """# Results

Made by `python benchmarks/results.py {data} > docs/results.md`: each table by the commands above it.
Nothing here was trained on. Three things were chosen with some of these photos in sight: the times of the
calls of `compact-sde`, how sure darkness must be to be treated, and the share of older weights in `compact`
(docs/decisions.md). CBSD68 and LIVE1 are
the usual test sets; the pairs are public demo pairs of other projects (`{data}` is where this project's test
photos lie; use your own copies). `compact` is faithful, `compact-sde` realistic; `classics` are methods of
OpenCV, told what is wrong: non-local means for noise, the dark channel for haze, CLAHE for darkness, Telea's
inpainting for holes, nothing for the rest. `identity` leaves the photo as it is. Gains are of PSNR in dB,
with 95 % intervals.
"""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where test data, run folders and plots lie, and how many photos of each degradation are enough."""

    data: str
    runs: str
    plots: str
    limit: int | None

    def measure(self, run: str) -> list[str]:
        """The command that measures a run; run again, it does what is missing."""
        words = shlex.split(RUNS[run].format(data=self.data, few=self.limit or 8))
        if self.limit is not None and "--limit" not in words:
            words += ["--limit", str(self.limit)]
        return ["daclip", "evaluate", *words, "--output", f"{self.runs}/{run}", "--workers", "2", "--quiet"]

    def tell(self, section: Section) -> list[str]:
        """The command that prints the table of a section."""
        plots = ["--plots", self.plots] if section.has_plots else []
        plots += ["--sheet", f"{self.plots}/{_SHEET}", "--spread"] if section.has_sheet else []
        folders = [f"{self.runs}/{run}" for run in section.runs]
        told = [*shlex.split(section.told), *plots, "--format", "markdown", "--quiet"]
        return ["daclip", "evaluate", *folders, *told]


def printed(words: list[str]) -> str:
    """What a command prints."""
    own = {"daclip": ["-m", "daclip"], "python": []}[words[0]]
    done = subprocess.run([sys.executable, *own, *words[1:]], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


def write_section(section: Section, places: Places, measured: set[str]) -> None:
    """A heading, its commands, what they print, and the pictures they draw."""
    commands = [places.measure(run) for run in section.runs if run not in measured]
    for command in commands:
        printed(command)
    Path(places.plots).mkdir(parents=True, exist_ok=True)
    measured |= {*section.runs}
    table = printed(places.tell(section))
    shown = "\n".join(map(shlex.join, [*commands, places.tell(section)]))
    table = table.rpartition("\n\n")[0]  # the last paragraph is the command once more
    print(f"## {section.title}\n\n```sh\n{shown}\n```\n\n{table}\n", flush=True)
    folder = Path(places.plots)
    if section.has_sheet:
        print(f"![best, median and worst photo of each]({folder.name}/{_SHEET})\n", flush=True)
    if section.has_plots:
        for path in sorted(folder.glob("*.svg")):
            print(f"![{path.stem}]({folder.name}/{path.name})\n", flush=True)


def main(places: Places) -> None:
    print(INTRODUCTION.format(data=places.data))
    measured: set[str] = set()
    for section in SECTIONS:
        write_section(section, places, measured)
    if places.limit is not None:
        return
    print("## Speed and memory of `daclip restore`")
    for model in ("compact", "compact-sde"):
        command = ["python", "benchmarks/restore.py", "--model", model]
        print(f"\n`{shlex.join(command)}`\n\n{printed(command)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--limit", type=int, help="photos of each degradation, for a quick look")
    parser.add_argument("--runs", default="runs/results", help="folder of what was measured")
    parser.add_argument("--plots", default="docs/results", help="folder of the pictures")
    main(Places(**vars(parser.parse_args())))
