"""Torch's own count of floating-point operations, with attention on CPUs, which some of its versions leave out."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

ATEN = torch.ops.aten
# By the shapes of what an operator is given; the last dimensions of queries, keys and values decide.
ATTENTION = {
    ATEN._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}


def flop_counter() -> FlopCounterMode:
    """Return a counter that counts while it is entered."""
    return FlopCounterMode(display=False, custom_mapping=ATTENTION)
