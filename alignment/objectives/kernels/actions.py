"""Recorded actions, the ratios of their likelihoods, and the clipped loss of a ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from samplers import Step

Channels = Literal["sum", "mean"]

LARGEST_LOG_RATIO = 20.0
"""Where ratios stop growing: far outside any clip range, and far below where float32 overflows (88) and 0 times
infinity makes NaN of a gradient."""


@dataclass(frozen=True)
class Actions:
    """What was done at one trained step.

    Attributes:
        x: `[n, *latent]`, the states.
        x_next: `[n, A, *latent]`, the actions drawn from each.
        model_output: `[n, *latent]`, the model output that drew them.
        step: The three numbers.
    """

    x: Tensor
    x_next: Tensor
    model_output: Tensor
    step: Step


@dataclass(frozen=True)
class Ratios:
    """Statistics of likelihood ratios, `[n]` each, over the actions and positions of a row; without graph.

    Attributes:
        mean: Their mean.
        largest: Their maximum.
        smallest: Their minimum.
        outside: Share of them outside the clip range.
    """

    mean: Tensor
    largest: Tensor
    smallest: Tensor
    outside: Tensor

    @classmethod
    def of(cls, ratio: Tensor, clip: float) -> Ratios:
        """Return the statistics of ratios `[n, A, ...]`."""
        flat = ratio.detach().flatten(1)
        outside = ((flat - 1).abs() > clip).float()
        return cls(flat.mean(dim=1), flat.amax(dim=1), flat.amin(dim=1), outside.mean(dim=1))


def clipped(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Return the larger (more pessimistic) of the losses with and without the clip."""
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


def ratio_of(log_ratio: Tensor) -> Tensor:
    """Return rho, at most e^20; the gradient beyond is that of e^20, which pulls back what has gone too far."""
    excess = (log_ratio - LARGEST_LOG_RATIO).clamp(min=0).detach()
    return (log_ratio - excess).exp()
