"""A target for which every sampler's result is known in closed form: x0 ~ N(m, v0), one coordinate.

V(t) = (1 - t)^2 v0 + t^2, and the perfect network's answer is affine in x. So is every step, x' = A x + B + std z, and
mean and variance go through it exactly: nothing is sampled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from samplers.dynamics.base import Dynamics
from samplers.paths.grid import Grid, flow_grid
from samplers.step import Step


def shifted(n: int, shift: float = 1.0, first: float = 1.0, last: float = 0.0) -> Grid:
    """Return n steps, even before the static shift k t / (1 + (k - 1) t)."""
    t = torch.linspace(first, last, n + 1, dtype=torch.float64)
    return flow_grid(shift * t / (1 + (shift - 1) * t))


@dataclass(frozen=True)
class Gaussian:
    """The target, with mean `m` and variance `v0`."""

    m: float = 1.0
    v0: float = 0.25

    def variance(self, t: float) -> float:
        """Return V(t)."""
        return (1 - t) ** 2 * self.v0 + t * t

    def velocity(self, t: float) -> tuple[float, float]:
        """Return (slope, offset) of the perfect answer, v = slope x + offset."""
        gain = (1 - t) * self.v0 / self.variance(t)
        return (1 - gain) / t, -(self.m - gain * (1 - t) * self.m) / t

    def flow(self, x: float, t: float, s: float) -> float:
        """Return where the probability flow takes x from t to s."""
        return (1 - s) * self.m + math.sqrt(self.variance(s) / self.variance(t)) * (x - (1 - t) * self.m)

    def through(self, step: Step, t: float, mean: float, variance: float) -> tuple[float, float]:
        """Return mean and variance after a step from t."""
        slope, offset = self.velocity(t)
        a, b, std = step.a.item(), step.b.item(), step.std.item()
        factor = a + b * slope
        return factor * mean + b * offset, factor * factor * variance + std * std

    def result(self, dynamics: Dynamics, grid: Grid) -> tuple[float, float]:
        """Return mean and variance at the end of the grid, from the exact marginal at its start."""
        t = grid.sigma(0)
        mean, variance = (1 - t) * self.m, self.variance(t)
        for i in range(len(grid)):
            mean, variance = self.through(dynamics.step(grid, i, i + 1), grid.sigma(i), mean, variance)
        return mean, variance
