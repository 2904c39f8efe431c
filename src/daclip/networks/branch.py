"""A part of a network that runs only where something asks for it, in exported graphs, too."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def changed_if(asked: Tensor, change: Callable[..., Tensor], photo: Tensor, *others: Tensor) -> Tensor:
    """change(photo, *others), which leaves the photo as it is unless `asked`: then it is left out.

    Args:
        asked: one truth for the whole batch.
        change: gives a tensor of the shape and kind of the photo.
        photo: what may be changed.
        others: what else it is made from.
    """
    if torch.compiler.is_exporting():
        return torch.cond(asked, change, lambda photo, *_: photo.clone(), (photo, *others))
    # the question would halt a GPU; compiled code and tensors without contents cannot answer it
    can_tell = asked.is_cpu and not torch.compiler.is_compiling() and not isinstance(asked, FakeTensor)
    return change(photo, *others) if not can_tell or asked else photo
