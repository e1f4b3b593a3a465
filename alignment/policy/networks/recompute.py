"""Which activations a backward pass finds, and which it computes again.

All of a block may be computed again; or, selectively, what takes less to make than to keep.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

_aten = torch.ops.aten
KEPT = [
    _aten.mm.default,
    _aten.addmm.default,
    _aten.convolution.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
]
"""Operators whose answers are kept selectively: a number of theirs takes as many products as a row is wide."""


def let_recompute(network: Any, how: bool | Literal["selective"]) -> None:
    """Let a network of diffusers recompute activations of its blocks in the backward pass."""
    if how:
        network.enable_gradient_checkpointing(_selectively if how == "selective" else None)


def _selectively(block: Callable[..., Any], *args: Any) -> Any:
    contexts = functools.partial(create_selective_checkpoint_contexts, KEPT)
    return checkpoint(block, *args, use_reentrant=False, context_fn=contexts)
