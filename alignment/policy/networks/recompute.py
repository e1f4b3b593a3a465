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
PRODUCTS = [_aten.mm.default, _aten.addmm.default]
ATTENTION = [
    _aten.convolution.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
]
"""Operators whose answers a backward pass needs in any case, or the layer behind them does."""


def let_recompute(network: Any, how: bool | Literal["selective"], *, whole: bool) -> None:
    """Let a network of diffusers recompute activations of its blocks in the backward pass.

    Args:
        network: The network.
        how: Not at all, all of them, or but for those that take more to make than to keep.
        whole: Whether its own weights are trained. Beside adapters the answers of frozen layers are not needed for
            anything, so that keeping them would take more than recomputing nothing.
    """
    kept = [*ATTENTION, *(PRODUCTS if whole else [])]
    contexts = functools.partial(create_selective_checkpoint_contexts, kept)

    def selectively(block: Callable[..., Any], *args: Any) -> Any:
        return checkpoint(block, *args, use_reentrant=False, context_fn=contexts)

    if how:
        network.enable_gradient_checkpointing(selectively if how == "selective" else None)
