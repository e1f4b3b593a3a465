"""`surrogate.clipped_surrogate` in Triton.

With a map, one pass reads v, v_old, x, x' and A and writes the gradient: a position's channels are in registers, so its
ratio is known before the gradient is written. With a scalar a ratio needs its whole row: one pass sums log ratios, and
one writes the gradient. Neither writes ratios, densities or advantages of the latent's size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from alignment.objectives.kernels.actions import LARGEST_LOG_RATIO, Actions, Channels, Ratios, clipped, ratio_of
from samplers.kernels.layout import MemoryLayout

WARPS = 4
LARGEST = tl.constexpr(LARGEST_LOG_RATIO)


@triton.jit
def _map(
    v_ptr, old_ptr, x_ptr, next_ptr, advantage_ptr, step_ptr, grad_ptr, stats_ptr, actions, slabs, positions, channels,
    stride_p, stride_c, clip, density_scale, loss_scale, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    slab = tl.program_id(0)
    row, of_row = slab // slabs, slab % slabs
    a = tl.load(step_ptr + row * 3)
    b = tl.load(step_ptr + row * 3 + 1)
    std = tl.load(step_ptr + row * 3 + 2)
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.arange(0, BLOCK_C)
    here = p < positions
    real = here[:, None] & (c[None, :] < channels)
    inside = p[:, None] * stride_p + c[None, :] * stride_c
    at = slab.to(tl.int64) * positions * channels + inside
    x = tl.load(x_ptr + at, mask=real, other=0.0).to(tl.float32)
    old = tl.load(old_ptr + at, mask=real, other=0.0).to(tl.float32)
    v = tl.load(v_ptr + at, mask=real, other=0.0).to(tl.float32)
    mean_old = a * x + b * old
    shift = b * (v - old)
    per_variance = density_scale / (std * std)
    grad = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    loss = tl.zeros((BLOCK_P,), tl.float32)
    total = tl.zeros((BLOCK_P,), tl.float32)
    largest = tl.zeros((BLOCK_P,), tl.float32)
    smallest = tl.full((BLOCK_P,), float("inf"), tl.float32)
    outside = tl.zeros((BLOCK_P,), tl.float32)
    for action in range(actions):
        place = (row.to(tl.int64) * actions + action) * slabs + of_row
        x_next = tl.load(next_ptr + place * positions * channels + inside, mask=real, other=0.0).to(tl.float32)
        credit = tl.load(advantage_ptr + place * positions + p, mask=here, other=0.0)
        error = tl.where(real, x_next - mean_old, 0.0)
        ratio = tl.exp(tl.minimum(tl.sum(shift * (error - 0.5 * shift), axis=1) * per_variance, LARGEST))
        cut = tl.minimum(tl.maximum(ratio, 1 - clip), 1 + clip)
        loss += tl.maximum(-credit * ratio, -credit * cut)
        dead = ((credit > 0) & (ratio > 1 + clip)) | ((credit < 0) & (ratio < 1 - clip))
        pull = tl.where(dead, 0.0, -credit * ratio) * loss_scale * per_variance * b
        grad += pull[:, None] * (error - shift)
        total += ratio
        largest = tl.maximum(largest, ratio)
        smallest = tl.minimum(smallest, ratio)
        outside += tl.where(tl.abs(ratio - 1) > clip, 1.0, 0.0)
    tl.store(grad_ptr + at, grad.to(grad_ptr.dtype.element_ty), mask=real)
    statistics = stats_ptr + (slab.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * 5
    tl.store(statistics, tl.sum(tl.where(here, loss, 0.0), axis=0))
    tl.store(statistics + 1, tl.sum(tl.where(here, total, 0.0), axis=0))
    tl.store(statistics + 2, tl.max(tl.where(here, largest, 0.0), axis=0))
    tl.store(statistics + 3, tl.min(tl.where(here, smallest, float("inf")), axis=0))
    tl.store(statistics + 4, tl.sum(tl.where(here, outside, 0.0), axis=0))


@triton.jit
def _sum(
    v_ptr, old_ptr, x_ptr, next_ptr, step_ptr, sums_ptr, actions, numbers, BLOCK: tl.constexpr,
):  # fmt: skip
    row, block = tl.program_id(0), tl.program_id(1)
    a = tl.load(step_ptr + row * 3)
    b = tl.load(step_ptr + row * 3 + 1)
    std = tl.load(step_ptr + row * 3 + 2)
    i = block * BLOCK + tl.arange(0, BLOCK)
    real = i < numbers
    at = row.to(tl.int64) * numbers + i
    x = tl.load(x_ptr + at, mask=real, other=0.0).to(tl.float32)
    old = tl.load(old_ptr + at, mask=real, other=0.0).to(tl.float32)
    v = tl.load(v_ptr + at, mask=real, other=0.0).to(tl.float32)
    mean_old = a * x + b * old
    shift = b * (v - old)
    for action in range(actions):
        place = row.to(tl.int64) * actions + action
        x_next = tl.load(next_ptr + place * numbers + i, mask=real, other=0.0).to(tl.float32)
        each = tl.where(real, shift * (x_next - mean_old - 0.5 * shift), 0.0)
        tl.store(sums_ptr + place * tl.num_programs(1) + block, tl.sum(each, axis=0) / (std * std))


@triton.jit
def _pull(
    v_ptr, x_ptr, next_ptr, step_ptr, pull_ptr, grad_ptr, actions, numbers, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    a = tl.load(step_ptr + row * 3)
    b = tl.load(step_ptr + row * 3 + 1)
    std = tl.load(step_ptr + row * 3 + 2)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = i < numbers
    at = row.to(tl.int64) * numbers + i
    x = tl.load(x_ptr + at, mask=real, other=0.0).to(tl.float32)
    v = tl.load(v_ptr + at, mask=real, other=0.0).to(tl.float32)
    mean = a * x + b * v
    grad = tl.zeros((BLOCK,), tl.float32)
    for action in range(actions):
        place = row.to(tl.int64) * actions + action
        x_next = tl.load(next_ptr + place * numbers + i, mask=real, other=0.0).to(tl.float32)
        grad += tl.load(pull_ptr + place) * (x_next - mean)
    tl.store(grad_ptr + at, (grad * b / (std * std)).to(grad_ptr.dtype.element_ty), mask=real)


class _Known(torch.autograd.Function):
    """A loss whose gradient was computed with it."""

    @staticmethod
    def forward(ctx: Any, model_output: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * upstream[0].reshape(-1, *(1,) * (grad.ndim - 1)).to(grad.dtype), None, None


def _ready(actions: Actions, model_output: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    numbers = actions.step.coefficients.to(model_output.device, torch.float32).expand(len(model_output), 3).contiguous()
    arrays = (model_output.detach(), actions.model_output, actions.x, actions.x_next)
    v, old, x, x_next = (z.contiguous() for z in arrays)
    return v, old, x, x_next, numbers


def clipped_map(
    model_output: Tensor, actions: Actions, advantage: Tensor, layout: MemoryLayout, clip: float, channels: Channels
) -> tuple[Tensor, Ratios]:
    """Return the loss and ratios of a map of credit; see `surrogate.clipped_surrogate`."""
    v, old, x, x_next, numbers = _ready(actions, model_output)
    n, count, positions = len(v), x_next.shape[1], layout.slabs * layout.positions
    credit = advantage.to(torch.float32).reshape(n, count, positions).contiguous()
    grad = torch.empty_like(v)
    statistics = v.new_empty(n, layout.slabs * layout.blocks, 5, dtype=torch.float32)
    block_p, block_c = layout.block
    _map[(n * layout.slabs, layout.blocks)](
        v, old, x, x_next, credit, numbers, grad, statistics, count, layout.slabs, layout.positions, layout.channels,
        *layout.strides, clip, 1.0 if channels == "sum" else 1.0 / layout.channels, 1.0 / (count * positions),
        BLOCK_P=block_p, BLOCK_C=block_c, num_warps=WARPS,
    )  # fmt: skip
    loss, total, outside = (statistics[..., i].sum(dim=1) / (count * positions) for i in (0, 1, 4))
    ratios = Ratios(total, statistics[..., 2].amax(dim=1), statistics[..., 3].amin(dim=1), outside)
    return _Known.apply(model_output, loss, grad), ratios  # type: ignore[return-value]


def clipped_scalar(
    model_output: Tensor, actions: Actions, advantage: Tensor, clip: float, channels: Channels
) -> tuple[Tensor, Ratios]:
    """Return the loss and ratios of one credit a sample; see `surrogate.clipped_surrogate`."""
    v, old, x, x_next, numbers = _ready(actions, model_output)
    n, count, size = len(v), x_next.shape[1], math.prod(v.shape[1:])
    block = 1 << (min(size, 2048) - 1).bit_length()
    grid = (n, -(-size // block))
    sums = v.new_empty(n, count, grid[1], dtype=torch.float32)
    _sum[grid](v, old, x, x_next, numbers, sums, count, size, BLOCK=block, num_warps=WARPS)
    scale = 1.0 if channels == "sum" else 1.0 / size
    ratio = ratio_of(sums.sum(dim=2) * scale)
    dead = ((advantage > 0) & (ratio > 1 + clip)) | ((advantage < 0) & (ratio < 1 - clip))
    pull = torch.where(dead, 0.0, -advantage * ratio) * (scale / count)
    grad = torch.empty_like(v)
    _pull[grid](v, x, x_next, numbers, pull.contiguous(), grad, count, size, BLOCK=block, num_warps=WARPS)
    loss = clipped(ratio, advantage, clip).mean(dim=1)
    return _Known.apply(model_output, loss, grad), Ratios.of(ratio, clip)  # type: ignore[return-value]
