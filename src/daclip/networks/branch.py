"""A part of a network that an exported graph runs only where something asks for it."""

from collections.abc import Callable

import torch
from torch import Tensor


def changed_if(asked: Tensor, change: Callable[..., Tensor], photo: Tensor, *others: Tensor) -> Tensor:
    """change(photo, *others), which leaves the photo as it is unless `asked`: then a graph leaves it out.

    Args:
        asked: one truth for the whole batch.
        change: gives a tensor of the shape and kind of the photo.
        photo: what may be changed.
        others: what else it is made from.
    """
    if torch.compiler.is_exporting():
        return torch.cond(asked, change, lambda photo, *_: photo.clone(), (photo, *others))
    return change(photo, *others)  # a question would halt a GPU, and cannot be compiled
