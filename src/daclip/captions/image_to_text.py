"""Captions by any image-to-text model that `transformers` loads: BLIP, as in the paper, GIT, ViT-GPT2, ..."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from daclip.captions.sources import Captioner
from daclip.data import read_pixels
from daclip.errors import ModelError, UsageError

PAPER_MODEL = "Salesforce/blip-image-captioning-large"
"""What the paper's captions were most likely made with (PAPER 1.5)."""

MAX_TOKENS = 32


def captioner(model: str, *, device: str = "auto") -> Captioner:
    """A captioner that shows photos to a model: greedy, at most 32 tokens, so the same photo, the same words.

    Args:
        model: a folder, or a name on the hub; nothing is fetched but what that name holds, and no code is run
            from it.
        device: of torch; "auto" takes a GPU where there is one.

    Raises ModelError when the model is not there or is of another kind, UsageError for an unknown device.
    """
    try:
        looks: Any = transformers.AutoImageProcessor.from_pretrained(model)
        words: Any = transformers.AutoTokenizer.from_pretrained(model)
        network: Any = transformers.AutoModelForImageTextToText.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{model}: no image-to-text model ({reason})", hint=f"name a folder, or one such as {PAPER_MODEL}"
        ) from error
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        place = torch.device(name)
        network = network.to(place).eval()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"no device {name} ({reason})", hint="--device auto takes what is there") from error

    def describe(photos: Sequence[Path]) -> list[str | None]:
        pictures = [Image.fromarray(read_pixels(photo)) for photo in photos]
        pixels = looks(images=pictures, return_tensors="pt")["pixel_values"].to(place)
        with torch.inference_mode():
            tokens = network.generate(
                pixel_values=pixels, max_new_tokens=MAX_TOKENS, do_sample=False, num_beams=1
            )
        texts: list[str] = words.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(text.split()) or None for text in texts]

    return describe
