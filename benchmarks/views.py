"""What small views, as in training, cost beside those of 224 pixels that the encoder sees in use.

python benchmarks/views.py PHOTOS [--model compact] [--sides 144] [--count 200]

Regions of 256 x 256 pixels of photos that training holds out, degraded as training degrades them, one kind a
region, a tenth clean. Each is seen shrunk as a whole and by its middle in its own scale, as `tiling.views`
has it. Printed for each side and kind of view: cosine with the same kind of view at 224, length beside its,
how often the likeliest word is the right one, and the gain in dB of a restorer of one pass that is told this
view alone, and the tone of the region (degraded regions only).
"""

import argparse
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from daclip import checkpoints, image, models, tiling
from daclip.data import CleanPhotos, open_data
from daclip.detect import unit
from daclip.vocabulary import CLEAN

USED = 224

Seen = tuple[np.ndarray, np.ndarray, float]
"""Content and degradation embeddings of some views, and the gain of a restorer that is told them."""


def planes(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32))


@torch.inference_mode()
def told(
    folder: models.ModelFolder, model: checkpoints.Model, views: np.ndarray, degraded: Tensor, clean: Tensor
) -> Seen:
    """What the model makes of regions, one view of each."""
    config = folder.encoder_config
    found = model.daclip.encode(planes((views - config.mean) / config.std))
    content = found.content
    if model.network is None:
        return content.numpy(), found.degradation.numpy(), 0.0
    if (model.config.network or {}).get("tone"):
        regions = degraded.permute(0, 2, 3, 1).numpy()
        tones = np.concatenate([tiling.tone(region[None]) for region in regions])
        content = torch.cat([content, torch.from_numpy(tones).to(content)], dim=1)
    parts = [each.split(8) for each in (degraded, content, found.degradation)]
    restored = torch.cat([model.network(*part) for part in zip(*parts, strict=True)]).clamp(0, 1)
    before, after = (((each - clean) ** 2).mean((1, 2, 3)) for each in (degraded, restored))
    gain = 10 * (before / after).log10()
    return found.content.numpy(), found.degradation.numpy(), gain[before > 1e-6].mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos")
    parser.add_argument("--model", default="compact")
    parser.add_argument("--sides", type=int, nargs="+", default=[144])
    parser.add_argument("--count", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = models.find(args.model)
    model, texts = checkpoints.load(folder), folder.texts
    data = open_data(args.photos, split="val", region=256, seed=1)
    assert isinstance(data, CleanPhotos)
    data = replace(data, clean_share=0.1, mixture_share=0.0)
    drawn = [data.draw(index) for index in range(args.count)]
    truth = np.array([texts.names.index((sample.names or (CLEAN,))[0]) for sample in drawn])
    degraded, clean = (
        planes(np.stack(pixels) / 255)
        for pixels in zip(*((sample.degraded, sample.clean) for sample in drawn), strict=True)
    )
    found: dict[tuple[int, str], Seen] = {}
    for side in (USED, *args.sides):
        both = [tiling.views(image.from_array(sample.degraded), side, crops=1) for sample in drawn]
        for i, kind in enumerate(("whole", "middle")):
            found[side, kind] = told(folder, model, np.stack([views[i] for views in both]), degraded, clean)
    print("| view | | content: cosine | length | degradation: cosine | length | top-1 | gain |")
    print("|---|---|---|---|---|---|---|---|")
    for (side, kind), own in found.items():
        cells = [f"{side}", kind]
        for a, b in zip(own[:2], found[USED, kind][:2], strict=True):
            lengths = np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
            cells += [f"{(unit(a) * unit(b)).sum(1).mean():.3f}", f"{lengths.mean():.2f}"]
        said = (unit(own[1]) @ unit(texts.embeddings).T).argmax(1)
        print(f"| {' | '.join(cells)} | {(said == truth).mean():.3f} | {own[2]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
