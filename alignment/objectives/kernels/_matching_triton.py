"""`matching` in Triton: x_t and target from one reading of x0 and noise, error and gradient from one of v."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
WARPS = 4


@triton.jit
def _noise(clean_ptr, noise_ptr, mix_ptr, x_ptr, target_ptr, numbers, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = i < numbers
    at = row.to(tl.int64) * numbers + i
    clean = tl.load(clean_ptr + at, mask=real, other=0.0).to(tl.float32)
    noise = tl.load(noise_ptr + at, mask=real, other=0.0).to(tl.float32)
    mix = mix_ptr + row * 4
    x = tl.load(mix) * clean + tl.load(mix + 1) * noise
    wanted = tl.load(mix + 2) * clean + tl.load(mix + 3) * noise
    tl.store(x_ptr + at, x.to(x_ptr.dtype.element_ty), mask=real)
    tl.store(target_ptr + at, wanted.to(target_ptr.dtype.element_ty), mask=real)


@triton.jit
def _error(v_ptr, target_ptr, grad_ptr, sums_ptr, numbers, scale, BLOCK: tl.constexpr):
    row, block = tl.program_id(0), tl.program_id(1)
    i = block * BLOCK + tl.arange(0, BLOCK)
    real = i < numbers
    at = row.to(tl.int64) * numbers + i
    v = tl.load(v_ptr + at, mask=real, other=0.0).to(tl.float32)
    wanted = tl.load(target_ptr + at, mask=real, other=0.0).to(tl.float32)
    error = v - wanted
    tl.store(grad_ptr + at, (2 * scale * error).to(grad_ptr.dtype.element_ty), mask=real)
    tl.store(sums_ptr + row.to(tl.int64) * tl.num_programs(1) + block, scale * tl.sum(error * error, axis=0))


class _MeanSquare(torch.autograd.Function):
    """An error whose gradient was computed with it; the target has none."""

    @staticmethod
    def forward(ctx: Any, model_output: Tensor, wanted: Tensor) -> Tensor:
        v, wanted = model_output.contiguous(), wanted.contiguous()
        size = math.prod(v.shape[1:])
        block = 1 << (min(size, BLOCK) - 1).bit_length()
        grid = (len(v), -(-size // block))
        grad, sums = torch.empty_like(v), v.new_empty(grid, dtype=torch.float32)
        _error[grid](v, wanted, grad, sums, size, 1.0 / size, BLOCK=block, num_warps=WARPS)
        ctx.save_for_backward(grad)
        return sums.sum(dim=1)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (grad,) = ctx.saved_tensors
        return grad * upstream[0].reshape(-1, *(1,) * (grad.ndim - 1)).to(grad.dtype), None


def noised_pair(x0: Tensor, noise: Tensor, mix: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return two mixtures of x0 and noise; `mix` has their factors, `[n]` each: two of the state, two of the target."""
    x0, noise = x0.contiguous(), noise.contiguous()
    size = math.prod(x0.shape[1:])
    block = 1 << (min(size, BLOCK) - 1).bit_length()
    factors = torch.stack([number.to(x0.device, torch.float32).expand(len(x0)) for number in mix], dim=1)
    x, wanted = torch.empty_like(x0), torch.empty_like(x0)
    grid = (len(x0), -(-size // block))
    _noise[grid](x0, noise, factors, x, wanted, size, BLOCK=block, num_warps=WARPS)
    return x, wanted


def matching_error(model_output: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean square of each row's error, `[n]` float32; see `matching.matching_error`."""
    return _MeanSquare.apply(model_output, wanted)  # type: ignore[return-value]
