"""The clipped loss of recorded actions, position by position, and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from alignment.objectives.kernels.actions import Actions, Channels, Ratios, clipped, ratio_of
from samplers.kernels.dispatch import fused
from samplers.kernels.gaussian import one_a_row
from samplers.kernels.layout import MemoryLayout, layout_of
from samplers.step import expand


def clipped_surrogate(
    model_output: Tensor, actions: Actions, advantage: Tensor, clip: float, channels: Channels
) -> tuple[Tensor, Ratios]:
    """Return each row's mean of max(-A rho, -A clip(rho, 1 - clip, 1 + clip)), and the statistics of its ratios.

    The mean is over actions and positions. rho = exp(l - l_old) with l the log density of what an action did to the
    channels of a position. The axes along which `advantage` has size 1 are the channels; with a scalar
    advantage the whole latent is one position.

    Args:
        model_output: `[n, *latent]`, the model output now, with graph.
        actions: What was recorded.
        advantage: `[n, A]`, or `[n, A, *map]` with a map that broadcasts against the latent.
        clip: Range of the ratio.
        channels: Whether a position's log density is the "sum" or the "mean" of its channels'.

    Returns:
        The loss, `[n]` float32, and the ratios.

    Raises:
        ValueError: If the step has no density.
    """
    if not actions.step.random:
        raise ValueError("a step with std 0 has no density: choose a stochastic dynamics for the trained steps")
    if fused(model_output, actions.x) and one_a_row(actions.step):
        latent = model_output.shape[1:]
        scalar = advantage.ndim == 2
        layout = None if scalar else layout_of(latent, advantage.shape[2:])
        if scalar or layout is not None:
            return _fused(model_output, actions, advantage, layout, clip, channels)
    ratio = ratio_of(log_ratio(model_output, actions, advantage, channels))
    return clipped(ratio, advantage, clip).flatten(1).mean(dim=1), Ratios.of(ratio, clip)


def _fused(
    model_output: Tensor,
    actions: Actions,
    advantage: Tensor,
    layout: MemoryLayout | None,
    clip: float,
    channels: Channels,
) -> tuple[Tensor, Ratios]:
    from alignment.objectives.kernels import _surrogate_triton as kernels

    if layout is None:
        return kernels.clipped_scalar(model_output, actions, advantage, clip, channels)
    return kernels.clipped_map(model_output, actions, advantage, layout, clip, channels)


def log_ratio(model_output: Tensor, actions: Actions, advantage: Tensor, channels: Channels) -> Tensor:
    """Return log rho of each action at each position, `[n, A]` or `[n, A, *map]`; see `clipped_surrogate`."""
    each = _elementwise(model_output, actions)
    axes = list(range(2, each.ndim))
    if advantage.ndim > 2:
        axes = [axis for axis in axes if advantage.shape[axis] == 1]
    if not axes:  # to torch, no axes are all of them
        return each
    keep = advantage.ndim > 2
    return each.sum(axes, keepdim=keep) if channels == "sum" else each.mean(axes, keepdim=keep)


def _elementwise(model_output: Tensor, actions: Actions) -> Tensor:
    """Return log rho of each element, `[n, A, *latent]` float32.

    With d mu = b (v - v_old) and e = x' - a x - b v_old, it is d mu (e - d mu / 2) / std^2: exactly 0 where v is v_old,
    and no two large densities have to cancel. An element without noise is not part of the action.
    """
    step = actions.step
    x, old, v = actions.x[:, None].float(), actions.model_output[:, None].float(), model_output[:, None].float()
    shift = expand(step.b, x) * (v - old)
    variance = expand(step.std, actions.x_next).square()
    moved = shift * ((actions.x_next.float() - expand(step.a, x) * x - expand(step.b, x) * old) - shift / 2)
    if one_a_row(step):
        return moved / variance
    return torch.where(variance > 0, moved / variance.clamp(min=torch.finfo(variance.dtype).tiny), 0.0)
