"""Speed of the ten degradations on one core, and how they compare with real pairs.

python benchmarks/degradations.py                      crops of 256 x 256 per second
python benchmarks/degradations.py --against PAIRS      statistics beside those of PAIRS/<name>/{LQ,GT}
python benchmarks/degradations.py --sheet FILE         a picture of all of them at three severities
python benchmarks/degradations.py --against PAIRS --sheet FILE   real ones beside ours
"""

import argparse
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import skimage.data

from daclip.degradations import degrade, to_linear, wild, wild_ir
from daclip.image import read
from daclip.vocabulary import DEGRADATIONS


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = models[0] if models else platform.processor() or platform.machine()
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}, OpenCV {cv2.__version__}"
    return f"one core of {cpu}, {versions}"


def crops() -> list[np.ndarray]:
    photos = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea(), skimage.data.rocket()]
    corners = ((0, 0), (40, 180))
    return [photo[y : y + 256, x : x + 256].astype(np.float32) / 255 for photo in photos for y, x in corners]


def seconds(draw, rounds: int) -> float:
    patches = crops()
    draw(patches[0], np.random.default_rng(0))
    started = time.process_time()
    for seed in range(rounds):
        for i, patch in enumerate(patches):
            draw(patch, np.random.default_rng([seed, i]))
    return (time.process_time() - started) / (rounds * len(patches))


def speed(rounds: int) -> None:
    """Every degradation at severities spread evenly over 0.12 to 1."""
    print(f"256 x 256 crops; {machine()}\n\n| degradation | ms per crop | crops per second |\n|---|---|---|")
    times: list[float] = []
    for name in DEGRADATIONS:

        def draw(patch: np.ndarray, rng: np.random.Generator, name: str = name) -> None:
            degrade(patch, name, severity=float(rng.uniform(0.12, 1)), rng=rng)

        times.append(seconds(draw, rounds))
        print(f"| {name} | {1000 * times[-1]:.1f} | {1 / times[-1]:.0f} |")
    mean = sum(times) / len(times)
    print(f"| **mean of the ten** | **{1000 * mean:.1f}** | **{1 / mean:.0f}** |")
    for name, draw in (("wild, as training draws", wild), ("wild-IR", wild_ir)):
        print(f"| {name} | {1000 * (t := seconds(draw, rounds)):.1f} | {1 / t:.0f} |")


def pairs(root: Path, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for path in sorted((root / name / "LQ").iterdir()):
        both = [read(p) for p in (path, next((root / name / "GT").glob(f"{path.stem}.*")))]
        degraded, clean = (photo.crop(0, 0, photo.height, photo.width) for photo in both)
        yield degraded, clean


def statistics(degraded: np.ndarray, clean: np.ndarray) -> dict[str, float]:
    """How a degraded photo differs from the clean one, in figures.

    Brightness and blue/red are ratios of mean linear light; gradient is the ratio of mean steps between
    neighbours; noise is the deviation in levels by Immerkaer 1996; changed is the share of pixels that
    differ by more than 8 levels.
    """
    light, truth = to_linear(degraded), to_linear(clean)
    gain = light.mean((0, 1)) / np.maximum(truth.mean((0, 1)), 1e-6)
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    noise = np.median(np.abs(cv2.filter2D(degraded.mean(2) * 255, -1, kernel))) / 0.6745 / 6
    slope = [
        np.abs(np.diff(p.mean(2), axis=0)).mean() + np.abs(np.diff(p.mean(2), axis=1)).mean()
        for p in (degraded, clean)
    ]
    residual = degraded - clean
    return {
        "PSNR": float(-10 * np.log10(max(float((residual**2).mean()), 1e-10))),
        "brightness": float(gain.mean()),
        "gradient": float(slope[0] / max(slope[1], 1e-6)),
        "noise": float(noise),
        "blue/red": float(gain[2] / max(gain[0], 1e-6)),
        "changed": float((np.abs(residual).max(2) > 8 / 255).mean()),
    }


COMPARED = {
    "jpeg-compressed": (0.46, 0.54, 0.61, 0.77),  # quality 25, 20, 16, 10
    "low-light": (0.7, 0.8, 0.9, 1.0),
    "noisy": (0.12, 0.18, 0.24, 0.3),
}
"""Severities about as heavy as the real pairs, where those are not spread over 0.4 to 1."""


def realism(root: Path) -> None:
    """Real degraded photos beside our degradation of the same clean ones: median (10 % to 90 %)."""
    columns = list(statistics(*(np.full((8, 8, 3), 0.5, np.float32),) * 2))
    print(f"| degradation | photos | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 2)}")
    for name in DEGRADATIONS:
        real, ours = [], []
        for i, (degraded, clean) in enumerate(pairs(root, name)):
            real.append(statistics(degraded, clean))
            for k, severity in enumerate(COMPARED.get(name, (0.4, 0.6, 0.8, 1.0))):
                for attempt in range(20):
                    made = degrade(clean, name, severity=severity, rng=np.random.default_rng([i, k, attempt]))
                    # the real noise is that of cameras
                    if name != "noisy" or made.record["parts"][0]["parameters"]["kind"] == "camera":
                        break
                ours.append(statistics(made.pixels, clean))
        for who, rows in (("real", real), ("ours", ours)):
            cells = []
            for column in columns:
                low, middle, high = np.quantile([row[column] for row in rows], [0.1, 0.5, 0.9])
                cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
            print(f"| {name} | {who}, {len(rows)} | {' | '.join(cells)} |")


def sheet(path: Path, severities: tuple[float, ...] = (0.3, 0.6, 1.0), side: int = 144) -> None:
    """Five rows of two degradations each: the clean photo (public domain or CC0) and three severities."""
    photos = [skimage.data.astronaut()[:400, 40:440], skimage.data.coffee()[:400, 100:500]]
    photos += [skimage.data.chelsea()[:300, 80:380], skimage.data.rocket()[:, 100:527]]
    tiles: list[np.ndarray] = []
    for i, name in enumerate(DEGRADATIONS):
        clean = cv2.resize(photos[3 * i % 4], (side, side), interpolation=cv2.INTER_AREA)
        clean = clean.astype(np.float32) / 255
        made = [
            degrade(clean, name, severity=s, rng=np.random.default_rng([7, i])).pixels for s in severities
        ]
        row = np.round(np.hstack([clean, *made]) * 255).astype(np.uint8)
        tile = np.full((side + 20, row.shape[1] + 8, 3), 255, np.uint8)
        tile[20:, :-8] = row
        label = f"{name}: clean, severity {', '.join(map(str, severities))}"
        cv2.putText(tile, label, (2, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
        tiles.append(tile)
    page = np.vstack([np.hstack(tiles[i : i + 2]) for i in range(0, len(tiles), 2)])
    cv2.imwrite(str(path), page[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])


def real_sheet(root: Path, path: Path, *, rows: int = 2, side: int = 192) -> None:
    """For each degradation up to two real pairs: clean, real, and ours at two severities about as heavy."""
    lines: list[np.ndarray] = []
    for i, name in enumerate(DEGRADATIONS):
        for k, (degraded, clean) in enumerate(list(pairs(root, name))[:: max(1, rows)][:rows]):
            severities = COMPARED.get(name, (0.4, 0.6, 0.8, 1.0))[1::2]
            rng = np.random.default_rng([7, i, k])
            made = [degrade(clean, name, severity=each, rng=rng).pixels for each in severities]
            # cut and not shrunk, so that noise, blocks and streaks are seen as they are
            top, left = (max(0, (size - side) // 2) for size in clean.shape[:2])
            cuts = [np.zeros((side, side, 3), np.float32) for _ in range(4)]
            for cut, pixels in zip(cuts, (clean, degraded, *made), strict=True):
                part = pixels[top : top + side, left : left + side]
                cut[: part.shape[0], : part.shape[1]] = part
            line = np.full((side + 18, 4 * side, 3), 255, np.uint8)
            line[18:] = np.round(np.hstack(cuts) * 255)
            label = f"{name}: clean, real, ours {severities[0]} and {severities[1]}"
            cv2.putText(line, label, (2, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
            lines.append(line)
    lines += [np.full_like(lines[0], 255)] * (len(lines) % 2)
    page = np.vstack([np.hstack(lines[i : i + 2]) for i in range(0, len(lines), 2)])
    cv2.imwrite(str(path), page[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", type=Path, help="folder of real pairs")
    parser.add_argument("--sheet", type=Path, help="PNG file to write; with --against real and ours")
    parser.add_argument("--rounds", type=int, default=6)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    if given.against and given.sheet:
        real_sheet(given.against, given.sheet)
    elif given.against:
        realism(given.against)
    elif given.sheet:
        sheet(given.sheet)
    else:
        speed(given.rounds)
