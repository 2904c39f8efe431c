"""A part of a network that is run only where something asks for it; a branch of the exported graph, too."""

from collections.abc import Callable

import torch
from torch import Tensor


def changed_if(asked: Tensor, change: Callable[..., Tensor], photo: Tensor, *others: Tensor) -> Tensor:
    """change(photo, *others) where `asked` is true, else the photo, which `change` would leave as it is.

    Args:
        asked: one truth for the whole batch.
        change: gives a tensor of the shape and kind of the photo.
        photo: what may be changed.
        others: what else it is made from.
    """
    if torch.compiler.is_exporting():
        return torch.cond(asked, change, lambda photo, *_: photo.clone(), (photo, *others))
    # a compiled network cannot ask: it runs all of itself
    if torch.compiler.is_compiling() or bool(asked):
        return change(photo, *others)
    return photo
