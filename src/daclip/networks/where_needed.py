"""Parts of a network that an exported graph computes only for photos that need them."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def where_needed(
    part: Callable[..., Tensor],
    needed: Bool[Tensor, "b"],
    x: Float[Tensor, "b c h w"],
    *told: Tensor,
) -> Float[Tensor, "b c h w"]:
    """`part(x, *told)`, which must give back x itself for photos that do not need it.

    Exported, it becomes an `If` that leaves the part out where no photo of the batch needs it. Torch computes
    it always: a branch by values would break compiled networks, and those on tensors without contents.
    """
    if not torch.compiler.is_exporting():
        return part(x, *told)
    return torch.cond(needed.any(), part, lambda x, *_: x.clone(), (x, *told))
