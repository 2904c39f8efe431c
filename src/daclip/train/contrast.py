"""CLIP's contrastive loss: photos and texts that belong together, told apart from all others of a batch."""

import torch
import torch.distributed
import torch.distributed.nn.functional
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def contrastive(
    logits: Float[Tensor, "n n"], not_negatives: Bool[Tensor, "n n"] | None = None
) -> Float[Tensor, ""]:
    """CLIP's symmetric cross-entropy: row i and column i belong together.

    Args:
        logits: photos by texts.
        not_negatives: symmetric; pairs to leave out of the denominators (PAPER.md 1.2 (a)).
    """
    if not_negatives is not None:
        others = not_negatives & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(others, -torch.inf)
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def attainable_floor(same: Bool[Tensor, "n n"]) -> float:
    """The least the unmasked loss can be: sum over the texts of n_k / n ln n_k, for n_k items of a text."""
    return float(same.sum(1).float().log().mean())


def gathered(features: Float[Tensor, "b d"]) -> Float[Tensor, "n d"]:
    """The features of all processes, with gradient through all of them.

    Each process then holds the gradient of its own features times the number of processes, and the mean over
    the processes is exactly that of one process with the whole batch.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return features
    return torch.cat(torch.distributed.nn.functional.all_gather(features))
