"""The probability-flow ODE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from samplers.dynamics.base import Dynamics
from samplers.dynamics.renoise import renoise
from samplers.paths.grid import Grid
from samplers.step import Step


@dataclass(frozen=True)
class ODE(Dynamics):
    """Euler on a rectified flow, DDIM with eta 0 on the DDPM family: the same formula in (x0, eps)."""

    marginal: ClassVar[bool] = True

    @property
    def stochastic(self) -> bool:
        """False: no noise, no density."""
        return False

    def step(self, grid: Grid, i: int, j: int) -> Step:
        """Return x' = alpha' x0 + sigma' eps."""
        return renoise(grid, i, j, std=0.0)
