"""Activation checkpointing: maps inside a part are computed again in the backward pass, and not kept."""

from collections.abc import Callable
from typing import Any

from torch import is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint

from daclip.errors import UsageError


def run(part: Callable[..., Any], *inputs: Any, recompute: bool) -> Any:
    """The part on its inputs; with `recompute` these alone are kept for the backward pass."""
    if recompute and is_grad_enabled():
        return checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)
    return part(*inputs)


def checkpoint_activations(network: nn.Module) -> None:
    """Let the parts of a network that can, those with the attribute `checkpoint_activations`, recompute.

    Raises UsageError where there are none.
    """
    parts: list[Any] = [each for each in network.modules() if hasattr(each, "checkpoint_activations")]
    if not parts:
        raise UsageError(
            f"checkpoint_activations: {type(network).__name__} has no parts that can", hint="leave it false"
        )
    for part in parts:
        part.checkpoint_activations = True
