"""What forward-process objectives do at the latent's size: noise clean samples, and measure model errors."""

from __future__ import annotations

import torch
from torch import Tensor

from samplers.kernels.dispatch import fused
from samplers.paths.path import Path, noised, target, target_shares


def noised_pair(path: Path, x0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return (x_t, what a perfect network returns there), each `[n, *latent]` in the dtype of `x0`.

    Args:
        path: The forward process.
        x0: `[n, *latent]`, clean samples.
        noise: Standard normal, of the same shape.
        t: `[n]` in [0, 1].
    """
    if fused(x0, noise):
        from alignment.objectives.kernels._matching_triton import noised_pair as kernel

        return kernel(x0, noise, (*path.marginal(t), *target_shares(path, t)))
    return noised(path, x0, noise, t).to(x0.dtype), target(path, x0, noise, t).to(x0.dtype)


def matching_error(model_output: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean square of each row's error, `[n]`, at least in float32, with its gradient.

    A weight of a row multiplies what is returned.

    Args:
        model_output: `[n, *latent]`, the model output, with graph.
        wanted: `[n, *latent]`, what a perfect network returns.
    """
    if fused(model_output, wanted):
        from alignment.objectives.kernels._matching_triton import matching_error as kernel

        return kernel(model_output, wanted)
    wanted = wanted.to(torch.promote_types(wanted.dtype, torch.float32))
    return (model_output - wanted).square().flatten(1).mean(dim=1)
