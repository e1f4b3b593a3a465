"""Steps that keep the nominal noise level: x' = alpha' x0 + sqrt(sigma'^2 - std^2) eps + std z."""

from __future__ import annotations

import math

from samplers.paths.grid import Grid
from samplers.step import Step


def renoise(grid: Grid, i: int, j: int, std: float) -> Step:
    """Return the step whose mean re-noises the clean prediction with what `std` leaves of the noise level.

    (coefficient of eps)^2 + std^2 = sigma'^2 holds at every step; std = 0 is DDIM, and Euler on a rectified flow.
    """
    alpha, sigma = grid.arrivals[j - 1]
    (cx, cv), (ex, ev) = grid.linear(i)
    kept = math.sqrt(max(sigma * sigma - std * std, 0.0))
    return Step.of(alpha * cx + kept * ex, alpha * cv + kept * ev, std)
