"""DDIM with eta: the family between the ODE (0) and the DDPM posterior (1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from samplers.dynamics.base import Dynamics
from samplers.dynamics.renoise import renoise
from samplers.errors import SamplingError
from samplers.paths.grid import Grid
from samplers.step import Step


@dataclass(frozen=True)
class DDIM(Dynamics):
    """std = eta sigma' sqrt(1 - (alpha sigma' / (alpha' sigma))^2), for networks that predict eps, v, x0 or a flow.

    With eta = 1 this is the spread of the posterior q(x' | x, x0) of any path x = alpha x0 + sigma eps. On the DDPM
    family it equals eq. 16 of the paper, (sigma' / sigma) sqrt(1 - alpha^2 / alpha'^2), which holds where
    alpha^2 + sigma^2 = 1: on a rectified flow that may exceed sigma', and where sigmas explode (alpha = 1) it is 0.

    Attributes:
        eta: Share of the posterior's spread, >= 0; DDPO and DanceGRPO on SD use 1.

    Source: DDIM (arXiv 2010.02502), eq. 12 and 16; DDPO (arXiv 2305.13301).
    """

    eta: float = 1.0
    marginal: ClassVar[bool] = True
    noise: ClassVar[tuple[str, ...]] = ("eta",)

    def __post_init__(self) -> None:
        if not 0 <= self.eta < math.inf:
            raise SamplingError(f"eta must be >= 0 and finite, got {self.eta}")

    @property
    def stochastic(self) -> bool:
        """Whether eta > 0."""
        return self.eta > 0

    def step(self, grid: Grid, i: int, j: int) -> Step:
        """Return the step with the posterior's standard deviation times eta."""
        (alpha, sigma), (alpha_next, sigma_next) = grid.departures[i], grid.arrivals[j - 1]
        kept = (alpha * sigma_next / (alpha_next * sigma)) ** 2 if alpha_next > 0 else 1.0
        return renoise(grid, i, j, std=self.eta * sigma_next * math.sqrt(max(1 - kept, 0.0)))
