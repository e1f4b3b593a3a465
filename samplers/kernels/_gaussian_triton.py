"""`gaussian.gaussian_step` in Triton: reads x, v and noise once, writes the next state and its density."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from samplers.kernels.layout import MemoryLayout, in_pieces
from samplers.step import Step

WARPS = 4


@triton.jit
def _step(
    x_ptr, v_ptr, noise_ptr, next_ptr, log_prob_ptr, step_ptr, slabs, positions, channels, numbers, stride_p, stride_c,
    DENSITY: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    slab = tl.program_id(0)
    row = slab // slabs
    a = tl.load(step_ptr + row * 3)
    b = tl.load(step_ptr + row * 3 + 1)
    std = tl.load(step_ptr + row * 3 + 2)
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.arange(0, BLOCK_C)
    inside = p[:, None] * stride_p + c[None, :] * stride_c
    real = (p[:, None] < positions) & (c[None, :] < channels) & (inside < numbers)
    at = slab.to(tl.int64) * numbers + inside
    x = tl.load(x_ptr + at, mask=real, other=0.0).to(tl.float32)
    v = tl.load(v_ptr + at, mask=real, other=0.0).to(tl.float32)
    noise = tl.load(noise_ptr + at, mask=real, other=0.0).to(tl.float32)
    mean = a * x + b * v
    drawn = (mean + std * noise).to(next_ptr.dtype.element_ty)
    tl.store(next_ptr + at, drawn, mask=real)
    if DENSITY:
        z = (drawn.to(tl.float32) - mean) / std
        each = tl.where(real, -0.5 * z * z - tl.log(std) - 0.9189385332046727, 0.0)  # half the log of 2 pi
        tl.store(log_prob_ptr + slab.to(tl.int64) * positions + p, tl.sum(each, axis=1), mask=p < positions)


def gaussian_step(
    x: Tensor, v: Tensor, noise: Tensor, step: Step, layout: MemoryLayout | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Return the next state in `dtype`, and where there is a `layout` its density; see `gaussian.gaussian_step`."""
    x, v, noise = x.contiguous(), v.contiguous(), noise.contiguous()
    walk = in_pieces(math.prod(x.shape[1:])) if layout is None else layout
    numbers = step.coefficients.to(x.device, torch.float32).expand(len(x), 3).contiguous()
    x_next = torch.empty_like(x, dtype=dtype)
    log_prob = x.new_empty(len(x), walk.slabs * walk.positions, dtype=torch.float32) if layout is not None else None
    block_p, block_c = walk.block
    _step[(len(x) * walk.slabs, walk.blocks)](
        x, v, noise, x_next, x_next if log_prob is None else log_prob, numbers,
        walk.slabs, walk.positions, walk.channels, walk.numbers, *walk.strides,
        DENSITY=log_prob is not None, BLOCK_P=block_p, BLOCK_C=block_c, num_warps=WARPS,
    )  # fmt: skip
    return x_next, log_prob
