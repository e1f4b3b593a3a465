"""A step of a sampler and the density of what it drew, in one pass over memory."""

from __future__ import annotations

import torch
from torch import Tensor

from samplers.kernels.dispatch import fused
from samplers.kernels.layout import MemoryLayout
from samplers.step import Step


def gaussian_sample(x: Tensor, v: Tensor, noise: Tensor, step: Step, dtype: torch.dtype) -> Tensor:
    """Return a x + b v + std noise in `dtype`, shaped like `x`; see `gaussian_step`."""
    if not fused(x, v, noise) or not one_a_row(step):
        return step.sample(x, v, noise).to(dtype)
    from samplers.kernels._gaussian_triton import gaussian_step as kernel

    return kernel(x, v, noise, step, None, dtype)[0]


def gaussian_step(x: Tensor, v: Tensor, noise: Tensor, step: Step, layout: MemoryLayout) -> tuple[Tensor, Tensor]:
    """Return (the next state in the dtype of `x`, its log density at each position).

    The density is that of the state as it was rounded, which is what training will see.

    Args:
        x: `[n, *latent]`.
        v: Network output, of the same shape.
        noise: Standard normal, of the same shape.
        step: The three numbers; at least one of a row's std has to be above 0.
        layout: Which numbers of a state are the channels of a position.

    Returns:
        `[n, *latent]`, and `[n, positions]` float32, summed over channels.
    """
    if fused(x, v, noise) and one_a_row(step):
        from samplers.kernels._gaussian_triton import gaussian_step as kernel

        x_next, log_prob = kernel(x, v, noise, step, layout, x.dtype)
        assert log_prob is not None
        return x_next, log_prob
    x_next = step.sample(x, v, noise).to(x.dtype)
    return x_next, layout.reduced(step.log_prob(x, v, x_next).flatten(1))


def one_a_row(step: Step) -> bool:
    """Return whether the numbers of a step are the same for all elements of a row."""
    return step.std.ndim < 2
