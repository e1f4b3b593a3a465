"""DDIM with eta: the family between the ODE (0) and the DDPM posterior (1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from samplers.dynamics._renoise import renoise
from samplers.dynamics.base import Dynamics
from samplers.grid import Grid
from samplers.step import Step


@dataclass(frozen=True)
class DDIM(Dynamics):
    """std = eta (sigma' / sigma) sqrt(1 - alpha^2 / alpha'^2), for networks that predict eps, v, x0 or a flow.

    On the DDPM family this is eq. 16 of the paper; on a rectified flow it is the same formula in (alpha, sigma).

    Attributes:
        eta: Share of the posterior's spread, >= 0; DDPO and DanceGRPO on SD use 1.

    Source: DDIM (arXiv 2010.02502), eq. 12 and 16; DDPO (arXiv 2305.13301).
    """

    eta: float = 1.0
    marginal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.eta:
            raise ValueError(f"eta must be >= 0, got {self.eta}")

    @property
    def stochastic(self) -> bool:
        """Whether eta > 0."""
        return self.eta > 0

    def step(self, grid: Grid, i: int, j: int) -> Step:
        """Return the step with the posterior's standard deviation times eta."""
        (alpha, sigma), (alpha_next, sigma_next) = grid.departures[i], grid.arrivals[j - 1]
        spread = max(1 - (alpha / alpha_next) ** 2, 0.0)
        return renoise(grid, i, j, std=self.eta * sigma_next / sigma * math.sqrt(spread))
